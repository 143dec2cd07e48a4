"""The scores of all folds to means, standard deviations and tables.

`results` is a dictionary, stored as `cross_validation.json`:

    folds, dataset                   how many, and the fingerprint of the dataset
    answers, sight, categories, training
                                     from a name and a figure to `mean`, `std` and `folds`, its
                                     value in each fold
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from mvaema.evaluation.scores import HEADLINE
from mvaema.evaluation.sight import ANSWER, CHANCES, WAYS
from mvaema.evaluation.table import Table, markdown
from mvaema.evaluation.texts import heading
from mvaema.files import write_json, write_text

STUDENT = "student"
MOST_FREQUENT = "most frequent category"
LOSSES = {"loss": "Loss", "itc_loss": "ITC loss", "itm_loss": "ITM loss", "lm_loss": "LM loss"}
CATEGORY_FIGURES = {"top_1": "Top-1", "top_5": "Top-5", "macro_f1": "Macro F1"}
SIGHT_FIGURES = {
    "image_gain_per_token": "Image gain, nats per token",
    **{
        f"{ANSWER}_{way}_{figure}": f"True answer by {by}, {label}"
        for way, by in {**WAYS, CHANCES: "chance"}.items()
        for figure, label in (("top_1", "top-1"), ("mrr", "MRR"))
    },
}
SECTIONS = ("answers", "sight", "categories", "training")


def write_fold_tables(scores: Sequence[Mapping], folder: Path) -> str:
    """Write `cross_validation.json` and `cross_validation.md`. Several processes may do so at once.

    Args:
        scores: `scores.json` of every fold, in order.

    Returns:
        the tables over all folds, as Markdown.
    """
    results = {"folds": len(scores), "dataset": scores[0]["dataset"]}
    results |= {s: over_folds([of_fold[s] for of_fold in scores]) for s in SECTIONS}
    tables = [markdown(table) for table in fold_tables(results)]
    overall, per_fold = tables[: len(SECTIONS)], tables[len(SECTIONS) :]
    text = "\n".join([f"# Cross-validation, {len(scores)} folds\n", *overall])
    write_json(folder / "cross_validation.json", results)
    write_text(folder / "cross_validation.md", "\n".join([text, *per_fold]))
    return text


def over_folds(sections: Sequence[Mapping[str, Mapping]]) -> dict[str, dict[str, dict]]:
    """Name and figure to `folds`, the values, and their `mean` and `std` (n - 1).

    Mean and standard deviation are None where a fold lacks the value: a mean over some folds
    cannot be compared with a mean over all.
    """
    found: dict[str, dict] = {}
    for section in sections:
        for name, figures in section.items():
            found.setdefault(name, {}).update(dict.fromkeys(figures))
    for name, figures in found.items():
        for figure in figures:
            values = [section.get(name, {}).get(figure) for section in sections]
            complete = None not in values
            figures[figure] = {
                "mean": statistics.fmean(values) if complete else None,
                "std": statistics.stdev(values) if complete else None,
                "folds": values,
            }
    return found


def fold_tables(results: Mapping) -> list[Table]:
    """Answers, sight, categories and training over all folds, then every name fold by fold."""
    answers, sight, categories, training = (results[section] for section in SECTIONS)
    metrics = {m: heading(m) for m in HEADLINE if m in answers[STUDENT]}
    spread = "± is the standard deviation (n - 1) over the folds."
    return [
        Table(
            "Answers",
            *_mean_rows(answers, metrics),
            f"{spread} A student that does not beat the typical training answer, and itself shown "
            "a blank image, has learnt nothing from the images.",
        ),
        Table(
            "What the image is worth",
            *_mean_rows(sight, SIGHT_FIGURES),
            f"{spread} Image gain: LM loss of the true answers with a blank image minus with the "
            "image shown. True answer: how often it is ranked first among answers to the same "
            "question about other micrographs.",
        ),
        Table(
            "Categories",
            *_mean_rows(categories, CATEGORY_FIGURES),
            f"{spread} F1 is averaged over the categories that occur in a fold. The "
            f"{MOST_FREQUENT} is that of the training micrographs; for top-5, the five most "
            "frequent.",
        ),
        _training_table(training),
        *_tables_per_fold("Answers", answers, metrics),
        *_tables_per_fold("What the image is worth", sight, SIGHT_FIGURES),
        *_tables_per_fold("Categories", categories, CATEGORY_FIGURES),
    ]


def _mean_rows(
    section: Mapping[str, Mapping], labels: Mapping[str, str]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the means of each name."""
    rows = [
        [name, *(_mean_std(figures.get(figure)) for figure in labels)]
        for name, figures in section.items()
    ]
    return ["Method", *labels.values()], rows


def _training_table(training: Mapping[str, Mapping]) -> Table:
    columns = {
        **{("micrographs", name): name.capitalize() for name in training["micrographs"]},
        ("epochs", "best"): "Best epoch",
        ("epochs", "all"): "Epochs",
        **{("validation", n): LOSSES[n] for n in LOSSES if n in training["validation"]},
    }
    return Table(
        "Training",
        ["Fold", *columns.values()],
        _fold_rows([training[name][figure] for name, figure in columns]),
        "Micrographs in each of the three parts, and unreadable ones, which are left out. Best "
        "epoch: the one with the lowest validation loss. Its checkpoint is tested, and the losses "
        "are its validation losses.",
    )


def _tables_per_fold(
    title: str, section: Mapping[str, Mapping], labels: Mapping[str, str]
) -> list[Table]:
    tables = []
    for name, figures in section.items():
        shown = [figure for figure in labels if figure in figures]
        header = ["Fold", *(labels[figure] for figure in shown)]
        rows = _fold_rows([figures[figure] for figure in shown])
        tables.append(Table(f"{title}: {name}", header, rows))
    return tables


def _fold_rows(columns: Sequence[Mapping]) -> list[list[str]]:
    """A row per fold, and one of the means."""
    rows = [
        [str(fold), *map(_cell, values)]
        for fold, values in enumerate(zip(*(column["folds"] for column in columns), strict=True))
    ]
    return [*rows, ["mean", *map(_mean_std, columns)]]


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _mean_std(figure: Mapping | None) -> str:
    if figure is None or figure["mean"] is None:
        return "–"
    form = ".1f" if isinstance(figure["folds"][0], int) else ".3f"
    return f"{figure['mean']:{form}}±{figure['std']:{form}}"
