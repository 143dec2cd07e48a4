"""Verdicts on replies: outcomes, answers, refusals, and bodies that are not completions."""

import json
import random

import pytest

from mvaema.micrographs.schema import OUTCOMES
from mvaema.teacher.journal import Journal
from mvaema.teacher.replies import Reply, is_refusal, judge, split_answer


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
        ("I see. <Answer>A</ANSWER>", ("I see.", "A", True)),
        ("I see. < answer >A</ answer >", ("I see.", "A", True)),
        ("r <answer>A</answer> is in <answer></answer> tags", ("r", "A", True)),
        ("I see.<|begin_of_box|>A<|end_of_box|>", ("I see.", "A", True)),
        ("<answer><|begin_of_box|>A<|end_of_box|></answer>", ("", "A", True)),
        ("◁think▷hm◁/think▷A<|im_end|>", ("hm", "A", False)),
        ("<Thinking>hm</Thinking>A", ("hm", "A", False)),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>A",
            ("hm", "A", True),
        ),
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


@pytest.mark.parametrize(
    "part",
    [
        {"type": "reasoning", "text": "hm"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"text": "hm", "thought": True},
    ],
)
def test_parts_of_reasoning_are_not_in_the_answer(part):
    verdict = judge(200, completion({"content": [part, {"type": "text", "text": "A"}]}), None)
    assert (verdict.outcome, verdict.answer, verdict.reasoning) == ("ok", "A", "hm")


def test_part_that_refuses():
    content = [{"type": "refusal", "refusal": "No."}]
    verdict = judge(200, completion({"content": content}), None)
    assert (verdict.outcome, verdict.answer) == ("refused", "No.")


def test_characters_that_cannot_be_stored_are_replaced():
    """Halves of surrogate pairs in an answer, a name, a reason and an error."""
    body = completion({"content": "a\ud835b 𝐱"}, "stop\udc00", model="m\ud835")
    verdict = judge(200, body, None)
    assert (verdict.answer, verdict.returned_model) == ("a\ufffdb 𝐱", "m\ufffd")
    assert verdict.finish_reason == "stop\ufffd"
    verdict = judge(400, json.dumps({"error": {"message": "no\ud835\x1b[2J\n"}}).encode(), None)
    assert verdict.detail == "status 400: no\ufffd [2J"
    verdict = judge(200, completion({"content": "AB"}).replace(b"AB", b"A\xff"), None)
    assert (verdict.outcome, verdict.answer) == ("ok", "A\ufffd")


@pytest.mark.parametrize(
    ("prompt", "completion_tokens", "expected"),
    [
        ("100", "7", (100, 40, 7)),
        ("100.0", "7", (100, 40, 7)),
        ("30", "7", (30, 30, 7)),  # more from the cache than there were
        ("1e25", "7", None),
        ("1" + "0" * 25, "7", None),
        ("9" * 5000, "7", None),
        ("Infinity", "7", None),
        ("NaN", "7", None),
        ("-1", "7", None),
        ("0.5", "7", None),
        ("true", "7", None),
        ('"100"', "7", None),
        ("100", "null", None),
        ("null", "7", None),
    ],
)
def test_usage_is_what_can_be_or_unstated(prompt, completion_tokens, expected):
    raw = completion({"content": "a"}).decode()[:-1] + (
        f', "usage": {{"prompt_tokens": {prompt}, "completion_tokens": {completion_tokens}, '
        '"prompt_tokens_details": {"cached_tokens": 40}}}'
    )
    verdict = judge(200, raw.encode(), None)
    assert (verdict.outcome, verdict.answer, verdict.usage) == ("ok", "a", expected)
    if expected is None:
        stated = verdict.prompt_tokens, verdict.cached_tokens, verdict.completion_tokens
        assert stated == (None, None, None)


def garbage(rng: random.Random, depth: int = 0):
    """Any JSON value, and what only Python's JSON knows, in any shape."""
    simple = [None, True, False, 0, -1, 3, 1.5, 1e25, 10**30, float("inf"), float("nan"), ""]
    simple += ["x", "\ud835", "\udc00\ud835", "\x00", "<answer>", "</answer>", "<think>", "é" * 9]
    if depth == 4 or rng.random() < 0.4:
        return rng.choice(simple)
    items = [garbage(rng, depth + 1) for _ in range(rng.randrange(4))]
    if rng.random() < 0.5:
        return items
    keys = ["text", "type", "thinking", "code", "message", "error", "content", "\ud835"]
    return {rng.choice(keys): item for item in items}


def test_garbage_in_any_field_is_judged_stored_and_printable(tmp_path):
    """A good completion, or an error, in which some fields hold anything at all."""
    rng = random.Random(0)

    def some(value):
        return garbage(rng) if rng.random() < 0.3 else value

    replies = []
    for i in range(3000):
        message = {"content": some("<answer>A</answer>"), "refusal": some(None)}
        message |= {"reasoning": some("r"), "reasoning_content": some(None)}
        usage = {"prompt_tokens": some(9), "completion_tokens": some(3)}
        usage["prompt_tokens_details"] = some({"cached_tokens": some(1)})
        choice = some({"message": some(message), "finish_reason": some("stop")})
        error = some({"message": some("no"), "code": some("server_error"), "type": some("x")})
        body = {"choices": some([choice]), "usage": some(usage), "model": some("m")}
        if rng.random() < 0.3:
            body["error"] = error
        raw = json.dumps(some(body)).encode()
        if rng.random() < 0.1:
            raw = raw[: rng.randrange(len(raw))] + bytes(rng.choices(range(256), k=3))
        status = rng.choice([200, 200, 400, 429, 500])
        replies.append(Reply(f"f{i}", "image", "basics", 1, 1.0, 0.1, status=status, raw=raw))
    verdicts = [reply.judge() for reply in replies]
    assert {verdict.outcome for verdict in verdicts} == {*OUTCOMES} - {"filtered", "truncated"}
    texts = [value for verdict in verdicts for value in vars(verdict).values()]
    "".join(text for text in texts if isinstance(text, str)).encode()
    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        journal.record(replies)
        assert journal.judge_rest() == len(replies)
        stored = journal.query("SELECT raw, outcome, prompt_tokens FROM replies ORDER BY id")
        assert [row["raw"] for row in stored] == [reply.raw for reply in replies]
        expected = [(verdict.outcome, verdict.prompt_tokens) for verdict in verdicts]
        assert [tuple(row)[1:] for row in stored] == expected
