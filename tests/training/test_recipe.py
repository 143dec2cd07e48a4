"""Recipes: a file and flags, one after the other; what is refused; what is written down."""

import dataclasses

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset
from support import ROOT

from mvaema.training.provenance import dataset_fingerprint
from mvaema.training.recipe import Recipe, read_recipe, write_recipe

NEEDED = ["--dataset", "data", "--output_dir", "run"]


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "epochs: 7\nlearning_rate: 2.0e-4\naugmentation: false\nvision: null\nfold: 0\n"
    )
    recipe = read_recipe(["--recipe", str(file), *NEEDED, "--epochs", "3", "--lora_rank=4"])
    assert recipe == Recipe(
        "data", "run", epochs=3, learning_rate=2e-4, augmentation=False, fold=0, lora_rank=4
    )
    assert read_recipe([*NEEDED, "--no_augmentation"]).augmentation is False


def test_what_was_run_can_be_run_again(tmp_path):
    recipe = read_recipe([*NEEDED, "--fold", "3", "--config_overrides", "image_size=384"])
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(["--recipe", str(tmp_path / "recipe.yaml")]) == recipe
    again = read_recipe(["--resume", "--output_dir", str(tmp_path), "--epochs", "60"])
    assert again == dataclasses.replace(recipe, resume=True, output_dir=str(tmp_path), epochs=60)


def test_the_papers_recipe_says_what_the_paper_says():
    recipe = read_recipe(["--recipe", str(ROOT / "recipes" / "paper.yaml"), *NEEDED])
    assert (recipe.preset, recipe.folds, recipe.cross_validation) == ("paper", 10, True)
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (50, 48, 1e-3)
    assert (recipe.patience, recipe.fold) == (5, None)


@pytest.mark.parametrize("content", ["epoch: 3", "- epochs", "epochs: [", "just words"])
def test_a_file_that_is_no_recipe_is_named(tmp_path, content):
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        read_recipe(["--recipe", str(file), *NEEDED])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["--hub_model_id", "lab/student"], "unrecognized arguments: --hub_model_id"),
        (["--push_to_hub"], "--push-to-hub: expected one argument"),
    ],
)
def test_flags_are_not_guessed(flags, message, capsys):
    with pytest.raises(SystemExit):
        read_recipe([*NEEDED, *flags])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "huge"}, "preset must be one of paper, small, lite, base"),
        ({"fold": 10}, r"fold must be in \[0, folds=10\)"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"caption_dropout": 1.5}, r"caption_dropout must be in \[0, 1\]"),
        ({"report_to": "wandb"}, "report_to must be tensorboard or trackio"),
        ({"gradient_accumulation_steps": 5}, "must be a multiple of"),
        ({"model": "x", "vision": "y"}, "vision is for a new student"),
        ({"vision_layers": [2, 3]}, "Name it: --vision FOLDER"),
        ({"lora": True}, "Name it: --model"),
        ({"merge": True, "model": "x"}, "Add --lora"),
        ({"push_to_hub": "true"}, "push_to_hub must be a repository, as in lab/student"),
        ({"public": True}, r"Add --push_to_hub lab/student"),
    ],
)
def test_contradictions_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe("data", "run", **settings)


def test_every_setting_is_documented():
    for setting in dataclasses.fields(Recipe):
        assert setting.metadata["help"].endswith("."), setting.name


def test_the_fingerprint_is_of_images_and_answers_and_not_of_where_they_lie():
    rows = [{"image_id": "a", "caption": None, "qa": [{"answer": "x"}], "group": "g"}]
    first = dataset_fingerprint(Dataset.from_list(rows))
    assert first == dataset_fingerprint(Dataset.from_list([{**rows[0], "group": "h"}]))
    assert first != dataset_fingerprint(Dataset.from_list([{**rows[0], "qa": [{"answer": "y"}]}]))
    assert first != dataset_fingerprint(Dataset.from_list([{**rows[0], "image_id": "b"}]))


@pytest.mark.parametrize(
    "file", [ROOT / "accelerate_config.yaml", *sorted((ROOT / "recipes/accelerate").glob("*.yaml"))]
)
def test_accelerate_reads_its_configurations(file):
    """Unknown keys are errors in `accelerate launch`."""
    config = load_config_from_file(str(file))
    assert config.num_processes == yaml.safe_load(file.read_text())["num_processes"]
