"""The training loop: a student from a micrograph dataset, with accelerate.

What is special about it:
- `batch_size` is the global one: the losses of a step are the same on one process and on several.
  (Of a validation split that does not fill its last batch, several processes see some rows twice.)
- the checkpoint that is kept is the one with the lowest validation loss, and it is a complete model
  repository from the first epoch on.
"""

import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DataLoaderConfiguration, set_seed
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from configuration_mvaema import PRESETS, MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.dataset import DatasetError, load_micrographs
from mvaema.examples import Collator, EpochSampler, MicrographExamples
from mvaema.folds import assign_folds, check_no_leak
from mvaema.warm_start import from_encoders
from processing_mvaema import MVaEMaProcessor, train_tokenizer

LOSSES = ("loss", "itc_loss", "itm_loss", "lm_loss")


@dataclass
class Recipe:
    """What a training run is; every field is a flag of `train.py`."""

    dataset: str = field(
        metadata={"help": "Micrograph dataset: a folder with metadata.jsonl, Parquet, Hub id."}
    )
    output_dir: str = field(metadata={"help": "Folder for the trained model; must not hold one."})
    preset: str = field(
        default="paper", metadata={"help": f"Shapes of the student: {', '.join(PRESETS)}."}
    )
    vision: str | None = field(
        default=None, metadata={"help": "ViT checkpoint to start the image encoder from."}
    )
    text: str | None = field(
        default=None, metadata={"help": "BERT checkpoint to start the text stack from."}
    )
    split: str = field(default="train", metadata={"help": "Split of the dataset to train on."})
    folds: int = field(
        default=10,
        metadata={"help": "One of so many folds is for validation; none shares a specimen."},
    )
    fold: int = field(default=0, metadata={"help": "The fold that is for validation."})
    epochs: int = field(default=50, metadata={"help": "Passes over the training micrographs."})
    batch_size: int = field(
        default=48, metadata={"help": "Micrographs per step, over all processes."}
    )
    questions_per_image: int = field(
        default=4, metadata={"help": "Questions drawn for each micrograph in each epoch."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Adam's initial learning rate."})
    warmup_steps: int = field(
        default=100, metadata={"help": "Steps over which the learning rate rises from 0."}
    )
    patience: int = field(
        default=5,
        metadata={"help": "Epochs without a better validation loss until the rate is halved."},
    )
    stop_after: int = field(
        default=15, metadata={"help": "Epochs without a better validation loss until the end."}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Any tokenizer, by name or folder; else one is trained on the answers."},
    )
    vocab_size: int = field(
        default=4096, metadata={"help": "Most tokens of the tokenizer trained on the answers."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped here."})
    workers: int = field(default=1, metadata={"help": "Processes that prepare batches."})
    seed: int = field(default=0, metadata={"help": "Of weights, order and draws."})


def build_model(recipe: Recipe, train: Dataset) -> MVaEMaModel:
    """A new student with its processor, from scratch or from pretrained encoders.

    Raises:
        ValueError: checkpoints and preset do not fit together.
    """
    preset = PRESETS[recipe.preset]
    defaults = MVaEMaConfig.from_preset(recipe.preset)
    questions = {qa["question_id"]: qa["question"] for row in train["qa"] for qa in row}
    pairs = zip(train["category"], train["caption"], strict=True)
    captions = {category: caption for category, caption in pairs if category and caption}
    fields = {**preset, "questions": questions}
    if not captions.keys() <= defaults.categories.keys():
        fields["categories"] = captions  # a lab's own
    if recipe.text is not None:
        if recipe.tokenizer is not None:
            raise ValueError("--text brings its own tokenizer: leave --tokenizer out.")
        return from_encoders(recipe.vision, recipe.text, **fields)
    limit = defaults.max_position_embeddings
    tokenizer = recipe.tokenizer
    if tokenizer is None:
        texts = [
            *questions.values(),
            *sorted(set(captions.values())),
            defaults.category_question,
            *(MVaEMaProcessor.prompt("?", scale_bar=bar) for bar in train["scale_bar"] if bar),
            *(qa["answer"] for row in train["qa"] for qa in row if qa["outcome"] == "ok"),
        ]
        tokenizer = train_tokenizer(texts, recipe.vocab_size, limit)
    processor = MVaEMaProcessor.from_tokenizer(tokenizer, defaults.image_size, limit)
    fields |= processor.token_fields()
    if recipe.vision is not None:
        model = from_encoders(recipe.vision, **fields)
    else:
        model = MVaEMaModel(MVaEMaConfig(**fields))
    model.processor = processor
    return model


def save_repository(model: MVaEMaModel, folder: Path) -> None:
    """Model, processor and code into `folder`, each file atomically, the weights last."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        model.save_pretrained(temporary)
        for file in sorted(Path(temporary).iterdir(), key=lambda f: f.suffix == ".safetensors"):
            file.replace(folder / file.name)


def train(recipe: Recipe) -> Path:
    """Train a student and keep the best checkpoint.

    Returns:
        `output_dir`, a model repository with `recipe.json` and `training_log.jsonl` (per epoch:
        learning rate, seconds, and the losses on training and validation).

    Raises:
        DatasetError: the dataset cannot be used.
        FileExistsError: `output_dir` holds something already.
    """
    output_dir = Path(recipe.output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} is not empty; choose another --output_dir.")
    if recipe.preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {recipe.preset!r}.")
    dataset = load_micrographs(recipe.dataset, recipe.split)
    usable = [
        i for i, qa in enumerate(dataset["qa"]) if any(x["outcome"] == "ok" for x in qa or [])
    ]
    if not usable:
        raise DatasetError(
            f"{recipe.dataset} has no answers with outcome 'ok' in its column 'qa'; run "
            "generate_teacher_data.py on it first."
        )
    dataset = dataset.select(usable)
    if not 0 <= recipe.fold < recipe.folds:
        raise ValueError(f"fold must be in [0, folds={recipe.folds}); got {recipe.fold}.")
    folds = np.array(assign_folds(dataset, recipe.folds))
    train_rows = dataset.select(np.flatnonzero(folds != recipe.fold))
    validation_rows = dataset.select(np.flatnonzero(folds == recipe.fold))
    check_no_leak(train_rows, validation_rows)

    set_seed(recipe.seed)
    model = build_model(recipe, train_rows)
    weights = (model.config.itc_weight, model.config.itm_weight, model.config.lm_weight)
    accelerator = Accelerator(
        # Said explicitly: under torchrun on a machine without a GPU, accelerate would otherwise
        # run as many separate trainings as there are processes.
        cpu=not torch.accelerator.is_available(),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=not all(weights)),
        ],
    )
    processor = model.processor

    def loader(rows: Dataset, training: bool) -> DataLoader:
        examples = MicrographExamples(
            rows,
            model.config.category_question,
            recipe.questions_per_image,
            recipe.seed,
            training,
        )
        return DataLoader(
            examples,
            batch_size=recipe.batch_size,
            sampler=EpochSampler(len(rows), recipe.seed) if training else None,
            collate_fn=Collator(processor),
            # Losses compare the micrographs of a batch: a rest of one would have no negatives.
            drop_last=training and len(rows) >= recipe.batch_size,
            num_workers=recipe.workers,
            persistent_workers=recipe.workers > 0,
        )

    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    # Not prepared: a prepared ReduceLROnPlateau steps once per process.
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=recipe.patience
    )
    model, optimizer, train_loader, validation_loader = accelerator.prepare(
        model, optimizer, loader(train_rows, True), loader(validation_rows, False)
    )
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=2))
    accelerator.print(
        f"{len(train_rows)} micrographs to train on, {len(validation_rows)} to validate; "
        f"{sum(p.numel() for p in model.parameters()):,} parameters; {accelerator.device}, "
        f"{accelerator.num_processes} process(es)."
    )

    best, best_epoch = float("inf"), 0
    for epoch in range(recipe.epochs):
        started = time.perf_counter()
        train_loader.set_epoch(epoch)
        model.train()
        losses = _run(
            accelerator, model, train_loader, f"epoch {epoch + 1}", optimizer, recipe, epoch
        )
        model.eval()
        with torch.no_grad():
            validation = _run(accelerator, model, validation_loader, "validation")
        scheduler.step(validation["loss"])
        improved = validation["loss"] < best
        if improved:
            best, best_epoch = validation["loss"], epoch
        if accelerator.is_main_process:
            if improved:
                save_repository(accelerator.unwrap_model(model), output_dir)
            record = {
                "epoch": epoch + 1,
                "learning_rate": optimizer.param_groups[0]["lr"],
                "seconds": round(time.perf_counter() - started, 2),
                "train": losses,
                "validation": validation,
            }
            with (output_dir / "training_log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
        accelerator.print(
            f"epoch {epoch + 1:3d}  "
            + "  ".join(f"{k} {losses[k]:.3f}/{validation[k]:.3f}" for k in losses)
            + ("  saved" if improved else "")
        )
        if epoch - best_epoch >= recipe.stop_after:
            accelerator.print(f"no better validation loss for {recipe.stop_after} epochs: done.")
            break
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output_dir


def _run(
    accelerator, model, loader, title, optimizer=None, recipe=None, epoch=0
) -> dict[str, float]:
    """One pass over `loader`, training when an optimizer is given; mean losses per micrograph."""
    sums, count, step = {}, 0, epoch * len(loader)
    bar = tqdm(loader, desc=title, leave=False, disable=not accelerator.is_main_process)
    for batch in bar:
        output = model(**batch)
        if optimizer is not None:
            step += 1
            if step <= recipe.warmup_steps:
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * step / recipe.warmup_steps
            accelerator.backward(output.loss)
            accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        names = [name for name in LOSSES if output.get(name) is not None]
        values = accelerator.reduce(torch.stack([output[n].detach() for n in names]), "mean")
        rows = len(batch["pixel_values"])
        for name, value in zip(names, values.tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + value * rows
        count += rows
        bar.set_postfix({name: f"{sums[name] / count:.3f}" for name in names})
    return {name: total / count for name, total in sums.items()}
