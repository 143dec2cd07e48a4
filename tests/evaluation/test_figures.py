"""What the report's pictures show is what the figures say."""

import numpy as np
import pytest

from mvaema.evaluation.categories import score_classes
from mvaema.evaluation.figures import confusion_matrix, question_bars, reliability_diagram

LABELS = ["Fibres", "Porous_Sponge", "Tips"]


def summary(**means: float) -> dict:
    scores = {
        question: {"scores": {"meteor": {"mean": m, "low": m - 0.1, "high": m + 0.2}}}
        for question, m in means.items()
    }
    return {"by_question": scores}


@pytest.fixture
def scores() -> dict:
    probabilities = [[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.9, 0.0], [0.6, 0.0, 0.4]]
    return score_classes(np.array(probabilities), np.array([0, 0, 1, 2]), LABELS)


def test_bars_are_the_students_means_and_marks_those_of_others():
    answers = {
        "student": summary(basics=0.5, surface=0.25),
        "typical answer": summary(basics=0.4),  # was not asked the other question
    }
    figure = question_bars(answers, "meteor", "METEOR")
    (axes,) = figure.axes
    assert [patch.get_width() for patch in axes.patches] == [0.5, 0.25]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["basics", "surface"]
    (marks,) = (line for line in axes.lines if line.get_label() == "typical answer")
    np.testing.assert_array_equal(marks.get_xdata(), [0.4, np.nan])
    (bars,) = axes.containers[1].lines[2]
    ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
    assert np.array(ends) == pytest.approx(np.array([[0.4, 0.7], [0.15, 0.45]]))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(answers)


def test_a_confusion_matrix_shows_counts_and_the_share_of_the_true_class(scores):
    axes = confusion_matrix(scores, "ITM").axes[0]
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "2", (1, 1): "1", (0, 2): "1"}  # (predicted, true)
    np.testing.assert_array_equal(axes.images[0].get_array()[2], [1, 0, 0])
    assert [label.get_text() for label in axes.get_yticklabels()][1] == "Porous Sponge"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_a_reliability_diagram_shows_its_bins(scores):
    upper, lower = reliability_diagram(scores, "ITM").axes
    (points,) = (line for line in upper.lines if line.get_marker() == "o")
    assert points.get_xdata() == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert points.get_ydata() == pytest.approx([0, 1, 1, 1])
    assert [patch.get_height() for patch in lower.patches] == [1, 1, 1, 1]
    assert f"ECE {scores['expected_calibration_error']:.3f}" in upper.get_title()
