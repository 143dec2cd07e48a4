"""mvaema serve, as a lab runs it: in a process of its own, started, asked, and told to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from support import ROOT
from support.student_server import PATIENCE, http, message, picture
from support.tiny_student import save_tiny_student

from mvaema.commands.serve import main
from mvaema.students.loading import load_student

KEY = "sk-lab-5e884898da280471"
FOLDER = "wafers of customer"
QUESTION = "What does the zebrafish eat?"


class Process:
    """`mvaema serve` of a tiny student, with a key. Use as a context manager.

    Args:
        folder: where it runs, with the student in `FOLDER`; a new one unless it is there.
        path: folders of packages that go before all others.

    Attributes:
        root: its address.
        log: the file of what it wrote to stderr.
    """

    def __init__(self, folder: Path, *flags: str, path: tuple[Path, ...] = ()):
        if not (folder / FOLDER).exists():
            options = save_tiny_student(folder / FOLDER) / "generation_config.json"
            options.write_text(json.dumps(json.loads(options.read_text()) | {"max_new_tokens": 12}))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "mvaema", "serve", "--model", FOLDER]
        command += ["--port", str(self.port), "--name", "tiny", "--timeout_seconds", "300", *flags]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))),
            "MVAEMA_API_KEY": KEY,
        }
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.root = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Process":
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if http.get(f"{self.root}/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError("the server did not become ready")

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.root}/v1", api_key=key, max_retries=0, timeout=PATIENCE
        )

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.mark.slow
def test_told_to_stop_it_finishes_what_is_in_progress(tmp_path):
    # The model waits for company that does not come, so that all are in progress for a while.
    wait = ["--max_batch", "9", "--batch_wait_ms", "15000", "--shutdown_seconds", "300"]
    with Process(tmp_path, *wait) as server:
        client = server.client()

        def ask(number: int) -> str:
            turns = [message(QUESTION, picture(number))]
            stream = number % 2 == 1
            reply = client.chat.completions.create(model="tiny", messages=turns, stream=stream)
            if not stream:
                return reply.choices[0].message.content
            return "".join(c.choices[0].delta.content or "" for c in reply if c.choices)

        with ThreadPoolExecutor(8) as clients:
            replies = [clients.submit(ask, number) for number in range(8)]
            while http.get(f"{server.root}/ready").json()["in_progress"] < 8:
                assert not any(reply.done() for reply in replies)
                time.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            texts = [reply.result(PATIENCE) for reply in replies]
        assert server.process.wait(PATIENCE) == 0
        assert server.lines()[-1]["event"] == "stopped"
        with pytest.raises(httpx.TransportError):
            http.get(f"{server.root}/health")
    model = load_student(tmp_path / FOLDER).eval()
    assert texts == [model.answer(picture(number), QUESTION) for number in range(8)]


@pytest.mark.slow
def test_an_exported_student_is_served_where_torch_cannot_be_imported(
    tmp_path, exported, tiny_student
):
    (tmp_path / FOLDER).symlink_to(exported)
    refused = tmp_path / "refused"
    for name in ("torch", "transformers"):
        (refused / name).mkdir(parents=True)
        (refused / name / "__init__.py").write_text("raise ImportError('not here')")
    turns = [message(QUESTION, picture())]
    with Process(tmp_path, path=(refused,)) as server:
        reply = server.client().chat.completions.create(model="tiny", messages=turns)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
    model = load_student(tiny_student).eval()
    assert reply.choices[0].message.content == model.answer(picture(), QUESTION)


@pytest.mark.slow
def test_a_deadline_ends_what_does_not_finish(tmp_path):
    with (
        Process(tmp_path, "--shutdown_seconds", "1", "--upload_seconds", "300") as server,
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
        slow.sendall(head.encode())
        while http.get(f"{server.root}/ready").json()["in_progress"] < 1:
            time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        assert b" 503 " in slow.recv(1000).splitlines()[0]


@pytest.mark.slow
def test_the_log_has_no_question_answer_image_key_or_path(tmp_path):
    image = message("", picture())["content"][0]["image_url"]["url"]
    answers = []
    with Process(tmp_path, "--max_megapixels", "0.5") as server:
        for wish in ({}, {"temperature": 0}, {"stream": True}):
            reply = server.client().chat.completions.create(
                model="tiny", messages=[message(QUESTION, picture())], **wish
            )
            if not wish.get("stream"):
                answers.append(reply.choices[0].message.content)
            else:
                list(reply)
        for turns, key in (
            ([message(QUESTION, picture(0, (1000, 1000)))], KEY),
            ([{"role": "user", "content": QUESTION}], KEY),
            ([message(QUESTION, picture())], "sk-wrong-key-0987"),
        ):
            with pytest.raises(openai.APIStatusError):
                server.client(key).chat.completions.create(model="tiny", messages=turns)
        http.get(f"{server.root}/v1/zebrafish?token={KEY}")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE) == 0
        assert server.process.stdout.read() == f"tiny at {server.root}/v1\n"
    text = server.log.read_text()
    asked = [line for line in server.lines() if line["event"] == "request"]
    by_status = [line["status"] for line in asked if line["path"] == "/v1/chat/completions"]
    assert by_status == [200, 200, 200, 413, 400, 401]
    whole = asked[0]
    assert whole["pixels"] == [64, 48] and whole["batch"] == 1 and whole["decoding"] == "consensus"
    assert whole["body_bytes"] > 1000 and whole["model_seconds"] > 0
    secrets = [KEY, "sk-wrong", "zebrafish", "customer", image[30:60], *answers]
    assert all(len(secret) > 5 for secret in secrets)
    assert not [secret for secret in secrets if secret in text]


def test_what_keeps_it_from_starting(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MVAEMA_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "keys").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flags, said in (
            (["--model", "bert"], "not a student of this project"),
            (["--model", "nowhere"], "nowhere"),
            (["--api_key_file", "keys"], "holds no key"),
            (["--api_key_file", "gone"], "gone"),
            (["--max_queue", "0"], "--max_queue must be greater than 0"),
            (["--port", port], "in use"),
        ):
            assert main(flags) == 1, flags
            captured = capsys.readouterr()
            assert captured.out == "" and captured.err.startswith("error: ")
            assert said in captured.err, captured.err
    monkeypatch.setattr("mvaema.serving.torch_student.shipped_student", _none)
    assert main([]) == 1
    assert "error: no student comes" in capsys.readouterr().err


def _none():
    raise FileNotFoundError("no student comes with this installation")
