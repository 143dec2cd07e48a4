"""From journals to a dataset: rows, card, and hub."""

import json
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
from huggingface_hub import DatasetCard, constants
from support.hub_server import TOKEN, running_hub
from support.teacher_helpers import QUESTIONS, arguments, ask, load, make_images, replies
from support.teacher_server import image_of

from configuration_mvaema import QUESTIONS as WORDING
from mvaema.commands.teach import ask_command
from mvaema.micrographs.schema import FEATURES, OUTCOMES
from mvaema.teacher.export import export, push
from mvaema.teacher.journal import JournalError


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


def test_image_that_is_missing_or_damaged_is_left_out_and_prepared_again(server, tmp_path, capsys):
    """Deleted, emptied, torn: neither blocks an export, nor is sent, nor costs its answers."""
    images, output = make_images(tmp_path / "images", 5), tmp_path / "out"
    ask_command(arguments(images, output, server.url, questions=["basics", "surface"]))
    files = sorted(output.glob("images/*/*.png"))
    original = [file.read_bytes() for file in files]
    files[0].unlink()
    files[1].write_bytes(b"")
    files[2].write_bytes(original[2][: len(original[2]) // 2])
    _, summary = export(output)
    assert (summary.images, summary.damaged, summary.outcomes["ok"]) == (2, 3, 4)
    assert "3 micrographs whose prepared image is missing or damaged" in str(summary)
    assert len(load(output / "dataset", tmp_path / "a")) == 2
    assert str(files[0]) in capsys.readouterr().out
    # Nothing is pending: what is missing or empty is prepared again, and nothing is asked.
    asked = len(server.exchanges)
    ask(images, output, server.url, questions=["basics", "surface"])
    assert len(server.exchanges) == asked
    assert [file.read_bytes() == data for file, data in zip(files, original, strict=True)] == [
        *(True, True, False, True, True)
    ]
    ask(images, output, server.url)
    assert [file.read_bytes() for file in files] == original
    assert len(server.exchanges) == 5 * QUESTIONS
    sent = {image_of(json.loads(exchange.body)) for exchange in server.exchanges}
    assert sent == set(original), "no damaged image"
    assert export(output)[1].outcomes == {"ok": 5 * QUESTIONS}


def test_image_that_another_encoder_wrote_is_intact(server, tmp_path):
    """The same pixels in other bytes, after an update of Pillow, say."""
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    ask(images, output, server.url, questions=["basics"])
    [file] = output.glob("images/*/*.png")
    PIL.Image.open(file).save(file, compress_level=1)
    ask(images, output, server.url)
    assert len(server.exchanges) == QUESTIONS
    assert export(output)[1].outcomes == {"ok": QUESTIONS}


def test_failed_export_leaves_the_last_one(server, tmp_path):
    images, output = make_images(tmp_path / "images", 2), tmp_path / "out"
    ask_command(arguments(images, output, server.url))
    for file in output.glob("images/*/*.png"):
        file.unlink()
    with pytest.raises(JournalError, match="2 micrographs whose prepared image is missing"):
        export(output)
    assert len(load(output / "dataset", tmp_path)) == 2
    assert not (output / "dataset.partial").exists()


def test_outcomes_of_older_rules_do_not_matter(server, tmp_path):
    """Whatever an earlier version made of the replies, and some that it judged `ok` are not."""
    images, output = make_images(tmp_path / "images", 2), tmp_path / "out"
    server.fail("refusal", times=3)
    server.fail("empty", times=3)
    ask(images, output, server.url)
    expected = export(output)[1].outcomes
    assert expected == {"ok": 14, "refused": 3, "empty": 3}
    for stored in ("'ok'", "'refused'", "'some older outcome'", "CASE id % 2 WHEN 0 THEN 'ok' END"):
        with sqlite3.connect(next(output.glob("*.sqlite"))) as db:
            db.execute(f"UPDATE replies SET outcome = {stored}")
        assert export(output)[1].outcomes == expected
        rows = load(output / "dataset", tmp_path / stored[1:4])
        found = Counter(qa["outcome"] for row in rows for qa in row["qa"])
        assert found == expected


def test_journal_of_an_earlier_version(server, tmp_path):
    """Without the tables, columns and settings that were added since."""
    images, output = make_images(tmp_path / "images", 2), tmp_path / "out"
    ask(images, output, server.url)
    with sqlite3.connect(next(output.glob("*.sqlite"))) as db:
        [(value,)] = db.execute("SELECT value FROM meta WHERE key = 'configuration'")
        configuration = json.loads(value)
        del configuration["prompt_parts"]
        db.execute("UPDATE meta SET value = ?", [json.dumps(configuration)])
        db.execute("ALTER TABLE images DROP COLUMN labelled_by")
        db.execute("DROP TABLE absent")
        db.execute("PRAGMA user_version = 0")
    for lock in output.glob("*.lock"):
        lock.write_bytes(b"")
    assert export(output)[1].outcomes == {"ok": 2 * QUESTIONS}
    moved = images / "Tips" / "a.png"
    moved.parent.mkdir()
    (images / "Nanowires" / "CUSTOMER_lot0.png").rename(moved)
    assert ask(images, output, server.url).stopped is None
    assert len(server.exchanges) == 3 * QUESTIONS
    assert export(output)[1].categories == {"Nanowires": 1, "Tips": 1}


def test_several_exports_of_one_folder_at_once(server, tmp_path):
    images, output = make_images(tmp_path / "images", 5), tmp_path / "out"
    ask(images, output, server.url)
    with ThreadPoolExecutor(4) as pool:
        summaries = list(pool.map(lambda _: export(output)[1], range(8)))
    assert [summary.images for summary in summaries] == [5] * 8
    assert len(load(output / "dataset", tmp_path)) == 5
    assert {path.name for path in output.glob("dataset*")} == {"dataset", "dataset.lock"}


def test_answer_in_another_language_is_flagged(server, tmp_path):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    answers = [
        "<answer>图像显示了细长的纳米线。</answer>",
        "<answer>Das Bild ist nicht scharf.</answer>",
    ]
    for answer in answers:
        choice = {"message": {"content": answer}, "finish_reason": "stop"}
        server.send(json.dumps({"choices": [choice]}).encode())
    ask_command(arguments(images, output, server.url))
    [row] = load(output / "dataset", tmp_path)
    flagged = {qa["answer"] for qa in row["qa"] if "other_language" in qa["flags"]}
    assert {f"<answer>{text}</answer>" for text in flagged} == set(answers)


# --- the images as they are now


def test_moved_micrograph_has_the_row_of_its_new_category(server, tmp_path, capsys):
    images, output = make_images(tmp_path / "images", 3), tmp_path / "out"
    ask_command(arguments(images, output, server.url))
    moved = images / "Tips" / "CUSTOMER_lot0.png"
    moved.parent.mkdir()
    (images / "Nanowires" / moved.name).rename(moved)
    ask_command(arguments(images, output, server.url))
    assert "Left out: 10 answers that were given under another category" in capsys.readouterr().out
    rows = load(output / "dataset", tmp_path / "a")
    assert sorted(rows["category"]) == ["Nanowires", "Nanowires", "Tips"]
    [row] = [row for row in rows if row["category"] == "Tips"]
    assert row["caption"] == "An electron micrograph of a tip."
    # The caption is in the prompt, so all ten are asked anew; the answers are those.
    assert len(server.exchanges) == 40
    names = {qa["answer"].split()[1] for qa in row["qa"]}
    assert names == {exchange.question for exchange in server.exchanges[30:]}
    # Moved back, it has its old answers, and nothing is asked.
    moved.rename(images / "Nanowires" / moved.name)
    ask_command(arguments(images, output, server.url))
    assert len(server.exchanges) == 40
    rows = load(output / "dataset", tmp_path / "b")
    assert rows["category"] == ["Nanowires"] * 3
    assert all([qa["outcome"] for qa in row["qa"]] == ["ok"] * 10 for row in rows)
    assert len(replies(output)) == 40, "and the journal keeps all"


def test_answers_that_do_not_depend_on_a_label_stay_valid(server, tmp_path):
    """Group, source and licence are in no prompt."""
    images, output = make_images(tmp_path / "images", 2), tmp_path / "out"
    table = images / "table.csv"

    def write(licence, group):
        lines = [f"Nanowires/CUSTOMER_lot{i}.png,{licence},{group}\n" for i in range(2)]
        table.write_text("path,licence,group\n" + "".join(lines))
        ask_command(arguments(table, output, server.url))
        return load(output / "dataset", tmp_path / licence)

    assert write("MIT", "wafer 1")["licence"] == ["MIT"] * 2
    rows = write("CC0-1.0", "wafer 2")
    assert rows["licence"] == ["CC0-1.0"] * 2 and rows["group"] == ["wafer 2"] * 2
    assert [len(row["qa"]) for row in rows] == [10, 10]
    assert len(server.exchanges) == 20


def test_pixel_size_that_was_corrected(server, tmp_path):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    table = images / "table.csv"
    for size in (2.0, 3.0, 2.0):
        table.write_text(f"path,pixel_size_nm\nNanowires/CUSTOMER_lot0.png,{size}\n")
        ask_command(arguments(table, output, server.url, questions=["basics"]))
        [row] = load(output / "dataset", tmp_path / str(size))
        assert row["pixel_size_nm"] == size and len(row["qa"]) == 1
        assert f"{size:.3g} nm" in server.exchanges[-1].text or len(server.exchanges) == 2
    assert len(server.exchanges) == 2


def test_removed_and_replaced_micrographs(server, tmp_path, capsys):
    images, output = make_images(tmp_path / "images", 4), tmp_path / "out"
    ask_command(arguments(images, output, server.url))
    first = load(output / "dataset", tmp_path / "a")
    folder = images / "Nanowires"
    kept = (folder / "CUSTOMER_lot1.png").read_bytes()
    (folder / "CUSTOMER_lot0.png").unlink()
    pixels = np.random.default_rng(1).integers(0, 256, (32, 24), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(folder / "CUSTOMER_lot1.png")
    # A pilot does not look at all images, so it says nothing about the others.
    ask_command(arguments(images, output, server.url, pilot=1))
    assert set(first["image_id"]) < set(load(output / "dataset", tmp_path / "b")["image_id"])
    capsys.readouterr()
    ask_command(arguments(images, output, server.url))
    printed = capsys.readouterr().out
    assert "Left out: 2 micrographs that are no longer among --images" in printed
    second = load(output / "dataset", tmp_path / "c")
    assert len(second) == 3 and len(set(second["image_id"]) & set(first["image_id"])) == 2
    assert len(server.exchanges) == 50, "the new one"
    # When they are back, so are their rows, without a request.
    (folder / "CUSTOMER_lot9.png").write_bytes(kept)
    ask_command(arguments(images, output, server.url))
    third = load(output / "dataset", tmp_path / "d")
    assert len(third) == 4 and len(set(third["image_id"]) & set(first["image_id"])) == 3
    assert len(server.exchanges) == 50


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
