"""Features of a frozen vision model: used again where nothing changed, and only there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.micrograph_data import write_dataset
from transformers import ResNetConfig, ResNetModel, ViTImageProcessor

from mvaema.micrographs.dataset import load_micrographs
from mvaema.training.features import FeatureStore
from mvaema.training.recipe import Recipe
from mvaema.training.run import train
from mvaema.training.views import View

SHAPES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


@pytest.fixture
def eyes(tmp_path) -> Path:
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(**SHAPES)).save_pretrained(tmp_path / "eyes")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "eyes")
    return tmp_path / "eyes"


def recipe_for(folder: Path, eyes: Path, **settings) -> Recipe:
    data = folder / "data"
    if not data.exists():
        write_dataset(data)
    return Recipe(
        str(data),
        str(folder / settings.pop("run", "run")),
        vision=str(eyes),
        config_overrides="hidden_size=16,intermediate_size=32,num_text_layers=1",
        **{
            "folds": 5,
            "epochs": 3,
            "batch_size": 8,
            "questions_per_image": 2,
            "vocab_size": 300,
            "warmup_steps": 2,
            "workers": 0,
            "sample_micrographs": 0,
            **settings,
        },
    )


def losses(folder: Path) -> list[dict]:
    lines = (folder / "training_log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]


def stored(folder: Path) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in folder.rglob("*.safetensors")}


@pytest.mark.slow
def test_a_run_that_reads_features_is_the_run_that_computed_them(tmp_path, eyes):
    cache = str(tmp_path / "cache")
    first = train(recipe_for(tmp_path, eyes, vision_cache=cache, vision_views=2))
    computed = stored(tmp_path / "cache")
    second = train(recipe_for(tmp_path, eyes, run="two", vision_cache=cache, vision_views=2))
    assert losses(first) == losses(second)
    assert stored(tmp_path / "cache") == computed and len(computed) > 20
    frozen, own = load_file(eyes / "model.safetensors"), load_file(first / "model.safetensors")
    for name, weights in frozen.items():
        assert torch.equal(own[f"image_encoder.vision_model.{name}"], weights), name


@pytest.mark.slow
def test_a_view_is_seen_once(tmp_path, eyes):
    recipe = recipe_for(tmp_path, eyes, vision_views=1, augmentation=False, epochs=4)
    folder = train(recipe)
    assert len(stored(folder / "vision_features")) == 20


@pytest.mark.slow
def test_the_folder_does_not_outgrow_its_limit(tmp_path, eyes):
    plain = train(recipe_for(tmp_path, eyes, vision_views=1))
    small = train(recipe_for(tmp_path, eyes, run="two", vision_views=1, vision_cache_gb=2e-6))
    kept = sum(f.stat().st_size for f in (small / "vision_features").rglob("*.safetensors"))
    assert 2_000 <= kept < 8_000
    assert losses(plain) == losses(small)


def test_features_of_other_weights_views_or_pixels_are_not_used(tmp_path, eyes, make_model):
    row = load_micrographs(write_dataset(tmp_path / "data"))[0]
    model = make_model(vision_config=ResNetConfig(**SHAPES), num_image_layers=1)
    store = FeatureStore(tmp_path / "cache", model, 1)
    key = store.key(row, View(), [1])
    store.write(key, torch.ones(4).half())
    assert torch.equal(store.read(key), torch.ones(4).half())
    others = [store.key(row, View(brightness=1.1), [1]), store.key(row, View(noise=0.1), [1])]
    others.append(store.key(row, View(noise=0.1), [2]))
    others.append(store.key(load_micrographs(tmp_path / "data")[1], View(), [1]))
    with torch.no_grad():
        next(model.image_encoder.vision_model.parameters()).mul_(1.5)
    others.append(FeatureStore(tmp_path / "cache", model, 1).key(row, View(), [1]))
    model.processor.image_processor.size = {"height": 40, "width": 40}
    others.append(FeatureStore(tmp_path / "cache", model, 1).key(row, View(), [1]))
    model.processor.image_processor.size = {"height": 32, "width": 32}
    assert len({key, *others}) == 7
    assert all(store.read(other) is None for other in others)


def test_a_damaged_file_is_computed_again(tmp_path, eyes, make_model):
    model = make_model(vision_config=ResNetConfig(**SHAPES), num_image_layers=1)
    store = FeatureStore(tmp_path, model, 1)
    store.write("abc", torch.ones(4).half())
    file = store.folder / "ab" / "abc.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    assert store.read("abc") is None
    save_file({"other": torch.ones(1)}, file)
    assert store.read("abc") is None


@pytest.mark.slow
def test_tuned_eyes_learn_at_their_own_rate(tmp_path, eyes):
    recipe = recipe_for(tmp_path, eyes, train_vision="last:1", vision_learning_rate=0.0, epochs=1)
    still = load_file(train(recipe) / "model.safetensors")
    moved = recipe_for(tmp_path, eyes, run="two", train_vision="last:1", epochs=1)
    moved = load_file(train(moved) / "model.safetensors")
    before = load_file(eyes / "model.safetensors")
    changed = {
        name
        for name, old in before.items()
        if not torch.equal(moved[f"image_encoder.vision_model.{name}"], old)
    }
    assert changed and all("stages.1" in name for name in changed)
    assert all(torch.equal(still[f"image_encoder.vision_model.{n}"], w) for n, w in before.items())
