"""One evaluation: collect, score, report.

What is special about it:
- three steps, and data passes through each once: `collect.py` asks the model and writes down what
  it says, `scores.py` turns that into figures, `report.py` turns the figures into a folder, which
  opens with what they say (`verdict.py`);
- what bad data can break is checked before the first answer;
- rerunning the same command resumes, and a finished evaluation is scored again without asking.
"""

import datetime
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path

from candidates_mvaema import DECODINGS
from mvaema.evaluation.answerers import load_answerer
from mvaema.evaluation.collect import Collected, collect, read_collected
from mvaema.evaluation.questions import Questions, key_of, load_questions
from mvaema.evaluation.report import write_report
from mvaema.evaluation.scores import score
from mvaema.evaluation.verdict import verdict
from mvaema.evaluation.wordnet import ensure_wordnet
from mvaema.files import read_json_lines
from mvaema.teacher.requests import RequestArguments, check_positive


@dataclass
class EvaluationArguments:
    """What an evaluation is; every field is a flag of `mvaema eval`."""

    model: str = field(
        metadata={
            "help": "Student, or any other image-text-to-text model: a model folder or Hub id."
        }
    )
    dataset: str = field(
        metadata={
            "help": "Micrograph dataset: a folder with metadata.jsonl, a folder of Parquet files, "
            "or a Hub id."
        }
    )
    output_dir: str = field(
        metadata={"help": "Folder for answers and report. Rerun with the same folder to resume."}
    )
    split: str = field(default="validation", metadata={"help": "Split to ask about and score."})
    train_split: str = field(
        default="train",
        metadata={"help": "Split that the references answer from. The two must share no group."},
    )
    compare: str | None = field(
        default=None,
        metadata={
            "help": "Another model, or the output_dir of its evaluation, for a paired comparison."
        },
    )
    batch_size: int = field(
        default=16,
        metadata={"help": "Per forward pass: micrographs for a student, prompts for others."},
    )
    max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Longest answer in tokens; by default the student's own setting, or 256."
        },
    )
    decoding: str | None = field(
        default=None,
        metadata={
            "help": "How a student decodes its answers; by default as its checkpoint says.",
            "choices": list(DECODINGS),
        },
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "Jinja file, for a model whose processor has no chat template."},
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Run code from a Hub repository. (Code in a local folder is always run.)"
        },
    )
    classify: bool = field(
        default=True, metadata={"help": "Classify by ITC, ITM, LM and ITC+ITM (students only)."}
    )
    sight: bool = field(
        default=True,
        metadata={
            "help": "Measure whether it looks: image gain, choice of the true answer, support, "
            "attention (the last two of students only)."
        },
    )
    synonyms: bool = field(
        default=True,
        metadata={"help": "METEOR with WordNet; without, the metric is meteor_no_synonyms."},
    )


@dataclass(kw_only=True)
class JudgeArguments(RequestArguments):
    """A model that grades answers; every field is a flag of `mvaema eval`."""

    judge: str | None = field(
        default=None,
        metadata={
            "help": "Name of a vision model at --endpoint that grades each answer against image "
            "and reference. Replies are kept: rerun to resume, and nothing is paid for twice."
        },
    )

    def __post_init__(self):
        check_positive(self, ("max_tokens", "concurrency", "timeout", "max_cost"))
        if self.judge and not self.endpoint:
            raise ValueError(
                "--judge needs --endpoint, the base URL of an OpenAI-compatible server, as in "
                "http://localhost:8000/v1."
            )
        if self.endpoint and not self.judge:
            raise ValueError("--endpoint needs --judge, the name of the model there.")


def evaluate(args: EvaluationArguments, judging: JudgeArguments | None = None) -> dict:
    """Ask every question of a split, score the answers and write the report.

    Args:
        judging: a judge to grade the answers with.

    Returns:
        the results (`mvaema/evaluation/scores.py`), as in `output_dir/results.json`.

    Raises:
        DatasetError: a split is missing, has no ids or answers, or an image is unreadable.
        LeakError: the two splits share a group or a micrograph.
        FileExistsError: `output_dir` holds something else.
        ValueError: the model cannot be asked, or does not know the dataset's categories.
        LookupError: `synonyms`, and this machine has no WordNet.
    """
    questions = load_questions(args.dataset, args.split, args.train_split)
    return evaluate_questions(args, questions, judging=judging)


def evaluate_questions(
    args: EvaluationArguments,
    questions: Questions,
    name: str | None = None,
    judging: JudgeArguments | None = None,
) -> dict:
    """`evaluate` with questions that are loaded already.

    Args:
        name: what the report calls the model; by default its folder's name or Hub id.
    """
    if args.synonyms:
        ensure_wordnet()
    name = name or name_of(args.model)
    judge = _judge(judging)
    collected = _collect(args, questions)
    others = _compared(args, questions) if args.compare else {}
    figures, answers = score(questions, collected, name, others, args.synonyms)
    if judge:
        try:
            figures["judge"], answers = judge.grade(questions, answers, Path(args.output_dir))
        except (RuntimeError, sqlite3.Error) as error:  # of the journal; answers are complete
            raise ValueError(str(error)) from error
    results = {
        "model": args.model,
        "dataset": questions.dataset,
        "split": questions.split,
        "train_split": questions.train_split,
        "date": datetime.date.today().isoformat(),
        "parameters": collected.about["parameters"],
        "weights": collected.about["weights"],
        "verdict": verdict(figures),
        **figures,
    }
    log = Path(args.model) / "training_log.jsonl"
    write_report(
        results,
        answers,
        questions.micrographs,
        Path(args.output_dir),
        log=read_json_lines(log) if log.is_file() else [],
        attention={key_of(row): row["map"] for row in collected.attention},
    )
    return results


def name_of(model: str) -> str:
    """What to call a model: its folder's name, or its Hub id."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _judge(judging: JudgeArguments | None):
    """The judge, checked before a student is asked anything; None if there is to be none."""
    if judging is None or not judging.judge:
        return None
    try:
        from mvaema.evaluation.judge import Judge  # the only part that needs a client
    except ImportError as error:
        raise ValueError(
            f"--judge needs {error.name}; install it with pip install 'mvaema[teacher]'."
        ) from error
    return Judge(judging)


def _collect(args: EvaluationArguments, questions: Questions) -> Collected:
    answerer = load_answerer(
        args.model,
        trust_remote_code=args.trust_remote_code,
        chat_template=args.chat_template,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        decoding=args.decoding,
    )
    return collect(answerer, questions, Path(args.output_dir), args.classify, args.sight)


def _compared(args: EvaluationArguments, questions: Questions) -> dict[str, Collected]:
    """What another model was asked of the same questions, by its name; asked now if need be."""
    folder = Path(args.compare)
    if not (folder / "evaluation.json").is_file():
        folder = Path(args.output_dir) / f"compared-{name_of(args.compare).replace('/', '-')}"
        other = replace(args, model=args.compare, output_dir=str(folder), compare=None)
        evaluate_questions(other, questions)
    collected = read_collected(folder)
    references = {key_of(r): r["reference"] for r in collected.answers}
    if any(references.get(key_of(r), r["reference"]) != r["reference"] for r in questions.records):
        raise ValueError(
            f"{folder} holds an evaluation against other reference answers than these; compare "
            "only with one on the same split of the same dataset."
        )
    name = name_of(collected.about["model"])
    if name == name_of(args.model):
        name = args.compare
    return {name: collected}
