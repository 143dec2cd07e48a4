"""Figures by a column of a dataset, each computed again from the files of the report."""

import json

import pytest
from support.tiny_student import save_tiny_student, write_splits

from benchmarks import by_column
from mvaema.evaluation.run import EvaluationArguments, evaluate


@pytest.mark.slow
def test_figures_by_category(tmp_path, capsys):
    student, data = save_tiny_student(tmp_path / "student"), write_splits(tmp_path / "data")
    report = tmp_path / "report"
    results = evaluate(
        EvaluationArguments(
            model=str(student),
            dataset=str(data),
            output_dir=str(report),
            synonyms=False,
            decoding="greedy",
        )
    )
    capsys.readouterr()
    words = ["--report", str(report), str(report), "--dataset", str(data), "--no_synonyms"]
    by_column.main([*words, "--column", "category", "--least", "1"])
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("| ") and "---" not in line:
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[name] = cells
    truth = {}
    for line in (data / "validation" / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        truth[row["image_id"]] = row["category"]
    assert set(rows) - {"category"} == set(truth.values())
    best = {}
    for line in (report / "categories.jsonl").read_text().splitlines():
        row = json.loads(line)
        if (row["condition"], row["method"]) == ("image", "ITC+ITM"):
            best[row["image_id"]] = max(row["probabilities"].items(), key=lambda kv: kv[1])[0]
    total, right = 0, 0
    for name, (count, _, category, own, meteor, claims) in rows.items():
        if name == "category":
            continue
        of_it = [image_id for image_id, value in truth.items() if value == name]
        assert int(count) == len(of_it)
        share = sum(best[i] == name for i in of_it) / len(of_it)
        assert category.startswith(f"{share:.3f}")
        total += len(of_it)
        right += share * len(of_it)
        assert all("(" in cell for cell in (meteor, claims)) and float(own) == float(own)
    expected = results["classification"]["ITC+ITM"]["top_1"]
    assert right / total == pytest.approx(expected)


def test_a_column_that_is_not_there(tmp_path):
    data = write_splits(tmp_path / "data")
    words = ["--report", str(tmp_path), "--dataset", str(data), "--column", "colour"]
    with pytest.raises(SystemExit, match="has no column colour"):
        by_column.main(words)
