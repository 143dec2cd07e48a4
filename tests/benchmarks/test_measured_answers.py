"""The benchmark of measured answers counts as it says."""

import io

import numpy as np
import pytest
from PIL import Image
from support.tiny_student import save_tiny_student

from benchmarks import measured_answers
from mvaema.evaluation.answerers import load_answerer


def test_shares_by_hand():
    found = [
        {"question": "basics", "measured": True, "alone": [0.5], "beside": [0.0]},
        {"question": "basics", "measured": False, "alone": [0.1], "beside": [0.1]},
        {
            "question": "size_distribution",
            "measured": True,
            "alone": [np.inf, 0.1],
            "beside": [0.19, 0.21],
        },
    ]
    rows = {line[0]: line[1:] for line in measured_answers.table(found, 2).rows}
    assert rows["basics"] == ["2", "1", "50 %", "100 %", "0 %", "100 %"]
    assert rows["size_distribution"] == ["1", "1", "50 %", "50 %", "50 %", "50 %"]
    assert rows["mean size"] == ["1", "1", "0 %", "100 %", "0 %", "100 %"]


@pytest.mark.slow
def test_lengths_in_pixels_are_no_lengths(tmp_path):
    student = load_answerer(str(save_tiny_student(tmp_path / "student")), decoding="greedy")
    grey = np.full((240, 240), 60, dtype=np.uint8)
    rows, columns = np.mgrid[:240, :240]
    for row in range(24, 240, 48):
        for column in range(24, 240, 48):
            grey[(rows - row) ** 2 + (columns - column) ** 2 < 15**2] = 190
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    qa = [
        {"question_id": "size_distribution", "question": "How large?", "answer": "About 60 nm."},
        {"question_id": "basics", "question": "What is it?", "answer": "Discs."},
    ]
    row = {"image": {"bytes": file.getvalue(), "path": None}, "image_id": "discs", "qa": qa}
    (found,) = measured_answers.ask(student, row)  # the other answer states no length
    assert found["question"] == "size_distribution"
    assert found["beside"] == found["alone"] == [pytest.approx(np.inf)]
