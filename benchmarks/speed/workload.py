"""What both models are given: shapes of a preset, and texts as long as a teacher's are.

What is special about it:
- lengths are drawn from those of a real dataset, as training draws them: caption and scale are in
  half of the prompts, and of a micrograph's two statements one is its caption and the other an
  answer, with the caption in half of the cases. The words are random: no time depends on them;
- a workload is plain data, so that other processes (memory, two ranks) can be told it.
"""

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from configuration_mvaema import CATEGORY_CAPTIONS, CATEGORY_QUESTION, QUESTIONS, MVaEMaConfig
from mvaema.training.examples import Draws, ExampleDrawer
from mvaema.training.split import good_answers
from processing_mvaema import MVaEMaProcessor, train_tokenizer

# Deciles (0 %, 10 %, ..., 100 %) of lengths in tokens, special ones included, for where there is
# no data. Measured on the 571 training micrographs of $MVAEMA_SHARED/micrographs by
# `python -m benchmarks.speed.workload`, which prints this table.
DECILES = {
    "prompts": (13, 20, 22, 23, 26, 28, 30, 32, 35, 37, 47),
    "answers": (7, 17, 20, 22, 23, 24, 26, 27, 29, 31, 48),
    "statements": (7, 7, 7, 8, 9, 18, 24, 27, 31, 34, 49),
}

FIRST_WORD = 5  # ids below are special in both models


@dataclass
class Workload:
    """One thing to do, for either model; `asdict` of it goes through JSON.

    Args:
        preset: shapes, of `configuration_mvaema.PRESETS`; `overrides` replaces some of them.
        batch: micrographs per step or per call.
        questions: questions about each micrograph.
        losses: "lm", or "all" for ITC, ITM and LM on two statements per micrograph.
        answer_tokens: length of all answers, instead of drawn ones; new tokens when answering.
        compile: whether `torch.compile` is used, for both models.
    """

    preset: str = "paper"
    batch: int = 8
    questions: int = 4
    losses: str = "lm"
    answer_tokens: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    overrides: dict = field(default_factory=dict)

    def config(self) -> MVaEMaConfig:
        return MVaEMaConfig.from_preset(self.preset, **self.overrides)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Workload":
        return cls(**json.loads(text))


def micrograph_folder() -> Path | None:
    """The real micrographs ($MVAEMA_SHARED, else ../shared), where they are."""
    folder = Path(os.environ.get("MVAEMA_SHARED", "../shared")) / "micrographs" / "train"
    return folder if (folder / "metadata.jsonl").exists() else None


def _rows() -> list[dict]:
    folder = micrograph_folder()
    if folder is None:
        return []
    with (folder / "metadata.jsonl").open() as lines:
        return [json.loads(line) for line in lines]


@functools.cache
def tokenizer():
    """The `paper` preset's tokenizer, trained on the real answers where they are."""
    texts = [*QUESTIONS.values(), CATEGORY_QUESTION, *CATEGORY_CAPTIONS.values()]
    texts += [answer for row in _rows() for _, answer in good_answers(row["qa"])]
    return train_tokenizer(texts, 4096, 256)


def processor(config: MVaEMaConfig) -> MVaEMaProcessor:
    # A copy: `from_tokenizer` sets the tokenizer's maximum length.
    return MVaEMaProcessor.from_tokenizer(
        tokenizer(), config.image_size, config.max_position_embeddings
    )


def _drawn_texts() -> Iterator[tuple[str, str]]:
    """(kind, text) as training draws them: every question of every micrograph once."""
    everything = Draws(questions_per_image=len(QUESTIONS) + 1, augmentation=False)
    drawer = ExampleDrawer(CATEGORY_QUESTION, everything)
    for number, row in enumerate(_rows()):
        drawn = drawer.draw(row, number, epoch=0)
        for prompt in drawer.prompts(row, drawn):
            yield "prompts", prompt
        for _, answer in drawn.pairs:
            yield "answers", answer
        for statement in drawn.statements:
            yield "statements", statement


@functools.cache
def lengths() -> dict[str, np.ndarray]:
    """Sorted lengths in tokens of "prompts", "answers" and "statements"; else `DECILES`."""
    texts = {}
    for kind, text in _drawn_texts():
        texts.setdefault(kind, []).append(text)
    if not texts:
        return {kind: np.array(deciles) for kind, deciles in DECILES.items()}
    encoded = {kind: tokenizer()(t, add_special_tokens=False) for kind, t in texts.items()}
    # One more: [ENC], [EOS] or [CLS].
    return {k: np.sort([len(ids) + 1 for ids in e["input_ids"]]) for k, e in encoded.items()}


def median_answer() -> int:
    return int(np.median(lengths()["answers"]))


def batch(workload: Workload, seed: int = 0) -> dict[str, torch.Tensor]:
    """A training batch as `mvaema.training.examples.collate` makes it, on the workload's device."""
    config, rng = workload.config(), np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)

    def texts(kind: str, count: int, first: int | None, last: int | None):
        drawn = np.quantile(lengths()[kind], rng.random(count)).round().astype(int)
        if kind == "answers" and workload.answer_tokens:
            drawn[:] = workload.answer_tokens
        sizes = torch.from_numpy(drawn.clip(max=config.max_position_embeddings)).unsqueeze(1)
        shape = (count, int(sizes.max()))
        ids = torch.randint(FIRST_WORD, config.vocab_size, shape, generator=generator)
        if first is not None:
            ids[:, 0] = first
        if last is not None:
            ids.scatter_(1, sizes - 1, last)
        mask = (torch.arange(shape[1]) < sizes).long()
        return ids.masked_fill(mask == 0, config.pad_token_id), mask

    rows, side = workload.batch * workload.questions, config.image_size
    data = {"pixel_values": torch.rand(workload.batch, 3, side, side, generator=generator) * 2 - 1}
    data["input_ids"], data["attention_mask"] = texts("prompts", rows, config.enc_token_id, None)
    answers, mask = texts("answers", rows, None, config.eos_token_id)
    data["labels"] = answers.masked_fill(mask == 0, -100)
    if workload.losses == "all":
        data["statement_ids"], data["statement_mask"] = texts(
            "statements", 2 * workload.batch, config.cls_token_id, None
        )
    return {name: tensor.to(workload.device) for name, tensor in data.items()}


def images(count: int) -> list[Image.Image]:
    """Micrographs, real where they are, else noise of the same size."""
    folder = micrograph_folder()
    if folder is not None:
        paths = sorted((folder / "images").iterdir())[:count]
        pictures = [Image.open(path) for path in paths]
        for picture in pictures:
            picture.load()
    else:
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (count, 384, 512), dtype=np.uint8)
        pictures = [Image.fromarray(pixels) for pixels in noise]
    return [pictures[i % len(pictures)] for i in range(count)]


if __name__ == "__main__":
    for kind, values in lengths().items():
        deciles = np.quantile(values, np.linspace(0, 1, 11)).round().astype(int)
        print(f'    "{kind}": ({", ".join(map(str, deciles))}),')
