"""BLEU, ROUGE and METEOR of answers, for `evaluate.load("metrics/vqa_text")`.

The scores are those of `mvaema.evaluation.texts`. `evaluate` copies this file into its cache, so
it holds only the interface, and the `mvaema` package must be installed or on the path.
"""

import datasets
import evaluate
import numpy as np

from mvaema.evaluation.texts import score_texts

_DESCRIPTION = """\
Text quality of answers about micrographs, by MVaEMa's protocol: BLEU-1 to BLEU-4, ROUGE-1/2/L and
METEOR per answer, and their mean and standard deviation over the answers.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): the answers.
    references (`list` of `str`): the true answers, one for each prediction.
    synonyms (`bool`): score METEOR with WordNet's synonyms (the default). `False` gives
        `meteor_no_synonyms` instead, a different metric that needs no WordNet.
    per_answer (`bool`): also return the scores of each answer. Defaults to `True`.
Returns:
    bleu_1, bleu_2, bleu_3, bleu_4, rouge_1, rouge_2, rouge_l, meteor (`float`): means, in [0, 1].
    The same names with `_std` (`float`): standard deviations over the answers.
    The same names with `_per_answer` (`list` of `float`): the scores of each answer.
Examples:
    >>> vqa_text = evaluate.load("metrics/vqa_text")
    >>> scores = vqa_text.compute(
    ...     predictions=["The scale bar states 500 nm."],
    ...     references=["The scale bar marks 500 nm."],
    ... )
    >>> round(scores["rouge_l"], 3)
    0.833
"""

_CITATION = """\
@misc{srinivas2024multimodal,
    title = {Multi-Modal Instruction-Tuning Small-Scale Language-and-Vision Assistant for
             Semiconductor Electron Micrograph Analysis},
    author = {Sakhinana Sagar Srinivas and Geethan Sannidhi and Venkataramana Runkana},
    year = {2024},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class VqaText(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=[
                "https://www.nltk.org/api/nltk.translate.html",
                "https://github.com/google-research/google-research/tree/master/rouge",
            ],
        )

    def _compute(self, predictions, references, synonyms=True, per_answer=True):
        scores = score_texts(predictions, references, synonyms)
        results = {name: float(np.mean(values)) for name, values in scores.items()}
        results |= {f"{name}_std": float(np.std(values)) for name, values in scores.items()}
        if per_answer:
            results |= {f"{name}_per_answer": values for name, values in scores.items()}
        return results
