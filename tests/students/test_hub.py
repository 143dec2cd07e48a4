"""Uploads to a Hub on loopback, through the real client: what is sent, to whom, and what is not."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from support import ROOT
from support.hub_server import TOKEN, running_hub

from mvaema.hub import require_token
from mvaema.students.hub import STUDENT_FILES, push
from mvaema.students.loading import load_student
from mvaema.students.lora import add_adapters, save_adapters
from mvaema.students.places import hub_ids
from mvaema.training.recipe import Recipe, write_recipe

# The runner of exported students is no part of a model repository.
CODE = {file.name for file in ROOT.glob("*_mvaema.py")} - {"onnx_mvaema.py"}
STUDENT = CODE | {
    "README.md",
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
}
EPOCHS = [
    {"epoch": e, "validation": {"loss": x, "itc_loss": 1.25, "itm_loss": 0.5, "lm_loss": x - 1.75}}
    for e, x in ((1, 5.0), (2, 4.0), (3, 4.5))
]


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Path:
    """A lab's disk: what it is called must not be seen outside."""
    lab = tmp_path / "SECRETLAB"
    (lab / "wafers").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(lab))
    monkeypatch.chdir(lab)
    return lab


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def finish_run(folder: Path, **settings) -> None:
    """Everything a run and its curious owner leave beside the student."""
    recipe = Recipe(
        **{"dataset": str(folder.parent.parent / "wafers"), "output_dir": str(folder), **settings}
    )
    write_recipe(recipe, folder / "recipe.yaml")
    run = {
        "git_commit": "c0ffee",
        "python": "3.11",
        "versions": {"torch": "2.13"},
        "dataset_fingerprint": "5eed",
        "train_micrographs": 1234,
        "validation_micrographs": 56,
        "parameters": 98765,
        "trainable_parameters": 98765 if not recipe.lora else 4321,
        "best_epoch": 2,
        "hub_ids": hub_ids(dataclasses.asdict(recipe)),
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "training_log.jsonl").write_text("\n".join(map(json.dumps, EPOCHS)))
    for name in (
        "checkpoints/step-5/model.safetensors",
        "samples/wafer.png",
        "tb/events.1",
        "x.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"SECRETLAB in {name}")


@pytest.fixture
def student(model, lab) -> Path:
    folder = lab / "runs" / "SECRETCUSTOMER"
    model.save_pretrained(folder)
    finish_run(folder)
    return folder


@pytest.fixture
def adapters(student, lab, batch) -> Path:
    folder = lab / "runs" / "adapted"
    folder.mkdir()
    tuned = add_adapters(load_student(student), 2, 4, 0.0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save_adapters(tuned, folder, str(student))
    finish_run(folder, model=str(student), lora=True)
    return folder


def leaks(hub, *words: str) -> list[str]:
    """Where any of the words was sent, in a path, in a body or decoded."""
    return [
        path
        for path, content in hub.received
        for word in words
        if word.encode() in content or word in path
    ]


def test_a_student_goes_to_a_private_repository_without_the_lab(hub, student, lab):
    assert push(student, "lab/student") == f"{hub.url}/lab/student"
    repository = hub.repositories["lab/student"]
    assert repository["private"] is True and set(repository["files"]) == STUDENT
    assert repository["files"]["model.safetensors"] == (student / "model.safetensors").read_bytes()
    assert not leaks(hub, "SECRET", str(lab), TOKEN)
    here = [file for file in lab.rglob("*") if file.is_file()]
    assert not [file for file in here if TOKEN.encode() in file.read_bytes()]


@pytest.mark.slow
def test_what_was_uploaded_is_the_student(hub, student, images, monkeypatch, tmp_path):
    push(student, "lab/student")
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    found = load_student("lab/student").eval()
    expected = load_student(student).eval()
    question = {"questions": "What is it?", "max_new_tokens": 5}
    assert found.answer(images[0], **question) == expected.answer(images[0], **question)


@pytest.mark.slow
def test_adapters_on_a_folder_go_merged(hub, adapters, student, batch, tmp_path, lab):
    push(adapters, "lab/adapted")
    files = hub.files("lab/adapted")
    assert set(files) == STUDENT
    for name, content in files.items():
        (tmp_path / "copy" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    with torch.no_grad():
        found = load_student(tmp_path / "copy").eval()(**batch)
        expected = load_student(adapters).eval()(**batch)
        base = load_student(student).eval()(**batch)
    torch.testing.assert_close(found.logits, expected.logits)
    assert (found.logits - base.logits).abs().max() > 1e-2
    assert not leaks(hub, "SECRET", str(lab))
    assert {file.name for file in adapters.glob("*.safetensors")} == {"adapter_model.safetensors"}


def test_adapters_on_a_hub_student_go_as_they_are(hub, adapters):
    config = json.loads((adapters / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "lab/student"
    (adapters / "adapter_config.json").write_text(json.dumps(config))
    finish_run(adapters, model="lab/student", lora=True)
    push(adapters, "lab/adapted")
    files = hub.files("lab/adapted")
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "lab/student" and card.data.library_name == "peft"
    assert "4,321 of them trained" in card.text
    assert not leaks(hub, "SECRET")


def test_a_second_upload_replaces_the_first(hub, adapters, student):
    push(student, "lab/student")
    hub.files("lab/student")["notes.md"] = b"by hand"
    hub.files("lab/student")["adapter_config.json"] = b"of an earlier upload"
    push(student, "lab/student")
    assert set(hub.files("lab/student")) == STUDENT | {"notes.md"}


def test_a_public_repository_needs_to_be_asked_for(hub, student):
    hub.repositories["lab/open"] = {"private": False, "files": {}}
    with pytest.raises(PermissionError, match=r"lab/open is public already, so nothing was upl"):
        push(student, "lab/open")
    assert hub.files("lab/open") == {}
    push(student, "lab/open", public=True)
    push(student, "lab/new", public=True)
    assert set(hub.files("lab/open")) == STUDENT
    assert hub.repositories["lab/new"]["private"] is False


def test_a_file_that_names_a_place_stays_here(hub, student, lab, monkeypatch):
    card = student / "README.md"
    for text, named in (
        (f"Trained on {lab / 'wafers'}.", str(lab)),
        ("See runs/SECRETCUSTOMER for more.", "runs/SECRETCUSTOMER"),
    ):
        card.write_text(text)
        with pytest.raises(ValueError, match=rf"README.md contains a path of .*{named}"):
            push(Path("runs/SECRETCUSTOMER"), "lab/student")
    assert hub.repositories == {}
    card.write_text("Written by hand.")
    push(student, "lab/student")
    assert hub.files("lab/student")["README.md"] == b"Written by hand."


def test_nothing_is_lost_when_the_hub_refuses(hub, student, monkeypatch):
    before = {file: file.read_bytes() for file in student.rglob("*") if file.is_file()}
    for path, status in (("/api/repos", 403), ("/lfs", 403), ("/api/models/lab/student/comm", 403)):
        hub.refuse = {path: status}
        with pytest.raises(ConnectionError) as error:
            push(student, "lab/student")
        assert f"mvaema push {student} lab/student" in str(error.value)
        assert TOKEN not in str(error.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="offline mode"):
        push(student, "lab/student")
    assert {file: file.read_bytes() for file in before} == before


def test_without_a_token_nothing_is_asked_of_the_hub(hub, student, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    for refused in (require_token, lambda: push(student, "lab/student")):
        with pytest.raises(PermissionError, match=r"run `hf auth login`, or set HF_TOKEN"):
            refused()
    assert hub.received == []


def test_a_folder_without_a_student_is_refused(hub, lab):
    with pytest.raises(FileNotFoundError, match="wafers holds no student"):
        push(lab / "wafers", "lab/student")
    assert hub.received == []


@pytest.mark.slow
def test_the_command_with_scores_and_licence(hub, student, lab, tmp_path):
    """A second process with HF_ENDPOINT, as a lab with a hub of its own runs it."""
    report = lab / "runs" / "report"
    report.mkdir()
    scores = {k: {"mean": 0.25} for k in ("bleu_2", "bleu_4", "rouge_l", "meteor")}
    summary = {"overall": {"n": 40, "images": 4, "scores": scores}}
    names = ("SECRETCUSTOMER", "SECRETCUSTOMER, blank image", "SECRETOTHER", "typical answer")
    results = {
        "model": str(student),
        "dataset": str(lab / "wafers"),
        "split": "validation",
        "metrics": {"bleu_2": "BLEU-2", "bleu_4": "BLEU-4"},
        "answers": dict.fromkeys(names, summary),
        "classification": {"ITC": {"top_1": 0.625, "macro_f1": 0.5}, "chance": {"top_1": 0.1}},
    }
    (report / "results.json").write_text(json.dumps(results))
    command = [sys.executable, "-m", "mvaema", "push", "runs/SECRETCUSTOMER", "lab/student"]
    command += ["--report", str(report), "--licence", "cc-by-4.0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=lab, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f"{hub.url}/lab/student"
    assert TOKEN not in run.stdout + run.stderr and not leaks(hub, "SECRET")
    card = ModelCard(hub.files("lab/student")["README.md"].decode())
    assert card.data.license == "cc-by-4.0" and "## Licence" not in card.text
    found = {e.metric_name: (e.metric_type, e.metric_value) for e in card.data.eval_results}
    assert found["BLEU-2"] == ("bleu", 0.25) and found["top 1 by ITC"] == ("accuracy", 0.625)
    assert found["validation loss, LM"] == ("loss", 2.25)
    assert {e.dataset_type for e in card.data.eval_results} == {"private"}
    assert "| this student, blank image | 0.250 | 0.250 |\n| typical" in card.text
    assert "by ITC 0.62, chance 0.10." in card.text


def test_a_relative_path_is_no_hub_id_from_another_folder(hub, student, lab, monkeypatch):
    """Where the run started, wafers/SECRETLOT was a folder."""
    (lab / "wafers" / "SECRETLOT").mkdir()
    finish_run(student, dataset="wafers/SECRETLOT")
    (lab / "elsewhere").mkdir()
    monkeypatch.chdir(lab / "elsewhere")
    push(student, "lab/student")
    assert not leaks(hub, "SECRET")
    (student / "README.md").write_text("Trained on wafers/SECRETLOT.")
    with pytest.raises(ValueError, match=r"contains a path of this machine, .*wafers/SECRETLOT"):
        push(student, "lab/student")


def test_every_file_of_a_saved_student_may_go(student):
    """A file that a newer transformers writes would otherwise be left behind."""
    saved = {f.name for f in student.iterdir() if f.is_file()}
    saved -= {"recipe.yaml", "run.json", "training_log.jsonl", "x.txt"}
    allowed = {f.name for pattern in STUDENT_FILES for f in student.glob(pattern)}
    assert saved == allowed == STUDENT - {"README.md"}
