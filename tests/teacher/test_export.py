"""From journals to a dataset: export, merge, card, hub; and the command's answers to bad input."""

import asyncio
import shutil
import sqlite3
import threading
from functools import partial

import pytest
from aiohttp import web
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi
from support.teacher_helpers import (
    QUESTIONS,
    arguments,
    make_images,
    no_answer_lost_or_repeated,
    replies,
)
from support.teacher_server import FakeTeacher

from configuration_mvaema import QUESTIONS as WORDING
from generate_teacher_data import main
from mvaema.micrographs.schema import FEATURES, OUTCOMES
from mvaema.teacher import export as module
from mvaema.teacher.export import export, push
from mvaema.teacher.run import Run, run


@pytest.fixture
def server():
    with FakeTeacher() as server:
        yield server


def load(folder, tmp_path):
    return load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))


def test_dataset_has_everything_and_reads_back(server, tmp_path, capsys):
    images, output = make_images(tmp_path / "images", 3), tmp_path / "out"
    server.fail("truncated", match="surface texture")
    server.fail("refusal", match="imaging technique")
    server.fail("html", match="touch, fuse")
    assert run(arguments(images, output, server.url)) == 0
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


def test_export_while_answers_arrive(server, tmp_path, monkeypatch):
    """The snapshot is consistent; the run is not disturbed."""
    # Signals are for the main thread only.
    monkeypatch.setattr("mvaema.teacher.run._interruptible", lambda asker, qs: asker.run(qs))
    images, output = make_images(tmp_path / "images", 10), tmp_path / "out"
    server.delay = 0.02
    this = Run(arguments(images, output, server.url))
    thread = threading.Thread(target=this.ask)
    thread.start()
    seen = []
    while thread.is_alive():
        try:
            _, summary = export(output)
        except RuntimeError:
            continue  # not begun yet
        seen.append(summary.outcomes["ok"])
        assert len(load(output / "dataset", tmp_path / str(len(seen)))) == summary.images
    thread.join()
    assert seen == sorted(seen) and len(set(seen)) > 1
    assert export(output)[1].outcomes == {"ok": 100}
    no_answer_lost_or_repeated(server, output)


def test_export_reads_what_a_killed_run_left_unread(server, tmp_path):
    """Replies are committed before they are read; a run may die in between."""
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    Run(arguments(images, output, server.url)).ask()
    with sqlite3.connect(next(output.glob("*.sqlite"))) as db:
        db.execute("UPDATE replies SET outcome = NULL, settled = NULL, prompt_tokens = NULL")
    assert export(output)[1].outcomes == {"ok": QUESTIONS}
    Run(arguments(images, output, server.url)).ask()
    assert len(server.exchanges) == QUESTIONS


def test_failed_export_leaves_the_last_one(server, tmp_path, monkeypatch):
    images, output = make_images(tmp_path / "images", 2), tmp_path / "out"
    run(arguments(images, output, server.url))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "dataset_card", full)
    with pytest.raises(OSError, match="No space"):
        export(output)
    assert len(load(output / "dataset", tmp_path)) == 2
    assert not (output / "dataset.partial").exists()


def test_shards_merge_into_what_one_run_gives(server, tmp_path):
    images = make_images(tmp_path / "images", 12)
    run(arguments(images, tmp_path / "whole", server.url))
    whole = load(tmp_path / "whole" / "dataset", tmp_path / "a")
    asked = len(server.exchanges)
    parts = []
    for i in range(3):
        parts.append(tmp_path / f"part-{i}")
        run(arguments(images, parts[-1], server.url, shard=f"{i}/3"))
    assert len(server.exchanges) == asked + 120
    for _ in range(2):  # a second merge changes nothing
        assert main(["merge", "--output", str(tmp_path / "all"), "--parts", *map(str, parts)]) == 0
        assert len(replies(tmp_path / "all")) == 120
    merged = load(tmp_path / "all" / "dataset", tmp_path / "b")

    def content(rows):
        columns = ["image_id", "category", "group", "qa"]
        return sorted((row["image_id"], str(row)) for row in rows.select_columns(columns))

    assert content(merged) == content(whole)
    shutil.rmtree(parts[0])
    run(arguments(images, tmp_path / "all", server.url))
    assert len(server.exchanges) == asked + 120, "the merged folder knows all answers"


def test_shards_may_share_a_folder(server, tmp_path):
    images, output = make_images(tmp_path / "images", 8), tmp_path / "out"
    for i in range(2):
        assert run(arguments(images, output, server.url, shard=f"{i}/2")) == 0
    assert len(load(output / "dataset", tmp_path)) == 8
    with pytest.raises(RuntimeError, match="another division"):
        Run(arguments(images, output, server.url, shard="0/3"))


def test_retry_prefers_the_answer_that_is_ok(server, tmp_path):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    server.fail("truncated", times=2)
    run(arguments(images, output, server.url))
    server.fail("refusal")
    run(arguments(images, output, server.url, retry=["truncated"]))
    [row] = load(output / "dataset", tmp_path)
    outcomes = [qa["outcome"] for qa in row["qa"]]
    assert sorted(outcomes) == ["ok"] * 9 + ["refused"]
    assert len(replies(output)) == QUESTIONS + 2


def test_labels_of_a_dataset_are_kept(server, tmp_path):
    """A micrograph dataset goes in, the same rows with answers come out."""
    images, output = make_images(tmp_path / "images", 2), tmp_path / "first"
    run(arguments(images, output, server.url))
    first = load(output / "dataset", tmp_path / "a")
    run(arguments(output / "dataset", tmp_path / "second", server.url, questions=["basics"]))
    second = load(tmp_path / "second" / "dataset", tmp_path / "b")
    for column in ("image_id", "category", "caption", "group"):
        assert sorted(second[column]) == sorted(first[column])
    assert [len(row["qa"]) for row in second] == [1, 1]


# --- the hub


class FakeHub:
    """As much of the Hub's API as an upload of small files needs."""

    def __init__(self, existing_public: bool = False):
        self.private = None if not existing_public else False
        self.committed = []

    async def handle(self, request: web.Request) -> web.Response:
        path = request.path
        if path == "/api/repos/create":
            if self.private is None:
                body = await request.json()
                self.private = body.get("private") or body.get("visibility") == "private"
                return web.json_response({"url": f"{request.url.origin()}/datasets/lab/data"})
            return web.json_response(
                {"error": "exists", "url": f"{request.url.origin()}/datasets/lab/data"}, status=409
            )
        if path.endswith("/preupload/main"):
            files = (await request.json())["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in files]  # fmt: skip
            return web.json_response({"files": modes})
        if path.endswith("/commit/main"):
            self.committed.append((await request.read()).decode())
            url = f"{request.url.origin()}/datasets/lab/data/commit/1"
            return web.json_response({"commitUrl": url, "commitOid": "1" * 40})
        if path == "/api/validate-yaml":
            return web.json_response({"errors": [], "warnings": []})
        info = {"id": "lab/data", "private": self.private, "sha": "1" * 40}
        return web.json_response({**info, "siblings": [], "tags": [], "downloads": 0, "likes": 0})

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        started = threading.Event()

        async def serve():
            self.end = asyncio.Event()
            app = web.Application(client_max_size=2**28)
            app.router.add_route("*", "/{path:.*}", self.handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            started.set()
            await self.end.wait()
            await runner.cleanup()

        threading.Thread(target=self.loop.run_until_complete, args=(serve(),), daemon=True).start()
        started.wait(10)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.end.set)


@pytest.fixture
def online(monkeypatch):
    """The hub is on loopback, so tests may reach it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("public", [False, True])
def test_push_is_private_unless_told_otherwise(public, online, server, tmp_path, monkeypatch):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    with FakeHub() as hub:
        monkeypatch.setattr(module, "HfApi", partial(HfApi, endpoint=hub.url, token="hf_x"))
        run(arguments(images, output, server.url))
        assert hub.private is None and not hub.committed, "nothing without --push-to-hub"
        args = arguments(images, output, server.url, push_to_hub="lab/data", public=public)
        assert run(args) == 0
        assert hub.private is not public
        [commit] = hub.committed
    assert "train-00000.parquet" in commit and "README.md" in commit
    assert "journal" not in commit and "CUSTOMER" not in commit


def test_push_does_not_publish_into_a_public_repository(online, server, tmp_path, monkeypatch):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    run(arguments(images, output, server.url))
    with FakeHub(existing_public=True) as hub:
        monkeypatch.setattr(module, "HfApi", partial(HfApi, endpoint=hub.url, token="hf_x"))
        with pytest.raises(PermissionError, match="is public already, so nothing was uploaded"):
            push(output / "dataset", "lab/data")
        assert not hub.committed


# --- estimates


def test_dry_run_sends_and_writes_nothing(server, tmp_path, capsys):
    images, output = make_images(tmp_path / "images", 5), tmp_path / "out"
    args = {"teacher_model": "gpt-4o"}
    assert run(arguments(images, output, server.url, dry_run=True, **args)) == 0
    told = capsys.readouterr().out
    assert "50 (0 questions have a reply already)" in told and "assumed" in told
    assert not server.exchanges and not output.exists()
    assert run(arguments(images, output, server.url, pilot=2, **args)) == 0
    told = capsys.readouterr().out
    assert "30 (20 questions have a reply already)" in told
    assert "1,000 in, 100 out (measured on 20 replies)" in told
    # 30 x (1,000 x $2.5 + 100 x $10) per million
    assert "$0.1050" in told
    assert len(server.exchanges) == 20
    assert run(arguments(images, output, server.url, **args)) == 0
    assert len(server.exchanges) == 50, "the pilot's answers count"


def test_unknown_price_is_said_to_be_unknown(server, tmp_path, capsys):
    images = make_images(tmp_path / "images", 1)
    run(arguments(images, tmp_path / "out", server.url, dry_run=True))
    assert "cost unknown" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--max-cost needs the price of teacher"):
        Run(arguments(images, tmp_path / "out", server.url, max_cost=1.0))


# --- bad input


def check(capsys, argv, *expected):
    assert main(argv) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") or "error:" in message
    for part in expected:
        assert part in message
    return message


@pytest.fixture
def call(server, tmp_path):
    images = make_images(tmp_path / "images", 1)

    def argv(**changes):
        options = {"images": images, "output": tmp_path / "out", "endpoint": server.url,
                   "teacher-model": "teacher", **changes}  # fmt: skip
        return [str(x) for k, v in options.items() for x in (f"--{k}", v)]

    yield argv
    assert not server.exchanges, "bad input is found before anything is sent"


def test_images_that_are_not_there(call, tmp_path, capsys):
    check(capsys, call(images=tmp_path / "none"), "--images", "none")
    (tmp_path / "empty").mkdir()
    check(capsys, call(images=tmp_path / "empty"), "no micrograph")


def test_table_with_unknown_columns(call, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("path,operator\na.png,me\n")
    check(capsys, call(images=table), "unknown column 'operator'")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("questions", "nonsense"),
        ("retry", "ok"),
        ("shard", "3/3"),
        ("shard", "one"),
        ("max-tokens", "0"),
        ("concurrency", "-1"),
        ("profile", "mine"),
        ("image-format", "gif"),
        ("max-side", "1"),
        ("prompt", "missing.yaml"),
        ("prices", "missing.yaml"),
        ("endpoint", "https://8.8.8.8/v1"),
    ],
)
def test_options_that_make_no_sense(option, value, call, tmp_path, capsys):
    check(capsys, call(**{option: value}))
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(call, tmp_path, capsys):
    (tmp_path / "file").touch()
    check(capsys, call(output=tmp_path / "file" / "out"), "--output must be a folder")
    check(capsys, call(output="/proc/teacher"), "--output must be a folder")


def test_output_of_another_configuration(server, tmp_path, capsys):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    assert run(arguments(images, output, server.url)) == 0
    before = [tuple(row) for row in replies(output)]
    for change in ({"teacher_model": "other"}, {"temperature": 1.0}, {"max_side": 512}):
        with pytest.raises(RuntimeError, match="another configuration"):
            run(arguments(images, output, server.url, **change))
    assert [tuple(row) for row in replies(output)] == before
    assert len(server.exchanges) == QUESTIONS


def test_only_unreadable_images(server, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="nothing to export"):
        run(arguments(folder, tmp_path / "out", server.url))
    assert "Not read: 1" in capsys.readouterr().out
    assert not server.exchanges


def test_export_and_merge_of_nothing(tmp_path, capsys):
    check(capsys, ["export", "--output", str(tmp_path)], "no journal")
    check(capsys, ["merge", "--output", str(tmp_path), "--parts", str(tmp_path / "x")], "x")
    check(capsys, ["merge", "--output", str(tmp_path)], "--parts")
