"""What a row that answers is asked, and the figures of its evaluation that a table shows.

What is special about it: the choice of the true answer among eight is made by the likelihood minus
that with a blank image, which every model that answers can be asked for, student or not.
"""

from collections.abc import Mapping

import numpy as np

from baselines.settings import Run
from mvaema.evaluation.questions import Micrographs, Questions
from mvaema.evaluation.scores import TYPICAL

# Of answers, and of sight, with the names that a table has for them.
ANSWERS = ("bleu_2", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor", "meteor_no_synonyms")
ANSWERS += ("false_claims",)
SIGHT = {
    "image_gain": "image_gain",
    "own_gain": "own_gain",
    "answer_gain_top_1": "among_eight",
}
# The ways to classify, the best founded first.
METHODS = ("ITC+ITM", "ITC", "ITM", "LM")
CATEGORY_FIGURES = ("top_1", "top_5", "macro_precision", "macro_recall", "macro_f1")


def questions_of(run: Run) -> Questions:
    """What the test micrographs of a run are asked; typical answers are of the dataset itself.

    Raises:
        DatasetError: a micrograph has no id, or several have one.
        ValueError: no micrograph was asked what the settings name.
    """
    rows, dataset = run.data.rows, run.settings.dataset
    questions = Questions.of_splits(
        Micrographs(rows.test, dataset),
        Micrographs(rows.train.select(np.arange(run.data.own)), dataset),
        dataset=dataset,
        split=run.settings.test_split or f"fold {run.data.number} of {run.settings.folds}",
        train_split="the folds trained on",
    )
    return questions.only(run.settings.questions) if run.settings.questions else questions


def answer_figures(results: Mapping, name: str) -> dict[str, float | list]:
    """`bleu_2` to `false_claims`, `image_gain`, `own_gain` and `among_eight`, with intervals; the
    scores of the blind twin as `blind_NAME` and of the typical answer as `typical_NAME`.

    Args:
        results: of an evaluation.
        name: what it calls the model.
    """
    figures: dict[str, float | list] = {}
    for prefix, who in (("", name), ("blind_", f"{name}, blank image"), ("typical_", TYPICAL)):
        scores = results["answers"][who]["overall"]["scores"]
        for metric in ANSWERS:
            if scores.get(metric, {}).get("mean") is not None:
                figures[prefix + metric] = scores[metric]["mean"]
                if not prefix:
                    figures[f"{metric}_interval"] = [scores[metric][end] for end in ("low", "high")]
    scores = results["sight"].get(name, {"overall": {"scores": {}}})["overall"]["scores"]
    for measure, figure in SIGHT.items():
        if scores.get(measure, {}).get("n"):
            figures[figure] = scores[measure]["mean"]
            figures[f"{figure}_interval"] = [scores[measure][end] for end in ("low", "high")]
    return figures


def category_figures(results: Mapping, name: str) -> dict[str, float | list]:
    """`top_1` with its interval, `top_5` and the macro averages by the best founded way that the
    model knows (`METHODS`), and `blind_top_1` and `blind_macro_f1` of its twin; none if it does
    not classify."""
    method = next((m for m in METHODS if m in results["classification"]), None)
    if method is None:
        return {}
    found = results["classification"][method]
    twin = results["twin_classification"][f"{name}, blank image"][method]
    figures = {figure: found[figure] for figure in CATEGORY_FIGURES}
    figures["top_1_interval"] = found["top_1_interval"]
    return figures | {f"blind_{figure}": twin[figure] for figure in ("top_1", "macro_f1")}
