"""Step 2: figures recomputed by hand from what was collected; no model is loaded here."""

from dataclasses import replace

import numpy as np
import pytest
from nltk.translate.bleu_score import sentence_bleu
from support.tiny_student import write_splits

from mvaema.evaluation.collect import collect, read_collected
from mvaema.evaluation.conditions import BLANK, CAPTION, PLAIN
from mvaema.evaluation.questions import load_questions
from mvaema.evaluation.scores import answers_under, score


@pytest.fixture(scope="module")
def scored(questions, folder):
    return score(questions, read_collected(folder), "student", synonyms=False)


def test_scores_of_every_condition_by_hand(scored, questions, collected):
    figures, answers = scored
    references = {(r["image_id"], r["question_id"]): r["reference"] for r in questions.records}
    for name, condition in (
        ("student", PLAIN),
        ("student, caption given", CAPTION),
        ("student, blank image", BLANK),
    ):
        found = collected.predictions(condition)
        bleu = [
            sentence_bleu([references[key].split()], answer.split(), weights=(1.0,))
            for key, answer in found.items()
        ]
        summary = figures["answers"][name]["overall"]
        assert summary["scores"]["bleu_1"]["mean"] == pytest.approx(np.mean(bleu))
        assert (summary["n"], summary["images"], summary["clusters"]) == (18, 6, 2)
        assert [r["prediction"] for r in answers[name]] == list(found.values())
    by_question = figures["answers"]["student"]["by_question"]
    assert list(by_question) == ["basics", "morphology", "surface"]
    assert set(figures["answers"]["student"]["by_category"]) == {"Nanowires", "Particles"}


def test_categories_by_hand(scored, questions, collected):
    classification = scored[0]["classification"]
    dataset = questions.micrographs.dataset
    category_of = dict(zip(dataset["image_id"], dataset["category"], strict=True))
    for method in ("ITC", "ITM", "LM", "ITC+ITM"):
        rows = [r for r in collected.categories if r["method"] == method]
        rows = [r for r in rows if r["condition"] == PLAIN]
        hits = [
            max(r["probabilities"], key=r["probabilities"].get) == category_of[r["image_id"]]
            for r in rows
        ]
        assert len(hits) == 6
        assert classification[method]["top_1"] == pytest.approx(np.mean(hits))
    # Half of the training micrographs show nanowires, half particles.
    assert list(classification) == ["ITC", "ITM", "LM", "ITC+ITM", "chance"]
    assert classification["chance"]["top_1"] == 0.5


def test_references_and_comparisons(scored, questions, collected):
    figures, answers = scored
    # The answers follow from the category, so the typical one of the category is the teacher's own.
    told = figures["answers"]["typical answer of the category"]["overall"]["scores"]["bleu_1"]
    assert told["mean"] == pytest.approx(1)
    for name in ("typical answer", "nearest image's answer", "random answer"):
        assert figures["answers"][name]["overall"]["n"] == 18
    assert set(figures["comparisons"]) == {
        "student, blank image → student",
        "student, another micrograph → student",
        "typical answer → student",
        "student → student, caption given",
    }
    assert next(iter(answers)) == "student" and "typical answer" in answers
    parts = figures["comparisons"]["typical answer → student"]["by_question"]
    for question, part in parts.items():
        means = [
            np.mean(
                [r["scores"]["false_claims"] for r in answers[who] if r["question_id"] == question]
            )
            for who in ("typical answer", "student")
        ]
        assert list(part["scores"]) == ["false_claims"]
        found = part["scores"]["false_claims"]
        assert [found["first"], found["second"]] == pytest.approx(means)
    # The nearest training image by cosine, by hand.
    train = {r["image_id"] for r in questions.train_records}
    unit = {i: v / np.linalg.norm(v) for i, v in collected.embeddings.items()}
    nearest = {i: max(train, key=lambda j: unit[i] @ unit[j]) for i in questions.micrographs}
    expected = {
        (i, r["question_id"]): r["reference"]
        for i in nearest
        for r in questions.train_records
        if r["image_id"] == nearest[i]
    }
    hits = [expected[r["image_id"], r["question_id"]] == r["reference"] for r in questions.records]
    rouge = figures["answers"]["nearest image's answer"]["overall"]["scores"]["rouge_1"]
    assert (rouge["mean"] == pytest.approx(1)) == all(hits)


def test_results_say_what_their_metrics_are_called(scored):
    metrics = scored[0]["metrics"]
    assert metrics["bleu_2"] == "BLEU-2" and "meteor" not in metrics
    assert metrics["meteor_no_synonyms"] == "METEOR without synonyms"
    assert metrics.keys() <= scored[0]["answers"]["student"]["overall"]["scores"].keys()


def test_other_models_are_compared_on_the_same_questions(questions, collected):
    answers = [{**r, "condition": PLAIN, "prediction": r["reference"]} for r in questions.records]
    other = replace(collected, answers=answers)
    figures, answers = score(questions, collected, "student", {"better": other}, synonyms=False)
    scores = figures["comparisons"]["better → student"]["scores"]["rouge_1"]
    for side, name in (("first", "better"), ("second", "student")):
        mean = figures["answers"][name]["overall"]["scores"]["rouge_1"]["mean"]
        assert scores[side] == pytest.approx(mean)
    assert scores["first"] > scores["second"] and 0 < scores["p_value"] <= 1
    assert "better" in answers


def test_empty_answers_are_counted_and_score_nothing(questions, collected):
    silent = [{**record, "prediction": ""} for record in collected.answers]
    figures, _ = score(questions, replace(collected, answers=silent), "student", synonyms=False)
    summary = figures["answers"]["student"]["overall"]
    assert summary["empty"] == 18 and summary["scores"]["rouge_l"]["mean"] == 0


@pytest.mark.parametrize("condition", [PLAIN, CAPTION, BLANK])
def test_an_incomplete_collection_is_not_scored(questions, collected, condition):
    """Least of all with answers of another condition in place of the missing ones."""
    some = [
        r for r in collected.answers if r["condition"] != condition or r["question_id"] != "surface"
    ]
    with pytest.raises(ValueError, match="no answer to 6 of 18 questions"):
        score(questions, replace(collected, answers=some), "student", synonyms=False)


@pytest.mark.slow
def test_a_split_without_captions_and_categories(answerer, tmp_path):
    data = write_splits(tmp_path / "plain", category=None, caption=None)
    plain = load_questions(str(data), "validation", "train")
    collected = collect(answerer, plain, tmp_path / "report")
    figures, _ = score(plain, collected, "student", synonyms=False)
    assert figures["classification"] == {}
    assert figures["answers"]["student"]["by_category"] == {}
    assert not {"student, caption given", "typical answer of the category"} & set(
        figures["answers"]
    )


def test_without_a_caption_the_answer_with_it_is_the_plain_one(questions, collected):
    micrographs = questions.micrographs.dataset
    captions = [None, *micrographs["caption"][1:]]
    changed = micrographs.remove_columns("caption").add_column("caption", captions)
    some = replace(questions, micrographs=type(questions.micrographs)(changed, "some"))
    found = {(r["image_id"], r["question_id"]): r for r in answers_under(CAPTION, collected, some)}
    plain, told = collected.predictions(PLAIN), collected.predictions(CAPTION)
    for key, record in found.items():
        expected = plain if key[0] == "image20" else told
        assert record["prediction"] == expected[key]
    assert any(plain[key] != told[key] for key in told if key[0] == "image20")
