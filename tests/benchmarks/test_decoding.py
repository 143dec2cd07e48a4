"""The comparison of decodings runs, resumes, and says what it counts. No times are asserted."""

import json

import pytest
from support.tiny_student import save_tiny_student, write_splits

from benchmarks import decoding
from mvaema.evaluation.texts import score_texts


def test_repetition_by_hand():
    assert decoding.repeated_bigrams("dark dark dark wires") == pytest.approx(1 / 3)
    assert decoding.repeated_bigrams("dark wires") == decoding.repeated_bigrams("") == 0
    assert decoding.distinct_bigrams(["a b c", "a b"]) == pytest.approx(2 / 3)


def test_variants_side_by_side(tmp_path, capsys):
    student = save_tiny_student(tmp_path / "student")
    options = student / "generation_config.json"
    options.write_text(json.dumps(json.loads(options.read_text()) | {"max_new_tokens": 5}))
    data = write_splits(tmp_path / "data")
    file = tmp_path / "decoded.jsonl"
    words = ["--model", str(student), "--dataset", str(data), "--output", str(file)]
    words += ["--no_synonyms", "--micrographs", "3", "--variants", "contrast"]
    decoding.main(words)
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["greedy", "contrast"] * 3
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in printed.splitlines()
        if line.startswith("| ")
    }
    assert set(cells) == {"decoding", "---", "greedy", "contrast"}
    # METEOR of the greedy answers, computed again.
    truth = {}
    for line in (data / "validation" / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        truth[row["image_id"]] = [qa["answer"] for qa in row["qa"] if qa["outcome"] == "ok"]
    pairs = [
        pair
        for row in rows
        if row["variant"] == "greedy"
        for pair in zip(row["answers"], truth[row["image_id"]], strict=True)
    ]
    found = score_texts(*map(list, zip(*pairs, strict=True)), synonyms=False)["meteor_no_synonyms"]
    assert cells["greedy"][0] == f"{sum(found) / len(found):.3f}"
    assert cells["greedy"][-2] == "1.00 ×"
    # What is there is not asked again, and nobody else's answers are taken for this student's.
    decoding.main(words)
    assert len(file.read_text().splitlines()) == len(rows)
    other = save_tiny_student(tmp_path / "other", seed=1)
    with pytest.raises(SystemExit, match=r"decoded\.jsonl has answers of other weights"):
        decoding.main([*words, "--model", str(other)])
