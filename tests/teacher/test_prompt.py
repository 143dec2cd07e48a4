"""Prompts, requests and fingerprints."""

import pytest
import yaml

from configuration_mvaema import QUESTIONS
from lengths_mvaema import format_length
from mvaema.teacher.prompt import (
    STANDARD_PROMPT,
    Prompt,
    Sampling,
    question_fingerprint,
    request_body,
    request_parameters,
)


def test_request_has_the_image_first_and_the_projects_sampling(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"pixels")
    body = request_body("m", request_parameters("standard", Sampling()), file, "text")
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["image_url", "text"]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.25, 0.1, 3500)
    reasoning = request_parameters("reasoning", Sampling())
    assert reasoning == {"max_completion_tokens": 3500}
    with pytest.raises(ValueError, match="--profile"):
        request_parameters("other", Sampling())


def test_prompt_says_what_is_known_and_no_more():
    prompt = Prompt.load()
    text = prompt.render("basics", (1000, 500), caption="A caption.", pixel_size_nm=2.5)
    order = ["A caption.", "2.5 nm", "2.5 µm wide", "1.25 µm high", QUESTIONS["basics"], "<answer>"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert "step by step" in text
    bare = prompt.render("basics", (1000, 500))
    assert "caption" not in bare and "pixel of" not in bare and "None" not in bare
    for question_id in QUESTIONS:
        assert QUESTIONS[question_id] in prompt.render(question_id, (1, 1))


def test_lengths_round_as_in_the_students_prompt():
    """Teacher and student are told the same length, also where rounding changes the unit."""
    text = Prompt.load().render("basics", (1, 1000), pixel_size_nm=999.6)
    assert "1 µm wide" in text and "1 mm high" in text
    assert format_length(999.6) == "1 µm" and "1000 nm" not in text


def test_fingerprints_of_earlier_versions_hold():
    """A journal of an earlier version is not asked again: prompt and fingerprint are frozen."""
    text = Prompt.load().render(
        "basics", (1024, 768), caption="A caption.", pixel_size_nm=2.5, scale_bar="500 nm"
    )
    parameters = request_parameters("standard", Sampling())
    version = Prompt.load().version
    assert (
        question_fingerprint("ab" * 32, text, "model", parameters, version)
        == "7f582e0821c96be4663da11d079d917b"
    )


def test_prompt_file_replaces_wording_and_changes_every_fingerprint(tmp_path):
    content = yaml.safe_load(STANDARD_PROMPT.read_text())
    content["version"] = "mine"
    content["questions"] = {"basics": "What is it?", "new": "Is it {new}?"}
    path = tmp_path / "prompt.yaml"
    path.write_text(yaml.dump(content))
    prompt = Prompt.load(path)
    assert "What is it?" in prompt.render("basics", (1, 1))
    assert "Is it {new}?" in prompt.render("new", (1, 1))
    assert prompt.digest() != Prompt.load().digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": "{wrong}"}, "wrong"),
        ({"extra": "x"}, "unknown: ['extra']"),
        (None, "exactly the keys"),
    ],
)
def test_bad_prompt_files(change, message, tmp_path):
    path = tmp_path / "prompt.yaml"
    content = yaml.safe_load(STANDARD_PROMPT.read_text())
    path.write_text(yaml.dump({**content, **change} if change else ["no mapping"]))
    with pytest.raises(ValueError) as raised:
        Prompt.load(path)
    assert message in str(raised.value) and str(path) in str(raised.value)


def test_fingerprint_covers_what_the_answer_depends_on():
    base = ("ab", "text", "model", {"temperature": 0.25, "top_p": 0.1}, "1")
    same = ("ab", "text", "model", {"top_p": 0.1, "temperature": 0.25}, "1")
    assert question_fingerprint(*base) == question_fingerprint(*same)
    others = [
        ("cd", *base[1:]),
        (base[0], "text ", *base[2:]),
        (*base[:2], "model2", *base[3:]),
        (*base[:3], {"temperature": 0.3, "top_p": 0.1}, "1"),
        (*base[:4], "2"),
    ]
    assert len({question_fingerprint(*x) for x in [base, *others]}) == 6
