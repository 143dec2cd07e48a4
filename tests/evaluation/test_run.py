"""A whole evaluation: three steps in one call, their folder, comparisons, refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from support.tiny_student import MAX_NEW_TOKENS, save_tiny_student, write_splits

from mvaema.evaluation.answerers import load_answerer
from mvaema.evaluation.collect import collect
from mvaema.evaluation.run import EvaluationArguments, evaluate
from mvaema.evaluation.verdict import verdict
from mvaema.files import read_json_lines
from mvaema.students.card import write_card


@pytest.fixture
def arguments(student, dataset, tmp_path):
    return EvaluationArguments(
        str(student),
        str(dataset),
        str(tmp_path / "report"),
        batch_size=2,
        max_new_tokens=MAX_NEW_TOKENS,
        synonyms=False,
    )


@pytest.mark.slow
def test_the_folder_holds_answers_and_report(arguments, folder, student, tmp_path):
    trained = Path(shutil.copytree(student, tmp_path / "student"))
    losses = {"loss": 2.0, "lm_loss": 1.0}
    log = [
        {"epoch": i, "learning_rate": 1e-3, "train": losses, "validation": losses} for i in (1, 2)
    ]
    (trained / "training_log.jsonl").write_text("\n".join(map(json.dumps, log)))
    results = evaluate(replace(arguments, model=str(trained)))
    report = Path(arguments.output_dir)
    assert json.loads((report / "results.json").read_text()) == results
    heading = ("model", "dataset", "split", "train_split", "date", "parameters", "weights")
    assert tuple(results)[: len(heading)] == heading
    assert results["verdict"] == verdict(results)
    assert {"losses.png", "questions.png", "reliability_itm.png"} <= {
        p.name for p in report.glob("*.png")
    }
    page = (report / "index.html").read_text()
    assert page.count("<article") == 18 and "student, blank image" in page
    assert read_json_lines(report / "answers.jsonl") == read_json_lines(folder / "answers.jsonl")

    write_card(trained, "lab/student", report=report)
    card = ModelCard.load(trained / "README.md")
    found = {e.metric_name: e.metric_value for e in card.data.eval_results}
    mean = results["answers"]["student"]["overall"]["scores"]["bleu_4"]["mean"]
    assert found["BLEU-4"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.slow
def test_comparison_with_the_folder_of_another_evaluation(arguments, questions, tmp_path):
    other = save_tiny_student(tmp_path / "other", seed=1)
    compared = tmp_path / "compared"
    collect(load_answerer(str(other), max_new_tokens=MAX_NEW_TOKENS), questions, compared)
    arguments = replace(arguments, compare=str(compared))
    results = evaluate(arguments)
    scores = results["comparisons"]["other → student"]["scores"]["rouge_1"]
    for side, name in (("first", "other"), ("second", "student")):
        mean = results["answers"][name]["overall"]["scores"]["rouge_1"]["mean"]
        assert scores[side] == pytest.approx(mean)
    rows = (compared / "answers.jsonl").read_text().splitlines(keepends=True)
    (compared / "answers.jsonl").write_text("".join(rows[1:]))
    with pytest.raises(ValueError, match=r"evaluation of .*other has no answer to 1 of 18"):
        evaluate(arguments)
    changed = [json.dumps(json.loads(row) | {"reference": "Else."}) for row in rows]
    (compared / "answers.jsonl").write_text("\n".join(changed))
    with pytest.raises(ValueError, match="against other reference answers"):
        evaluate(arguments)


@pytest.mark.slow
def test_comparison_with_another_model(arguments, tmp_path):
    other = save_tiny_student(tmp_path / "other", seed=1)
    results = evaluate(replace(arguments, compare=str(other)))
    assert "other → student" in results["comparisons"]
    # It was evaluated too, and its folder does as well as the model.
    compared = Path(arguments.output_dir) / "compared-other"
    assert (compared / "index.html").is_file()
    assert evaluate(replace(arguments, compare=str(compared))) == results


def test_without_wordnet_meteor_is_refused_before_the_first_answer(arguments, no_wordnet):
    with pytest.raises(LookupError, match="WordNet"):
        evaluate(replace(arguments, synonyms=True))
    assert not Path(arguments.output_dir).exists() and not no_wordnet


def test_bad_data_is_refused_before_the_first_answer(arguments, tmp_path):
    data = write_splits(tmp_path / "bad", category="Foam")
    with pytest.raises(ValueError, match=r"does not know: Foam.*--no_classify"):
        evaluate(replace(arguments, dataset=str(data)))
    assert not Path(arguments.output_dir).exists()
