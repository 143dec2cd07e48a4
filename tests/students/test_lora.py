"""LoRA on tiny students: training, small folders, exact merging, folders that do not fit."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForFeatureExtraction,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModel, BertConfig, BertModel

from configuration_mvaema import MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.students.loading import load_student
from mvaema.students.lora import TRAINED_WHOLE, add_adapters, merge_adapters, save_adapters

OUTPUTS = ("logits", "image_embeds", "text_embeds", "itc_loss", "itm_loss", "lm_loss")


@pytest.fixture
def base(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def train(tuned: PeftModel, batch, steps: int = 8) -> list[float]:
    """Losses of a few steps of Adam, as the training loop does them."""
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    losses = []
    tuned.train()
    for _ in range(steps):
        loss = tuned(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    tuned.eval()
    return losses


@pytest.fixture
def tuned(base, batch) -> PeftModel:
    torch.manual_seed(0)
    tuned = add_adapters(load_student(base), rank=4, alpha=8, dropout=0.05)
    train(tuned, batch)
    return tuned


@pytest.fixture
def adapters(tuned, base, tmp_path) -> Path:
    save_adapters(tuned, tmp_path / "adapters", str(base))
    return tmp_path / "adapters"


@torch.no_grad()
def outputs(model, batch) -> dict[str, torch.Tensor]:
    output = model(**batch)
    return {name: output[name] for name in OUTPUTS}


def assert_same(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=2e-5)


def test_fresh_adapters_change_nothing_and_training_them_changes_nothing_else(base, batch):
    tuned = add_adapters(load_student(base), rank=4, alpha=8, dropout=0.0).eval()
    original = load_student(base).eval()
    assert_same(outputs(tuned, batch), outputs(original, batch))
    losses = train(tuned, batch)
    assert losses[-1] < 0.9 * losses[0]
    state = tuned.get_base_model().state_dict()
    for name, weight in original.state_dict().items():
        wrapped = name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        head, _, last = name.rpartition(".")
        below = next(n for n in (name, wrapped, f"{head}.original_module.{last}") if n in state)
        assert torch.equal(state[below], weight), name


def test_every_mode_and_both_encoders_learn(tuned):
    """Each shared layer is wrapped once; what is trained are adapters and whole heads."""
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.split(".")[2] in TRAINED_WHOLE for name in trained)
    assert {name.split(".")[2] for name in trained if "lora_" not in name} == set(TRAINED_WHOLE)
    for part in (
        "image_encoder.layers.1.self_attn.q_proj",
        "image_encoder.layers.0.mlp.fc2",
        "text_stack.layers.0.self_attn.k_proj",
        "text_stack.layers.1.causal_attn.v_proj",
        "text_stack.layers.0.cross_attn.o_proj",
        "text_stack.layers.1.mlp.fc1",
    ):
        weight = tuned.get_submodule(f"base_model.model.{part}.lora_B.default").weight
        assert weight.abs().max() > 1e-3, part


def test_all_that_is_trained_gets_gradients_also_with_checkpointing(base, batch):
    """The base is frozen, so reentrant checkpoints would silently cut the image encoder off."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        tuned = add_adapters(load_student(base), rank=2, alpha=4, dropout=0.0)
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:  # 0 at first, and then nothing reaches lora_A
                torch.nn.init.normal_(parameter, std=0.1)
        if checkpointing:
            tuned.gradient_checkpointing_enable()
        tuned.train()(**batch).loss.backward()
        gradients.append({n: p.grad for n, p in tuned.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_ddp_finds_every_trained_weight_used(base, batch, tmp_path):
    """With all three losses no `find_unused_parameters` is needed; DDP raises where it is."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        tuned = add_adapters(load_student(base), rank=2, alpha=4, dropout=0.0).train()
        parallel = torch.nn.parallel.DistributedDataParallel(tuned)
        for _ in range(2):
            parallel(**batch).loss.backward()
        del parallel  # it must not outlive the group: gloo's destructor would wait for the GIL
    finally:
        torch.distributed.destroy_process_group()


def test_peft_loads_adapters_with_their_base_by_itself(tuned, adapters, batch):
    loaded = AutoPeftModelForFeatureExtraction.from_pretrained(adapters, trust_remote_code=True)
    torch.testing.assert_close(loaded.eval()(**batch).loss, tuned(**batch).loss)


def test_soft_prompts_are_trained_and_a_prefix_that_fits_nowhere_is_refused(base, batch):
    sizes = {"num_virtual_tokens": 3, "token_dim": 32, "num_layers": 2, "num_attention_heads": 4}
    batch = {name: rows for name, rows in batch.items() if not name.startswith("statement")}
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", **sizes)
    soft = get_peft_model(load_student(base), config).train()
    optimizer = torch.optim.SGD([p for p in soft.parameters() if p.requires_grad], lr=10.0)
    first = soft(**batch).loss
    first.backward()
    optimizer.step()
    assert soft(**batch).loss < first
    # A prefix of the decoder is a cache, which this task type would give to the question too.
    prefix = get_peft_model(
        load_student(base), PrefixTuningConfig(task_type="FEATURE_EXTRACTION", **sizes)
    )
    with pytest.raises(ValueError, match="the attention mask of texts of shape"):
        prefix(**batch)
    # With this one it belongs to the decoder.
    prefix = get_peft_model(
        load_student(base), PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", **sizes)
    )
    with pytest.warns(FutureWarning, match="past_key_values"):
        prefix(**batch).loss.backward()
    assert prefix.prompt_encoder.default.embedding.weight.grad.abs().max() > 0


@pytest.mark.slow
def test_a_wrapped_student_answers_and_classifies_as_the_merged_one(tuned, adapters, images):
    merged = load_student(adapters).eval()
    expected = merged.answer(images, "What is it?", max_new_tokens=6)
    assert tuned.answer(images, "What is it?", max_new_tokens=6) == expected
    inputs = merged.processor(images=images[0], text="What is it?")
    options = {"max_new_tokens": 6, "num_beams": 2}
    ids = tuned.generate(**inputs, **options)
    assert torch.equal(ids, merged.generate(**inputs, **options))
    for method in ("itc", "itm", "lm"):
        expected = merged.classify(images[0], by=method)
        assert tuned.classify(images[0], by=method) == pytest.approx(expected, abs=1e-5)


def test_merged_students_give_what_the_wrapped_one_gave(tuned, adapters, base, batch, tmp_path):
    expected = outputs(tuned, batch)
    loaded = load_student(adapters)
    assert type(loaded) is MVaEMaModel and all(p.requires_grad for p in loaded.parameters())
    assert_same(outputs(loaded.eval(), batch), expected)
    merge_adapters(adapters, tmp_path / "merged")
    shutil.rmtree(base)
    merged = load_student(tmp_path / "merged").eval()
    assert_same(outputs(merged, batch), expected)
    assert merged.lm_head.weight is merged.text_stack.word_embeddings.weight
    assert merged.processor.tokenizer.get_vocab() == loaded.processor.tokenizer.get_vocab()
    assert not [n for n in load_file(tmp_path / "merged" / "model.safetensors") if "lora" in n]


FRESH = """
import sys, torch
from transformers import AutoModel
adapters, merged, inputs, output = sys.argv[1:]
batch = torch.load(inputs)
found = []
for folder in (adapters, merged):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        found.append(dict(model(**batch)))
torch.save(found, output)
"""


@pytest.mark.slow
def test_a_process_without_this_project_loads_both_kinds_of_folder(
    tuned, adapters, batch, tmp_path
):
    merge_adapters(adapters, tmp_path / "merged")
    torch.save(batch, tmp_path / "batch.pt")
    arguments = [adapters, tmp_path / "merged", tmp_path / "batch.pt", tmp_path / "found.pt"]
    command = [sys.executable, "-c", FRESH, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for found in torch.load(tmp_path / "found.pt", weights_only=False):
        assert_same(found, outputs(tuned, batch))


@pytest.mark.slow
def test_adapters_of_the_small_preset_are_a_fraction_of_the_student(tmp_path):
    student = MVaEMaModel(MVaEMaConfig.from_preset("small"))
    full = 4 * sum(p.numel() for p in student.parameters())
    save_adapters(add_adapters(student, 8, 16, 0.05), tmp_path, "lab/student")
    assert {f.name for f in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < full / 5
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "lab/student"


def test_a_relative_base_is_found_from_another_folder(tuned, base, tmp_path, monkeypatch):
    monkeypatch.chdir(base.parent)
    save_adapters(tuned, Path("relative"), base.name)
    folder = Path("relative").resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert type(load_student(folder)) is MVaEMaModel


@pytest.mark.slow
def test_adapters_on_adapters(tuned, adapters, batch, tmp_path):
    """A lab adapts what it has adapted already; both are in the result."""
    again = add_adapters(load_student(adapters), 2, 4, 0.0)
    train(again, batch, steps=3)
    save_adapters(again, tmp_path / "second", str(adapters))
    assert_same(outputs(load_student(tmp_path / "second").eval(), batch), outputs(again, batch))


def test_a_failed_save_leaves_the_last_one(tuned, adapters, base, batch):
    before = {file.name: file.read_bytes() for file in adapters.iterdir()}
    train(tuned, batch, steps=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as on a full disk
    try:
        with pytest.raises((OSError, SafetensorError), match="File too large"):
            save_adapters(tuned, adapters, str(base))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file.name: file.read_bytes() for file in adapters.iterdir()} == before


def test_what_is_no_student_is_refused(adapters, base, make_model, tuned, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model: .* after its first epoch"):
        load_student(tmp_path)
    shapes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    BertModel(BertConfig(**shapes, intermediate_size=8)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"bert is not a student .* 'bert', not 'mvaema'"):
        load_student(tmp_path / "bert")
    with pytest.raises(OSError, match="nowhere"):
        load_student(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="base holds no adapters"):
        merge_adapters(base, tmp_path / "out")
    with pytest.raises(ValueError, match="Choose another folder"):
        merge_adapters(adapters, adapters)

    wide = tmp_path / "wide"
    make_model(intermediate_size=96).save_pretrained(wide)
    shutil.copy(base / "model.safetensors", wide / "model.safetensors")
    with pytest.raises(ValueError, match=r"wide do not have the shapes .* to another preset"):
        load_student(wide)


@pytest.mark.parametrize(
    "shape",
    [
        {"intermediate_size": 96},
        pytest.param({"num_text_layers": 1}, marks=pytest.mark.slow),
        pytest.param({"num_image_layers": 3}, marks=pytest.mark.slow),
    ],
)
def test_adapters_of_another_preset_are_refused(adapters, base, make_model, shape):
    """Wider, deeper and shallower bases; peft itself says nothing of a layer too many."""
    make_model(**shape).save_pretrained(base)
    with pytest.raises(ValueError, match=r"adapters in .*adapters do not fit .*base"):
        load_student(adapters)


def test_a_base_that_has_gone_is_named(adapters, base, tmp_path):
    base.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"adapters for .*base, which does not exist\."):
        load_student(adapters)
    config = json.loads((adapters / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "moved")
    (adapters / "adapter_config.json").write_text(json.dumps(config))
    assert type(load_student(adapters)) is MVaEMaModel


def test_the_code_in_a_folder_is_not_run(base):
    # Of a name of its own: transformers knows a folder's classes once they were trusted.
    base = base.rename(base.with_name("untrusted"))
    code = base / "modeling_mvaema.py"
    code.write_text("raise RuntimeError('this was run')\n")
    load_student(base)
    with pytest.raises(RuntimeError, match="this was run"):
        AutoModel.from_pretrained(base, trust_remote_code=True)
