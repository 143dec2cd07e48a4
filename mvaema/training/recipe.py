"""What a training run is: a recipe, in YAML and on the command line.

What is special about it:
- every field is documented where it is declared, and that is also the help of `train.py`;
- a recipe file and flags are one thing: the file's entries are read as if they had been typed
  first, so that a flag overrides them and a value of the wrong kind is refused in the same words;
- what was run is written beside the checkpoint: `recipe.yaml`, which runs it again, and `run.json`
  with the versions, the dataset's fingerprint and the commit.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from datasets import Dataset
from transformers import HfArgumentParser

from configuration_mvaema import PRESETS

PACKAGES = ("accelerate", "datasets", "numpy", "peft", "tokenizers", "torch", "transformers")


def _setting(help: str, default=dataclasses.MISSING):
    return field(default=default, metadata={"help": help})


@dataclass
class Recipe:
    """A training run; the defaults are the paper's where it names a value."""

    dataset: str = _setting("Micrograph dataset: a folder with metadata.jsonl, Parquet, Hub id.")
    output_dir: str = _setting("Folder of the run. The same command goes on with a killed run.")

    # Where the student comes from.
    model: str | None = _setting(
        "Student to go on from, a folder or Hub id; else a new one is made.", None
    )
    preset: str | None = _setting(
        f"Shapes of a new student: {', '.join(PRESETS)} (paper if not given); what a student that "
        "is named must have.",
        None,
    )
    vision: str | None = _setting("ViT checkpoint to start a new image encoder from.", None)
    text: str | None = _setting("BERT checkpoint to start a new text stack from.", None)
    tokenizer: str | None = _setting(
        "Any tokenizer, by name or folder; else one is trained on the answers.", None
    )
    vocab_size: int = _setting("Most tokens of the tokenizer trained on the answers.", 4096)
    config_overrides: str | None = _setting(
        "Fields of a new student's configuration, as in 'itm_weight=0,image_size=384'.", None
    )

    # What it is trained on.
    split: str = _setting("Split of the dataset to train on.", "train")
    folds: int = _setting("The split is divided into so many folds; none share a specimen.", 10)
    fold: int | None = _setting(
        "The fold to validate on, 0 if not given; in cross-validation the one to test on, all of "
        "them if not given.",
        None,
    )
    cross_validation: bool = _setting(
        "Train once per fold: it is tested on, the next one validates, the others are trained on.",
        False,
    )
    streaming: bool = _setting(
        "Read Parquet shards as they come instead of through a memory-mapped copy.", False
    )
    strict: bool = _setting(
        "Refuse a dataset with an unreadable image instead of skipping it.", False
    )

    # What it is fed.
    questions_per_image: int = _setting("Questions drawn for a micrograph in each epoch.", 4)
    caption_dropout: float = _setting("How often a prompt goes without its caption.", 0.5)
    scale_dropout: float = _setting("How often a prompt goes without its scale.", 0.5)
    augmentation: bool = _setting(
        "Flips, quarter turns, mild contrast, noise and zoom; pixel sizes follow.", True
    )
    length_bucketing: bool = _setting("Micrographs with texts of like length share batches.", True)
    workers: int = _setting("Processes that prepare batches, for each training process.", 1)

    # How it learns.
    epochs: int = _setting("Passes over the training micrographs.", 50)
    batch_size: int = _setting("Micrographs per optimizer step, over all processes.", 48)
    gradient_accumulation_steps: int = _setting(
        "Parts a batch is computed in, one after the other; ITC sees the negatives of a part.", 1
    )
    learning_rate: float = _setting("Adam's initial learning rate.", 1e-3)
    warmup_steps: int = _setting("Steps over which the learning rate rises from 0.", 100)
    patience: int = _setting(
        "Epochs without a better validation loss until the learning rate is halved.", 5
    )
    stop_after: int = _setting("Epochs without a better validation loss until the end.", 15)
    max_grad_norm: float = _setting("Gradients are clipped here.", 1.0)
    gradient_checkpointing: bool = _setting(
        "Activations are computed again in the backward pass: less memory, more time.", False
    )
    seed: int = _setting("Of weights, order and draws.", 0)

    # Adapters.
    lora: bool = _setting("Train LoRA adapters on --model instead of all its weights.", False)
    lora_rank: int = _setting("Rank of the adapters.", 8)
    lora_alpha: int = _setting("Their scale is lora_alpha / lora_rank.", 16)
    lora_dropout: float = _setting("Dropout before the adapters.", 0.05)
    merge: bool = _setting("Also write the student with its adapters merged, in merged/.", False)

    # What is kept and shown.
    checkpoint_steps: int = _setting(
        "Steps between checkpoints to resume from; there is one after each epoch as well.", 500
    )
    resume: bool = _setting(
        "Go on with the run in --output_dir by its own recipe; there must be one.", False
    )
    logging_steps: int = _setting("Steps between the losses in steps.jsonl.", 10)
    report_to: str | None = _setting("Where losses are shown: tensorboard or trackio.", None)
    sample_micrographs: int = _setting(
        "Validation micrographs whose answers are written down after each epoch.", 2
    )

    # Where it goes.
    push_to_hub: bool = _setting("Upload the finished student with its model card.", False)
    hub_model_id: str | None = _setting("Repository to upload to, as in 'lab/student'.", None)
    hub_public: bool = _setting("Let everybody see the uploaded repository.", False)

    def __post_init__(self):
        checks = {
            "preset": (self.preset in (None, *PRESETS), f"one of {', '.join(PRESETS)}"),
            "folds": (self.folds >= 2, "at least 2"),
            "fold": (
                self.fold is None or 0 <= self.fold < self.folds,
                f"in [0, folds={self.folds})",
            ),
            "caption_dropout": (0 <= self.caption_dropout <= 1, "in [0, 1]"),
            "scale_dropout": (0 <= self.scale_dropout <= 1, "in [0, 1]"),
            "report_to": (
                self.report_to in (None, "tensorboard", "trackio"),
                "tensorboard or trackio",
            ),
        }
        counts = ("questions_per_image", "batch_size", "gradient_accumulation_steps", "epochs")
        for name in (*counts, "checkpoint_steps", "logging_steps"):
            checks[name] = (getattr(self, name) >= 1, "at least 1")
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"{name} must be {expected}; got {getattr(self, name)!r}.")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}."
            )
        if self.model is not None:
            made = ("vision", "text", "tokenizer", "vocab_size", "config_overrides")
            defaults = {f.name: f.default for f in dataclasses.fields(self)}
            for name in made:
                if getattr(self, name) != defaults[name]:
                    raise ValueError(
                        f"{name} is for a new student, and model={self.model} is one already: "
                        "leave one of the two out."
                    )
        if self.lora and self.model is None:
            raise ValueError("lora adapts a student: name it, --model FOLDER.")
        if self.merge and not self.lora:
            raise ValueError("merge is for adapters: add --lora.")
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("push_to_hub needs a repository: --hub_model_id lab/student.")


def read_recipe(arguments: Sequence[str], description: str | None = None) -> Recipe:
    """A recipe from the command line: `--recipe FILE` first, then the flags that override it.

    With `--resume` the file is the `recipe.yaml` of the run in `--output_dir`.

    Raises:
        ValueError: the file is no recipe, or a value cannot be used.
        FileNotFoundError: there is no such file, or no run to resume.
        SystemExit: a flag is unknown or of the wrong kind (argparse has said so), or `--help`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--output_dir")
    first.add_argument("--resume", nargs="?", const="true", default="false")
    known, _ = first.parse_known_args(arguments)
    file = known.recipe
    if known.resume.lower() == "true" and known.output_dir is not None:
        if file is not None:
            raise ValueError("--resume goes on by the run's own recipe: leave --recipe out.")
        file = Path(known.output_dir) / "recipe.yaml"
        if not file.is_file():
            raise FileNotFoundError(f"{known.output_dir} holds no run to resume (no recipe.yaml).")
    parser = HfArgumentParser(Recipe, description=description, allow_abbrev=False)
    parser.add_argument("--recipe", help="YAML file of these settings; flags override it.")
    typed = [] if file is None else _as_flags(Path(file))
    namespace = parser.parse_args([*typed, *arguments])
    return Recipe(**{f.name: getattr(namespace, f.name) for f in dataclasses.fields(Recipe)})


def _as_flags(file: Path) -> list[str]:
    """The entries of a recipe file as they would be typed."""
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no recipe {file}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    names = [f.name for f in dataclasses.fields(Recipe)]
    if not isinstance(entries, dict) or not entries.keys() <= set(names):
        unknown = sorted(set(entries) - set(names)) if isinstance(entries, dict) else [entries]
        raise ValueError(
            f"{file}: no setting of a recipe: {', '.join(map(str, unknown))}. There are "
            f"{', '.join(names)}."
        )
    return [
        word
        for name, value in entries.items()
        if value is not None
        for word in (f"--{name}", str(value))
    ]


def write_recipe(recipe: Recipe, file: Path) -> None:
    """The resolved recipe; `train.py --recipe FILE` runs it again."""
    file.write_text(yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False), encoding="utf-8")


def fingerprint(dataset: Dataset) -> str:
    """Of what is trained on: image ids, which are hashes of the pixels, and answers, in order."""
    digest = hashlib.sha256()
    for row in dataset.select_columns(
        [n for n in ("image_id", "qa", "caption") if n in dataset.column_names]
    ):
        digest.update(repr(row).encode())
    return digest.hexdigest()[:16]


def provenance() -> dict:
    """Versions and commit of the code that runs."""
    root = Path(__file__).parents[2]
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return {
        "git_commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
