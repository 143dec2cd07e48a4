"""The comparison of signs of a good answer runs on a tiny student."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from support.tiny_student import save_tiny_student, write_splits

from benchmarks import support_signals
from mvaema.evaluation.questions import load_questions
from mvaema.evaluation.references import typical_answers
from mvaema.evaluation.texts import score_texts


@pytest.mark.slow
def test_each_signal_has_its_auroc(tmp_path, capsys):
    student = save_tiny_student(tmp_path / "student")
    data = write_splits(tmp_path / "data")
    words = ["--model", str(student), "--dataset", str(data), "--no_synonyms"]
    support_signals.main(words)
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert names[-8:] == [*support_signals.SIGNALS, "question group", "all together"]


def test_a_signal_that_knows_is_told_from_one_that_does_not(tmp_path):
    data = write_splits(tmp_path / "data")
    questions = load_questions(str(data), "validation", "train")
    rng = np.random.default_rng(0)
    records = [
        {**r, "prediction": r["reference"] if rng.random() < 0.5 else "zebra"}
        for r in questions.records
    ]
    right = np.array([r["prediction"] == r["reference"] for r in records])
    signals = rng.normal(size=(len(records), 6))
    signals[:, 2] += 5 * right
    table = support_signals.table(questions, records, signals, synonyms=False)
    cells = {line[0]: line[1] for line in table.rows}
    typical = typical_answers(questions.train_records, questions.records)
    truths = [r["reference"] for r in records]
    own, other = (
        score_texts([r["prediction"] for r in said], truths, synonyms=False)["meteor_no_synonyms"]
        for said in (records, typical)
    )
    good = [a > b for a, b in zip(own, other, strict=True)]
    assert float(cells["agreement"].split()[0]) > 0.9
    for i, name in enumerate(support_signals.SIGNALS):
        expected = roc_auc_score(good, signals[:, i])
        assert float(cells[name].split()[0]) == pytest.approx(expected, abs=6e-4)
