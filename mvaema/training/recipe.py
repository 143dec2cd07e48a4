"""What a training run is: a recipe, in YAML and on the command line.

What is special about it:
- every setting is documented where it is declared, and that is also the help of `mvaema train`;
- the entries of a recipe file are read as if they had been typed before the flags. So a flag
  overrides the file, and a value of the wrong kind is refused in the same words;
- the settings of a run are written into its folder as `recipe.yaml`, which runs it again.
"""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from configuration_mvaema import PRESETS
from mvaema.files import write_text
from mvaema.students.freezing import CHOICE

# Settings that a trained student has behind it.
OF_A_NEW_STUDENT = "vision vision_layers text tokenizer vocab_size config_overrides".split()
LOSSES = ("loss", "itc_loss", "itm_loss", "lm_loss")
MIX = re.compile(r"\d+(\.\d+)?(:\d+(\.\d+)?)*")


def _setting(help: str, default=dataclasses.MISSING):
    return field(default=default, metadata={"help": help})


@dataclass
class Recipe:
    """A training run. The defaults are the paper's where it names a value."""

    dataset: str = _setting("Micrograph dataset: a folder or a Hub id.")
    output_dir: str = _setting("Folder of the run. Rerun the same command to resume it.")

    # Where the student comes from.
    model: str | None = _setting(
        "Student to start from, a folder or Hub id. Without it a new student is made.", None
    )
    preset: str | None = _setting(
        f"Shapes of a new student: {', '.join(PRESETS)} (default: paper). With --model: the shapes "
        "that it must have.",
        None,
    )
    vision: str | None = _setting(
        "Vision model that a new student sees with: folder or Hub id of any that transformers "
        "loads, timm's included.",
        None,
    )
    vision_layers: list[int] | None = _setting(  # noqa: RUF009 (no call is made per instance)
        "Hidden states of --vision that are put together, as in '5 8 11 15 16' (default: its last "
        "one).",
        None,
    )
    text: str | None = _setting("BERT checkpoint to start a new text stack from.", None)
    tokenizer: str | None = _setting(
        "Tokenizer of a new student, a name or folder. Without it one is trained on the answers.",
        None,
    )
    vocab_size: int = _setting("Most tokens of a tokenizer that is trained on the answers.", 4096)
    config_overrides: str | None = _setting(
        "Fields of a new student's configuration, as in 'itm_weight=0,image_size=384'.", None
    )

    # What it is trained on.
    train_also: list[str] | None = _setting(  # noqa: RUF009 (no call is made per instance)
        "Further micrograph datasets to train on, such as simulated ones. None of them validates.",
        None,
    )
    mix: str | None = _setting(
        "How often an epoch shows each micrograph of --dataset and of each --train_also, as in "
        "'2:1' (default: once).",
        None,
    )
    balance: float = _setting(
        "Categories: 0 as frequent as in the data, 1 all equally frequent, or between.", 0.0
    )
    licences: list[str] | None = _setting(  # noqa: RUF009 (no call is made per instance)
        "Train and validate only on micrographs whose licence begins with one of these, as in "
        "'MIT CC-BY' (default: all).",
        None,
    )
    split: str = _setting("Split of the dataset to train on.", "train")
    folds: int = _setting("Folds that the split is divided into. No two share a specimen.", 10)
    fold: int | None = _setting(
        "Fold to validate on (default: 0). In cross-validation: the only fold to test on (default: "
        "each in turn).",
        None,
    )
    cross_validation: bool = _setting(
        "Train once per fold: fold k tests, fold k + 1 validates, all others are trained on.",
        False,
    )
    streaming: bool = _setting(
        "Read Parquet shards directly, without the memory-mapped copy that datasets makes.", False
    )
    strict: bool = _setting(
        "Refuse a dataset with an unreadable image instead of leaving the image out.", False
    )

    # A pre-trained vision model (--vision).
    train_vision: str | None = _setting(
        "Which part of it is trained: none, its last blocks (last:2), or all (default: none).", None
    )
    vision_learning_rate: float = _setting("Initial learning rate of that part.", 1e-4)
    vision_views: int = _setting(
        "With --train_vision none: views of each micrograph. The features of each are computed "
        "once. 0 draws a new view each time.",
        4,
    )
    vision_cache: str | None = _setting(
        "Folder for these features, which runs may share (default: in --output_dir).", None
    )
    vision_cache_gb: float = _setting("The folder does not grow beyond this size.", 8.0)

    # What it is fed.
    questions_per_image: int = _setting("Questions drawn for each micrograph in an epoch.", 4)
    caption_dropout: float = _setting("Probability that a prompt leaves out the caption.", 0.5)
    scale_dropout: float = _setting("Probability that a prompt leaves out the scale.", 0.5)
    augmentation: bool = _setting(
        "Flips, turns, close-ups, mild contrast and noise, as far as the answers stay true.",
        True,
    )
    length_bucketing: bool = _setting(
        "Micrographs with texts of similar length share batches: less padding.", True
    )
    workers: int = _setting("Processes that prepare batches, for each training process.", 1)

    # How it learns.
    epochs: int = _setting("Passes over the training micrographs.", 50)
    batch_size: int = _setting("Micrographs per optimizer step, over all processes.", 48)
    gradient_accumulation_steps: int = _setting(
        "Parts that a batch is computed in, one after the other. ITC compares within a part.", 1
    )
    learning_rate: float = _setting("Adam's initial learning rate.", 1e-3)
    warmup_steps: int = _setting("Steps over which the learning rate rises from 0.", 100)
    patience: int = _setting(
        "Epochs without a lower validation loss before the learning rate is halved.", 5
    )
    schedule: str = _setting(
        "What becomes of the learning rate: plateau halves it when the validation loss does not "
        "fall, cosine lowers it to 0 at the last of --epochs.",
        "plateau",
    )
    keep_by: str = _setting(
        "Validation loss that decides which student is kept: loss (the weighted sum), itc_loss, "
        "itm_loss or lm_loss.",
        "loss",
    )
    max_minutes: float | None = _setting(
        "Minutes of training and validation after which a run ends; the best student so far is "
        "kept (default: no limit). Not with schedule=cosine, which counts epochs.",
        None,
    )
    stop_after: int = _setting("Epochs without a lower validation loss before training stops.", 15)
    weight_decay: float = _setting("Decoupled weight decay (AdamW).", 0.0)
    max_grad_norm: float = _setting("Gradients are clipped to this norm.", 1.0)
    gradient_checkpointing: bool = _setting(
        "Recompute activations in the backward pass: less memory, more time.", False
    )
    seed: int = _setting("Seed of the weights, the order of micrographs and all draws.", 0)

    # Adapters.
    lora: bool = _setting("Train LoRA adapters on --model instead of all its weights.", False)
    lora_rank: int = _setting("Rank of the adapters.", 8)
    lora_alpha: int = _setting("The adapters' output is scaled by lora_alpha / lora_rank.", 16)
    lora_dropout: float = _setting("Dropout before the adapters.", 0.05)
    merge: bool = _setting("Also write the student with its adapters merged, in merged/.", False)

    # What is kept and shown.
    save_dtype: str = _setting(
        "Numbers in which the student's weights are written: float32, or float16 for half the "
        "size. It computes in 32 bits either way.",
        "float32",
    )
    checkpoint_steps: int = _setting(
        "Steps between checkpoints to resume from. There is also one after each epoch.", 500
    )
    resume: bool = _setting(
        "Resume the run in --output_dir with its own recipe; fails if there is none.", False
    )
    logging_steps: int = _setting("Steps between records in steps.jsonl.", 10)
    report_to: str | None = _setting("Where losses are shown: tensorboard or trackio.", None)
    sample_micrographs: int = _setting(
        "Validation micrographs about which sample answers are recorded after each epoch.", 2
    )

    # Where it goes.
    push_to_hub: str | None = _setting(
        "Repository to upload the finished student and its model card to, as in 'lab/student'.",
        None,
    )
    public: bool = _setting("Everybody may see the uploaded repository.", False)

    def __post_init__(self):
        self._check_values()
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}."
            )
        if self.streaming and (self.train_also or self.balance or self.licences):
            raise ValueError(
                "streaming reads one dataset as it is: leave train_also, balance and licences out."
            )
        if self.max_minutes is not None and self.schedule == "cosine":
            raise ValueError(
                "schedule=cosine lowers the learning rate by --epochs, which max_minutes may cut "
                "short: use schedule=plateau with it."
            )
        if self.lora and self.train_vision not in (None, "none"):
            raise ValueError("lora trains adapters only. Leave train_vision out.")
        if self.mix is not None and len(self.showings) != 1 + len(self.train_also or []):
            raise ValueError(
                f"mix={self.mix} must have a number for --dataset and for each of "
                f"{len(self.train_also or [])} --train_also."
            )
        if self.vision_layers and self.vision is None:
            raise ValueError("vision_layers are of a vision model. Name it: --vision FOLDER.")
        if self.model is not None:
            defaults = {f.name: f.default for f in dataclasses.fields(self)}
            for name in OF_A_NEW_STUDENT:
                if getattr(self, name) != defaults[name]:
                    raise ValueError(
                        f"{name} is for a new student, but model={self.model} is a trained one. "
                        "Leave one of the two out."
                    )
        if self.lora and self.model is None:
            raise ValueError("lora adapts a trained student. Name it: --model FOLDER.")
        if self.merge and not self.lora:
            raise ValueError("merge is for adapters. Add --lora.")
        if self.public and self.push_to_hub is None:
            raise ValueError("public is for an upload. Add --push_to_hub lab/student.")

    @property
    def showings(self) -> list[float]:
        """`mix` as numbers; 1 for each dataset where there is none."""
        if self.mix is None:
            return [1.0] * (1 + len(self.train_also or []))
        return [float(part) for part in self.mix.split(":")]

    def _check_values(self) -> None:
        """Each setting by itself."""
        checks = {
            "preset": (self.preset in (None, *PRESETS), f"one of {', '.join(PRESETS)}"),
            "folds": (self.folds >= 2, "at least 2"),
            "fold": (
                self.fold is None or 0 <= self.fold < self.folds,
                f"in [0, folds={self.folds})",
            ),
            "mix": (
                self.mix is None or MIX.fullmatch(self.mix) is not None,
                "numbers with colons between them, as in 2:1",
            ),
            "balance": (0 <= self.balance <= 1, "in [0, 1]"),
            "train_vision": (
                self.train_vision is None or CHOICE.fullmatch(self.train_vision) is not None,
                "none, last:K or all",
            ),
            "schedule": (self.schedule in ("plateau", "cosine"), "plateau or cosine"),
            "keep_by": (self.keep_by in LOSSES, f"one of {', '.join(LOSSES)}"),
            "save_dtype": (self.save_dtype in ("float32", "float16"), "float32 or float16"),
            "max_minutes": (self.max_minutes is None or self.max_minutes > 0, "above 0"),
            "vision_views": (self.vision_views >= 0, "at least 0"),
            "caption_dropout": (0 <= self.caption_dropout <= 1, "in [0, 1]"),
            "scale_dropout": (0 <= self.scale_dropout <= 1, "in [0, 1]"),
            "report_to": (
                self.report_to in (None, "tensorboard", "trackio"),
                "tensorboard or trackio",
            ),
            "push_to_hub": (
                self.push_to_hub is None or "/" in self.push_to_hub,
                "a repository, as in lab/student",
            ),
        }
        counts = ("questions_per_image", "batch_size", "gradient_accumulation_steps", "epochs")
        for name in (*counts, "checkpoint_steps", "logging_steps"):
            checks[name] = (getattr(self, name) >= 1, "at least 1")
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"{name} must be {expected}; got {getattr(self, name)!r}.")


def read_recipe(
    arguments: Sequence[str], description: str | None = None, prog: str | None = None
) -> Recipe:
    """A recipe from the command line: `--recipe FILE` first, then the flags that override it.

    With `--resume` the file is the `recipe.yaml` of the run in `--output_dir`.

    Args:
        description, prog: for the help.

    Raises:
        ValueError: the file is no recipe, or a value cannot be used.
        FileNotFoundError: there is no such file, or no run to resume.
        SystemExit: a flag is unknown or its value of the wrong kind (argparse has printed it), or
            `--help`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--output_dir")
    first.add_argument("--resume", nargs="?", const="true", default="false")
    known, _ = first.parse_known_args(arguments)
    file = known.recipe
    if known.resume.lower() == "true" and known.output_dir is not None:
        if file is not None:
            raise ValueError("--resume uses the run's own recipe. Leave --recipe out.")
        file = Path(known.output_dir) / "recipe.yaml"
        if not file.is_file():
            raise FileNotFoundError(f"{known.output_dir} holds no run to resume (no recipe.yaml).")
    parser = HfArgumentParser(Recipe, prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--recipe", help="YAML file of these settings. Flags override it.")
    typed = [] if file is None else _as_flags(Path(file))
    namespace = parser.parse_args([*typed, *arguments])
    return Recipe(**{f.name: getattr(namespace, f.name) for f in dataclasses.fields(Recipe)})


def _as_flags(file: Path) -> list[str]:
    """The entries of a recipe file as they would be typed."""
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"the recipe {file} does not exist.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    names = [f.name for f in dataclasses.fields(Recipe)]
    if not isinstance(entries, dict) or not entries.keys() <= set(names):
        unknown = sorted(set(entries) - set(names)) if isinstance(entries, dict) else [entries]
        raise ValueError(
            f"{file} has entries that are not settings of a recipe: "
            f"{', '.join(map(str, unknown))}. Settings are: {', '.join(names)}."
        )
    return [
        word
        for name, value in entries.items()
        if value is not None
        for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]


def write_recipe(recipe: Recipe, file: Path) -> None:
    """All settings of a recipe; `--recipe FILE` runs it again."""
    write_text(file, yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False))
