"""The benchmark of measurements in prompts puts them where it says, and counts as it says."""

import numpy as np
import pytest
from datasets import Dataset
from support.wordnet_data import needs_wordnet

from benchmarks import measured_prompts as benchmark

IDS = [f"{number:016x}" for number in range(40)]
FACTS = {image_id: f"Measured: {i + 1} particles." for i, image_id in enumerate(IDS)}


def rows() -> Dataset:
    qa = [
        {"question_id": "size_distribution", "question": "How large?", "answer": "About 60 nm."},
        {"question_id": "basics", "question": "What is it?", "answer": "Discs."},
    ]
    categories = ["Particles", "Powder"] * 20
    columns = {"image_id": IDS, "category": categories, "qa": [qa] * 40, "group": IDS}
    return Dataset.from_dict(columns)


def test_half_of_the_size_questions_begin_with_their_own_measurement():
    asked = [benchmark.with_facts(row, FACTS)["qa"] for row in rows()]
    assert {pairs[1]["question"] for pairs in asked} == {"What is it?"}
    begun = [pairs[0]["question"] for pairs in asked if pairs[0]["question"] != "How large?"]
    assert 10 < len(begun) < 30
    for image_id, pairs in zip(IDS, asked, strict=True):
        assert pairs[0]["question"] in ("How large?", f"{FACTS[image_id]} How large?")


def test_another_measurement_is_of_the_same_category():
    found = benchmark.others(rows(), FACTS)
    assert sorted(found) == sorted(FACTS.values())
    for i, fact in enumerate(found):
        number = int(fact.split()[1]) - 1
        assert number != i and number % 2 == i % 2


@needs_wordnet
def test_scores_by_hand():
    said = ["About 70 nm.", "Up to 200 nm.", "Nothing."] + ["About 60 nm."] * 37
    scores = benchmark.scores(said, rows())
    assert scores[:3, :2].tolist() == [[1, 1], [0, 0], [0, 0]]
    table = benchmark.table({"asked": [scores, scores]}, IDS)
    assert table.rows[0][1].startswith("0.950 (0.")
    difference = benchmark.differences({"a": [scores], "b": [scores + 1]}, [("a", "b")])
    assert difference["b − a"][0] == pytest.approx(np.ones((40, 3)))
