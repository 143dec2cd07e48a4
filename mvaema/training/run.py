"""One training run, from a recipe to a finished folder: `train`."""

import importlib
import os
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed

from modeling_mvaema import MVaEMaModel
from mvaema.hub import require_token
from mvaema.memory import keep_freed_memory
from mvaema.students.card import write_card
from mvaema.students.freezing import train_vision
from mvaema.students.hub import push
from mvaema.students.loading import load_student
from mvaema.students.new import new_student
from mvaema.training.batches import BatchLoader, ProcessShare
from mvaema.training.curves import loss_curves
from mvaema.training.examples import Draws, ExampleDrawer
from mvaema.training.features import FeatureStore, FrozenVision
from mvaema.training.loop import Loaders, TrainingLoop
from mvaema.training.provenance import dataset_fingerprint
from mvaema.training.recipe import Recipe
from mvaema.training.reporting import Reporter
from mvaema.training.run_folder import RunFolder
from mvaema.training.signals import Signals
from mvaema.training.split import Rows, load_rows
from mvaema.training.state import TrainingState


def train(recipe: Recipe, rows: Rows | None = None) -> Path:
    """Train a student and keep the best one; a run that was killed is resumed.

    Every process of a distributed training calls this.

    Args:
        rows: what it reads, where that is loaded already; by default `load_rows(recipe)`.

    Returns:
        `output_dir` (see `mvaema/training/run_folder.py`); at once if the run in it is finished.

    Raises:
        DatasetError: the dataset cannot be used.
        FileExistsError: `output_dir` holds something else.
        ModuleNotFoundError: what `report_to` needs is not installed.
        ValueError: settings contradict each other or the checkpoint.
        TrainingFailed: the loss became useless.
        Interrupted: SIGTERM or SIGINT; a checkpoint was written first.
    """
    keep_freed_memory()
    folder = RunFolder(recipe)
    if recipe.push_to_hub:
        require_token()
    accelerator = _accelerator(recipe)
    if folder.finished:
        if accelerator.is_main_process:
            publish(recipe)
        return folder.path
    if rows is None:
        with accelerator.main_process_first():  # the others find its cached look at the images
            rows = load_rows(recipe)
    with Signals() as signals, ExitStack() as stack:
        set_seed(recipe.seed)
        student = start_student(recipe, rows)
        model = _trained_part(recipe, student)
        set_seed(recipe.seed + accelerator.process_index)  # dropout differs between processes
        # A loss that is switched off leaves parameters without a gradient.
        weights = (student.config.itc_weight, student.config.itm_weight, student.config.lm_weight)
        # So may a vision model's own pooling.
        tuned = recipe.train_vision not in (None, "none")
        accelerator.ddp_handler.find_unused_parameters = tuned or not all(weights)
        loaders = _loaders(recipe, rows, student, accelerator)
        reporter = Reporter(recipe, folder, accelerator, rows.validation)
        facts = _facts(rows, model, accelerator)
        loop = TrainingLoop(recipe, model, loaders, accelerator, reporter, signals)
        if accelerator.is_main_process:
            stack.enter_context(folder.locked())
        accelerator.wait_for_everyone()  # all have looked at the folder
        if accelerator.is_main_process:
            folder.claim(dataset_fingerprint(rows.texts), facts)
        reporter.started(facts)
        loop.resume()
        if accelerator.is_main_process:
            folder.rewind(loop.state.epoch, loop.state.step)
        loop.fit()
        if accelerator.is_main_process:
            _finish(recipe, folder, loop.state)
        accelerator.wait_for_everyone()
        reporter.close()
    return folder.path


def start_student(recipe: Recipe, rows: Rows) -> MVaEMaModel:
    """The student that a run starts from: `recipe.model`, or a new one for its data.

    Raises:
        ValueError: checkpoints and preset do not fit together.
        OSError: a checkpoint is not there.
    """
    if recipe.model is not None:
        return load_student(recipe.model, recipe.preset)
    return new_student(
        rows.texts,
        rows.captions,
        preset=recipe.preset or "paper",
        vision=recipe.vision,
        vision_layers=recipe.vision_layers,
        text=recipe.text,
        tokenizer=recipe.tokenizer,
        vocab_size=recipe.vocab_size,
        config_overrides=recipe.config_overrides,
    )


def publish(recipe: Recipe) -> None:
    """What the recipe asks to be made of its finished student: merged adapters, an upload."""
    folder = Path(recipe.output_dir)
    if recipe.merge:
        from mvaema.students.lora import merge_adapters

        merge_adapters(folder, folder / "merged")
    if recipe.push_to_hub:
        print(f"uploaded to {push(folder, recipe.push_to_hub, recipe.public)}")


def _accelerator(recipe: Recipe) -> Accelerator:
    if recipe.report_to:
        # Read when trackio is imported; else it would write into the user's cache.
        os.environ["TRACKIO_DIR"] = str((Path(recipe.output_dir) / "trackio").resolve())
        # accelerate would silently do without it.
        importlib.import_module(recipe.report_to)
    return Accelerator(
        # Said explicitly: under torchrun on a machine without a GPU, accelerate would otherwise
        # run as many separate trainings as there are processes.
        cpu=not torch.accelerator.is_available(),
        log_with=recipe.report_to,
        project_dir=recipe.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _trained_part(recipe: Recipe, student: MVaEMaModel) -> torch.nn.Module:
    """The student itself, or wrapped so that only its adapters are trained."""
    if recipe.train_vision is not None or student.config.vision_config is not None:
        train_vision(student, recipe.train_vision or "none")
    if recipe.gradient_checkpointing:
        student.activation_checkpointing_enable({"use_reentrant": False})
    if not recipe.lora:
        return student
    from mvaema.students.lora import add_adapters

    return add_adapters(student, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout)


def _loaders(recipe: Recipe, rows: Rows, student: MVaEMaModel, accelerator: Accelerator) -> Loaders:
    process = ProcessShare(accelerator.process_index, accelerator.num_processes)
    question, processor = student.config.category_question, student.processor
    store = vision = None
    if _sees_once(recipe, student):
        folder = recipe.vision_cache or Path(recipe.output_dir) / "vision_features"
        store = FeatureStore(folder, student, recipe.vision_cache_gb)
        vision = FrozenVision(student, store)
    draws = Draws.of(recipe, recipe.vision_views if store else 0)
    drawn, plain = ExampleDrawer(question, draws, store), ExampleDrawer(question, store=store)
    return Loaders(
        BatchLoader(rows.train, drawn, processor, recipe, process, rows.counts, vision),
        BatchLoader(rows.validation, plain, processor, recipe, process, vision=vision),
    )


def _sees_once(recipe: Recipe, student: MVaEMaModel) -> bool:
    """Whether the features of each view have to be computed but once."""
    frozen = student.config.vision_config is not None and recipe.train_vision in (None, "none")
    return frozen and recipe.vision_views > 0


def _facts(rows: Rows, model: torch.nn.Module, accelerator: Accelerator) -> dict:
    """What run.json says of the size of a run."""
    parameters = list(model.parameters())
    return {
        "train_micrographs": len(rows.train),
        "validation_micrographs": len(rows.validation),
        "skipped_micrographs": rows.skipped,
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
    }


def _finish(recipe: Recipe, folder: RunFolder, state: TrainingState) -> None:
    """Loss curves, model card, merged adapters, upload."""
    if state.log:
        loss_curves(state.log, folder.path / "losses.png")
    folder.note(finished=True, best_epoch=state.best_epoch, epochs=state.epoch)
    write_card(folder.path, recipe.push_to_hub)
    publish(recipe)
