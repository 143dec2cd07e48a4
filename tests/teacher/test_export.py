"""From journals to a dataset: rows, card, and hub."""

import sqlite3

import pytest
from huggingface_hub import DatasetCard, constants
from support.hub_server import TOKEN, running_hub
from support.teacher_helpers import QUESTIONS, arguments, ask, load, make_images, replies

from configuration_mvaema import QUESTIONS as WORDING
from mvaema.commands.teach import ask_command
from mvaema.micrographs.schema import FEATURES, OUTCOMES
from mvaema.teacher.export import export, push


def test_dataset_has_everything_and_reads_back(server, tmp_path, capsys):
    images, output = make_images(tmp_path / "images", 3), tmp_path / "out"
    server.fail("truncated", match="surface texture")
    server.fail("refusal", match="imaging technique")
    server.fail("html", match="touch, fuse")
    assert ask_command(arguments(images, output, server.url)) == 0
    rows = load(output / "dataset", tmp_path)
    assert rows.features == FEATURES
    assert len(rows) == 3
    counts = dict.fromkeys(OUTCOMES, 0)
    for row in rows:
        assert [qa["question_id"] for qa in row["qa"]] == list(WORDING)
        assert row["category"] == "Nanowires" and "nanowires" in row["caption"]
        for qa in row["qa"]:
            counts[qa["outcome"]] += 1
            assert qa["question"] == WORDING[qa["question_id"]]
            assert qa["prompt_version"] == "2026-11-21"
            if qa["outcome"] == "ok":
                assert qa["answer"].startswith("Answer ") and qa["reasoning"] == "I look closely."
                assert qa["teacher_model"] == "teacher"
    assert counts == {"ok": 27, "truncated": 1, "refused": 1, "error": 1, "filtered": 0, "empty": 0}
    assert "27 ok, 1 truncated, 1 refused, 0 filtered, 0 empty, 1 error" in capsys.readouterr().out

    card = DatasetCard.load(output / "dataset" / "README.md")
    assert card.data.license == "other"
    for part in ("| ok | 27 |", "| Nanowires | 3 |", "temperature 0.25", "Cost of all attempts"):
        assert part in card.text
    assert "unknown (the price" in card.text


def test_export_reads_what_a_killed_run_left_unread(server, tmp_path):
    """Replies are committed before they are read; a run may die in between."""
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    ask(images, output, server.url)
    with sqlite3.connect(next(output.glob("*.sqlite"))) as db:
        db.execute("UPDATE replies SET outcome = NULL, settled = NULL, prompt_tokens = NULL")
    assert export(output)[1].outcomes == {"ok": QUESTIONS}
    ask(images, output, server.url)
    assert len(server.exchanges) == QUESTIONS


def test_whatever_a_server_sends_is_journalled_and_exported(server, tmp_path):
    """One answer with half a surrogate pair, absurd usage, a model that is no text, and so on."""
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    good = '{"choices": [{"message": {"content": "<answer>A%s</answer>"}, "finish_reason": %s}]%s}'
    sent = [
        good % (r"\ud835", '"stop"', ""),
        good % ("", '"stop"', ', "usage": {"prompt_tokens": 1e25, "completion_tokens": 5}'),
        good % ("", '"stop"', f', "usage": {{"prompt_tokens": {10**25}, "completion_tokens": 5}}'),
        good % ("", r'"\ud835"', r', "model": "\udc00"'),
        good % ("", "[]", ', "model": {"deep": [[[[]]]]}, "usage": [NaN, -Infinity]'),
        good % (r"\u0000", "1e999", ', "model": 7'),
    ]
    for body in sent:
        server.send(body.encode())
    assert ask_command(arguments(images, output, server.url)) == 0
    raws = {bytes(row["raw"]) for row in replies(output)}
    assert {body.encode() for body in sent} <= raws and len(raws) == QUESTIONS
    [row] = load(output / "dataset", tmp_path)
    assert [qa["outcome"] for qa in row["qa"]] == ["ok"] * QUESTIONS
    answers = sorted(qa["answer"] for qa in row["qa"] if not qa["answer"].startswith("Answer"))
    assert answers == ["A", "A", "A", "A", "A\0", "A\ufffd"]


def test_failed_export_leaves_the_last_one(server, tmp_path):
    images, output = make_images(tmp_path / "images", 2), tmp_path / "out"
    ask_command(arguments(images, output, server.url))
    sorted(output.glob("images/*/*.png"))[-1].unlink()
    with pytest.raises(OSError, match="No such file"):
        export(output)
    assert len(load(output / "dataset", tmp_path)) == 2
    assert not (output / "dataset.partial").exists()


def test_retry_prefers_the_answer_that_is_ok(server, tmp_path):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    server.fail("truncated", times=2)
    ask_command(arguments(images, output, server.url))
    server.fail("refusal")
    ask_command(arguments(images, output, server.url, retry=["truncated"]))
    [row] = load(output / "dataset", tmp_path)
    outcomes = [qa["outcome"] for qa in row["qa"]]
    assert sorted(outcomes) == ["ok"] * 9 + ["refused"]
    assert len(replies(output)) == QUESTIONS + 2


def test_labels_of_a_dataset_are_kept(server, tmp_path):
    """A micrograph dataset goes in, the same rows with answers come out."""
    images, output = make_images(tmp_path / "images", 2), tmp_path / "first"
    ask_command(arguments(images, output, server.url))
    first = load(output / "dataset", tmp_path / "a")
    ask_command(
        arguments(output / "dataset", tmp_path / "second", server.url, questions=["basics"])
    )
    second = load(tmp_path / "second" / "dataset", tmp_path / "b")
    for column in ("image_id", "category", "caption", "group"):
        assert sorted(second[column]) == sorted(first[column])
    assert [len(row["qa"]) for row in second] == [1, 1]


# --- the hub


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.mark.parametrize("public", [False, True])
def test_push_is_private_unless_public_was_asked_for(public, hub, server, tmp_path):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    ask_command(arguments(images, output, server.url))
    assert not hub.received, "nothing without --push_to_hub"
    args = arguments(images, output, server.url, push_to_hub="lab/data", public=public)
    assert ask_command(args) == 0
    assert hub.repositories["lab/data"]["private"] is not public
    assert set(hub.files("lab/data")) == {"train-00000.parquet", "README.md"}
    assert not [path for path, content in hub.received if b"CUSTOMER" in content]


def test_push_does_not_publish_into_a_public_repository(hub, server, tmp_path):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    ask_command(arguments(images, output, server.url))
    hub.repositories["lab/data"] = {"private": False, "files": {}}
    with pytest.raises(PermissionError, match="is public already, so nothing was uploaded"):
        push(output / "dataset", "lab/data")
    assert not hub.files("lab/data")
