"""Scores of micrograph categories, for `evaluate.load("metrics/micrograph_classification")`.

The scores are those of `mvaema.evaluation.categories`. `evaluate` copies this file into its cache,
so it holds only the interface, and the `mvaema` package must be installed or on the path.
"""

import datasets
import evaluate

from mvaema.evaluation.categories import score_classes

_DESCRIPTION = """\
Top-1 and top-5 accuracy, per-class and macro-averaged precision, recall and F1, the confusion
matrix and the expected calibration error of class probabilities.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): one probability per class, rows summing to 1.
    references (`list` of `int`): the true classes, as column numbers of `predictions`.
    labels (`list` of `str`, *optional*): the classes' names; their numbers by default.
    n_bins (`int`): equally wide bins of the calibration error. Defaults to 15.
Returns:
    top_1, top_5 (`float`): share of references among the one or five most probable classes.
    macro_precision, macro_recall, macro_f1 (`float`): means over the classes in `references`.
    per_class (`dict`): label to `precision`, `recall`, `f1` and `support`.
    confusion_matrix (`list` of `list` of `int`): rows are true, columns predicted classes.
    expected_calibration_error (`float`), and `reliability` (`list` of `dict`), its bins.
    n (`int`), labels (`list` of `str`).
Examples:
    >>> classification = evaluate.load("metrics/micrograph_classification")
    >>> scores = classification.compute(
    ...     predictions=[[0.8, 0.2], [0.4, 0.6]], references=[0, 0], labels=["Fibres", "Powder"]
    ... )
    >>> scores["top_1"]
    0.5
"""

_CITATION = """\
@inproceedings{guo2017calibration,
    title = {On Calibration of Modern Neural Networks},
    author = {Chuan Guo and Geoff Pleiss and Yu Sun and Kilian Q. Weinberger},
    booktitle = {International Conference on Machine Learning},
    year = {2017},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MicrographClassification(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://scikit-learn.org/stable/modules/model_evaluation.html"],
        )

    def _compute(self, predictions, references, labels=None, n_bins=15):
        labels = labels or [str(i) for i in range(len(predictions[0]))]
        return score_classes(predictions, references, labels, n_bins)
