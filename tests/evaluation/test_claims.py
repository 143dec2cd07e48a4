"""Claims of an answer against a reference, checked by hand."""

import pytest

from mvaema.evaluation.claims import (
    FALSE,
    MISSED,
    RIGHT,
    UNSUPPORTED,
    compare_facts,
    score_facts,
    summarize_facts,
)


def outcomes(prediction: str, reference: str) -> dict[str, str]:
    return {str(claim.fact): claim.outcome for claim in compare_facts(prediction, reference)}


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("smooth", "smooth", {"surface: smooth": RIGHT}),
        ("smooth", "rough", {"surface: smooth": FALSE, "surface: rough": MISSED}),
        # Both are stated, each of something.
        ("rough", "smooth or rough", {"surface: rough": RIGHT, "surface: smooth": MISSED}),
        ("cracks", "", {"presence: crack": UNSUPPORTED}),
        ("cracks", "without cracks", {"presence: crack": FALSE, "presence: no crack": MISSED}),
        ("without cracks", "cracks", {"presence: no crack": FALSE, "presence: crack": MISSED}),
        ("SEM", "FIB-SEM", {"technique: SEM": UNSUPPORTED, "technique: FIB-SEM": MISSED}),
        ("SEM", "TEM", {"technique: SEM": FALSE, "technique: TEM": MISSED}),
        # A wire among rods and particles is neither right nor false: a rod is like it.
        ("wires", "rods and particles",
         {"structure: wire": UNSUPPORTED, "structure: rod": MISSED, "structure: particle": MISSED}),
        ("wires", "particles", {"structure: wire": FALSE, "structure: particle": MISSED}),
    ],
)  # fmt: skip
def test_words(prediction, reference, expected):
    assert outcomes(prediction, reference) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("100 nm", "120 nm", RIGHT),
        ("100 nm", "149 nm", RIGHT),
        ("100 nm", "150 nm", FALSE),
        ("100 nm", "20 to 170 nm", RIGHT),
        ("20 to 170 nm", "100 nm", RIGHT),
        ("100 nm", "3 percent", UNSUPPORTED),
        ("The scale bar marks 1 µm", "The scale bar marks 1000 nm", RIGHT),
        ("The scale bar marks 1 µm", "The scale bar marks 1.1 µm", FALSE),
        ("three rods", "four rods", RIGHT),
        ("two rods", "four rods", FALSE),
    ],
)
def test_quantities_agree_to_a_stated_tolerance(prediction, reference, expected):
    (claim,) = (
        claim
        for claim in compare_facts(prediction, reference)
        if claim.fact.range and claim.outcome != MISSED
    )
    assert claim.outcome == expected


def test_a_further_length_is_neither_right_nor_false():
    assert outcomes("10 nm and 5 µm", "11 nm") == {
        "length: 10 nm": RIGHT,
        "length: 5000 nm": UNSUPPORTED,
    }


def test_false_claims_are_told_in_words():
    scores, facts = score_facts("Smooth SEM image of rods.", "A rough TEM image of rods.")
    assert scores == {
        "false_claims": 2,
        "fact_precision": pytest.approx(1 / 3),
        "fact_recall": pytest.approx(1 / 3),
        "unsupported_claims": 0,
    }
    assert facts["false_claims"] == [
        "surface: smooth (reference: surface: rough)",
        "technique: SEM (reference: technique: TEM)",
    ]
    assert set(facts["asserted"]) == {"surface: smooth", "technique: SEM", "structure: rod"}


def test_an_answer_without_facts_claims_nothing():
    scores, facts = score_facts("", "Smooth rods.")
    assert scores["false_claims"] == 0 and scores["fact_precision"] is None
    assert scores["fact_recall"] == 0 and facts["asserted"] == []
    assert score_facts("Smooth rods.", "Hm.")[0]["fact_recall"] is None


def test_summaries_add_up():
    answers = [("Smooth rods.", "Rough rods."), ("Smooth rods.", "Smooth rods with cracks.")]
    summary = summarize_facts(score_facts(*answer)[1] for answer in answers)
    assert list(summary) == ["all", "structure", "surface", "presence"]
    assert summary["surface"] == {
        "right": 1, "false": 1, "unsupported": 0, "missed": 1,
        "fact_precision": 0.5, "fact_recall": 0.5,
    }  # fmt: skip
    assert summary["presence"]["fact_precision"] is None
    assert summary["all"]["right"] == 3 and summary["all"]["fact_recall"] == 0.6
