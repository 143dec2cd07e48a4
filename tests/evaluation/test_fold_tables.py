"""Means over folds, and what the tables show of them."""

import json

import pytest

from mvaema.evaluation.fold_tables import fold_tables, over_folds, write_fold_tables


def scores_of(fold: int, **categories: dict[str, float]) -> dict:
    return {
        "fold": fold,
        "dataset": "5eed",
        "answers": {"student": {"bleu_2": 0.1 * fold, "meteor": 0.5}},
        "sight": {"student": {"image_gain_per_token": 0.25 + fold, "answer_itm_top_1": 0.5}},
        "categories": categories,
        "training": {
            "micrographs": {"train": 10, "validation": 5, "test": 5 + fold, "unreadable": 0},
            "epochs": {"best": fold + 1, "all": 3},
            "validation": {"loss": 2.0, "lm_loss": 1.0},
        },
    }


FOLDS = [
    scores_of(0, ITC={"top_1": 0.5}, LM={"top_1": 0.1}),
    scores_of(1, ITC={"top_1": 0.7}),
    scores_of(2, ITC={"top_1": 0.9}, LM={"top_1": 0.3}),
]


def test_a_figure_that_a_fold_lacks_has_no_mean():
    found = over_folds([scores["categories"] for scores in FOLDS])
    assert found["ITC"]["top_1"]["mean"] == pytest.approx(0.7)
    assert found["ITC"]["top_1"]["std"] == pytest.approx(0.2)  # n - 1
    assert found["LM"]["top_1"] == {"mean": None, "std": None, "folds": [0.1, None, 0.3]}


def test_tables():
    sections = ("answers", "sight", "categories", "training")
    results = {s: over_folds([scores[s] for scores in FOLDS]) for s in sections}
    tables = {table.title: table for table in fold_tables(results)}
    assert tables["Answers"].header == ["Method", "BLEU-2 (↑)", "METEOR (↑)"]
    assert tables["Answers"].rows == [["student", "0.100±0.100", "0.500±0.000"]]
    sight = tables["What the image is worth"]
    cells = dict(zip(sight.header, sight.rows[0], strict=True))
    assert cells["Image gain, nats per token"] == "1.250±1.000"
    assert cells["True answer by matching head (ITM), top-1"] == "0.500±0.000"
    assert tables["Categories"].rows == [["ITC", "0.700±0.200", "–", "–"], ["LM", "–", "–", "–"]]
    assert [row[1] for row in tables["Categories: LM"].rows] == ["0.100", "–", "0.300", "–"]
    header, *rows = [tables["Training"].header, *tables["Training"].rows]
    assert header[:5] == ["Fold", "Train", "Validation", "Test", "Unreadable"]
    assert rows[1] == ["1", "10", "5", "6", "0", "2", "3", "2.000", "1.000"]
    assert rows[-1][3] == "6.0±1.0"


def test_files(tmp_path):
    text = write_fold_tables(FOLDS, tmp_path)
    written = (tmp_path / "cross_validation.md").read_text(encoding="utf-8")
    assert written.startswith(text) and text.startswith("# Cross-validation, 3 folds")
    assert "## Training" in text and "## Categories: LM" in written.removeprefix(text)
    results = json.loads((tmp_path / "cross_validation.json").read_text())
    assert results["folds"] == 3 and results["dataset"] == "5eed"
