"""Students of this project, and their ablations (Tables 5 and 6, and our own).

What is special about it:
- a student is trained by `mvaema train` and scored by `mvaema eval`, as any user's is, on the fold,
  the epochs and the budget that all rows of a folder have. The budget is the clock's: give each
  process one thread and a core;
- an ablation changes one thing of the student of recipes/lite0.yaml. It sees with trained, frozen
  eyes: a student from random weights does not learn to see from a few hundred micrographs;
- the features of frozen eyes are kept within a run only: each run pays for them.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from baselines.answer_figures import answer_figures, category_figures, questions_of
from baselines.outcome import Outcome
from baselines.rows import TableRow
from baselines.settings import Run
from baselines.training import History, RowFailed
from mvaema.evaluation.questions import Questions
from mvaema.evaluation.run import EvaluationArguments, evaluate_questions
from mvaema.evaluation.wordnet import has_wordnet
from mvaema.files import read_json_lines
from mvaema.students.lite0 import make_lite0
from mvaema.training.recipe import Recipe
from mvaema.training.run import train
from mvaema.training.signals import Interrupted
from mvaema.training.split import TEXT_COLUMNS, Rows

NAME = "student"  # what the evaluation calls it
LITE0 = "efficientnet-lite0"  # the eyes that need no hub
# As in recipes/lite0.yaml.
RECIPE = {
    "preset": "lite",
    "vision_layers": [5, 8, 11, 15, 16],
    "weight_decay": 0.02,
    "keep_by": "lm_loss",
}


@dataclass(frozen=True)
class StudentRow(TableRow):
    """A student.

    Attributes:
        recipe: settings of `mvaema train` that differ from its defaults.
        overrides: fields of the student's configuration.
        eyes: makes the vision model that the student sees with: (`pretrained`, folder to write to)
            -> folder or Hub id. None for the paper's own encoder.
        simulated: whether the folder's further datasets are trained on.
    """

    recipe: Mapping[str, object] = field(default_factory=dict, kw_only=True)
    overrides: Mapping[str, object] = field(default_factory=dict, kw_only=True)
    eyes: Callable[[str, Path], str] | None = field(default=None, kw_only=True)
    simulated: bool = field(default=True, kw_only=True)

    def train_and_score(self, run: Run) -> Outcome:
        rows = run.data.rows
        if not self.simulated:
            if run.settings.train_also == ():
                raise RowFailed(
                    "it leaves out further datasets, and there are none: name --train_also."
                )
            rows = _own_rows(rows, run.data.own)
        recipe = self._recipe(run)
        questions = questions_of(run)  # refused before the training, not after it
        try:
            train(recipe, rows)
            results = _evaluate(recipe, run, questions)
        except Interrupted as interrupted:  # by a signal, which is to stop all rows
            raise KeyboardInterrupt from interrupted
        finally:
            shutil.rmtree(run.folder / "features", ignore_errors=True)
        facts = json.loads((Path(recipe.output_dir) / "run.json").read_text(encoding="utf-8"))
        return Outcome(
            figures=category_figures(results, NAME) | answer_figures(results, NAME),
            parameters=facts["parameters"],
            trainable_parameters=facts["trainable_parameters"],
            training={"training": _history(recipe, facts)},
            details={"classification": results["classification"], "recipe": recipe_changes(recipe)},
        )

    def _recipe(self, run: Run) -> Recipe:
        """What `mvaema train` is told."""
        settings, folder = run.settings, run.folder / "student"
        overrides = dict(self.overrides)
        if self.eyes is None:
            overrides["image_size"] = settings.image_size
            eyes = {}
        else:
            eyes = {"vision": self.eyes(self.pretrained, run.folder / "eyes")}
        told = {
            "output_dir": str(folder),
            "fold": run.data.number,
            "cross_validation": settings.test_split is None,
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "patience": settings.patience,
            "stop_after": settings.stop_after,
            "max_minutes": settings.budget,
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "seed": run.seed,
            "sample_micrographs": 0,
            "logging_steps": 1,  # they are counted
            "vision_cache": str(run.folder / "features"),
            "config_overrides": ",".join(f"{n}={v}" for n, v in overrides.items()) or None,
        }
        if not self.simulated:
            told |= {"train_also": None, "mix": None}
        return replace(settings.recipe(), **told | eyes | dict(self.recipe))


def recipe_changes(recipe: Recipe) -> dict:
    """The settings of a recipe that are not the defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(Recipe)}
    return {n: v for n, v in dataclasses.asdict(recipe).items() if v != defaults[n]}


def _own_rows(rows: Rows, own: int) -> Rows:
    """The rows without those of further datasets; `own` is how many others `train` begins with."""
    train = rows.train.select(np.arange(own))
    counts = None if rows.counts is None else rows.counts[:own]
    return replace(rows, train=train, texts=train.select_columns(TEXT_COLUMNS), counts=counts)


def _evaluate(recipe: Recipe, run: Run, questions: Questions) -> dict:
    """The results of an evaluation; answers are decoded greedily, as those of chat models are."""
    arguments = EvaluationArguments(
        model=recipe.output_dir,
        dataset=recipe.dataset,
        output_dir=str(run.folder / "scores"),
        decoding="greedy",
        synonyms=has_wordnet(),
    )
    return evaluate_questions(arguments, questions, NAME)


def _history(recipe: Recipe, facts: Mapping) -> History:
    log = read_json_lines(Path(recipe.output_dir) / "training_log.jsonl")
    steps = read_json_lines(Path(recipe.output_dir) / "steps.jsonl")
    seconds = sum(record["seconds"] for record in log)
    stopped = "early stopping" if len(log) < recipe.epochs else "epochs"
    if recipe.max_minutes is not None and seconds >= 60 * recipe.max_minutes:
        stopped = "budget"
    return History(
        steps=len(steps),
        micrographs=len(steps) * recipe.batch_size,
        epochs=len(log) - (stopped == "budget"),  # which cuts the last one short
        best_epoch=facts["best_epoch"],
        stopped=stopped,
        seconds=seconds,
        processor_seconds=seconds * torch.get_num_threads(),
        log=log,
    )


def _lite0(pretrained: str, folder: Path) -> str:
    """Any vision model; the name `LITE0` stands for the weights of a package."""
    if pretrained != LITE0:
        return pretrained
    return str(folder if (folder / "config.json").is_file() else make_lite0(folder))


def _untrained(pretrained: str, folder: Path) -> str:
    """The same vision model with random weights."""
    if not (folder / "config.json").is_file():
        source = _lite0(pretrained, folder.with_name("trained-eyes"))
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.from_pretrained(source)).save_pretrained(folder)
        AutoImageProcessor.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def _ablation(name: str, title: str, **more) -> StudentRow:
    """The student of recipes/lite0.yaml, with something changed."""
    return StudentRow(
        name,
        title,
        more.pop("table", None),
        "Ablations",
        "mvaema",
        learning_rate=2e-3,
        warmup_steps=60,
        pretrained=LITE0,
        eyes=more.pop("eyes", _lite0),
        recipe=RECIPE | more.pop("recipe", {}),
        **more,
    )


def _paper(bleu_4: float, rouge_l: float, meteor: float, *macro: float) -> dict[str, float]:
    """A row of Tables 5 and 6."""
    named = dict(zip(("macro_precision", "macro_recall", "macro_f1"), macro, strict=True))
    return {"bleu_4": bleu_4, "rouge_l": rouge_l, "meteor": meteor} | named


PAPER = _paper(0.709, 0.822, 0.853, 0.964, 0.967, 0.962)
OTHER_FIGURES = {"bleu_2": 0.780, "rouge_1": 0.860, "rouge_2": 0.765, "top_1": 0.947}

ROWS = [
    StudentRow(
        "mvaema-paper",
        "MVaEMa, the paper's shapes, from random weights",
        1,
        "Students",
        "mvaema",
        paper=PAPER | OTHER_FIGURES | {"top_5": 0.988},
        recipe={"preset": "paper"},
    ),
    _ablation(
        "mvaema-lite0", "the whole student, MVaEMa of recipes/lite0.yaml", table=5, paper=PAPER
    ),
    _ablation(
        "without-itc",
        "w/o ITC",
        table=5,
        overrides={"itc_weight": 0},
        paper=_paper(0.579, 0.670, 0.696, 0.752, 0.731, 0.717),
        note="classifies by ITM",
    ),
    _ablation(
        "without-itm",
        "w/o ITM (the paper's CTC)",
        table=5,
        overrides={"itm_weight": 0},
        paper=_paper(0.569, 0.670, 0.696, 0.746, 0.773, 0.759),
        note="classifies by ITC",
    ),
    _ablation(
        "without-self-attention",
        "w/o SA",
        table=5,
        overrides={"use_self_attention": False},
        paper=_paper(0.682, 0.775, 0.794, 0.927, 0.912, 0.895),
    ),
    _ablation(
        "without-cross-attention",
        "w/o CA",
        table=5,
        overrides={"use_cross_attention": False},
        paper=_paper(0.652, 0.755, 0.769, 0.867, 0.872, 0.860),
        note="its answers and its ITM see text only",
    ),
    _ablation(
        "without-causal-mask",
        "w/o CSA",
        table=5,
        overrides={"use_causal_mask": False},
        paper=_paper(0.649, 0.740, 0.761, 0.843, 0.866, 0.885),
        note="words see their successors in training",
    ),
    _ablation(
        "without-caption-dropout",
        "captions always in the prompt in training",
        recipe={"caption_dropout": 0.0},
    ),
    _ablation(
        "instruction-aware",
        "image encoder knows the question",
        overrides={"instruction_aware": True},
    ),
    _ablation("plain-itc", "ITC with one positive", overrides={"multi_positive": False}),
    _ablation("without-simulated", "without simulated micrographs", simulated=False),
    _ablation("tuned-eyes", "eyes tuned, not frozen", recipe={"train_vision": "all"}),
    _ablation(
        "untrained-eyes",
        "eyes from random weights, tuned",
        eyes=_untrained,
        recipe={"train_vision": "all", "vision_learning_rate": 1e-3},
    ),
]
