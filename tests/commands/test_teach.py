"""What `mvaema teach` says to input that it cannot use."""

import subprocess
import sys

import pytest
from huggingface_hub import constants
from support import ROOT
from support.teacher_helpers import QUESTIONS, arguments, make_images, replies
from support.teacher_server import FakeTeacher

from mvaema.__main__ import main as mvaema
from mvaema.commands.teach import ask_command, main

KEY = "sk-verysecret-0123456789abcdef"


@pytest.fixture
def server():
    with FakeTeacher() as server:
        yield server


def check(capsys, argv, *expected):
    assert main(argv) == 1
    message = capsys.readouterr().err
    assert "error: " in message and "Traceback" not in message
    for part in expected:
        assert part in message


@pytest.fixture
def call(server, tmp_path):
    """A command line; every option may be replaced."""
    images = make_images(tmp_path / "images", 1)

    def argv(**changes):
        options = {
            "images": images,
            "output_dir": tmp_path / "out",
            "endpoint": server.url,
            "teacher_model": "teacher",
            **changes,
        }
        return [str(x) for name, value in options.items() for x in (f"--{name}", value)]

    yield argv
    assert not server.exchanges, "bad input is found before anything is sent"


def test_images_that_are_not_there(call, tmp_path, capsys):
    check(capsys, call(images=tmp_path / "none"), "--images", "none")
    (tmp_path / "empty").mkdir()
    check(capsys, call(images=tmp_path / "empty"), "has the name of a micrograph")


def test_table_with_unknown_columns(call, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("path,operator\na.png,me\n")
    check(capsys, call(images=table), "unknown column 'operator'")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("questions", "nonsense", "--questions nonsense"),
        ("retry", "ok", "--retry ok"),
        ("shard", "3/3", "--shard must be"),
        ("shard", "one", "--shard must be"),
        ("max_tokens", "0", "--max_tokens must be positive"),
        ("concurrency", "-1", "--concurrency must be positive"),
        ("profile", "mine", "--profile must be one of"),
        ("image_format", "gif", "--image_format must be one of"),
        ("max_side", "1", "--max_side must be at least"),
        ("prompt", "missing.yaml", "missing.yaml"),
        ("prices", "missing.yaml", "missing.yaml"),
        ("endpoint", "https://8.8.8.8/v1", "--allow_external"),
    ],
)
def test_options_that_make_no_sense(option, value, message, call, tmp_path, capsys):
    check(capsys, call(**{option: value}), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "mistake",
    [
        ["--api-key", KEY],
        ["--api_key", KEY],
        [f"--api-key={KEY}"],
        ["--api", KEY],
        ["--key", KEY],
        ["-k", KEY],
        [KEY],
    ],
)
@pytest.mark.parametrize("command", [[], ["export"], ["merge"]])
def test_a_key_on_the_command_line_is_refused_without_showing_it(
    mistake, command, call, tmp_path, capsys
):
    """No flag takes a key, and none may be completed to --api_key_env, which would be printed."""
    argv = {
        "": call(),
        "export": ["export", "--output_dir", str(tmp_path)],
        "merge": ["merge", "--parts", "a", "--output_dir", str(tmp_path)],
    }["".join(command)]
    with pytest.raises(SystemExit) as raised:
        main([*argv, *mistake], prog="mvaema teach")
    assert raised.value.code == 2
    told = capsys.readouterr()
    assert KEY not in told.out + told.err
    flag = mistake[0].partition("=")[0]
    assert "error: " in told.err and (flag in told.err or flag == KEY)


def test_output_that_cannot_be_written(call, tmp_path, capsys):
    (tmp_path / "file").touch()
    check(capsys, call(output_dir=tmp_path / "file" / "out"), "--output_dir must be a folder")
    check(capsys, call(output_dir="/proc/teacher"), "--output_dir must be a folder")


def test_output_of_another_configuration(server, tmp_path, capsys):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    assert ask_command(arguments(images, output, server.url)) == 0
    before = [tuple(row) for row in replies(output)]
    for change in ({"teacher_model": "other"}, {"temperature": 1.0}, {"max_side": 512}):
        with pytest.raises(RuntimeError, match="another configuration"):
            ask_command(arguments(images, output, server.url, **change))
    assert [tuple(row) for row in replies(output)] == before
    assert len(server.exchanges) == QUESTIONS


def test_only_unreadable_images(server, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="nothing to export"):
        ask_command(arguments(folder, tmp_path / "out", server.url))
    assert "Not read: 1" in capsys.readouterr().out
    assert not server.exchanges


def test_export_and_merge_of_nothing(tmp_path, capsys):
    check(capsys, ["export", "--output_dir", str(tmp_path)], "no journal")
    check(capsys, ["merge", "--output_dir", str(tmp_path), "--parts", str(tmp_path / "x")], "x")
    check(capsys, ["merge", "--output_dir", str(tmp_path)], "--parts")


@pytest.mark.slow
def test_the_script_and_the_command_are_the_same(tmp_path, capsys):
    arguments = ["export", "--output_dir", str(tmp_path)]
    script = [sys.executable, str(ROOT / "generate_teacher_data.py"), *arguments]
    done = subprocess.run(script, capture_output=True, text=True)
    assert mvaema(["teach", *arguments]) == done.returncode == 1
    assert capsys.readouterr().err == done.stderr
    assert done.stderr.startswith(f"error: {tmp_path} holds no journal of the teacher")


@pytest.mark.parametrize("command", ["ask", "export", "merge"])
def test_upload_without_a_token_is_refused_before_the_work(
    command, call, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    argv = {
        "ask": call(),
        "export": ["export", "--output_dir", str(tmp_path / "out")],
        "merge": ["merge", "--parts", "a", "--output_dir", str(tmp_path / "out")],
    }[command]
    check(capsys, [*argv, "--push_to_hub", "lab/data"], "needs a token for the Hub")
    assert not (tmp_path / "out").exists()
