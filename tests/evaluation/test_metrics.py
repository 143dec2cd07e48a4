"""The metric modules, loaded by `evaluate` from their folders with the network cut."""

import socket
import sys

import evaluate
import numpy as np
import pytest
from support import ROOT
from support.wordnet_data import needs_wordnet

from mvaema.evaluation.categories import score_classes
from mvaema.evaluation.texts import score_texts

METRICS = ROOT / "metrics"
ANSWERS = ["The scale bar states 500 nm.", "Round grains.", ""]
TEACHER = ["The scale bar marks 500 nm.", "The grains are round.", "Wires."]


@pytest.fixture(autouse=True, scope="module")
def isolated(tmp_path_factory):
    """Caches of evaluate's in a temporary folder, and no network."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"network access: {args[1:]}")

    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(folder / "modules"))
        # transformers puts the user's own cache on the path, where a metric of this name may be.
        patch.syspath_prepend(str(folder / "modules"))
        for name in [n for n in sys.modules if n.split(".")[0] == "evaluate_modules"]:
            patch.delitem(sys.modules, name)
        yield


@needs_wordnet
def test_vqa_text_in_batches():
    metric = evaluate.load(str(METRICS / "vqa_text"))
    metric.add_batch(predictions=ANSWERS[:2], references=TEACHER[:2])
    metric.add(prediction=ANSWERS[2], reference=TEACHER[2])
    results = metric.compute()
    for name, scores in score_texts(ANSWERS, TEACHER).items():
        assert results[name] == pytest.approx(np.mean(scores))
        assert results[f"{name}_std"] == pytest.approx(np.std(scores))
        assert results[f"{name}_per_answer"] == scores


def test_vqa_text_without_synonyms():
    metric = evaluate.load(str(METRICS / "vqa_text"))
    results = metric.compute(
        predictions=ANSWERS, references=TEACHER, synonyms=False, per_answer=False
    )
    assert "meteor" not in results and "meteor_no_synonyms" in results
    assert not any(name.endswith("_per_answer") for name in results)


def test_classification_in_batches():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(7), 40)
    references = rng.integers(0, 7, 40)
    metric = evaluate.load(str(METRICS / "micrograph_classification"))
    for part in (slice(0, 25), slice(25, 40)):
        metric.add_batch(predictions=probabilities[part], references=references[part])
    labels = list("abcdefg")
    assert metric.compute(labels=labels) == score_classes(probabilities, references, labels)


def test_modules_combine_with_others():
    one, other = (evaluate.load(str(METRICS / "vqa_text")) for _ in range(2))
    combined = evaluate.combine({"student": one, "again": other}, force_prefix=True)
    results = combined.compute(
        predictions=ANSWERS, references=TEACHER, synonyms=False, per_answer=False
    )
    assert results["student_rouge_l"] == results["again_rouge_l"] > 0


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], ["a", "b"], r"Mismatch in the number of predictions \(1\) and references \(2\)"),
        (["a"], [None], "don't match the expected format"),
        ([], [], "no predictions"),
    ],
)
def test_bad_input(predictions, references, message):
    metric = evaluate.load(str(METRICS / "vqa_text"))
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references, synonyms=False)


@pytest.mark.parametrize("name", ["vqa_text", "micrograph_classification"])
def test_each_module_has_a_card(name):
    card = (METRICS / name / "README.md").read_text(encoding="utf-8")
    metric = evaluate.load(str(METRICS / name))
    assert card.startswith("---\ntitle:") and "- evaluate\n- metric" in card
    assert metric.description and metric.citation and metric.inputs_description
