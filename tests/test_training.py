"""train.py on tiny datasets made on the spot, from images on disk to a loadable student."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from micrograph_data import write_dataset
from PIL import Image
from transformers import AutoModel, BertConfig, BertModel, BertTokenizer, ViTConfig, ViTModel

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema import training
from mvaema.dataset import DatasetError, load_micrographs
from mvaema.examples import Collator, EpochSampler, MicrographExamples
from mvaema.training import Recipe, train

ROOT = Path(__file__).parents[1]


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data")


@pytest.fixture
def recipe(dataset, tmp_path, monkeypatch):
    """A run of seconds: the real loop on a model of a few thousand parameters."""
    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_image_layers": 1, "num_text_layers": 1}
    monkeypatch.setitem(training.PRESETS, "paper", tiny)
    return Recipe(
        str(dataset),
        str(tmp_path / "run"),
        folds=5,
        epochs=2,
        batch_size=8,
        questions_per_image=2,
        vocab_size=300,
        warmup_steps=2,
        workers=0,
    )


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def test_a_run_ends_in_a_model_repository_and_a_log(recipe):
    folder = train(recipe)
    log = log_of(folder)
    assert [record["epoch"] for record in log] == [1, 2]
    for record in log:
        for part in (record["train"], record["validation"]):
            assert set(part) == {"loss", "itc_loss", "itm_loss", "lm_loss"}
            assert part["loss"] == pytest.approx(
                part["itc_loss"] + part["itm_loss"] + part["lm_loss"], rel=1e-5
            )
    assert log[1]["train"]["lm_loss"] < log[0]["train"]["lm_loss"]
    assert json.loads((folder / "recipe.json").read_text())["folds"] == 5
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    image = Image.open(Path(recipe.dataset) / "train" / "0.png")
    assert set(model.answer(image, max_new_tokens=3)) == {"basics", "morphology", "surface"}
    assert not list(folder.glob(".saving*"))


def test_the_same_seed_gives_the_same_losses_whatever_the_number_of_workers(recipe, tmp_path):
    first = log_of(train(recipe))
    recipe.output_dir, recipe.workers = str(tmp_path / "again"), 2
    again = log_of(train(recipe))
    for a, b in zip(first, again, strict=True):
        assert a["train"] == b["train"] and a["validation"] == b["validation"]


def test_the_best_checkpoint_is_kept(recipe, monkeypatch):
    """The second epoch is made worse; the weights on disk stay those of the first."""
    original = training._run
    states = []

    def run(accelerator, model, loader, title, *args):
        losses = original(accelerator, model, loader, title, *args)
        if title == "validation":
            states.append({k: v.clone() for k, v in model.state_dict().items()})
            losses["loss"] += 100 * len(states)
        return losses

    monkeypatch.setattr(training, "_run", run)
    saved = AutoModel.from_pretrained(train(recipe), trust_remote_code=True).state_dict()
    assert all(torch.equal(saved[name], states[0][name]) for name in saved)
    assert not torch.equal(saved["itm_head.weight"], states[1]["itm_head.weight"])


def test_any_tokenizer_may_be_given(recipe, processor, tmp_path):
    processor.tokenizer.save_pretrained(tmp_path / "tokenizer")
    recipe.tokenizer, recipe.epochs = str(tmp_path / "tokenizer"), 1
    model = AutoModel.from_pretrained(train(recipe), trust_remote_code=True)
    assert model.config.vocab_size == len(processor.tokenizer)
    assert model.processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_a_labs_own_categories_become_the_students(recipe, tmp_path):
    own = {"category": "Lot 7", "caption": "A micrograph of lot 7."}
    recipe.dataset, recipe.epochs = str(write_dataset(tmp_path / "own", **own)), 1
    model = AutoModel.from_pretrained(train(recipe), trust_remote_code=True)
    assert model.config.categories == {"Lot 7": "A micrograph of lot 7."}


@pytest.mark.parametrize("start", ["vision", "text", "both"])
def test_a_run_may_start_from_pretrained_encoders(recipe, tmp_path, start):
    shapes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4}
    vit = ViTModel(ViTConfig(**shapes, num_hidden_layers=1, image_size=224, patch_size=32))
    vit.save_pretrained(tmp_path / "vit")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, *(f"##{w}" for w in words[5:])]))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    bert = BertModel(BertConfig(**shapes, num_hidden_layers=1, vocab_size=len(tokenizer)))
    bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    recipe.vision = str(tmp_path / "vit") if start != "text" else None
    recipe.text = str(tmp_path / "bert") if start != "vision" else None
    recipe.epochs, recipe.learning_rate = 1, 0.0
    model = AutoModel.from_pretrained(train(recipe), trust_remote_code=True)
    assert set(model.config.questions) == {"basics", "morphology", "surface"}
    if recipe.vision:
        assert torch.equal(model.image_encoder.norm.weight, vit.layernorm.weight)
        pixels = torch.randn(1, 3, 224, 224)
        expected = vit.eval()(pixels).last_hidden_state
        torch.testing.assert_close(model.image_encoder(pixels), expected, atol=1e-5, rtol=1e-5)
    if recipe.text:
        old = bert.get_input_embeddings().weight
        assert torch.equal(model.get_input_embeddings().weight[: len(old)], old)


def test_training_stops_when_nothing_gets_better(recipe, monkeypatch):
    original = training._run

    def run(accelerator, model, loader, title, *args):
        losses = original(accelerator, model, loader, title, *args)
        return losses if args else losses | {"loss": 1.0}

    monkeypatch.setattr(training, "_run", run)
    recipe.epochs, recipe.stop_after = 9, 2
    assert len(log_of(train(recipe))) == 3


def test_refused_answers_never_reach_training(dataset, processor):
    examples = MicrographExamples(load_micrographs(dataset), "Which category?", 9)
    answers = {a for i in range(20) for a in examples[i]["answers"]}
    assert len(answers) == 8 and not any("cannot" in answer for answer in answers)


def test_captions_and_scales_come_and_go_but_never_beside_the_category_question(dataset):
    examples = MicrographExamples(load_micrographs(dataset), "Which category?", 9)
    prompts = [p for i in range(200) for p in examples[i]["prompts"]]
    others = [p for p in prompts if "Which category?" not in p]
    for sign, expected in (("electron micrograph", 0.5), ("scale bar marks", 0.5 * 0.65)):
        share = sum(sign in p for p in others) / len(others)
        assert share == pytest.approx(expected, abs=0.08)
    assert not any("electron micrograph" in p for p in prompts if "Which category?" in p)
    quiet = MicrographExamples(load_micrographs(dataset), "Which category?", 9, training=False)
    assert not any("An electron micrograph" in p for i in range(20) for p in quiet[i]["prompts"])


def test_statements_are_about_the_image_and_never_questions(dataset):
    examples = MicrographExamples(load_micrographs(dataset), "Which category?", 2)
    statements = {text for i in range(200) for text in examples[i]["statements"]}
    assert not any("?" in statement for statement in statements)
    assert set(CATEGORY_CAPTIONS.values()) & statements
    assert any(s.count(".") == 2 for s in statements) and any("surface" in s for s in statements)


def test_draws_depend_on_seed_epoch_and_row_alone(dataset):
    rows = load_micrographs(dataset)
    first, same = (MicrographExamples(rows, "Which?", 2, seed=3) for _ in range(2))
    assert same[25]["prompts"] == first[25]["prompts"]
    assert same[25]["image"] == first[25]["image"]
    assert any(first[5]["prompts"] != first[5 + 20 * epoch]["prompts"] for epoch in range(1, 5))
    assert any(
        first[i]["prompts"] != MicrographExamples(rows, "Which?", 2, seed=4)[i]["prompts"]
        for i in range(20)
    )


def test_each_epoch_is_another_permutation_of_all_rows():
    sampler = EpochSampler(7, seed=1)
    first = list(sampler)
    sampler.set_epoch(2)
    third = list(sampler)
    assert sorted(first) == list(range(7)) and sorted(third) == list(range(14, 21))
    assert [i - 14 for i in third] != first
    assert list(sampler) == third


def test_a_micrograph_with_fewer_questions_repeats_its_own(dataset, processor):
    examples = MicrographExamples(load_micrographs(dataset), "Which category?", 4)
    few = {**examples[0], "prompts": ["One?"], "answers": ["one"]}
    batch = Collator(processor)([examples[1], few])
    prompts = processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert prompts[4:] == ["One?"] * 4 and len(batch["labels"]) == 8


def test_every_kind_of_place_is_read(dataset, tmp_path):
    rows = load_micrographs(dataset)
    rows.save_to_disk(tmp_path / "disk")
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    for place in ("disk", "parquet"):
        again = load_micrographs(tmp_path / place)
        assert again["image_id"][:] == rows["image_id"][:]
        assert again["pixel_size_nm"][0] is None


def test_bad_datasets_are_named(recipe, tmp_path):
    def refuse(error, match, **fields):
        with pytest.raises(error, match=match):
            train(Recipe(**{**vars(recipe), "output_dir": str(tmp_path / "never"), **fields}))
        assert not (tmp_path / "never").exists()

    refuse(DatasetError, "cannot read split 'train' of", dataset=str(tmp_path / "nowhere"))
    refuse(DatasetError, "split 'test'", split="test")
    without = write_dataset(tmp_path / "without", qa=[])
    refuse(DatasetError, "no answers with outcome 'ok'", dataset=str(without))
    refuse(ValueError, "k must be", folds=30)
    refuse(ValueError, "fold must be in", fold=5)


def test_an_unreadable_image_is_named(recipe):
    image = Path(recipe.dataset) / "train" / "7.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(DatasetError, match="image7"):
        train(recipe)


def test_another_run_is_not_overwritten(recipe):
    folder = train(recipe)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="choose another"):
        train(recipe)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_the_command_on_one_process_and_on_two(tmp_path):
    """`accelerate launch train.py`, the `paper` preset: two ranks repeat one."""
    # Validation rows that fill a batch: else accelerate repeats some to give each rank as many.
    dataset = write_dataset(tmp_path / "data", count=40)
    logs = []
    for name, launcher in (
        ("one", ["accelerate.commands.launch", "--cpu", "--num_processes", "1"]),
        ("two", ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]),
    ):
        command = [sys.executable, "-m", *launcher, str(ROOT / "train.py")]
        options = (
            f"--folds 5 --epochs 1 --batch_size 8 --questions_per_image 2 --workers 0 "
            f"--vocab_size 300 --dataset {dataset} --output_dir {tmp_path / name}"
        )
        run = subprocess.run([*command, *options.split()], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
        logs.append(log_of(tmp_path / name)[0])
    for part in ("train", "validation"):
        assert logs[0][part] == pytest.approx(logs[1][part], abs=1e-4)
