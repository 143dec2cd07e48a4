"""BLEU, ROUGE and METEOR of an answer against the teacher's, as in the paper's Table 7.

What is special about it:
- one protocol, found by recomputing Table 7 of the paper (nine of its ten rows to within 0.003):
  whitespace tokens, case kept; BLEU-n as NLTK's `sentence_bleu` with equal weights and no
  smoothing; ROUGE-1/2/L as the F-measure of `rouge_score` without stemming; METEOR as NLTK's
  `single_meteor_score` with WordNet;
- scores equal those of the libraries to the last bit. The only change is speed: stems and synonyms
  are looked up once per word instead of once per occurrence;
- METEOR without WordNet is a different metric and has a different name, `meteor_no_synonyms`.

`metrics/vqa_text` offers the same as a metric of the `evaluate` library.
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace

from nltk.corpus import WordNetCorpusReader
from nltk.stem.porter import PorterStemmer
from nltk.translate.bleu_score import sentence_bleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from tqdm.auto import tqdm

from mvaema.evaluation.wordnet import ensure_wordnet

BLEU_WEIGHTS = {f"bleu_{n}": (1 / n,) * n for n in (1, 2, 3, 4)}
ROUGE_TYPES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
METEOR, METEOR_NO_SYNONYMS = "meteor", "meteor_no_synonyms"
FALSE_CLAIMS = "false_claims"  # of `claims.py`
# How the metrics of the tables are called in print.
LABELS = {
    **{name: f"BLEU-{len(weights)}" for name, weights in BLEU_WEIGHTS.items()},
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    METEOR: "METEOR",
    METEOR_NO_SYNONYMS: "METEOR without synonyms",
    FALSE_CLAIMS: "False claims",
}

_rouge = RougeScorer(list(ROUGE_TYPES.values()), use_stemmer=False)
_stemmer = SimpleNamespace(stem=lru_cache(2**16)(PorterStemmer().stem))
_no_synonyms = SimpleNamespace(synsets=lambda word: ())


@lru_cache(1)
def _remembering(reader: WordNetCorpusReader) -> SimpleNamespace:
    return SimpleNamespace(synsets=lru_cache(2**16)(reader.synsets))


def heading(metric: str) -> str:
    """A metric of `LABELS` and which way is better, for the head of a table."""
    return f"{LABELS[metric]} ({'↓' if metric == FALSE_CLAIMS else '↑'})"


def metric_names(synonyms: bool = True) -> tuple[str, ...]:
    """The names `score_texts` returns, in the order of the tables."""
    return (*BLEU_WEIGHTS, *ROUGE_TYPES, METEOR if synonyms else METEOR_NO_SYNONYMS)


def score_texts(
    predictions: Sequence[str],
    references: Sequence[str],
    synonyms: bool = True,
    progress: bool = False,
) -> dict[str, list[float]]:
    """Scores of each answer in [0, 1]: metric name to one float per pair.

    An empty prediction scores 0 in every metric.

    Args:
        synonyms: score `meteor`, which needs WordNet; if `False`, `meteor_no_synonyms` instead.
        progress: show a progress bar.

    Raises:
        ValueError: lengths differ, or there is nothing to score.
        TypeError: a prediction or a reference is not a string.
        LookupError: `synonyms`, and this machine has no WordNet.
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions and references must pair up; got {len(predictions)} predictions and "
            f"{len(references)} references."
        )
    if not len(predictions):
        raise ValueError("there are no predictions to score.")
    wordnet = _remembering(ensure_wordnet()) if synonyms else _no_synonyms
    scores = {name: [] for name in metric_names(synonyms)}
    pairs = tqdm(
        zip(predictions, references, strict=True), "scoring", len(predictions), disable=not progress
    )
    with warnings.catch_warnings():
        # NLTK warns of every answer without a common 4-gram. By the protocol it scores 0.
        warnings.filterwarnings("ignore", message="\\s*The hypothesis contains 0 counts")
        for i, (prediction, reference) in enumerate(pairs):
            for field, text in (("prediction", prediction), ("reference", reference)):
                if not isinstance(text, str):
                    raise TypeError(f"{field} {i} must be a string; got {text!r}.")
            for name, score in _score_pair(prediction, reference, wordnet).items():
                scores[name].append(score)
    return scores


def _score_pair(prediction: str, reference: str, wordnet: SimpleNamespace) -> dict[str, float]:
    answer, truth = prediction.split(), reference.split()
    bleu = sentence_bleu([truth], answer, weights=list(BLEU_WEIGHTS.values()))
    rouge = _rouge.score(target=reference, prediction=prediction)
    meteor = single_meteor_score(truth, answer, stemmer=_stemmer, wordnet=wordnet)
    return {
        **dict(zip(BLEU_WEIGHTS, map(float, bleu), strict=True)),
        **{name: float(rouge[kind].fmeasure) for name, kind in ROUGE_TYPES.items()},
        METEOR_NO_SYNONYMS if wordnet is _no_synonyms else METEOR: meteor,
    }
