"""A saved student in other hands: a fresh process without this project, peft, a broken file."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.hub_server import TOKEN, running_hub
from transformers import AutoModel

from modeling_mvaema import MVaEMaModel


@pytest.fixture
def repository(model, tmp_path):
    folder = tmp_path / "student"
    model.save_pretrained(folder)
    return folder


STRANGER = """
    import importlib.abc, json, sys

    class NoProject(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.endswith("_mvaema") and "." not in name or name.split(".")[0] == "mvaema":
                raise ImportError(f"{name} is not to be had here")

    sys.meta_path.insert(0, NoProject())
    from PIL import Image
    from transformers import (
        AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline
    )

    folder, image = sys.argv[1], Image.open(sys.argv[2])
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    text_model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(images=image, text="What is it?", return_tensors="pt")
    statement = processor(statements="a film")
    states = model.image_encoder(inputs["pixel_values"])
    pipe = pipeline(
        "image-text-to-text", model=folder, trust_remote_code=True, device="cpu",
    )

    def ask(question):
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    chat = ask("What is it?")
    options = {"max_new_tokens": 6}
    print(json.dumps({
        "model_type": config.model_type,
        "embedding": model.get_image_features(inputs["pixel_values"]).pooler_output[0].tolist(),
        "match": model.match(states, *statement.values()).item(),
        "generated": model.generate(**inputs, **options)[0].tolist(),
        "generated_too": text_model.generate(**inputs, **options)[0].tolist(),
        "answer": model.answer(image, "What is it?", **options),
        "greedy": model.answer(image, "What is it?", decoding="greedy", **options),
        "best": next(iter(model.classify(image))),
        "piped": pipe(image, text="What is it?", return_full_text=False, generate_kwargs=options)[0]
            ["generated_text"],
        "chat": pipe(text=chat, return_full_text=False, generate_kwargs=options)[0]
            ["generated_text"],
        "chats": [row[0]["generated_text"] for row in pipe(
            text=[chat, ask("Why is it so?")], return_full_text=False, generate_kwargs=options)],
    }))
"""


@pytest.mark.slow
def test_a_fresh_process_needs_nothing_but_the_folder(model, repository, images, tmp_path):
    images[0].save(tmp_path / "image.png")
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STRANGER), repository, tmp_path / "image.png"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    got = json.loads(run.stdout.splitlines()[-1])
    inputs = model.processor(images=images[0], text="What is it?")
    statement = model.processor(statements="a film")
    states = model.image_encoder(inputs["pixel_values"])
    answer = model.answer(images[0], "What is it?", max_new_tokens=6)
    greedy = {"max_new_tokens": 6, "decoding": "greedy"}
    assert got["model_type"] == "mvaema"
    assert got["embedding"] == pytest.approx(
        model.get_image_features(inputs["pixel_values"]).pooler_output[0].tolist(), abs=1e-5
    )
    assert got["match"] == pytest.approx(model.match(states, *statement.values()).item(), abs=1e-5)
    expected = model.generate(**inputs, max_new_tokens=6)[0].tolist()
    assert got["generated"] == got["generated_too"] == expected
    assert got["answer"] == answer
    assert got["greedy"] == model.answer(images[0], "What is it?", **greedy)
    assert got["greedy"] == got["piped"] == got["chat"] == got["chats"][0]
    assert got["chats"][1] == model.answer(images[0], "Why is it so?", **greedy)
    assert got["best"] == next(iter(model.classify(images[0])))


def test_a_repository_carries_code_processor_and_generation_options(repository):
    names = {file.name for file in repository.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "candidates_mvaema.py",
        "configuration_mvaema.py",
        "decoding_mvaema.py",
        "generation_mvaema.py",
        "layers_mvaema.py",
        "loop_mvaema.py",
        "losses_mvaema.py",
        "modeling_mvaema.py",
        "pixels_mvaema.py",
        "processing_mvaema.py",
        "prompt_mvaema.py",
    }
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    options = json.loads((repository / "generation_config.json").read_text())
    config = json.loads((repository / "config.json").read_text())
    assert options["decoder_start_token_id"] == config["dec_token_id"]
    assert set(config["auto_map"]) >= {"AutoModel", "AutoModelForImageTextToText"}


def test_a_reloaded_student_saves_a_complete_repository_again(repository, tmp_path):
    """Someone fine-tunes what AutoModel returned, and passes it on."""
    again = tmp_path / "again"
    AutoModel.from_pretrained(repository, trust_remote_code=True).save_pretrained(again)
    shutil.rmtree(repository)
    reloaded = AutoModel.from_pretrained(again, trust_remote_code=True)
    assert reloaded.processor(text="Why?")["input_ids"].shape[0] == 1


@pytest.mark.slow
def test_push_to_hub_sends_the_whole_repository(repository, tmp_path):
    """The method that every transformers model has; `mvaema push` does more.

    In a process of its own: transformers keeps the address of the first hub that it talked to.
    """
    script = (
        "import sys; from transformers import AutoModel; "
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True); "
        "model.push_to_hub('lab/student', private=True)"
    )
    with running_hub() as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "PYTHONPATH": ""}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", script, repository]
        run = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert run.returncode == 0, run.stderr
        assert hub.repositories["lab/student"]["private"] is True
        sent = hub.files("lab/student")
    assert set(sent) - {"README.md"} == {file.name for file in repository.iterdir()}
    assert sent["model.safetensors"] == (repository / "model.safetensors").read_bytes()


def test_a_missing_weight_is_an_error(repository):
    weights = load_file(repository / "model.safetensors")
    del weights["itm_head.weight"], weights["image_encoder.layers.1.mlp.fc1.bias"]
    save_file(weights, repository / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 2 weights.*itm_head\.weight"):
        MVaEMaModel.from_pretrained(repository)
    with pytest.raises(ValueError, match=r"lacks 2 weights"):
        AutoModel.from_pretrained(repository, trust_remote_code=True)


def test_lora_trains_saves_loads_on_remote_code_and_merges(repository, batch, tmp_path):
    def load():
        return AutoModel.from_pretrained(repository, trust_remote_code=True)

    base = load()
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        modules_to_save=["itm_head", "image_proj", "text_proj"],
    )
    tuned = get_peft_model(base, config).train()
    trainable = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name or "modules_to_save" in name for name in trainable)
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        loss = tuned(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.eval()
    with torch.no_grad():
        expected = tuned(**batch)
        reloaded = PeftModel.from_pretrained(load(), tmp_path / "adapter").eval()
        merged = reloaded.merge_and_unload()
        fresh = load()(**batch)
        merged.save_pretrained(tmp_path / "merged")
        saved = MVaEMaModel.from_pretrained(tmp_path / "merged").eval()
        for other in (merged, saved):
            output = other(**batch)
            for name in ("logits", "itc_loss", "itm_loss", "lm_loss"):
                torch.testing.assert_close(output[name], expected[name], atol=1e-5, rtol=1e-5)
    assert (fresh.logits - expected.logits).abs().max() > 1e-2
