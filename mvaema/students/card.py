"""The model card of a trained student: README.md with figures in the Hub's model-index format.

What is special about it: it is made from what a run has written down, and says nothing of where.
A dataset or checkpoint is named only if it was a Hub repository when the run started (a relative
path looks the same from another folder); all else is "private".
"""

import json
from collections.abc import Mapping
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mvaema.evaluation.scores import read_records
from mvaema.students.loading import base_of
from mvaema.students.places import SOURCES, hub_id

TEMPLATE = Path(__file__).with_name("card.md.j2")
TAGS = ["electron-microscopy", "visual-question-answering", "knowledge-distillation", "mvaema"]
# Settings that are of no use to anybody else.
LOCAL = ("output_dir", "resume", "report_to", "push_to_hub", "public")
BASELINES = (
    "typical answer",
    "typical answer of the category",
    "nearest image's answer",
    "random answer",
)
METRICS = ("bleu_2", "bleu_4", "rouge_l", "meteor", "meteor_no_synonyms")
LOSSES = {"itc_loss": "ITC", "itm_loss": "ITM", "lm_loss": "LM"}


def write_card(
    folder: Path,
    repo_id: str | None = None,
    license: str | None = None,
    report: Path | None = None,
) -> None:
    """README.md of a trained student, from what its run has written into `folder`.

    Args:
        folder: of a training run: the student or its adapters; `recipe.yaml`, `run.json` and
            `training_log.jsonl` are used where they are there.
        repo_id: Hub id, or any name, that the card tells people to load.
        license: its identifier on the Hub, such as "apache-2.0". The card says so if there is none.
        report: folder of an evaluation by `eval.py`, whose figures enter the card.

    Raises:
        FileNotFoundError: `report` holds no finished evaluation.
    """
    folder = Path(folder)
    recipe, run = read_run(folder)
    log = folder / "training_log.jsonl"
    epochs = read_records(log) if log.is_file() else []
    kept = min(epochs, key=lambda record: record["validation"]["loss"], default=None)
    published = run.get("hub_ids", {})
    dataset, base = published.get("dataset"), hub_id(base_of(folder))
    validation = kept["validation"] if kept else {}
    losses = [(name, validation[key]) for key, name in LOSSES.items() if key in validation]
    figures = [
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
    scores = {}
    if report is not None:
        from mvaema.evaluation.report import eval_results  # needs the extra `eval`

        results = _results(Path(report))
        measured = dataset if results["dataset"] == recipe.get("dataset") else None
        figures += eval_results({**results, "dataset": measured or "private"})
        scores = _scores(results)
    name = repo_id.split("/")[-1] if repo_id else "MVaEMa student"
    data = ModelCardData(
        language="en",
        license=license,
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
        epoch=kept and kept["epoch"],
        losses=losses,
        recipe=_public(recipe, published),
        **scores,
    )
    temporary = folder / ".README.md.tmp"
    temporary.write_text(card.content, encoding="utf-8")
    temporary.replace(folder / "README.md")


def read_run(folder: Path) -> tuple[dict, dict]:
    """`recipe.yaml` and `run.json` of a training run; empty where there are none."""
    recipe, run = (folder / name for name in ("recipe.yaml", "run.json"))
    return (
        yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {},
        json.loads(run.read_text(encoding="utf-8")) if run.is_file() else {},
    )


def _public(recipe: Mapping, published: Mapping) -> str:
    """The settings as YAML, without places."""
    shown = {k: v for k, v in recipe.items() if v is not None and k not in LOCAL}
    shown |= {k: published.get(k, "private") for k in SOURCES if k in shown}
    return yaml.safe_dump(shown, sort_keys=False) if shown else ""


def _scores(results: Mapping) -> dict:
    """What the template shows of an evaluation: the student, its variants and the baselines."""
    from mvaema.evaluation.report import NAMES

    student, *_ = results["answers"]
    overall = results["answers"][student]["overall"]
    metrics = [key for key in METRICS if key in overall["scores"]]
    answers = []
    for name, summary in results["answers"].items():
        own = name == student or name.startswith(f"{student}, ")
        if own or name in BASELINES:  # models it was compared with are named after folders
            scores = summary["overall"]["scores"]
            who = name.replace(student, "this student", 1) if own else name
            answers.append((who, [f"{scores[key]['mean']:.3f}" for key in metrics]))
    return {
        "answers": answers,
        "metrics": [NAMES[key] for key in metrics],
        "questions": overall["n"],
        "micrographs": overall["images"],
        "classification": results.get("classification"),
    }


def _results(report: Path) -> dict:
    file = report / "results.json"
    if not file.is_file():
        raise FileNotFoundError(f"{report} holds no finished evaluation (no results.json).")
    return json.loads(file.read_text(encoding="utf-8"))
