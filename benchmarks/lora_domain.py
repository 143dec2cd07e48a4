"""LoRA and full tuning on a domain that the student has not seen: one source left out.

    python benchmarks/lora_domain.py data/micrographs runs/domain --source NAME

Trains a base on all other sources. Divides the left-out source into two halves that share no
specimen, tunes the base on one half (adapters, then all weights) and scores all three students on
the other. The learning rate is the one of --rates with the lowest validation loss on a fold of the
tuning half. Prints a table and writes `results.json`. Rerun the same command to resume.
`--variants` compares targets and ranks of adapters instead, on that same fold.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from unittest.mock import patch

import datasets
import numpy as np
from accelerate import Accelerator
from datasets import DatasetDict, concatenate_datasets

sys.path.insert(0, str(Path(__file__).parent.parent))

from mvaema.evaluation.run import EvaluationArguments, evaluate
from mvaema.micrographs.dataset import load_micrographs
from mvaema.micrographs.folds import assign_folds
from mvaema.micrographs.near_duplicates import near_duplicate_clusters
from mvaema.students import lora as adapters
from mvaema.students.loading import load_student
from mvaema.training.batches import BatchLoader
from mvaema.training.examples import ExampleDrawer
from mvaema.training.recipe import Recipe
from mvaema.training.run import train
from mvaema.training.signals import Signals
from mvaema.training.validation import validate

ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["fc1", "fc2"]
VARIANTS = {
    "q, v; rank 8": (["q_proj", "v_proj"], 8),
    "attention; rank 8": (ATTENTION, 8),
    "mlp; rank 8": (MLP, 8),
    "attention, mlp; rank 4": (ATTENTION + MLP, 4),
    "attention, mlp; rank 8": (ATTENTION + MLP, 8),
}
SCORES = ("meteor", "bleu_2", "rouge_l")


def leave_out(source: str, dataset: str, folder: Path) -> None:
    """`others` (split train) and `domain` (train to tune on, validation to measure on)."""
    if (folder / "domain" / "dataset_dict.json").is_file():
        return
    rows = concatenate_datasets([load_micrographs(dataset, s) for s in ("train", "validation")])
    inside = np.array(rows["source"]) == source
    if not inside.any():
        sys.exit(f"error: no source {source!r}; there are {', '.join(sorted(set(rows['source'])))}")
    # What shares a specimen or a picture with the domain is no longer unseen.
    clusters, groups = near_duplicate_clusters(rows), np.array(rows["group"])
    known = np.isin(clusters, clusters[inside]) | np.isin(groups, groups[inside])
    DatasetDict(train=rows.select(np.flatnonzero(~known))).save_to_disk(folder / "others")
    domain = rows.select(np.flatnonzero(inside))
    half = np.array(assign_folds(domain, 2))
    parts = {name: domain.select(np.flatnonzero(half == i)) for i, name in enumerate(("a", "b"))}
    halves = DatasetDict(train=parts["a"], validation=parts["b"])
    halves.save_to_disk(folder / "domain")


def held_out_losses(student: Path, domain: Path) -> dict[str, float]:
    """Mean losses over the half that nothing was tuned on."""
    model = load_student(student)
    rows = load_micrographs(domain, "validation")
    recipe = Recipe(str(domain), "", batch_size=16, workers=0)
    drawer = ExampleDrawer(model.config.category_question)
    batches = BatchLoader(rows, drawer, model.processor, recipe)
    return validate(model, batches, Accelerator(cpu=True), Signals())


def tune(folder: Path, name: str, args: argparse.Namespace, **settings) -> Path:
    """A run on the tuning half, from the base, with the best of `args.rates`."""
    runs = []
    for rate in args.rates:
        recipe = Recipe(
            str(folder / "domain"),
            str(folder / f"{name}-{rate:g}"),
            model=str(folder / "base"),
            epochs=args.tuning_epochs,
            stop_after=args.tuning_epochs,
            batch_size=16,
            folds=5,
            warmup_steps=20,
            learning_rate=rate,
            sample_micrographs=0,
            workers=0,
            **settings,
        )
        runs.append(train(recipe))
    return min(runs, key=lambda run: best_epoch(run)["validation"]["loss"])


def best_epoch(run: Path) -> dict:
    log = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    return min(log, key=lambda record: record["validation"]["loss"])


def facts(run: Path) -> dict:
    """What the table says of a run."""
    about = json.loads((run / "run.json").read_text())
    weights = [*run.glob("model.safetensors"), *run.glob("adapter_model.safetensors")]
    return {
        "run": run.name,
        "best_epoch": best_epoch(run)["epoch"],
        "trainable_parameters": about["trainable_parameters"],
        "megabytes": sum(file.stat().st_size for file in weights) / 1e6,
        "losses": best_epoch(run)["validation"],
    }


def answers(run: Path, folder: Path) -> dict:
    """METEOR, BLEU-2, ROUGE-L and top-1 of an evaluation, beside its baselines and the base."""
    results = evaluate(
        EvaluationArguments(
            str(run),
            str(folder / "domain"),
            str(folder / f"{run.name}-report"),
            compare=None if run.name == "base" else str(folder / "base-report"),
        )
    )
    gain = results["comparisons"].get(f"base → {run.name}", {}).get("scores", {})
    of_name = {
        name: {metric: summary["overall"]["scores"][metric]["mean"] for metric in SCORES}
        for name, summary in results["answers"].items()
    }
    student = of_name.pop(run.name)
    top_1 = {name: scores["top_1"] for name, scores in results["classification"].items()}
    return {
        "answers": student,
        "top_1": top_1,
        "beside": of_name,
        "gain": {metric: gain[metric] for metric in SCORES if metric in gain},
    }


def table(rows: dict[str, dict]) -> str:
    """Markdown."""
    lines = []
    for name, row in rows.items():
        cells = {
            "trained": f"{row['trainable_parameters']:,}",
            "MB": f"{row['megabytes']:.2f}",
            **{n.removesuffix("_loss"): f"{v:.3f}" for n, v in row["losses"].items()},
            **{metric: f"{v:.3f}" for metric, v in row.get("answers", {}).items()},
            **{f"top-1 {m}": f"{v:.2f}" for m, v in row.get("top_1", {}).items()},
        }
        if not lines:
            lines += [f"| | {' | '.join(cells)} |", f"|---|{'---|' * len(cells)}"]
        lines.append(f"| {name} | {' | '.join(cells.values())} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="micrograph dataset with a column `source`")
    parser.add_argument("output", type=Path, help="folder for datasets, runs and results")
    parser.add_argument("--source", required=True, help="the source that is left out")
    parser.add_argument("--epochs", type=int, default=40, help="of the base (40)")
    parser.add_argument("--tuning_epochs", type=int, default=20, help="of each tuning (20)")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--variants", action="store_true", help="compare targets and ranks")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)

    folder = args.output
    leave_out(args.source, args.dataset, folder)
    recipe = Recipe(
        str(folder / "others"),
        str(folder / "base"),
        epochs=args.epochs,
        batch_size=16,
        sample_micrographs=0,
        workers=0,
    )
    base, rows = train(recipe), {}
    if args.variants:
        for number, (name, (targets, rank)) in enumerate(VARIANTS.items()):
            with patch.object(adapters, "TARGETS", targets):
                run = tune(folder, f"variant-{number}", args, lora=True, lora_rank=rank)
            rows[name] = facts(run)
    else:
        lora, full = tune(folder, "lora", args, lora=True), tune(folder, "full", args)
        for name, run in (("before", base), ("after LoRA", lora), ("after full tuning", full)):
            rows[name] = facts(run) | answers(run, folder)
            rows[name]["losses"] = held_out_losses(run, folder / "domain")
        rows["before"]["trainable_parameters"] = 0
    print("\n" + table(rows))
    for name, scores in next(iter(rows.values())).get("beside", {}).items():
        print(f"{name}: " + ", ".join(f"{metric} {v:.3f}" for metric, v in scores.items()))
    for name, row in rows.items():
        for metric, gain in row.get("gain", {}).items():
            interval = f"[{gain['low']:+.3f}, {gain['high']:+.3f}]"
            print(f"{name}: {metric} {gain['difference']:+.3f} {interval}, p = {gain['p_value']}")
    name = "variants.json" if args.variants else "results.json"
    (folder / name).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
