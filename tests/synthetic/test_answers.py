"""Answers: parsed back, they say what the facts are and the image shows."""

import collections
import re

import pytest

from configuration_mvaema import QUESTIONS
from mvaema.micrographs.calibration import axis_nm
from mvaema.synthetic.scenes import render

LENGTH = re.compile(r"([\d.]+) (nm|µm|mm|percent)")


def lengths(text: str, scene) -> list[float]:
    """All lengths of an answer, in nanometres."""
    percent = scene.facts.field_of_view_nm / 100
    return [
        float(value) * percent if unit == "percent" else axis_nm(value, unit)
        for value, unit in LENGTH.findall(text)
    ]


def test_numbers_in_the_answers_are_the_facts(scenes):
    checked = collections.Counter()
    for scene in scenes:
        facts, answers = scene.facts, scene.answers
        text = answers["size_distribution"]
        if facts.size_mean_nm:
            assert lengths(text, scene)[0] == pytest.approx(facts.size_mean_nm, rel=0.051)
            checked["size"] += 1
        if span := re.search(r"([\d.]+) to ([\d.]+) (nm|µm|mm|percent)", text):
            low = lengths(f"{span[1]} {span[3]}", scene)[0]
            high = lengths(f"{span[2]} {span[3]}", scene)[0]
            assert low == pytest.approx(facts.size_min_nm, rel=0.051)
            assert high == pytest.approx(facts.size_max_nm, rel=0.051)
            checked["range"] += 1
        units = (
            "particles|grains|wires|fibres|pores|cells|holes|pillars|lines|bodies|filaments|"
            "crystals|tubes|threads|flakes"
        )
        if number := re.search(rf"(\d+) ({units})", text):
            exact = facts.count <= 12
            assert int(number[1]) == pytest.approx(facts.count, rel=0 if exact else 0.051)
            checked["count"] += 1
        if pitch := re.search(r"(?:pitch is about|repeat every) ([\d.]+ \S+)", text):
            assert lengths(pitch[1].rstrip("."), scene)[0] == pytest.approx(
                facts.spacing_nm, rel=0.051
            )
            checked["pitch"] += 1
        if open_area := re.search(r"([\d.]+) percent of the area", answers["surface"]):
            assert float(open_area[1]) == pytest.approx(100 * facts.pore_fraction, rel=0.051)
            checked["pores"] += 1
        if contact := re.search(r"([\d.]+) percent", answers["interfaces"]):
            assert float(contact[1]) == pytest.approx(100 * facts.touching, rel=0.051)
    assert all(checked[name] >= 8 for name in ("size", "range", "count", "pitch", "pores")), checked


def test_answers_claim_only_what_the_image_shows(scenes):
    for scene in scenes:
        text = " ".join(scene.answers.values())
        if scene.scale_bar is None:
            assert not re.search(r"\d (nm|µm|mm)\b", text)
            assert "scale bar" in scene.answers["basics"]
            assert "kV" not in text
        else:
            assert scene.scale_bar in scene.answers["basics"]
        assert bool(re.search("charg", text, re.IGNORECASE)) == scene.facts.charging
        assert re.search(r"simulat|synthetic|computed", scene.answers["imaging"])
        assert re.search(r"simulated|synthetic", scene.answers["application"])
        assert "is visible" not in scene.answers["imaging"] or scene.facts.noise_grey > 7
        for setting in scene.facts.printed:
            assert setting in scene.answers["imaging"]


@pytest.mark.slow
def test_wording_varies_and_facts_do_not():
    shots = [render(seed, "Nanowires") for seed in range(60)]
    for question_id in QUESTIONS:
        skeletons = {re.sub(r"[\d.]+", "#", shot.answers[question_id]) for shot in shots}
        assert len(skeletons) >= 10, question_id
