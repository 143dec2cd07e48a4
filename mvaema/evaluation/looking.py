"""What a model makes of given answers under each condition, written down as it comes.

What is special about it:
- the true answer is scored with the prompt of the evaluation. The answers to choose among are
  scored with the bare question: a scale in the prompt would tell which of them is true;
- `LANGUAGE` is what answers cost without any micrograph. The blind twin is scored apart from it,
  with a blank image in the place of each micrograph, so its image gain of 0 is a measurement. Both
  blanks have the micrograph's size, by which some chat models count an image's tokens.

A row of `likelihoods.jsonl` is one question about one micrograph under one condition:

    image_id, question_id, condition
    loss, tokens     nats and tokens of the reference answer, [EOS] included
    losses           image id to nats, of the answer about that micrograph to the same question
    matches          image id to ITM logit, of that answer as a statement
    similarities     image id to ITC similarity over the temperature, of the same
    support          ITM logit of the model's own answer under the condition

What the model cannot judge by is left out (`judges_by` in `answerers.py`), and so is what a caption
in the prompt does not change. A row of `attention.jsonl` has the `map` of the student's own answer.
"""

from collections.abc import Iterable, Mapping, Sequence

from PIL import Image
from tqdm.auto import tqdm

from mvaema.evaluation.chat_likelihoods import ChatScorer
from mvaema.evaluation.choices import Choices
from mvaema.evaluation.conditions import (
    BLANK,
    CAPTION,
    OTHER,
    PLAIN,
    blank_image,
    field_of_view_nm,
    shown_image,
)
from mvaema.evaluation.likelihoods import Scorer, Seen, eager_attention
from mvaema.evaluation.questions import Questions, Record, key_of
from mvaema.files import JsonLines
from mvaema.micrographs.dataset import image_size
from processing_mvaema import MVaEMaProcessor

LANGUAGE = "language alone"
Predictions = Mapping[str, Mapping[tuple[str, str], str]]  # condition to key to answer


class Looker:
    """Has a model judge the answers of an evaluation.

    Args:
        scorer: of a chat model if `methods` has LM only, and attention is not asked for.
        methods: of ITC, ITM and LM those that the model judges by.
        predictions: the model's own answers under each condition that was asked.
    """

    def __init__(
        self,
        scorer: Scorer | ChatScorer,
        methods: Sequence[str],
        questions: Questions,
        choices: Choices,
        predictions: Predictions,
    ):
        self.scorer, self.methods = scorer, methods
        self.questions, self.choices, self.predictions = questions, choices, predictions
        self.references = {key_of(r): r["reference"] for r in questions.records}
        self.of_image: dict[str, list[Record]] = {}
        for record in questions.records:
            self.of_image.setdefault(record["image_id"], []).append(record)
        self.captioned = {r["image_id"] for r in questions.with_caption()}

    def write_likelihoods(self, likelihoods: JsonLines) -> None:
        """Score everything that is not in `likelihoods` yet; each image is seen once."""
        done = {(r["condition"], *key_of(r)) for r in likelihoods.rows}
        jobs = [(LANGUAGE, image_id) for image_id in self.of_image]
        jobs += [job for i in self.of_image for _, jobs in self._jobs(i) for job in jobs]
        total = sum(len(self.of_image[image_id]) for _, image_id in jobs)
        with tqdm(desc="likelihoods", total=total, initial=len(done)) as bar:

            def score(seen: Seen | Image.Image, jobs: Iterable[tuple[str, list[Record]]]) -> None:
                for condition, records in jobs:
                    likelihoods.append(self._score(seen, condition, records))
                    bar.update(len(records))

            def pending(jobs: Iterable[tuple[str, str]]) -> list[tuple[str, list[Record]]]:
                left = (
                    (c, [r for r in self.of_image.get(i, ()) if (c, *key_of(r)) not in done])
                    for c, i in jobs
                )
                return [(condition, records) for condition, records in left if records]

            for size, image_ids in self._by_size().items():
                if jobs := pending((LANGUAGE, image_id) for image_id in image_ids):
                    score(self.scorer.see(blank_image(size)), jobs)
            for image_id in self.questions.micrographs:
                for condition, jobs in self._jobs(image_id):
                    if jobs := pending(jobs):
                        score(self._see(image_id, condition), jobs)

    def write_attention(self, attention: JsonLines) -> None:
        """The attention maps that are not in `attention` yet."""
        done = {key_of(r) for r in attention.rows}
        answers = self.predictions[PLAIN]
        with eager_attention(self.scorer.model):
            for image_id, records in tqdm(self.of_image.items(), desc="attention"):
                asked = [r for r in records if key_of(r) not in done and answers[key_of(r)].strip()]
                if not asked:
                    continue
                maps = self.scorer.attention_maps(
                    self._see(image_id, PLAIN),
                    self._prompts(asked, PLAIN),
                    [answers[key_of(r)] for r in asked],
                )
                attention.append(
                    {**_identity(record), "map": of_record.tolist()}
                    for record, of_record in zip(asked, maps, strict=True)
                )

    def _jobs(self, image_id: str) -> list[tuple[str, list[tuple[str, str]]]]:
        """Pairs of what to show of a micrograph and, for it, conditions and whose questions."""
        jobs = [(PLAIN, image_id)]
        if CAPTION in self.predictions and image_id in self.captioned and "LM" in self.methods:
            jobs.append((CAPTION, image_id))
        if OTHER in self.predictions:
            partners = self.choices.partners.items()
            jobs += [(OTHER, about) for about, shown in partners if shown == image_id]
        return [(PLAIN, jobs), (BLANK, [(BLANK, image_id)])]

    def _by_size(self) -> dict[tuple[int, int], list[str]]:
        """The micrographs with questions, by width and height."""
        found: dict[tuple[int, int], list[str]] = {}
        for image_id in self.of_image:
            size = image_size(self.questions.micrographs.row(image_id))
            found.setdefault(size, []).append(image_id)
        return found

    def _see(self, image_id: str, condition: str) -> Seen | Image.Image:
        image = shown_image(self.questions, self.choices.partners, image_id, condition)
        return self.scorer.see(image)

    def _prompts(self, records: list[Record], condition: str, scale: bool = True) -> list[str]:
        """The prompts of questions about one micrograph."""
        image_id = records[0]["image_id"]
        row = self.questions.micrographs.row(image_id)
        caption = row["caption"] if condition == CAPTION else None
        width = field_of_view_nm(self.questions, image_id) if scale else None
        bar = row["scale_bar"] if scale else None
        return [MVaEMaProcessor.prompt(r["question"], caption, width, bar) for r in records]

    def _score(self, seen: Seen | Image.Image, condition: str, records: list[Record]) -> list[dict]:
        """The rows of some questions about one micrograph."""
        offered = [[r["image_id"]] for r in records]
        if condition != LANGUAGE:
            offered = [self.choices.offered(r) for r in records]
        rows = [{**_identity(r), "condition": condition} for r in records]
        if "LM" in self.methods:
            self._add_losses(rows, seen, condition, records, offered)
        if condition not in (LANGUAGE, CAPTION):
            texts = self._offered_texts(records, offered)
            if "ITM" in self.methods:
                _spread(rows, "matches", offered, self.scorer.matches(seen, texts))
                self._add_support(rows, seen, condition)
            if "ITC" in self.methods:
                _spread(rows, "similarities", offered, self.scorer.similarities(seen, texts))
        return rows

    def _add_losses(
        self,
        rows: list[dict],
        seen: Seen | Image.Image,
        condition: str,
        records: list[Record],
        offered: list[list[str]],
    ) -> None:
        count = len(records)
        prompts = self._prompts(records, condition) + self._prompts(records, condition, False)
        numbers = [count + n for n, ids in enumerate(offered) for _ in ids]
        texts = self._offered_texts(records, offered)
        answers = [(n, r["reference"]) for n, r in enumerate(records)]
        losses = self.scorer.losses(seen, prompts, answers + list(zip(numbers, texts, strict=True)))
        for row, (loss, tokens) in zip(rows, losses[:count], strict=True):
            row["loss"], row["tokens"] = round(loss, 4), tokens
        _spread(rows, "losses", offered, [loss for loss, _ in losses[count:]])

    def _add_support(self, rows: list[dict], seen: Seen, condition: str) -> None:
        said = [row for row in rows if self.predictions[condition][key_of(row)].strip()]
        texts = [self.predictions[condition][key_of(row)] for row in said]
        for row, logit in zip(said, self.scorer.matches(seen, texts), strict=True):
            row["support"] = round(logit, 4)

    def _offered_texts(self, records: list[Record], offered: list[list[str]]) -> list[str]:
        return [
            self.references[image_id, record["question_id"]]
            for record, image_ids in zip(records, offered, strict=True)
            for image_id in image_ids
        ]


def _identity(record: Record) -> dict:
    return {"image_id": record["image_id"], "question_id": record["question_id"]}


def _spread(rows: list[dict], name: str, offered: list[list[str]], values: list[float]) -> None:
    """Put values into the rows, one for each answer that a row is offered."""
    values = iter(values)
    for row, image_ids in zip(rows, offered, strict=True):
        row[name] = {image_id: round(next(values), 4) for image_id in image_ids}
