"""A judge: a chat model grades answers against micrograph and reference (`mvaema eval --judge`).

What is special about it:
- all that asks is the teacher's (`mvaema/teacher/`): its journal, limits, budget and rules of
  privacy. Images are encoded again from their pixels, and nothing leaves the private network
  without `--allow_external`;
- all answers that the report shows are graded, micrograph by micrograph, so that grades are
  comparable however early a run ends. Two equal answers to one question are asked about once;
- the wording and the rubric of each question group are in `judge.yaml`;
- a reply must be one JSON object with three grades. Anything else is asked again, up to
  `MOST_ATTEMPTS` attempts, all of them in the journal. One micrograph is graded first: a model that
  cannot grade it is not asked about the others.

The journal is in `judge/MODEL/` of the evaluation's folder.
"""

import asyncio
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import yaml
from tqdm.auto import tqdm

from mvaema.evaluation.intervals import rank_correlation
from mvaema.evaluation.questions import Questions, Record
from mvaema.evaluation.records import compare, summarize
from mvaema.evaluation.run import JudgeArguments
from mvaema.micrographs.sources import Entry
from mvaema.teacher.accounts import Accounts
from mvaema.teacher.asking import Asker
from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.journal import Journal, PreparedImage, Question, journal_name
from mvaema.teacher.limits import Limits
from mvaema.teacher.money import Budget, Measured, Meter, Request, load_price, spent
from mvaema.teacher.preparing import Preparation, Preparer, source_key
from mvaema.teacher.prompt import Sampling, request_parameters
from mvaema.teacher.questions import Plan
from mvaema.teacher.replies import judge
from mvaema.teacher.run import interruptible

GRADES = ("correctness", "completeness", "false_claims")
WORST, BEST = 0, 3
MOST_ATTEMPTS = 3
# What a grade is compared with: scores of an answer, and what the student saw for it.
MEASURES = ("meteor", "meteor_no_synonyms", "false_claims", "fact_precision", "fact_recall")


@dataclass(frozen=True)
class Rubric:
    """The wording of `judge.yaml`."""

    version: str
    instruction: str
    rubrics: dict[str, str]

    @classmethod
    def load(cls) -> "Rubric":
        content = yaml.safe_load(Path(__file__).with_name("judge.yaml").read_text("utf-8"))
        return cls(**content)

    def render(self, record: Record) -> str:
        """The text that follows the image in the request, for an answer record."""
        return self.instruction.format(
            question=record["question"],
            reference=record["reference"],
            answer=record["prediction"] or "(no answer)",
            rubric=self.rubrics.get(record["question_id"], self.rubrics["other"]),
        )


def parse_grades(answer: str | None) -> dict[str, int] | None:
    """The grades in a judge's answer; None unless it is one JSON object with exactly these.

    A code fence around the object is allowed.
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", answer or "", re.DOTALL)
    try:
        grades = json.loads(fenced[1] if fenced else answer or "")
    except (ValueError, RecursionError):
        return None
    if not isinstance(grades, dict) or set(grades) != set(GRADES):
        return None
    whole = all(type(g) is int and WORST <= g <= BEST for g in grades.values())
    return {name: grades[name] for name in GRADES} if whole else None


@dataclass(frozen=True)
class _GradePlan(Plan):
    """What is asked about each micrograph: a question per answer, named by its prompt.

    Attributes:
        texts: of a prepared image, its questions' ids to their prompts.
        graded: fingerprints of the questions whose grades are in the journal.
        handed_out: fingerprints of the questions that this pass has asked.
    """

    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    graded: set[str] = field(default_factory=set)
    handed_out: set[str] = field(default_factory=set)

    def asked_about(self, image: PreparedImage) -> tuple[str, ...]:
        return tuple(self.texts[image.image_id])

    def text(self, image: PreparedImage, question_id: str) -> str:
        return self.texts[image.image_id][question_id]

    def request(self, journal: Journal, image_id: str, question_id: str) -> Request | None:
        known = question_id in self.texts.get(image_id, ())
        return super().request(journal, image_id, question_id) if known else None

    def pending(self, journal: Journal, image: PreparedImage) -> list[Question]:
        # Two micrographs with the same pixels are one image, which is met twice.
        new = [q for q in super().pending(journal, image) if q.fingerprint not in self.handed_out]
        self.handed_out.update(question.fingerprint for question in new)
        return new

    def _again(self, fingerprint: str, settled: list) -> bool:
        return (
            fingerprint not in self.graded
            and len(settled) < MOST_ATTEMPTS
            and settled[-1]["id"] <= self.retry_until
        )


class Judge:
    """A judge, checked before anything is sent.

    Raises:
        ValueError: an argument is not permitted, or the endpoint or key cannot be used.
    """

    def __init__(self, args: JudgeArguments):
        self.args, self.rubric = args, Rubric.load()
        self.endpoint = Endpoint(args.endpoint, args.api_key_env, args.allow_external)
        self.parameters = request_parameters(args.profile, Sampling(max_tokens=args.max_tokens))
        self.preparation = Preparation(args.max_side, crop_info_bar=args.crop_info_bar)
        self.price = load_price(args.judge, args.prices)
        if args.max_cost is not None and self.price is None:
            raise ValueError(
                f"--max_cost needs the price of {args.judge}. Add it to a copy of "
                "mvaema/teacher/prices.yaml and pass that with --prices."
            )

    def grade(
        self, questions: Questions, answers: Mapping[str, list[Record]], folder: Path
    ) -> tuple[dict, dict[str, list[Record]]]:
        """Grade all answers that have no grades yet.

        Args:
            answers: name to scored records, the student's first.
            folder: of the evaluation.

        Returns:
            the figures (`summarize_grades`), with `model`, `stopped`, why the judge ended early or
            None, and US dollars `spent`, None where the price is unknown; and the answers with
            `grades`, None where there are none.

        Raises:
            JournalError, sqlite3.Error: the journal cannot be used or written.
        """
        name = re.sub(r"[^\w.-]+", "-", self.args.judge).strip(".")
        path = folder / "judge" / (name or "model") / journal_name(0, 1)
        with Journal(path, self._configuration) as journal:
            journal.judge_rest()
            session = _Session(self, questions, answers, journal)
            stopped = session.run()
            found = session.grades()
            cost = spent(journal, self.price, self.args.max_tokens)
        graded = {
            who: [{**record, "grades": found.get(id(record))} for record in records]
            for who, records in answers.items()
        }
        figures = {"model": self.args.judge, "stopped": stopped, "spent": cost}
        return {**figures, **summarize_grades(graded)}, graded

    @property
    def _configuration(self) -> dict:
        """What makes grades comparable; see `Journal`."""
        return {
            "judge": self.args.judge,
            "profile": self.args.profile,
            "parameters": self.parameters,
            "rubric": asdict(self.rubric),
            "preparation": asdict(self.preparation),
        }


class _Session:
    """One run of a judge over the answers of an evaluation."""

    def __init__(
        self,
        judge: Judge,
        questions: Questions,
        answers: Mapping[str, list[Record]],
        journal: Journal,
    ):
        self.judge, self.questions, self.journal = judge, questions, journal
        self.of_image: dict[str, list[Record]] = {}
        for records in answers.values():
            for record in records:
                self.of_image.setdefault(record["image_id"], []).append(record)
        self.preparer = Preparer(journal, judge.preparation)
        self.texts: dict[str, dict[str, str]] = {}
        # Of each record by identity: its prepared image and question.
        self.keys: dict[int, tuple[str, str]] = {}
        args = judge.args
        price = judge.price
        self.meter = Meter(price, args.max_tokens, False, Measured.of(journal))
        already = spent(journal, price, args.max_tokens) or 0.0
        self.accounts = Accounts(self.meter, Budget(args.max_cost, already))

    def run(self) -> str | None:
        """Ask what has no grades. Returns why it ended early, or None."""
        image_ids = list(self.of_image)
        if reason := self._pass(image_ids[:1]):
            return reason
        if not self._readable():
            return (
                f"No reply of {self.judge.args.judge} about the first micrograph holds grades; the "
                f"last one begins {self._last_answer()[:80]!r}. Use a model that follows "
                "mvaema/evaluation/judge.yaml."
            )
        for _ in range(MOST_ATTEMPTS):
            before = self.journal.last_id()
            if reason := self._pass(image_ids):
                return reason
            if self.journal.last_id() == before:
                break
        return None

    def _pass(self, image_ids: list[str]) -> str | None:
        """Ask once about everything without grades; why it had to stop, or None."""
        plan = self._plan()
        total = sum(len(self.of_image[i]) for i in image_ids)
        args = self.judge.args
        with tqdm(desc=f"grades by {args.judge}", total=total) as bar:
            asker = Asker(
                self.judge.endpoint,
                self.journal,
                plan,
                self.accounts,
                Limits(args.concurrency),
                args.timeout,
                lambda count: bar.update(max(count, 0)),
            )
            questions = plan(self.journal, self._images(image_ids), self.preparer.is_intact)
            asyncio.run(interruptible(asker, questions))
        return self.accounts.tally.stopped

    def _plan(self) -> _GradePlan:
        judge = self.judge
        return _GradePlan(
            model=judge.args.judge,
            parameters=judge.parameters,
            prompt=judge.rubric,
            question_ids=(),
            retry_until=self.journal.last_id(),
            texts=self.texts,
            graded=set(self._readable()),
        )

    def _images(self, image_ids: list[str]) -> Iterator[PreparedImage | None]:
        """The prepared images, whose questions are in `texts` when they are yielded."""
        entries = (self._entry(image_id) for image_id in image_ids)
        for image_id, image in zip(image_ids, self.preparer(entries), strict=True):
            known = self.journal.known_source(source_key(self._entry(image_id)))
            if known is None:  # unreadable, which the preparer has told
                yield None
                continue
            prepared = known["image_id"]
            texts = self.texts.setdefault(prepared, {})
            for record in self.of_image[image_id]:
                text = self.judge.rubric.render(record)
                key = f"{record['question_id']} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
                texts[key] = text
                self.keys[id(record)] = prepared, key
            yield image or self.journal.image(prepared)

    def _entry(self, image_id: str) -> Entry:
        def png() -> bytes:
            buffer = io.BytesIO()
            self.questions.micrographs[image_id].save(buffer, "PNG")
            return buffer.getvalue()

        return Entry(image_id, image_id, png, ".png")

    def grades(self) -> dict[int, dict[str, int]]:
        """The grades of the records that have some, by the records' identity."""
        readable, plan = self._readable(), self._plan()
        found = {}
        for record, (prepared, key) in self.keys.items():
            fingerprint = plan.fingerprint(self.journal.image(prepared), key)
            if fingerprint in readable:
                found[record] = readable[fingerprint]
        return found

    def _readable(self) -> dict[str, dict[str, int]]:
        """Fingerprint to grades, of the questions whose reply holds some."""
        found = {}
        for row in self._completions():
            if grades := parse_grades(judge(row["status"], row["raw"], row["problem"]).answer):
                found[row["fingerprint"]] = grades
        return found

    def _last_answer(self) -> str:
        rows = self._completions()
        row = rows[-1] if rows else None
        return (row and judge(row["status"], row["raw"], row["problem"]).answer) or ""

    def _completions(self) -> list:
        return self.journal.query(
            "SELECT fingerprint, status, raw, problem FROM replies WHERE outcome != 'error' "
            "ORDER BY id"
        )


def summarize_grades(answers: Mapping[str, list[Record]]) -> dict:
    """Figures of graded answers.

    Args:
        answers: name to scored records with `grades` (None where there are none), the student's
            first.

    Returns:
        `asked` and `graded`, numbers of answers; `answers`, name to summary
        (`mvaema.evaluation.records.summarize`) of the grades; `comparisons`, "other → student" to
        comparison (`mvaema.evaluation.records.compare`); and `agreement`, measure to grade to
        Spearman's `rho` over the student's answers, with `n`, `low` and `high`.
    """
    student, *others = answers
    graded = {
        who: [{**r, "scores": r["grades"]} for r in records if r["grades"]]
        for who, records in answers.items()
    }
    none = dict.fromkeys(GRADES)
    paired = {
        who: [{**r, "scores": r["grades"] or none} for r in records]
        for who, records in answers.items()
    }
    return {
        "asked": sum(map(len, answers.values())),
        "graded": sum(map(len, graded.values())),
        "answers": {who: summarize(records) for who, records in graded.items() if records},
        "comparisons": {
            f"{who} → {student}": compare(paired[who], paired[student]) for who in others
        },
        "agreement": _agreement([r for r in answers[student] if r["grades"]]),
    }


def _agreement(records: list[Record]) -> dict[str, dict]:
    """Measure to grade to rank correlation; measures that no answer has are left out."""
    measures = {name: [r["scores"].get(name) for r in records] for name in MEASURES}
    measures |= {
        name: [(r.get("sight") or {}).get(name) for r in records]
        for name in ("image_gain", "support")
    }
    found = {}
    for measure, values in measures.items():
        values = np.array(values, dtype=float)
        has = ~np.isnan(values)
        if not has.any():
            continue
        clusters = [r.get("group") or r["image_id"] for r, h in zip(records, has, strict=True) if h]
        found[measure] = {
            grade: rank_correlation(
                values[has], np.array([r["grades"][grade] for r in records])[has], clusters
            )
            for grade in GRADES
        }
    return found
