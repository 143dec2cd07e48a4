"""A student that `mvaema export` wrote, without torch: ONNX Runtime, tokenizers, Pillow and NumPy.

    python onnx_mvaema.py micrograph.png -q "How large are the grains?"

What is special about it:
- prompts, draws and answers are those of `MVaEMaModel`, and so are the names of its methods;
- an image is encoded once, and its keys and values serve all questions and all candidates;
- rows whose answer is complete leave the batch.

This file lies in the exported folder beside those that it imports, so that the folder is all that
a microscope's computer needs.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
import onnxruntime

from candidates_mvaema import (
    DECODINGS,
    DEFAULT_DECODING,
    USING_ITM,
    agreements,
    draw_numbers,
    trained_methods,
)
from lengths_mvaema import measured_answers
from pixels_mvaema import to_8bit
from prompt_mvaema import prompt

GRAPHS = ("vision", "text", "grounded", "decoder")
WEIGHTS = "weights.bin"  # of all graphs
# Beam search and the contrast with a blank image need torch.
RUNNABLE = ("greedy", "sample", "consensus", "rerank", "consensus+itm")

# A decoder's step with fewer states (rows × width) is computed by one thread: two are slower, by
# 1.5x for ten questions about one micrograph at `paper`, 1.45x at `small`, 1.1x at `lite`.
SHARED = 8192

# Keys and values of each layer, (rows, heads, length, head_dim) each: layer -> array.
KeysAndValues = tuple[list[np.ndarray], list[np.ndarray]]


@dataclass
class Seen:
    """Images as texts attend to them.

    Attributes:
        embeds: float32 (images, projection_dim), normalised, as ITC compares them.
        keys_and_values: (images, heads, image tokens, head_dim) each.
    """

    embeds: np.ndarray
    keys_and_values: KeysAndValues


class OnnxStudent:
    """A student in an exported folder.

    Args:
        folder: as `mvaema export` wrote it.
        threads: of ONNX Runtime; None for what OMP_NUM_THREADS says, or as many as there are cores.

    Attributes:
        questions: question id to question, those that the student was trained on.
        categories: category to the caption that names it.
        methods: the ways to classify, of ITC, ITM, LM and ITC+ITM, that it was trained for.
        longest: answer that the student gives, in tokens.

    Raises:
        FileNotFoundError: the folder holds no exported student.
    """

    def __init__(self, folder: str | os.PathLike, threads: int | None = None):
        self.folder = Path(folder)
        files = (*(f"{name}.onnx" for name in GRAPHS), WEIGHTS)
        if missing := [name for name in files if not (self.folder / name).is_file()]:
            raise FileNotFoundError(
                f"{folder} holds no exported student: {', '.join(missing)} is missing. Write one "
                "with mvaema export."
            )
        self.config = self._json("config")
        self.generation = self._json("generation_config")
        self.images = self._json("processor_config")["image_processor"]
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = True  # a special token's name is only a word
        self.max_length = self._json("tokenizer_config")["model_max_length"]
        self.questions: dict[str, str] = self.config["questions"]
        self.categories: dict[str, str] = self.config["categories"]
        self.methods = trained_methods(self.config)
        most = self.config["max_position_embeddings"]
        self.longest: int = min(self.generation["max_new_tokens"] or most, most)
        self._sessions: dict[tuple[str, int], onnxruntime.InferenceSession] = {}
        said = os.environ.get("OMP_NUM_THREADS", "")
        if threads is None:
            threads = int(said) if said.isdecimal() else 0  # as many as there are cores
        self.threads = threads

    def _json(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    # ---- for people ------------------------------------------------------------------------------

    @property
    def default_decoding(self) -> str:
        """How `answer` decodes by itself, as for `MVaEMaModel`."""
        return self.generation.get("decoding") or DEFAULT_DECODING

    def check_decoding(self, decoding: str | None = None) -> str:
        """How `answer` would decode.

        Raises:
            ValueError: there is no such decoding here, or it needs a matching head that was not
                trained.
        """
        decoding = decoding or self.default_decoding
        if decoding not in RUNNABLE:
            raise ValueError(
                f"decoding must be one of {', '.join(RUNNABLE)} without torch; got {decoding!r}."
            )
        if decoding in USING_ITM:
            self._check_matching(f"decoding={decoding!r}")
        return decoding

    def answer(
        self,
        images,
        questions: str | Sequence[str] | None = None,
        captions: str | Sequence[str | None] | None = None,
        pixel_size_nm: float | Sequence[float | None] | None = None,
        scale_bars: str | Sequence[str | None] | None = None,
        measurements: str | Sequence[str | None] | None = None,
        batch_size: int = 8,
        decoding: str | None = None,
        max_new_tokens: int | None = None,
    ) -> str | list | dict:
        """Answer questions about micrographs; see `MVaEMaModel.answer`, whose answers these are.

        Args:
            decoding: one of `RUNNABLE`; the student's own when `None`.
            max_new_tokens: longest answer in tokens; the student's own setting when `None`.

        Raises:
            ValueError: there is no such decoding here, or it needs a matching head that was not
                trained; there are no questions; or there is not one value for each image.
        """
        decoding = self.check_decoding(decoding)
        single = not isinstance(images, list | tuple)
        images = [images] if single else list(images)
        asked = self.questions.values() if questions is None else questions
        texts = [asked] if isinstance(asked, str) else list(asked)
        if not texts:
            raise ValueError("questions is empty: ask at least one.")
        given = {"captions": captions, "pixel_size_nm": pixel_size_nm, "scale_bars": scale_bars}
        given["measurements"] = measurements
        known = {name: _one_each(name, values, len(images)) for name, values in given.items()}
        measured = known.pop("measurements")
        rows, at_once = [], max(1, batch_size // (1 + _candidates(decoding)))
        for start in range(0, len(images), at_once):
            part = slice(start, start + at_once)
            pictures = [to_8bit(image) for image in images[part]]
            prompts = [
                prompt(question, caption, None if size is None else size * picture.width, bar)
                for picture, caption, size, bar in zip(
                    pictures, *(values[part] for values in known.values()), strict=True
                )
                for question in texts
            ]
            input_ids, _ = self.prompt_ids(prompts)
            pixels = self.pixel_values(pictures)
            answers = self.answer_prompts(pixels, input_ids, decoding, max_new_tokens)
            rows += [answers[i : i + len(texts)] for i in range(0, len(answers), len(texts))]
        rows = [
            measured_answers(row, texts, self.questions, fact)
            for row, fact in zip(rows, measured, strict=True)
        ]
        if questions is None:
            rows = [dict(zip(self.questions, row, strict=True)) for row in rows]
        elif isinstance(questions, str):
            rows = [row[0] for row in rows]
        return rows[0] if single else rows

    def classify(
        self,
        images,
        categories: Mapping[str, str] | None = None,
        by: str = "itc",
        batch_size: int = 8,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Rank categories by their captions; see `MVaEMaModel.classify`.

        Args:
            by: "itc", "itm", "lm" or "itc+itm".

        Raises:
            ValueError: `by` is none of these, or there are no categories.
        """
        if by not in ("itc", "itm", "lm", "itc+itm"):
            raise ValueError(f"by must be one of itc, itm, lm, itc+itm; got {by!r}.")
        categories = dict(self.categories if categories is None else categories)
        if not categories:
            raise ValueError("categories is empty: name at least one, with its caption.")
        single = not isinstance(images, list | tuple)
        images = [images] if single else list(images)
        captions, ranked = list(categories.values()), []
        for start in range(0, len(images), batch_size):
            pictures = [to_8bit(image) for image in images[start : start + batch_size]]
            seen = self._see(self.pixel_values(pictures))
            scores = np.zeros((len(pictures), len(captions)), np.float32)
            if "itc" in by:
                embeds, scale = self._embed_texts(captions)
                scores += _log_softmax(seen.embeds @ embeds.T * scale)
            if "itm" in by:
                logits = self._match(seen, captions * len(pictures)).reshape(scores.shape)
                scores -= np.logaddexp(0, -logits)
            if by == "lm":
                asked = [self.config["category_question"]] * scores.size
                said = self._log_likelihoods(seen, asked, captions * len(pictures))
                scores += said.reshape(scores.shape)
            scores = np.exp(scores if by == "itm" else _log_softmax(scores))
            for row in scores.tolist():
                pairs = zip(categories, row, strict=True)
                ranked.append(dict(sorted(pairs, key=lambda pair: -pair[1])))
        return ranked[0] if single else ranked

    def support(self, image, answers: Sequence[str]) -> list[float]:
        """The probability, by the matching head, that each text is true of an image; 0 for a blank
        one. See `MVaEMaModel.support`.

        Raises:
            ValueError: the matching head was not trained.
        """
        self._check_matching("support")
        seen = self._see(self.pixel_values([to_8bit(image)]))
        return np.exp(-np.logaddexp(0, -self._match(seen, list(answers)))).tolist()

    def embed_images(self, images: Sequence) -> np.ndarray:
        """float32 (images, projection_dim), normalised, as ITC compares them."""
        return self._see(self.pixel_values([to_8bit(image) for image in images])).embeds

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (texts, projection_dim), normalised, as ITC compares them."""
        return self._embed_texts(texts)[0]

    def _check_matching(self, what: str) -> None:
        if not self.config["itm_weight"]:
            raise ValueError(f"{what} needs the matching head; this student learnt without (ITM).")

    # ---- inputs ----------------------------------------------------------------------------------

    def pixel_values(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """float32 (images, 3, height, width), as the processor makes them of 8-bit pictures."""
        of, rows = self.images, []
        size = (of["size"]["width"], of["size"]["height"])
        for picture in pictures:
            picture = picture.resize(size, of["resample"], reducing_gap=3.0)
            pixels = np.asarray(picture)
            pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
            pixels = np.broadcast_to(pixels, (3, *pixels.shape[1:]))
            pixels = (pixels.astype(np.float64) * of["rescale_factor"]).astype(np.float32)
            mean, std = (
                np.reshape(np.broadcast_to(np.float32(of[name]), 3), (3, 1, 1))
                for name in ("image_mean", "image_std")
            )
            rows.append((pixels - mean) / std)
        return np.stack(rows)

    def prompt_ids(self, prompts: Sequence[str]) -> tuple[list[np.ndarray], list[int]]:
        """int64 (length,) of each prompt, and how many tokens of it are beyond the longest."""
        return self._tokens(prompts, self.config["enc_token_id"])

    def _tokens(self, texts: Sequence[str], first: int) -> tuple[list[np.ndarray], list[int]]:
        """Tokens of each text, cut at the tokenizer's longest, and how many were cut off."""
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        rows = [np.array([first, *encoding.ids], np.int64) for encoding in encodings]
        longest = self.max_length
        return [row[:longest] for row in rows], [max(0, len(row) - longest) for row in rows]

    def _padded(self, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask, int64 (texts, longest)."""
        lengths = np.array([len(row) for row in rows])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        ids = np.full(mask.shape, self.config["pad_token_id"], np.int64)
        ids[mask.astype(bool)] = np.concatenate(rows)
        return ids, mask

    # ---- graphs ----------------------------------------------------------------------------------

    def _session(self, graph: str, rows: int | None = None) -> onnxruntime.InferenceSession:
        """Opened when it is first needed: most runs need neither texts nor matching.

        Args:
            rows: of one word each, that are decoded at once; None for whole images or texts.
        """
        small = rows is not None and rows * self.config["hidden_size"] < SHARED
        threads = 1 if small else self.threads
        if (graph, threads) not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = threads
            self._sessions[graph, threads] = onnxruntime.InferenceSession(
                self.folder / f"{graph}.onnx", options, ["CPUExecutionProvider"]
            )
        return self._sessions[graph, threads]

    def _see(self, pixel_values: np.ndarray) -> Seen:
        embeds, *rest = self._session("vision").run(None, {"pixel_values": pixel_values})
        return Seen(embeds, _halves(rest))

    def _embed_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = self._padded(self._tokens(texts, self.config["cls_token_id"])[0])
        feed = {"input_ids": ids, "attention_mask": mask}
        embeds, scale = self._session("text").run(None, feed)
        return embeds, scale

    def _ground(
        self, seen: Seen, rows: Sequence[np.ndarray], wanted: list[str] | None = None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Outputs of the grounded encoder, and the mask of its texts; consecutive texts share an
        image."""
        ids, mask = self._padded(rows)
        index = np.arange(len(ids)) // (len(ids) // len(seen.embeds))
        feed = {"input_ids": ids, "attention_mask": mask, "image_index": index}
        feed |= _named("image", seen.keys_and_values)
        return self._session("grounded").run(wanted, feed), mask

    def _match(self, seen: Seen, texts: Sequence[str]) -> np.ndarray:
        """ITM logits (texts,), -inf for a blank text; consecutive texts share an image."""
        said, _ = self.prompt_ids([text if text.strip() else "?" for text in texts])
        (logits,), _ = self._ground(seen, said, ["match_logits"])
        return np.where([bool(text.strip()) for text in texts], logits, -np.inf)

    # ---- decoding --------------------------------------------------------------------------------

    def answer_prompts(
        self,
        pixel_values: np.ndarray,
        input_ids: Sequence[np.ndarray],
        decoding: str | None = None,
        max_new_tokens: int | None = None,
        on_step: Callable[[np.ndarray, np.ndarray], bool] | None = None,
        **options: float,
    ) -> list[str]:
        """Answer prompts, for batches of one's own; see `MVaEMaModel.answer_prompts`.

        Args:
            pixel_values: float32 (images, 3, height, width).
            input_ids: of `prompt_ids`, as many for each image, one image's after the other.
            decoding, max_new_tokens: as in `answer`.
            on_step: told the numbers of rows and their next tokens; all rows at first, then those
                that are left, and now and then one that is complete. Decoding stops where it
                returns False. A prompt has as many rows as there are candidates for its answer.
            options: those of the decoding, in place of what `DECODINGS` says.

        Raises:
            ValueError: as in `answer`, or the decoding has no such option.
        """
        decoding = self.check_decoding(decoding)
        if wrong := options.keys() - DECODINGS[decoding].keys():
            raise ValueError(f"decoding={decoding!r} has no option {', '.join(sorted(wrong))}.")
        options = {**DECODINGS[decoding], **options}
        seen = self._see(pixel_values)
        (_, *question), mask = self._ground(seen, input_ids)
        count, numbers = 1 + int(options.get("num_return_sequences", 0)), None
        if decoding != "greedy":
            numbers = draw_numbers(
                pixel_values,
                input_ids,
                options["seed"],
                range(count) if count > 1 else range(1, 2),
                self.config["max_position_embeddings"],
            )

        def choose(logits: np.ndarray, rows: np.ndarray, step: int) -> np.ndarray:
            return _choose(logits, None if numbers is None else numbers[rows, step], options)

        questions = _halves([np.repeat(states, count, axis=0) for states in question])
        question_mask = np.repeat(mask, count, axis=0)
        limit = min(max_new_tokens or self.longest, self.config["max_position_embeddings"])
        chosen = self._generate(
            seen.keys_and_values, questions, question_mask, choose, limit, on_step
        )
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in chosen]
        if count == 1:
            return texts
        scores = np.zeros((len(input_ids), count))
        if decoding in ("consensus", "consensus+itm"):
            with np.errstate(divide="ignore"):
                scores += np.log(
                    [agreements(texts[i : i + count]) for i in range(0, len(texts), count)]
                )
        if decoding in USING_ITM:
            scores -= np.logaddexp(0, -self._match(seen, texts)).reshape(scores.shape)
        best = scores.argmax(axis=1)
        return [texts[i * count + pick] for i, pick in enumerate(best)]

    def log_likelihoods(self, image, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """How likely the student finds each answer to a prompt about an image, in nats: (answers,).

        The end of the answer counts as one of its tokens.
        """
        seen = self._see(self.pixel_values([to_8bit(image)]))
        return self._log_likelihoods(seen, prompts, answers)

    def _log_likelihoods(
        self, seen: Seen, prompts: Sequence[str], answers: Sequence[str]
    ) -> np.ndarray:
        """As `log_likelihoods`; consecutive prompts share an image."""
        (_, *question), mask = self._ground(seen, self.prompt_ids(prompts)[0])
        # What a decoder is given is what it is to say, one place later.
        said, mask_said = self._padded(self._tokens(answers, self.config["dec_token_id"])[0])
        lengths = mask_said.sum(axis=1)
        eos = np.full((len(said), 1), self.config["eos_token_id"])
        said = np.concatenate([said[:, 1:], eos], axis=1)
        said[np.arange(len(said)), lengths - 1] = self.config["eos_token_id"]
        found = np.zeros(len(said))

        def choose(logits: np.ndarray, rows: np.ndarray, step: int) -> np.ndarray:
            tokens = said[rows, step]
            of_tokens = _log_softmax(logits)[np.arange(len(rows)), tokens]
            found[rows] += np.where(step < lengths[rows], of_tokens, 0)
            return tokens

        questions = _halves(question)
        self._generate(seen.keys_and_values, questions, mask, choose, said.shape[1])
        return found

    def _generate(
        self,
        images: KeysAndValues,
        questions: KeysAndValues,
        question_mask: np.ndarray,
        choose: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
        limit: int,
        on_step: Callable[[np.ndarray, np.ndarray], bool] | None = None,
    ) -> list[list[int]]:
        """The tokens of each row, without [EOS].

        The rows of a step are a grid, as many for each image, so that its keys and values are read
        once for all of them. Complete rows leave it as soon as the image with the most incomplete
        ones allows.

        Args:
            images: (images, ...) each.
            questions: (rows, ...) each; consecutive rows share an image.
            question_mask: (rows, length).
            choose: logits (rows, vocabulary), the rows' numbers and the step to tokens (rows,).
            limit: most tokens of an answer, [EOS] included.
            on_step: as in `answer_prompts`.
        """
        decoder, config = self._session("decoder", rows=len(question_mask)), self.config
        count, heads, _, head_dim = questions[0][0].shape
        grid = np.arange(count).reshape(len(images[0][0]), -1)
        nothing = np.zeros((count, heads, 0, head_dim), np.float32)
        past = ([nothing] * len(questions[0]), [nothing] * len(questions[0]))
        tokens = np.full(count, config["dec_token_id"], np.int64)
        written: list[list[int]] = [[] for _ in range(count)]
        done = np.zeros(count, bool)
        for step in range(limit):
            feed = {"decoder_input_ids": tokens[:, None], "question_mask": question_mask}
            feed |= _named("image", images) | _named("question", questions) | _named("past", past)
            logits, *rest = decoder.run(None, feed)
            past, rows = _halves(rest), grid.ravel()
            tokens = choose(logits, rows, step)
            if on_step is not None and not on_step(rows, tokens):
                break
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                if token == config["eos_token_id"]:
                    done[row] = True
                elif not done[row]:
                    written[row].append(token)
            incomplete = ~done[grid]
            most = incomplete.sum(axis=1).max()
            if not most:
                break
            kept_images = incomplete.any(axis=1)
            if most < grid.shape[1] or not kept_images.all():
                first = np.argsort(done[grid], axis=1, kind="stable")[:, :most]
                places = (np.arange(len(grid))[:, None] * grid.shape[1] + first)[kept_images]
                kept = places.ravel()
                grid = rows[places]
                tokens, question_mask = tokens[kept], question_mask[kept]
                past, questions = _taken(past, kept), _taken(questions, kept)
                images = _taken(images, kept_images)
        return written


def _candidates(decoding: str) -> int:
    """How many answers are drawn to be chosen from, beside the greedy one."""
    return DECODINGS[decoding].get("num_return_sequences", 0)


def _choose(logits: np.ndarray, numbers: np.ndarray | None, options: Mapping) -> np.ndarray:
    """A word for each row: the most likely, or where there is a number the one that it draws.

    Args:
        logits: (rows, vocabulary).
        numbers: (rows,), uniform in [0, 1); NaN for the most likely word.
        options: `temperature` and `top_p`, as in transformers.
    """
    words = logits.argmax(axis=1)
    if numbers is not None:
        rows = np.flatnonzero(~np.isnan(numbers))
        if rows.size:  # the greedy answer may be the last
            drawn = _drawn(logits[rows], numbers[rows], options["temperature"], options["top_p"])
            words[rows] = np.where(drawn < logits.shape[1], drawn, words[rows])
    return words


def _drawn(logits: np.ndarray, numbers: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Words (rows,) of the nucleus; the vocabulary's size where rounding leaves a row without."""
    vocabulary = logits.shape[1]
    shares = np.exp((logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature))
    shares /= shares.sum(axis=1, keepdims=True)
    # Words with less than an equal part of 1 - top_p are all left out: they need not be sorted.
    rows, found = np.nonzero(shares > (1 - top_p) / vocabulary)
    counts = np.bincount(rows, minlength=len(shares))
    places = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
    words = np.full((len(shares), counts.max() + 1), vocabulary)
    values = np.zeros((len(shares), counts.max()))
    words[rows, places], values[rows, places] = found, shares[rows, found]
    # The nucleus: words as long as the likelier ones are not enough.
    order = np.argsort(-values, axis=1, kind="stable")
    likeliest = np.take_along_axis(values, order, axis=1)
    inside = np.cumsum(likeliest, axis=1) - likeliest < top_p
    np.put_along_axis(values, order, likeliest * inside, axis=1)
    # Numbers count through it in the order of the vocabulary.
    cumulative = np.cumsum(values, axis=1)
    places = (cumulative <= numbers[:, None] * cumulative[:, -1:]).sum(axis=1)
    return words[np.arange(len(words)), places]


def _one_each(name: str, values, count: int) -> list:
    """One value for each of `count` images."""
    if values is None or isinstance(values, str | float | int):
        return [values] * count
    if len(values) != count:
        raise ValueError(f"{name}: expected {count} values, one per image; got {len(values)}.")
    return list(values)


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def _halves(arrays: list[np.ndarray]) -> KeysAndValues:
    """Keys of all layers, then their values, as graphs return them."""
    return arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]


def _named(of: str, keys_and_values: KeysAndValues) -> dict[str, np.ndarray]:
    """As graphs take them."""
    keys, values = keys_and_values
    named = {f"{of}_keys_{i}": array for i, array in enumerate(keys)}
    return named | {f"{of}_values_{i}": array for i, array in enumerate(values)}


def _taken(keys_and_values: KeysAndValues, rows: np.ndarray) -> KeysAndValues:
    keys, values = keys_and_values
    return [array[rows] for array in keys], [array[rows] for array in values]


def main(argv: Sequence[str] | None = None) -> int:
    """Ask the student in this file's folder. Returns the exit status: 1 after an error."""
    parser = argparse.ArgumentParser(
        description="Ask the student in this folder about micrographs.", allow_abbrev=False
    )
    add = parser.add_argument
    add("micrographs", nargs="+", metavar="MICROGRAPH", help="image files that Pillow reads")
    add(
        "-q", "--question", dest="questions", action="append", help="may be repeated (default: all)"
    )
    add("--pixel_size_nm", type=float, help="length of one pixel in nm")
    add("--decoding", choices=RUNNABLE, help="how answers are decoded")
    add("--threads", type=int, help="threads (as many as there are cores)")
    args = parser.parse_args(argv)
    student = OnnxStudent(Path(__file__).parent, args.threads)
    questions = args.questions or list(student.questions.values())
    status = 0
    for path in args.micrographs:
        known = {"pixel_size_nm": args.pixel_size_nm, "decoding": args.decoding}
        try:
            answers = student.answer(path, questions, **known)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        print(path)
        for question, answer in zip(questions, answers, strict=True):
            print(f"  {question}\n    {answer or '(no answer)'}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
