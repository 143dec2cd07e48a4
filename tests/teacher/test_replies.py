"""Verdicts on replies: outcomes, answers, refusals, and bodies that are not completions."""

import json
import random

import pytest

from mvaema.teacher.replies import is_refusal, judge, split_answer


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("I see wires.\n<answer>Nanowires.</answer>", ("I see wires.", "Nanowires.", True)),
        ("<think>hm</think>so <answer> A b. </answer> bye", ("hm\n\nso", "A b.", True)),
        ("hm, opened before</think>\n<answer>A</answer>", ("hm, opened before", "A", True)),
        ("first <answer>x</answer> no: <answer>y", ("first <answer>x</answer> no:", "y", True)),
        ("Steps.\n\n**Final answer:** Wires.", ("Steps.", "Wires.", True)),
        ("Just wires.", ("", "Just wires.", False)),
        ("<think>never ends", ("never ends", "", False)),
        ("", ("", "", False)),
    ],
)
def test_reasoning_is_kept_apart_from_the_answer(content, expected):
    assert split_answer(content) == expected


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I’m sorry, I cannot help with this image.",
        "I cannot analyze images directly.",
        "I'm unable to view the image you uploaded.",
        "Unfortunately, I am not able to process this picture.",
        "Sorry, but I can't view or analyze images.",
        "As an AI language model, I do not have the ability to see.",
        "This request violates our content policy.",
    ],
)
def test_refusals(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I cannot determine the composition from contrast alone; it looks uniform.",
        "I cannot see a scale bar in the micrograph, so the length stays unknown.",
        "The image shows nanowires. I can't tell whether they are coated.",
        "No label names an element. I am unable to identify compounds from grey levels.",
        "Sorry-looking, collapsed fibres cover the substrate.",
        "I'm sorry, but I can't help noticing drift. " + "The wires are long and thin. " * 40,
    ],
)
def test_answers_that_are_no_refusals(text):
    assert not is_refusal(text)


def completion(message: dict, finish="stop", **more) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], **more}).encode()


def test_other_servers_spellings():
    parts = [{"type": "text", "text": "<answer>a"}, {"type": "text", "text": "b</answer>"}]
    verdict = judge(200, completion({"content": parts, "reasoning_content": "r"}, None), None)
    assert (verdict.outcome, verdict.answer, verdict.reasoning) == ("ok", "ab", "r")
    verdict = judge(200, completion({"content": None, "reasoning": "r"}), None)
    assert (verdict.outcome, verdict.reasoning) == ("empty", "r")
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": None}
    assert judge(200, completion({"content": "a"}, usage=usage), None).prompt_tokens == 9


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"choices": null}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": "text"}]}',
        b'{"choices": {}}',
        b'{"error": "upstream", "choices": []}',
    ],
)
def test_what_is_no_completion_is_an_error(raw):
    verdict = judge(200, raw, None)
    assert verdict.outcome == "error" and verdict.settled and verdict.answer is None


def test_odd_values_do_not_break_reading():
    rng = random.Random(0)
    values = [None, 1, -1, "x", [], {}, [None], True, {"text": 3}, [{"text": None}]]
    for _ in range(2000):
        pick = lambda: rng.choice(values)  # noqa: E731
        message = {"content": pick(), "refusal": pick(), "reasoning": pick()}
        usage = {"prompt_tokens": pick(), "completion_tokens": pick()}
        usage["prompt_tokens_details"] = pick()
        body = completion(message, pick(), usage=rng.choice([usage, pick()]), model=pick())
        judge(rng.choice([200, 400, 429, 500]), body, None)
