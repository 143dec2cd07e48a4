"""The parts of the teacher by themselves: prompt, fingerprint, replies, flags, money, journal."""

import json
import random
import shutil
import sqlite3

import numpy as np
import pytest
import yaml
from support.teacher_helpers import make_images

from configuration_mvaema import QUESTIONS
from mvaema.teacher.flags import Flagger, is_loop, length_outliers, near_duplicates, signature
from mvaema.teacher.journal import Journal, JournalError, Reply
from mvaema.teacher.limits import Limits, retry_after
from mvaema.teacher.money import Budget, Measured, Meter, Price, count_image_tokens, load_price
from mvaema.teacher.preparing import Preparation, Preparer, open_source, shard_of
from mvaema.teacher.prompt import (
    STANDARD_PROMPT,
    Prompt,
    Sampling,
    fingerprint,
    format_length,
    request_body,
    request_parameters,
)
from mvaema.teacher.replies import is_refusal, read_reply, split_answer

# --- prompt


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


@pytest.mark.parametrize(
    ("nanometres", "text"),
    [(0.0521, "0.0521 nm"), (999, "999 nm"), (1000, "1 µm"), (12345, "12.3 µm"), (2e6, "2 mm")],
)
def test_lengths(nanometres, text):
    assert format_length(nanometres) == text


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
    assert fingerprint(*base) == fingerprint(*same)
    others = [
        ("cd", *base[1:]),
        (base[0], "text ", *base[2:]),
        (*base[:2], "model2", *base[3:]),
        (*base[:3], {"temperature": 0.3, "top_p": 0.1}, "1"),
        (*base[:4], "2"),
    ]
    assert len({fingerprint(*x) for x in [base, *others]}) == 6


# --- replies


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
    reading = read_reply(200, completion({"content": parts, "reasoning_content": "r"}, None), None)
    assert (reading.outcome, reading.answer, reading.reasoning) == ("ok", "ab", "r")
    reading = read_reply(200, completion({"content": None, "reasoning": "r"}), None)
    assert (reading.outcome, reading.reasoning) == ("empty", "r")
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": None}
    assert read_reply(200, completion({"content": "a"}, usage=usage), None).prompt_tokens == 9


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
    reading = read_reply(200, raw, None)
    assert reading.outcome == "error" and reading.settled and reading.answer is None


def test_odd_values_do_not_break_reading():
    rng = random.Random(0)
    values = [None, 1, -1, "x", [], {}, [None], True, {"text": 3}, [{"text": None}]]
    for _ in range(2000):
        pick = lambda: rng.choice(values)  # noqa: E731
        message = {"content": pick(), "refusal": pick(), "reasoning": pick()}
        usage = {"prompt_tokens": pick(), "completion_tokens": pick()}
        usage["prompt_tokens_details"] = pick()
        body = completion(message, pick(), usage=rng.choice([usage, pick()]), model=pick())
        read_reply(rng.choice([200, 400, 429, 500]), body, None)


# --- flags


def test_loops_are_flagged_and_prose_is_not():
    assert is_loop("The surface is rough and porous here. " * 4)
    assert is_loop("wires " * 200)
    for question in QUESTIONS.values():
        assert not is_loop(question)
    assert not is_loop(" ".join(QUESTIONS.values()))


def jaccard(a: str, b: str) -> float:
    def shingles(text):
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def test_near_duplicates_agree_with_jaccard():
    """Against the similarity computed by its definition, on pairs far from the threshold."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(500)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(100)]
    for i in range(40):  # one word in sixty changed: similar; twenty changed: not
        changed = texts[i].split()
        for position in rng.sample(range(60), 1 if i % 2 else 20):
            changed[position] = "other"
        texts.append(" ".join(changed))
    expected = [any(jaccard(t, u) > 0.8 for u in texts[:i]) for i, t in enumerate(texts)]
    found = near_duplicates(np.stack([signature(t) for t in texts]))
    assert sum(expected) == 20
    assert [bool(x) for x in found] == expected


def test_length_outliers():
    lengths = np.array([200 + i for i in range(50)] + [5, 20_000])
    assert np.flatnonzero(length_outliers(lengths)).tolist() == [50, 51]
    assert not length_outliers(np.array([1, 1000])).any(), "too few to judge"
    assert not length_outliers(np.array([100] * 30 + [110])).any()


def test_duplicates_are_judged_within_a_question_group():
    flagger = Flagger()
    sequence = [("a", "No labels are visible."), ("b", "No labels are visible."),
                ("a", "no labels are visible"), ("b", "Something else entirely here.")]  # fmt: skip
    for group, text in sequence:
        flagger.add(group, text)
    flagger.finish()
    flags = [flagger.next(group) for group, _ in sequence]
    assert flags == [[], [], ["exact_duplicate"], []]


# --- money


def test_prices(tmp_path):
    price = load_price("gpt-4o-2024-08-06")
    assert price == load_price("gpt-4o")
    assert price.cost(1e6, 0, 0, batch=False) == 2.5
    assert price.cost(1e6, 1e6, 1e6, batch=True) == (1.25 + 10) / 2
    assert load_price("my-own-model") is None
    broken = tmp_path / "prices.yaml"
    broken.write_text("models: {m: {input: cheap, output: 1}}")
    with pytest.raises(ValueError, match=r"prices\.yaml"):
        load_price("m", broken)


@pytest.mark.parametrize(
    ("size", "rule", "tokens"),
    [
        # OpenAI's own examples for high detail: 1024 x 1024 is 765 tokens, 2048 x 4096 is 1105.
        ((1024, 1024), {"rule": "tiles", "base": 85, "tile": 170}, 765),
        ((2048, 4096), {"rule": "tiles", "base": 85, "tile": 170}, 1105),
        ((1024, 1024), {"rule": "patches", "size": 32}, 1024),
        ((1800, 2400), {"rule": "patches", "size": 32, "cap": 1536, "factor": 2}, 3072),
    ],
)
def test_image_tokens(size, rule, tokens):
    assert count_image_tokens(size, rule) == tokens


def test_worst_case_covers_what_was_measured():
    price = Price(1, 10, 1, 1, None, "today", "here")
    meter = Meter(price, 3500, False, Measured())
    before = meter.worst_cost("text", (224, 224))
    meter.add(100_000, 0, 10)
    after = meter.worst_cost("text", (224, 224))
    assert after == pytest.approx((100_000 + 35_000) / 1e6)
    assert after > before
    assert Meter(None, 3500, False, Measured()).worst_cost("text", (224, 224)) is None


def test_budget_is_never_passed_in_any_order():
    rng = random.Random(0)
    for _ in range(200):
        budget, open_reservations = Budget(1.0), []
        for _ in range(100):
            worst = rng.random() * 0.3
            if rng.random() < 0.5 and budget.reserve(worst):
                open_reservations.append(worst)
            elif open_reservations:
                worst = open_reservations.pop(rng.randrange(len(open_reservations)))
                budget.settle(worst, worst * rng.choice([0, 0.5, 1]))
            assert budget.spent <= 1.0 + 1e-9


# --- limits


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers) == seconds


def test_one_burst_of_429_halves_concurrency_once():
    limits = Limits(64, clock=iter(range(1000)).__next__)
    limits.concurrency, limits.in_flight = 32.0, 5
    for _ in range(5):  # all granted before the cut
        limits.release(1, 0, None, throttled=True)
    assert limits.concurrency == 16
    limits.in_flight = 1
    limits.release(900, 0, None, throttled=True)
    assert limits.concurrency == 8
    limits.release(901, 0, None)
    assert limits.concurrency == 8, "a failure is no reason to send more"


# --- preparing


def test_what_is_unreadable_is_counted_and_tried_again(tmp_path, capsys):
    images = make_images(tmp_path / "images", 3)
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (images / "empty.tif").touch()
    shutil.copy(images / "Nanowires" / "CUSTOMER_lot0.png", images / "copy.png")
    with Journal(tmp_path / "out" / "journal.sqlite", {}) as journal:
        preparer = Preparer(journal, Preparation())
        found = [image for image in preparer(open_source(str(images))) if image]
        assert len(found) == 3 and preparer.duplicates == 1
        assert preparer.problems.total() == 2
        shutil.copy(images / "Nanowires" / "CUSTOMER_lot1.png", images / "broken.png")
        preparer = Preparer(journal, Preparation())
        assert len([image for image in preparer(open_source(str(images))) if image]) == 3
        assert preparer.problems.total() == 1 and preparer.duplicates == 2


def test_shards_are_disjoint_and_complete(tmp_path):
    images = make_images(tmp_path / "images", 40)
    parts = []
    for shard in range(3):
        with Journal(tmp_path / f"{shard}" / "journal.sqlite", {}) as journal:
            preparer = Preparer(journal, Preparation(), shard, 3)
            parts.append({i.image_id for i in preparer(open_source(str(images))) if i})
    assert sum(map(len, parts)) == len(set().union(*parts)) == 40
    assert min(map(len, parts)) > 0
    assert {shard_of(bytes([i]), 7) for i in range(200)} == set(range(7))


def test_info_bar_and_scale(tmp_path):
    """Downscaling changes the pixel size with the pixels."""
    images = make_images(tmp_path / "images", 1, size=(60, 120))
    [file] = (images / "Nanowires").iterdir()
    table = images / "table.csv"
    table.write_text(f"path,pixel_size_nm,category\nNanowires/{file.name},2.0,Tips\n")
    with Journal(tmp_path / "out" / "journal.sqlite", {}) as journal:
        [image] = Preparer(journal, Preparation(max_side=60))(open_source(str(table)))
    assert (image.width, image.height) == (60, 30)
    assert image.pixel_size_nm == 4.0
    assert image.category == "Tips" and image.caption == "An electron micrograph of a tip."


# --- journal


def reply(name: str, attempt: int = 1) -> Reply:
    return Reply(name, "image", "basics", attempt, asked_at=1.0, latency_s=0.1, status=200, raw=b"")


def test_journal_is_durable_and_locked(tmp_path):
    path = tmp_path / "journal.sqlite"
    with Journal(path, {"teacher_model": "m"}) as journal:
        assert journal.query("PRAGMA journal_mode")[0][0] == "wal"
        assert journal.query("PRAGMA synchronous")[0][0] == 2, "FULL"
        journal.record([reply("a")])
        with pytest.raises(JournalError, match="another run is writing"):
            Journal(path, {"teacher_model": "m"})
        with Journal(path, read_only=True) as reader:
            assert len(reader.query("SELECT * FROM replies")) == 1
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.record([reply("b")])
    with Journal(path, {"teacher_model": "m"}) as journal:
        assert journal.last_id() == 1


def test_journal_of_another_configuration_is_refused_and_untouched(tmp_path):
    path = tmp_path / "journal.sqlite"
    with Journal(path, {"teacher_model": "m", "max_tokens": 1}) as journal:
        journal.record([reply("a")])
    with pytest.raises(JournalError) as raised:
        Journal(path, {"teacher_model": "n", "max_tokens": 1})
    assert "teacher_model: 'm' there, 'n' now" in str(raised.value)
    assert "max_tokens" not in str(raised.value)
    with Journal(path, {"teacher_model": "m", "max_tokens": 1}) as journal:
        assert journal.last_id() == 1


def test_same_attempt_twice_is_refused_whole(tmp_path):
    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        journal.record([reply("a")])
        with pytest.raises(sqlite3.IntegrityError):
            journal.record([reply("b"), reply("a")])
        assert journal.last_id() == 1


def test_a_file_that_is_no_journal(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(path, {})
    assert path.read_bytes().startswith(b"not a database")
