"""Image gain and choices, recomputed by hand; and students that do not look, or do."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.sights import learn_by_heart
from support.tiny_student import MAX_NEW_TOKENS

from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.answerers import Student, load_answerer
from mvaema.evaluation.choices import ANY, Choices
from mvaema.evaluation.collect import collect
from mvaema.evaluation.conditions import BLANK, OTHER, PLAIN
from mvaema.evaluation.looking import LANGUAGE
from mvaema.evaluation.scores import score
from mvaema.evaluation.sight import WAYS, rank_scores
from mvaema.evaluation.sight_tables import sight_tables

BLIND, SHUFFLED = "student, blank image", "student, another micrograph"
MRR = sum(1 / rank for rank in range(1, 9)) / 8


@pytest.fixture(scope="module")
def seen(answerer, asked, tmp_path_factory):
    return collect(answerer, asked, tmp_path_factory.mktemp("seen") / "report", classify=False)


@pytest.fixture(scope="module")
def figures(seen, asked) -> dict:
    return score(asked, seen, "student", synonyms=False)[0]


def means(figures: dict, name: str) -> dict[str, float]:
    scores = figures["sight"][name]["overall"]["scores"]
    return {metric: s["mean"] for metric, s in scores.items() if s["n"]}


@pytest.mark.parametrize("scores", [[3, 1, 2], [1, 1, 1], [2, 1, 2, 2], [0, 1, 1, 0], [5.0001, 5]])
def test_ranks_are_means_over_all_orders_of_equals(scores):
    for true in range(len(scores)):
        ranks = []
        for order in itertools.permutations(range(len(scores))):
            best_first = sorted(order, key=lambda i: -round(scores[i], 3))
            ranks.append(best_first.index(true) + 1)
        top_1, mrr = rank_scores(scores, true)
        assert top_1 == pytest.approx(np.mean([rank == 1 for rank in ranks]))
        assert mrr == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_gains_by_hand(figures, seen):
    by_condition = {}
    for row in seen.likelihoods:
        by_condition.setdefault(row["condition"], []).append(row)
    total = {c: sum(r["loss"] for r in rows) for c, rows in by_condition.items()}
    tokens = sum(r["tokens"] for r in by_condition[PLAIN])
    for name, condition in (("student", PLAIN), (BLIND, BLANK), (SHUFFLED, OTHER)):
        gain, found = total[LANGUAGE] - total[condition], means(figures, name)
        assert found["image_gain"] == pytest.approx(gain / 32, abs=1e-6)
        assert found["image_gain_per_token"] == pytest.approx(gain / tokens, abs=1e-6)
    own = total[OTHER] - total[PLAIN]
    assert means(figures, "student")["own_gain_per_token"] == pytest.approx(own / tokens, abs=1e-6)
    of_question = figures["sight"]["student"]["by_question"]["surface"]["scores"]
    rows = [
        [r for r in by_condition[c] if r["question_id"] == "surface"] for c in (LANGUAGE, PLAIN)
    ]
    gain = sum(r["loss"] for r in rows[0]) - sum(r["loss"] for r in rows[1])
    expected = gain / sum(r["tokens"] for r in rows[1])
    assert of_question["image_gain_per_token"]["mean"] == pytest.approx(expected, abs=1e-6)


def test_choices_by_hand(figures, seen, asked):
    blocks = Choices.draw(asked).blocks[ANY]
    assert len(blocks) == 32
    for name, condition in (("student", PLAIN), (SHUFFLED, OTHER)):
        table = {
            c: {
                (r["image_id"], r["question_id"]): r
                for r in seen.likelihoods
                if r["condition"] == c
            }
            for c in (condition, LANGUAGE)
        }
        hits = {}
        for (image_id, question), block in blocks.items():
            ours, alone = table[condition], table[LANGUAGE]
            ranked = {
                "answer_likelihood": [-ours[image_id, question]["losses"][j] for j in block],
                "answer_gain": [
                    alone[j, question]["losses"][j] - ours[image_id, question]["losses"][j]
                    for j in block
                ],
                "answer_itm": [ours[image_id, question]["matches"][j] for j in block],
                "answer_itc": [ours[image_id, question]["similarities"][j] for j in block],
                "answer_itc_itm": [
                    ours[image_id, question]["similarities"][j]
                    + math.log(1 / (1 + math.exp(-ours[image_id, question]["matches"][j])))
                    for j in block
                ],
                "micrograph_likelihood": [-ours[j, question]["losses"][image_id] for j in block],
                "micrograph_itm": [ours[j, question]["matches"][image_id] for j in block],
            }
            for way, values in ranked.items():
                values = np.round(values, 3)
                true = values[block.index(image_id)]
                places = 1 + (values > true).sum() + np.arange((values == true).sum())
                hits.setdefault(way, []).append((np.mean(places == 1), np.mean(1 / places)))
        for way, found in hits.items():
            top_1, mrr = np.mean(found, axis=0)
            assert means(figures, name)[f"{way}_top_1"] == pytest.approx(top_1), way
            assert means(figures, name)[f"{way}_mrr"] == pytest.approx(mrr), way
    assert "same_answer_itm_top_1" in means(figures, "student")


def check_blind(found: dict[str, float], ways=tuple(WAYS)) -> None:
    """At zero and at chance, within what float32 differs between batches."""
    assert found["image_gain"] == pytest.approx(0, abs=1e-3)
    for prefix in ("", "same_"):
        for what in ("answer", "micrograph"):
            for way in ways if what == "answer" else [w for w in ways if w != "gain"]:
                name = f"{prefix}{what}_{way}"
                assert found[f"{name}_top_1"] == pytest.approx(1 / 8, abs=0.02), name
                assert found[f"{name}_mrr"] == pytest.approx(MRR, abs=0.02), name


def test_the_blind_twin_is_at_zero_and_at_chance(figures):
    check_blind(means(figures, BLIND))
    assert means(figures, "student")["answer_chance_mrr"] == pytest.approx(MRR)


@pytest.mark.slow
def test_a_student_without_eyes_is_at_zero_and_at_chance(answerer, asked, tmp_path):
    config = type(answerer.model.config).from_dict(
        answerer.model.config.to_dict() | {"use_cross_attention": False}
    )
    torch.manual_seed(0)
    model = MVaEMaModel(config).eval()
    model.processor = answerer.model.processor
    blind = Student(model, "blind", MAX_NEW_TOKENS)
    collected = collect(blind, asked, tmp_path / "report", classify=False)
    found = score(asked, collected, "student", synonyms=False)[0]
    # Its embedding for ITC still sees.
    check_blind(means(found, "student"), ways=("likelihood", "gain", "itm"))
    assert not collected.attention


@pytest.mark.slow
def test_a_student_that_looks_is_above_chance(student, asked, tmp_path):
    seeing = load_answerer(str(student), max_new_tokens=32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in seeing.model.parameters():
            parameter.mul_(0.2 if parameter.ndim > 1 else 1)  # to where training starts
    learn_by_heart(seeing.model, asked, steps=400)
    collected = collect(seeing, asked, tmp_path / "report", classify=False)
    figures, answers = score(asked, collected, "student", synonyms=False)
    found = means(figures, "student")
    assert found["image_gain_per_token"] > 0.1 and found["own_gain"] > 1
    intervals = figures["sight"]["student"]["overall"]["scores"]
    for way in ("answer_gain", "answer_itm", "answer_itc", "micrograph_likelihood"):
        assert intervals[f"{way}_top_1"]["low"] > 1 / 8, (way, intervals[f"{way}_top_1"])
    check_blind(means(figures, BLIND))
    assert means(figures, SHUFFLED)["answer_gain_top_1"] < found["answer_gain_top_1"] - 0.2
    comparison = figures["comparisons"][f"{BLIND} → student"]["sight"]["answer_gain_top_1"]
    assert comparison["difference"] > 0.2 and comparison["p_value"] < 0.05  # of 16 groups
    assert answers["student"][0]["sight"]["image_gain"] > 0


def test_support_is_of_the_students_own_answers(seen, asked):
    figures, answers = score(asked, seen, "student", synonyms=False)
    logits = {
        (r["image_id"], r["question_id"]): r.get("support")
        for r in seen.likelihoods
        if r["condition"] == PLAIN
    }
    for record in answers["student"]:
        logit = logits[record["image_id"], record["question_id"]]
        assert record["sight"]["support"] == pytest.approx(1 / (1 + math.exp(-logit)))
    typical = answers["typical answer"]
    above = [
        a["scores"]["meteor_no_synonyms"] > b["scores"]["meteor_no_synonyms"]
        for a, b in zip(answers["student"], typical, strict=True)
    ]
    support = figures["support"].get("METEOR without synonyms above the typical answer's")
    assert (support is None) == (len(set(above)) < 2)
    if support:
        assert support["share"] == pytest.approx(np.mean(above))


@pytest.mark.slow
def test_models_are_compared_in_pairs_if_they_had_the_same_choices(seen, asked):
    same = score(asked, seen, "student", {"other": seen}, synonyms=False)[0]
    sight = same["comparisons"]["other → student"]["sight"]
    assert sight["answer_itm_top_1"]["difference"] == 0
    assert sight["image_gain"]["p_value"] == 1
    assert "answer_chance_top_1" not in sight
    about = seen.about | {"draw": {"choices": 4, "seed": 0}}
    drawn = score(asked, seen, "student", {"other": replace(seen, about=about)}, synonyms=False)[0]
    assert "other" not in drawn["sight"] and "sight" not in drawn["comparisons"]["other → student"]


def test_incomplete_likelihoods_are_not_scored(seen, asked):
    some = [r for r in seen.likelihoods if r["condition"] != OTHER or r["question_id"] != "surface"]
    with pytest.raises(ValueError, match=r"no likelihood of 16 of 32 answers \(another micro"):
        score(asked, replace(seen, likelihoods=some), "student", synonyms=False)


@pytest.mark.slow
def test_sight_can_be_left_out(answerer, asked, tmp_path):
    report = tmp_path / "report"
    collected = collect(answerer, asked, report, classify=False, sight=False)
    assert not collected.likelihoods and not (report / "likelihoods.jsonl").exists()
    figures = score(asked, collected, "student", synonyms=False)[0]
    assert figures["sight"] == figures["support"] == {}
    (table,) = sight_tables(figures)
    assert "not measured" in table.note and table.rows[0][:2] == ["student", "–"]


def test_tables_have_everyone_in_every_measure(figures):
    twins, gains, choices, *_ = sight_tables(figures)
    rows = {row[0]: dict(zip(twins.header, row, strict=True)) for row in twins.rows}
    assert {"student", "student, caption given", BLIND, SHUFFLED, "typical answer"} <= set(rows)
    assert rows[BLIND]["Image gain, nats per token"].startswith("0.000 [")
    assert rows["student, caption given"]["True answer by matching head (ITM)"] == "–"
    assert rows["chance"]["True answer by matching head (ITM)"] == "0.125"
    assert [row[0] for row in gains.rows] == ["all", "basics", "surface"]
    assert len(choices.rows) == 11
