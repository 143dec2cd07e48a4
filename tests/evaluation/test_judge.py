"""Answers graded by a real server on loopback: grades, resuming, budget and refusals."""

import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from support.teacher_server import FakeTeacher

from mvaema.commands.eval import main
from mvaema.evaluation.intervals import rank_correlation
from mvaema.evaluation.judge import Judge, parse_grades
from mvaema.evaluation.records import score_records
from mvaema.evaluation.run import JudgeArguments
from mvaema.evaluation.tables import judge_tables


class JudgeServer(FakeTeacher):
    """Grades by the length of the answer, so that a test knows what to expect."""

    def completion(self, body: dict) -> dict:
        good = super().completion(body)
        text = body["messages"][0]["content"][1]["text"]
        content = json.dumps(grades_of(re.search(r"Student's answer: (.*)", text)[1]))
        good["choices"][0]["message"]["content"] = content
        return good


def grades_of(answer: str) -> dict[str, int]:
    return {
        "correctness": len(answer) % 4,
        "completeness": len(answer) // 4 % 4,
        "false_claims": 3 - len(answer) % 4,
    }


@pytest.fixture
def server():
    with JudgeServer() as server:
        yield server


@pytest.fixture(scope="module")
def answers(questions) -> dict[str, list]:
    """Answers of two, of different lengths, and some alike."""
    return {
        who: score_records(
            [{**r, "prediction": f"Round grains{'s' * (i % n)}."} for i, r in enumerate(records)],
            synonyms=False,
        )
        for who, records, n in (
            ("student", questions.records, 5),
            ("typical answer", questions.records, 1),
        )
    }


def judging(server, **changes) -> JudgeArguments:
    return JudgeArguments(
        **{"judge": "judge", "endpoint": server.url, "concurrency": 4, "timeout": 20.0, **changes}
    )


def test_each_answer_gets_its_grades(server, questions, answers, tmp_path):
    figures, graded = Judge(judging(server)).grade(questions, answers, tmp_path)
    assert figures["stopped"] is None
    assert figures["graded"] == figures["asked"] == sum(map(len, answers.values()))
    for records in graded.values():
        assert all(r["grades"] == grades_of(r["prediction"]) for r in records)
    mean = np.mean([r["grades"]["correctness"] for r in graded["student"]])
    scores = figures["answers"]["student"]["overall"]["scores"]
    assert scores["correctness"]["mean"] == pytest.approx(mean)
    assert {e["rho"] for e in figures["agreement"]["false_claims"].values()}
    json.dumps(figures, allow_nan=False)
    titles = [table.title for table in judge_tables({"answers": answers, "judge": figures})]
    assert titles[0] == "Grades by judge" and "Agreement with the judge" in titles
    # Equal answers to one question about one micrograph are asked about once.
    pairs = {
        (r["image_id"], r["question_id"], r["prediction"]) for rs in answers.values() for r in rs
    }
    assert len(server.delivered()) == len(set(server.delivered())) == len(pairs)


def test_the_judge_sees_question_reference_answer_and_rubric(server, questions, answers, tmp_path):
    Judge(judging(server)).grade(questions, answers, tmp_path)
    record = answers["student"][0]
    text = next(e.text for e in server.exchanges if record["prediction"] in e.text)
    assert record["question"] in text and record["reference"] in text and "rubric" not in text
    assert record["image_id"] not in b"".join(e.body for e in server.exchanges).decode()


def test_a_stopped_judge_resumes_and_asks_nothing_twice(server, questions, answers, tmp_path):
    calls = iter(range(10**6))
    server.faulty_image = lambda size: "insufficient_quota" if next(calls) == 6 else None
    figures, _ = Judge(judging(server, concurrency=1)).grade(questions, answers, tmp_path)
    assert "quota" in figures["stopped"] and 0 < figures["graded"] < figures["asked"]
    server.faulty_image = None
    figures, _ = Judge(judging(server)).grade(questions, answers, tmp_path)
    assert figures["stopped"] is None and figures["graded"] == figures["asked"]
    assert len(server.delivered()) == len(set(server.delivered()))
    before = len(server.exchanges)
    Judge(judging(server)).grade(questions, answers, tmp_path)
    assert len(server.exchanges) == before


def test_garbage_is_asked_again_and_all_of_it_is_kept(server, questions, answers, tmp_path):
    garbage = FakeTeacher.completion(server, {"model": "judge", "messages": [{"content": [
        {"type": "image_url"}, {"type": "text", "text": "x"}]}]})  # fmt: skip
    server.send(json.dumps(garbage).encode())
    figures, _ = Judge(judging(server)).grade(questions, answers, tmp_path)
    assert figures["stopped"] is None and figures["graded"] == figures["asked"]
    db = sqlite3.connect(next(Path(tmp_path).glob("judge/judge/journal-*.sqlite")))
    attempts = db.execute("SELECT count(*) FROM replies WHERE attempt > 1").fetchone()[0]
    db.close()
    assert attempts == 1


def test_a_model_that_cannot_grade_is_asked_about_one_micrograph(questions, answers, tmp_path):
    with FakeTeacher() as chatty:
        for _ in range(5):
            figures, _ = Judge(judging(chatty)).grade(questions, answers, tmp_path)
        first = answers["student"][0]["image_id"]
        about_it = sum(r["image_id"] == first for records in answers.values() for r in records)
        assert "holds grades" in figures["stopped"] and figures["graded"] == 0
        assert len(chatty.exchanges) <= 3 * about_it
    assert judge_tables({"answers": answers, "judge": figures}) == []


def test_the_budget_is_kept(server, questions, answers, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {judge: {input: 1000, output: 1000, as_of: 2026-01-01}}")
    args = judging(server, prices=str(prices), max_cost=20.0, max_tokens=100)
    figures, _ = Judge(args).grade(questions, answers, tmp_path)
    assert "--max_cost" in figures["stopped"] and 0 < figures["spent"] <= 20.0
    assert 0 < figures["graded"] < figures["asked"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoint": None}, "--judge needs --endpoint"),
        ({"judge": None}, "--endpoint needs --judge"),
        ({"concurrency": 0}, "--concurrency must be positive"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(server, changes, message):
    with pytest.raises(ValueError, match=message):
        judging(server, **changes)


def test_nothing_is_sent_outside_without_permission(server):
    with pytest.raises(ValueError, match="--allow_external"):
        Judge(judging(server, endpoint="https://8.8.8.8/v1"))
    with pytest.raises(ValueError, match="--max_cost needs the price"):
        Judge(judging(server, max_cost=1.0))


@pytest.mark.parametrize(
    ("answer", "grades"),
    [
        ('{"correctness": 3, "completeness": 0, "false_claims": 1}', (3, 0, 1)),
        ('```json\n{"correctness": 3, "completeness": 0, "false_claims": 1}\n```', (3, 0, 1)),
        ('{"correctness": 4, "completeness": 0, "false_claims": 1}', None),
        ('{"correctness": true, "completeness": 0, "false_claims": 1}', None),
        ('{"correctness": 2.5, "completeness": 0, "false_claims": 1}', None),
        ('{"correctness": 3, "completeness": 0}', None),
        ('{"correctness": 3, "completeness": 0, "false_claims": 1, "style": 3}', None),
        ('Good: {"correctness": 3, "completeness": 0, "false_claims": 1}', None),
        ("[" * 100_000, None),
        ("[3, 0, 1]", None),
        ("", None),
        (None, None),
    ],
)
def test_grades_are_read_strictly(answer, grades):
    found = parse_grades(answer)
    assert (found and tuple(found.values())) == grades


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, 200).astype(float)
    y = x + rng.normal(0, 1, 200)
    found = rank_correlation(x, y, [str(i // 4) for i in range(200)])
    assert found["rho"] == pytest.approx(spearmanr(x, y).statistic)
    assert found["low"] < found["rho"] < found["high"]
    assert rank_correlation(x, np.ones(200), ["a"] * 200)["rho"] is None


@pytest.mark.slow
def test_the_command_grades(server, student, dataset, empty_pictures, tmp_path, capsys):
    report = tmp_path / "report"
    argv = ["--model", str(student), "--dataset", str(dataset), "--output_dir", str(report)]
    argv += ["--no_synonyms", "--no_classify", "--max_new_tokens", "3", "--judge", "a/judge"]
    assert main(argv) == 1
    assert "--judge needs --endpoint" in capsys.readouterr().err and not report.exists()
    assert main([*argv, "--endpoint", server.url]) == 0
    assert "Grades by a/judge" in capsys.readouterr().out
    results = json.loads((report / "results.json").read_text())
    assert results["judge"]["graded"] == results["judge"]["asked"]
    assert "Grades by a/judge" in (report / "tables.md").read_text()
