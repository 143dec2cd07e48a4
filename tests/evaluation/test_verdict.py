"""The verdict: results written by hand, whose answers are known beforehand."""

import pytest

from mvaema.evaluation.table import markdown
from mvaema.evaluation.verdict import (
    IN_PART,
    NO,
    NOT_KNOWN,
    YES,
    decide,
    overall,
    verdict,
    verdict_lines,
    verdict_table,
)

HELPS, MORE, FINDS, NAMES, FEWER_THAN_TWIN, WORDED_LIKE_TWIN = range(6)


def difference(first: float, second: float, low: float | None, high: float | None) -> dict:
    return {
        "n": 40,
        "first": first,
        "second": second,
        "difference": second - first,
        "low": low,
        "high": high,
        "p_value": 0.1,
    }


def mean(value: float, low: float | None, high: float | None) -> dict:
    return {"n": 40, "mean": value, "low": low, "high": high}


def claims(value: float, low: float | None = 0.1, high: float | None = 2.0) -> dict:
    return {"scores": {"false_claims": mean(value, low, high)}}


def seeing_results() -> dict:
    """Of a student that sees, is better than the typical answer, and fails with pores."""
    part = difference(0.9, 1.2, 0.1, 0.5)
    parts = {
        "basics": {"scores": {"false_claims": part}},
        "surface": {"scores": {"false_claims": difference(0.9, 0.8, -0.3, 0.1)}},
    }
    own = {"false_claims": mean(0.5, 0.4, 0.6)}
    return {
        "metrics": {"meteor": "METEOR", "false_claims": "False claims"},
        "answers": {
            "student": {
                "overall": {"n": 40, "scores": own},
                "by_question": {
                    "surface": claims(0.8),
                    "basics": claims(1.2),
                    "imaging": claims(0.1),
                    "function": claims(3.0, None, None),  # of one specimen
                },
                "by_category": {"Porous_Sponge": claims(0.7), "unknown": claims(0.9)},
            }
        },
        "sight": {
            "student": {
                "overall": {
                    "scores": {
                        "image_gain_per_token": mean(0.4, 0.3, 0.5),
                        "own_gain_per_token": mean(0.2, 0.1, 0.3),
                        "answer_itm_top_1": mean(0.4, 0.3, 0.5),
                        "answer_chance_top_1": mean(0.125, 0.125, 0.125),
                    }
                }
            }
        },
        "classification": {
            "ITC+ITM": {"top_1": 0.6, "top_1_interval": [0.5, 0.7]},
            "chance": {"top_1": 0.4, "top_1_interval": [0.3, 0.5]},
        },
        "comparisons": {
            "student, blank image → student": {
                "scores": {
                    "false_claims": difference(0.7, 0.5, -0.3, -0.1),
                    "meteor": difference(0.2, 0.3, 0.05, 0.15),
                }
            },
            "typical answer → student": {
                "scores": {
                    "false_claims": difference(0.8, 0.5, -0.4, -0.2),
                    "meteor": difference(0.2, 0.3, 0.05, 0.15),
                    "fact_recall": difference(0.3, 0.4, 0.05, 0.15),
                    "length_within_20_percent": difference(0.02, 0.06, -0.01, 0.09),
                },
                "by_question": parts,
                "by_category": {"Porous_Sponge": {"scores": {"false_claims": part}}},
            },
        },
    }


def answers(section: dict) -> list[str]:
    return [finding["answer"] for finding in section["findings"]]


@pytest.mark.parametrize(
    ("low", "high", "null", "better", "expected"),
    [
        (0.1, 0.3, 0.0, 1, YES),
        (-0.3, -0.1, 0.0, 1, NO),
        (-0.1, 0.3, 0.0, 1, NOT_KNOWN),
        (0.0, 0.3, 0.0, 1, NOT_KNOWN),  # the null is on its end
        (-0.3, 0.0, 0.0, 1, NOT_KNOWN),
        (0.1, 0.3, 0.0, -1, NO),
        (-0.3, -0.1, 0.0, -1, YES),
        (0.2, 0.3, 0.125, 1, YES),
        (0.1, 0.3, 0.125, 1, NOT_KNOWN),
        (0.05, 0.1, 0.125, 1, NO),
        (None, None, 0.0, 1, NOT_KNOWN),
        (0.0, 0.0, 0.0, 1, NO),  # it does not look: nothing is uncertain about it
    ],
)
def test_an_interval_decides(low, high, null, better, expected):
    assert decide(low, high, null, better) == expected


@pytest.mark.parametrize(
    ("of_parts", "expected"),
    [
        ([YES, YES], YES),
        ([YES, NO], IN_PART),
        ([YES, NOT_KNOWN], IN_PART),
        ([NO, NOT_KNOWN], NO),
        ([NO, NO], NO),
        ([NOT_KNOWN, NOT_KNOWN], NOT_KNOWN),
    ],
)
def test_a_section_is_yes_only_if_all_of_it_is(of_parts, expected):
    assert overall(of_parts) == expected


def test_a_student_that_sees():
    sees, better, fails = verdict(seeing_results())
    assert sees["answer"] == YES and answers(sees) == [YES] * 6
    assert better["answer"] == YES and answers(better) == [YES] * 3
    figures = [finding["figure"] for finding in sees["findings"]]
    assert figures[HELPS] == "0.400 nats per token over a blank image [0.300, 0.500]; blind: 0."
    assert "40.0\N{NO-BREAK SPACE}% right" in figures[FINDS] and "guessing: 12.5" in figures[FINDS]
    assert figures[FEWER_THAN_TWIN] == (
        "0.500 per answer against 0.700, difference -0.200 [-0.300, -0.100]."
    )
    # The group with most of them is of one specimen and has no interval; "unknown" is no category.
    assert fails["answer"] == "most in basics and surface, with Porous Sponge"
    assert answers(fails) == [NO, NOT_KNOWN, NO, NOT_KNOWN]
    assert fails["findings"][0]["figure"] == (
        "1.20 false claims per answer [0.10, 2.00] against 0.90, difference +0.30 [+0.10, +0.50]."
    )
    numbers = {name: fails["findings"][0][name] for name in ("value", "low", "high", "null")}
    assert numbers == pytest.approx({"value": 0.3, "low": 0.1, "high": 0.5, "null": 0.0})


def test_a_blind_student():
    """Its gain is exactly 0, and it chooses and names as guessing does."""
    results = seeing_results()
    scores = results["sight"]["student"]["overall"]["scores"]
    scores["image_gain_per_token"] = mean(0.0, 0.0, 0.0)
    scores["own_gain_per_token"] = mean(0.001, -0.01, 0.01)
    scores["answer_itm_top_1"] = mean(0.13, 0.1, 0.16)
    results["classification"]["ITC+ITM"] = {"top_1": 0.4, "top_1_interval": [0.2, 0.6]}
    twin = results["comparisons"]["student, blank image → student"]["scores"]
    twin["false_claims"] = difference(0.7, 0.7, 0.0, 0.0)
    twin["meteor"] = difference(0.3, 0.3, -0.02, 0.02)
    sees = verdict(results)[0]
    assert answers(sees) == [NO, NOT_KNOWN, NOT_KNOWN, NOT_KNOWN, NO, NOT_KNOWN]
    assert sees["answer"] == NO


def test_a_student_that_says_nothing_is_not_better():
    """It makes no false claim, and is still not called better than the typical answer."""
    results = seeing_results()
    typical = results["comparisons"]["typical answer → student"]["scores"]
    typical["false_claims"] = difference(0.8, 0.0, -1.0, -0.6)
    typical["meteor"] = difference(0.3, 0.0, -0.4, -0.2)
    typical["fact_recall"] = difference(0.4, 0.0, -0.5, -0.3)
    student = results["answers"]["student"]
    for part in ("by_question", "by_category"):
        student[part] = {name: claims(0.0, 0.0, 0.0) for name in student[part]}
    _, better, fails = verdict(results)
    assert answers(better) == [YES, NO, NO] and better["answer"] == IN_PART
    assert fails["answer"] == NOT_KNOWN and answers(fails) == [NOT_KNOWN] * 3


def test_what_was_not_measured_is_not_known():
    results = seeing_results()
    results |= {"sight": {}, "classification": {}, "comparisons": {}}
    sees, better, fails = verdict(results)
    for section in (sees, better):
        assert section["answer"] == NOT_KNOWN
        assert {finding["figure"] for finding in section["findings"]} == {"Not measured."}
    # Where it fails is known; whether the typical answer fails too is not.
    assert fails["answer"] == "most in basics and surface, with Porous Sponge"
    assert answers(fails) == [NOT_KNOWN] * 4
    assert "not compared" in fails["findings"][0]["figure"]


def test_one_specimen_has_no_interval_and_no_answer():
    results = seeing_results()
    results["sight"]["student"]["overall"]["scores"]["image_gain_per_token"] = mean(0.4, None, None)
    finding = verdict(results)[0]["findings"][HELPS]
    assert finding["answer"] == NOT_KNOWN and finding["value"] == 0.4
    assert "no interval: all of one specimen" in finding["figure"]


def test_without_wordnet_the_stand_in_is_compared():
    results = seeing_results()
    results["metrics"] = {"meteor_no_synonyms": "METEOR without synonyms"}
    for comparison in results["comparisons"].values():
        scores = comparison["scores"]
        scores["meteor_no_synonyms"] = scores.pop("meteor")
    worded = verdict(results)[0]["findings"][WORDED_LIKE_TWIN]
    assert worded["answer"] == YES and "METEOR" in worded["figure"]


def test_terminal_and_table_say_the_same():
    sections = verdict(seeing_results())
    lines = verdict_lines(sections)
    assert lines[0] == "Does it see? Yes."
    assert len(lines) == 3 + 6 + 3 + 4
    table = markdown(verdict_table(sections))
    for section in sections:
        for finding in section["findings"]:
            figure = finding["figure"].replace("\N{NO-BREAK SPACE}", " ")
            assert f"| {finding['question']} | {finding['answer']} | {figure} |" in table
            expected = f"  {finding['answer']:<9}  {finding['question']} {finding['figure']}"
            assert expected in lines
