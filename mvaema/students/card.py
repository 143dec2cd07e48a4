"""The model card of a trained student: README.md, with figures in the Hub's model-index format.

What is special about it:
- it is made from the files that a run and an evaluation have written: `recipe.yaml`, `run.json`,
  `training_log.jsonl`, `results.json`. They are read as plain data;
- it names no place in the lab. A dataset or checkpoint is named only if it was a Hub repository
  when the run started; everything else is "private".
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mvaema.files import read_json_lines, write_text
from mvaema.students.loading import base_of
from mvaema.students.places import SOURCES, hub_id

TEMPLATE = Path(__file__).with_name("card.md.j2")
TAGS = ["electron-microscopy", "visual-question-answering", "knowledge-distillation", "mvaema"]
# Settings that are of no use to anybody else.
LOCAL = ("output_dir", "vision_cache", "resume", "report_to", "push_to_hub", "public")
# The references of an evaluation. Models that it was compared with are named after folders.
REFERENCES = (
    "typical answer",
    "typical answer of the category",
    "nearest image's answer",
    "random answer",
)
# The metrics in the card's table. The model-index has all that the results name.
METRICS = ("bleu_2", "bleu_4", "rouge_l", "meteor", "meteor_no_synonyms")
# What shows whether a student looks: name in the results' `sight` to what the card calls it.
SIGHT = {
    "image_gain_per_token": "image gain, nats per token",
    "answer_gain_top_1": "true answer by likelihood gain",
    "answer_itm_top_1": "true answer by ITM",
}
LOSSES = {"itc_loss": "ITC", "itm_loss": "ITM", "lm_loss": "LM"}


def write_card(
    folder: Path,
    repo_id: str | None = None,
    licence: str | None = None,
    report: Path | None = None,
) -> None:
    """Write README.md into the folder of a trained student.

    Args:
        folder: of a training run: the student or its adapters, and what the run has written.
        repo_id: Hub id, or any name, that the card tells people to load.
        licence: its identifier on the Hub, such as "apache-2.0". Without one the card says so.
        report: `output_dir` of an evaluation by `mvaema eval`, whose figures go into the card.

    Raises:
        FileNotFoundError: `report` holds no finished evaluation.
    """
    folder = Path(folder)
    recipe, run = read_run(folder)
    results = _read_results(Path(report)) if report is not None else None
    published = run.get("hub_ids", {})
    dataset, base = published.get("dataset"), hub_id(base_of(folder))
    epoch, losses = _kept_epoch(folder, recipe.get("keep_by", "loss"))
    figures = _loss_results(losses, dataset)
    if results is not None:
        # The evaluation may be of another dataset than the one trained on.
        measured = dataset if results["dataset"] == recipe.get("dataset") else None
        figures += eval_results(results, measured)
    name = repo_id.split("/")[-1] if repo_id else "MVaEMa student"
    data = ModelCardData(
        language="en",
        license=licence,
        library_name="peft" if base else "transformers",
        pipeline_tag="image-text-to-text",
        base_model=base,
        datasets=[dataset] if dataset else None,
        tags=TAGS,
        model_name=name if figures else None,
        eval_results=figures or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        repo_id=repo_id,
        base=base,
        dataset=dataset,
        run=run,
        epoch=epoch,
        losses=losses,
        recipe=_public(recipe, published),
        **(_scores(results) if results is not None else {}),
    )
    write_text(folder / "README.md", card.content)


def eval_results(results: Mapping, dataset: str | None) -> list[EvalResult]:
    """The student's figures for the model-index of a card.

    Args:
        results: of an evaluation (`mvaema/evaluation/scores.py`).
        dataset: Hub id of what it was scored on; None if that is private.
    """
    summary = next(iter(results["answers"].values()))["overall"]["scores"]
    found = [
        ("visual-question-answering", label, name.split("_")[0], summary[name]["mean"])
        for name, label in results["metrics"].items()
        if name != "false_claims"  # no metric that the Hub knows
    ]
    found += [
        ("visual-question-answering", SIGHT[name], "accuracy" if "top_1" in name else name, value)
        for name, value in _sight_means(results)
    ]
    for method, scores in results.get("classification", {}).items():
        if method != "chance":
            for kind, key in (("accuracy", "top_1"), ("f1", "macro_f1")):
                label = f"{key.replace('_', ' ')} by {method}"
                found.append(("image-classification", label, kind, scores[key]))
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset or "private",
            dataset_name=dataset or "private",
            dataset_split=results.get("split"),
            metric_type=kind,
            metric_name=label,
            metric_value=round(value, 4),
        )
        for task, label, kind, value in found
    ]


def read_run(folder: Path) -> tuple[dict, dict]:
    """`recipe.yaml` and `run.json` of a training run; empty where there are none."""
    recipe, run = (folder / name for name in ("recipe.yaml", "run.json"))
    return (
        yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {},
        json.loads(run.read_text(encoding="utf-8")) if run.is_file() else {},
    )


def _kept_epoch(folder: Path, keep_by: str) -> tuple[int | None, list[tuple[str, float]]]:
    """The epoch with the lowest validation loss `keep_by`, and its losses by name."""
    log = folder / "training_log.jsonl"
    epochs = read_json_lines(log) if log.is_file() else []
    if not epochs:
        return None, []
    kept = min(epochs, key=lambda record: record["validation"][keep_by])
    validation = kept["validation"]
    return kept["epoch"], [(n, validation[key]) for key, n in LOSSES.items() if key in validation]


def _loss_results(losses: Iterable[tuple[str, float]], dataset: str | None) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="visual-question-answering",
            dataset_type=dataset or "private",
            dataset_name=dataset or "private",
            metric_type="loss",
            metric_name=f"validation loss, {name}",
            metric_value=round(value, 4),
        )
        for name, value in losses
    ]


def _public(recipe: Mapping, published: Mapping) -> str:
    """The settings as YAML, without places."""
    shown = {k: v for k, v in recipe.items() if v is not None and k not in LOCAL}
    shown |= {k: published.get(k, "private") for k in SOURCES if k in shown}
    return yaml.safe_dump(shown, sort_keys=False) if shown else ""


def _scores(results: Mapping) -> dict:
    """What the template shows of an evaluation: the student, its variants and the references."""
    student = next(iter(results["answers"]))
    overall = results["answers"][student]["overall"]
    metrics = {name: label for name, label in results["metrics"].items() if name in METRICS}
    answers = []
    for name, summary in results["answers"].items():
        own = name == student or name.startswith(f"{student}, ")
        if own or name in REFERENCES:
            scores = summary["overall"]["scores"]
            who = name.replace(student, "this student", 1) if own else name
            answers.append((who, [f"{scores[metric]['mean']:.3f}" for metric in metrics]))
    return {
        "answers": answers,
        "metrics": list(metrics.values()),
        "questions": overall["n"],
        "micrographs": overall["images"],
        "classification": results.get("classification"),
        **_sight(results, student),
    }


def _sight(results: Mapping, student: str) -> dict:
    """What the template shows of what the student and its variants owe to their eyes."""
    names = [name for name, _ in _sight_means(results)]
    rows = []
    for name, summary in results.get("sight", {}).items():
        if name == student or name.startswith(f"{student}, "):
            scores = (summary["overall"]["scores"][figure] for figure in names)
            who = name.replace(student, "this student", 1)
            rows.append((who, [_with_interval(score) for score in scores]))
    chance = None
    if rows:
        chance = results["sight"][student]["overall"]["scores"]["answer_chance_top_1"].get("mean")
    return {
        "sight": rows if names else [],
        "sight_figures": [SIGHT[name] for name in names],
        "chance": chance,
        "support": results.get("support", {}),
    }


def _sight_means(results: Mapping) -> list[tuple[str, float]]:
    """The student's figures of `SIGHT` that were measured; evaluations may lack them."""
    summary = next(iter(results.get("sight", {}).values()), None)
    scores = summary["overall"]["scores"] if summary else {}
    return [(name, scores[name]["mean"]) for name in SIGHT if scores.get(name, {}).get("n")]


def _with_interval(score: Mapping) -> str:
    if not score["n"]:
        return "–"
    interval = "" if score["low"] is None else f" [{score['low']:.3f}, {score['high']:.3f}]"
    return f"{score['mean']:.3f}{interval}"


def _read_results(report: Path) -> dict:
    """Raises FileNotFoundError where there is no finished evaluation, or one that is too old."""
    file = report / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "metrics" not in results:
        raise FileNotFoundError(
            f"{report} holds no finished evaluation (no results.json with `metrics`); run "
            "`mvaema eval` with it as --output_dir, which asks nothing again."
        )
    return results
