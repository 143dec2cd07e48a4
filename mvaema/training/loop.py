"""The training loop: a student from a micrograph dataset, with accelerate.

What is special about it:
- `batch_size` is the global one: the losses of a step are the same on one process and on several;
- a killed run goes on by the same command, and on a CPU to the same bits: what a batch holds
  depends on seed, epoch and row, and everything else is in the checkpoint;
- a loss that is not a number, or ten times what it was, stops the run before it touches the
  weights; the ids of that batch are written down;
- the student that is kept is the one with the lowest validation loss, and it is a complete model
  repository (or LoRA adapters) from the first epoch on.
"""

import dataclasses
import importlib
import os
import signal
import statistics
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.utils import gather_object, set_seed
from tqdm import tqdm

from configuration_mvaema import PRESETS, MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.figures import loss_curves
from mvaema.files import write_json
from mvaema.students.card import write_card
from mvaema.students.hub import push, require_token
from mvaema.students.lora import add_adapters, load_student, merge_adapters, save_adapters
from mvaema.students.repository import save_repository
from mvaema.students.warm_start import from_encoders
from mvaema.training.batches import Batch, BatchLoader, Rows, load_rows
from mvaema.training.recipe import Recipe, fingerprint
from mvaema.training.resume import Checkpoints
from mvaema.training.run_folder import RunFolder
from mvaema.training.samples import format_samples, sample_answers
from processing_mvaema import MVaEMaProcessor, train_tokenizer

LOSSES = ("loss", "itc_loss", "itm_loss", "lm_loss")


class TrainingFailed(RuntimeError):
    """The loss became useless; the message names the file with the batch's ids."""


class Interrupted(RuntimeError):
    """A signal has ended the run; it can be gone on with.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number


@dataclass
class Progress:
    """Where a run stands; goes into its checkpoints as JSON.

    Attributes:
        epoch: epochs done.
        batch: batches done of the next one.
        step: optimizer steps done.
        best, best_epoch: lowest validation loss, and the epoch (from 1) that had it.
        sums, rows: of the epoch's losses, and the micrographs they are of.
        truncated, skipped: answers cut and unreadable images met in this epoch.
        seconds: spent on this epoch.
        recent: the last losses.
        log: a record per epoch.
        scheduler: state of the learning rate's.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = float("inf")
    best_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    truncated: int = 0
    skipped: int = 0
    seconds: float = 0.0
    recent: list[float] = field(default_factory=list)
    log: list[dict] = field(default_factory=list)
    scheduler: dict | None = None


def build_model(recipe: Recipe, rows: Rows) -> MVaEMaModel:
    """The student a run starts from: a given one, or a new one from scratch or from encoders.

    Raises:
        ValueError: checkpoints and preset do not fit together.
    """
    if recipe.model is not None:
        model = load_student(recipe.model)
        shapes = PRESETS[recipe.preset] if recipe.preset else {}
        differing = [n for n, value in shapes.items() if getattr(model.config, n) != value]
        if differing:
            raise ValueError(
                f"{recipe.model} is no student of the preset {recipe.preset!r} (it differs in "
                f"{', '.join(differing)}): leave --preset out, or name another --model."
            )
        return model
    questions, captions, bars, answers = {}, rows.captions, set(), []
    for row in rows.texts:
        questions |= {qa["question_id"]: qa["question"] for qa in row["qa"]}
        answers += [qa["answer"] for qa in row["qa"] if qa["outcome"] == "ok"]
        if row["scale_bar"]:
            bars.add(row["scale_bar"])
    fields = {**PRESETS[recipe.preset or "paper"], "questions": questions}
    if not captions.keys() <= MVaEMaConfig.from_preset("paper").categories.keys():
        fields["categories"] = captions  # a lab's own
    if recipe.config_overrides:
        overridden = MVaEMaConfig(**fields)
        overridden.update_from_string(recipe.config_overrides)
        names = [entry.split("=")[0] for entry in recipe.config_overrides.split(",")]
        fields |= {name: getattr(overridden, name) for name in names}
    if recipe.text is not None:
        if recipe.tokenizer is not None:
            raise ValueError("--text brings its own tokenizer: leave --tokenizer out.")
        return from_encoders(recipe.vision, recipe.text, **fields)
    defaults = MVaEMaConfig(**fields)
    limit, tokenizer = defaults.max_position_embeddings, recipe.tokenizer
    if tokenizer is None:
        texts = [
            *questions.values(),
            *sorted(set(captions.values())),
            defaults.category_question,
            *(MVaEMaProcessor.prompt("?", scale_bar=bar) for bar in sorted(bars)),
            *answers,
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


def train(recipe: Recipe) -> Path:
    """Train a student and keep the best one; a run that was killed is gone on with.

    Returns:
        `output_dir` (see `mvaema/training/run_folder.py`), at once when the run in it is finished.

    Raises:
        DatasetError: the dataset cannot be used.
        FileExistsError: `output_dir` holds something else.
        ModuleNotFoundError: what `report_to` needs is not installed.
        ValueError: settings contradict each other or the checkpoint.
        TrainingFailed: the loss became useless.
        Interrupted: SIGTERM or SIGINT; a checkpoint was written first.
    """
    folder = RunFolder(recipe)
    if recipe.push_to_hub:
        require_token()
    if recipe.report_to:
        # Read when trackio is imported; else it would write into the user's cache.
        os.environ["TRACKIO_DIR"] = str((folder.path / "trackio").resolve())
        # accelerate would do without and not say so.
        importlib.import_module(recipe.report_to)
    accelerator = Accelerator(
        # Said explicitly: under torchrun on a machine without a GPU, accelerate would otherwise
        # run as many separate trainings as there are processes.
        cpu=not torch.accelerator.is_available(),
        log_with=recipe.report_to,
        project_dir=recipe.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if folder.finished:
        if accelerator.is_main_process:
            publish(recipe, folder.path)
        return folder.path
    with accelerator.main_process_first():  # the others find its cached look at the images
        rows = load_rows(recipe)
    with Signals() as signals, ExitStack() as stack:
        run = Run(recipe, rows, folder, accelerator, signals)
        if accelerator.is_main_process:
            stack.enter_context(folder.locked())
        run.start()
        run.fit()
        run.finish()
    return folder.path


def publish(recipe: Recipe, folder: Path) -> None:
    """What the recipe asks to be made of a finished run: merged adapters, an upload."""
    if recipe.merge:
        merge_adapters(folder, folder / "merged")
    if recipe.push_to_hub:
        url = push(folder, recipe.hub_model_id, private=not recipe.hub_public)
        print(f"uploaded to {url}")


class Run:
    """One training run on one set of rows: `start`, `fit`, `finish`, on every process."""

    def __init__(
        self,
        recipe: Recipe,
        rows: Rows,
        folder: RunFolder,
        accelerator: Accelerator,
        signals: "Signals",
    ):
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.signals = signals
        self.validation_rows = rows.validation
        self.is_main = accelerator.is_main_process

        set_seed(recipe.seed)
        student = build_model(recipe, rows)
        self.config, self.processor = student.config, student.processor
        if recipe.gradient_checkpointing:
            student.activation_checkpointing_enable({"use_reentrant": False})
        model = student
        if recipe.lora:
            model = add_adapters(student, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout)
        trainable = [p for p in model.parameters() if p.requires_grad]
        set_seed(recipe.seed + accelerator.process_index)  # dropout differs between processes
        # A loss that is switched off leaves parameters without a gradient.
        weights = (self.config.itc_weight, self.config.itm_weight, self.config.lm_weight)
        accelerator.ddp_handler.find_unused_parameters = not all(weights)

        def loader(rows, training: bool) -> BatchLoader:
            return BatchLoader(
                rows,
                self.processor,
                self.config.category_question,
                recipe,
                training,
                accelerator.process_index,
                accelerator.num_processes,
            )

        self.train_loader = loader(rows.train, True)
        self.validation_loader = loader(rows.validation, False)
        optimizer = torch.optim.Adam(trainable, lr=recipe.learning_rate, fused=True)
        # Not prepared: a prepared ReduceLROnPlateau steps once per process. Its patience is the
        # number of epochs it still endures.
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=recipe.patience - 1, threshold=0
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.checkpoints = Checkpoints(folder.path / "checkpoints", accelerator)
        self.progress = Progress()
        self.facts = {
            "train_micrographs": len(rows.train),
            "validation_micrographs": len(rows.validation),
            "skipped_micrographs": rows.skipped,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable_parameters": sum(p.numel() for p in trainable),
            "processes": accelerator.num_processes,
            "device": str(accelerator.device),
            "mixed_precision": accelerator.mixed_precision,
        }
        self.fingerprint = fingerprint(rows.texts)

    # ---- begin and end -----------------------------------------------------------------------

    def start(self) -> None:
        """Take the folder, and go on where a killed run was."""
        self.accelerator.wait_for_everyone()  # all have looked at the folder
        if self.is_main:
            self.folder.claim(self.fingerprint, **self.facts)
        if self.recipe.report_to:
            self.accelerator.init_trackers("mvaema")
        facts = self.facts
        self.say(
            f"{facts['train_micrographs']:,} micrographs to train on, "
            f"{facts['validation_micrographs']:,} to validate; {facts['parameters']:,} parameters, "
            f"{facts['trainable_parameters']:,} trained; {facts['device']}, "
            f"{facts['processes']} process(es)."
        )
        if skipped := facts["skipped_micrographs"]:
            self.say(f"{len(skipped)} unreadable and left out: {', '.join(skipped[:10])}")
        state = self.checkpoints.restore()
        if state is not None:
            state.pop("processes")
            self.progress = Progress(**state)
            self.scheduler.load_state_dict(self.progress.scheduler)
            self.say(
                f"going on in epoch {self.progress.epoch + 1}, after step {self.progress.step:,}"
            )
        if self.is_main:
            self.folder.rewind(self.progress.epoch, self.progress.step)

    def finish(self) -> None:
        """Close the run: loss curves, model card, merged adapters, upload."""
        if self.is_main:
            path, recipe = self.folder.path, self.recipe
            if self.progress.log:
                loss_curves(self.progress.log, path / "losses.png")
            self.folder.note(
                finished=True, best_epoch=self.progress.best_epoch, epochs=self.progress.epoch
            )
            write_card(path, recipe.hub_model_id)
            publish(recipe, path)
        self.accelerator.wait_for_everyone()
        # Not `end_training`, which ends the processes' group: another fold may follow.
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def say(self, text: str) -> None:
        if self.is_main:
            tqdm.write(text)

    # ---- the loop ----------------------------------------------------------------------------

    def fit(self) -> None:
        """Epochs until the last one, or until nothing gets better."""
        recipe, progress = self.recipe, self.progress
        steps = -(-len(self.train_loader) // recipe.gradient_accumulation_steps)
        total = recipe.epochs * steps
        with tqdm(total=total, initial=progress.step, unit="step", disable=not self.is_main) as bar:
            while progress.epoch < recipe.epochs:
                if progress.epoch - progress.best_epoch >= recipe.stop_after:
                    self.say(f"no better validation loss for {recipe.stop_after} epochs: done.")
                    break
                self.train_epoch(bar)
                self.end_epoch()

    def train_epoch(self, bar: tqdm) -> None:
        """The rest of the epoch that `progress` stands in."""
        recipe, progress, parts = (
            self.recipe,
            self.progress,
            self.recipe.gradient_accumulation_steps,
        )
        bar.set_description(f"epoch {progress.epoch + 1}/{recipe.epochs}")
        self.model.train()
        clock = time.perf_counter()
        for batch in self.train_loader.epoch(progress.epoch, progress.batch):
            progress.batch += 1
            last = progress.batch % parts == 0 or progress.batch == len(self.train_loader)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                output = self.model(**self._on_device(batch))
                values = self._reduced(output, batch)
                self._check(values, batch)
                self.accelerator.backward(output.loss / parts)
            self._count(values, len(batch.image_ids) * self.accelerator.num_processes)
            if values["skipped"]:
                self._note_skipped(batch)
            if not last:
                continue
            progress.step += 1
            if progress.step <= recipe.warmup_steps:
                for group in self.optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * progress.step / recipe.warmup_steps
            self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            bar.update()
            bar.set_postfix({n: f"{v / progress.rows:.3f}" for n, v in progress.sums.items()})
            if progress.step % recipe.logging_steps == 0 and self.is_main:
                losses = {n: values[n] for n in progress.sums}
                record = {"step": progress.step, "learning_rate": self._learning_rate(), **losses}
                self.folder.append("steps", record)
            if progress.step % recipe.logging_steps == 0:
                shown = {f"train/{n}": values[n] for n in progress.sums}
                shown["learning_rate"] = self._learning_rate()
                self.accelerator.log(shown, step=progress.step)
            if values["stop"] or progress.step % recipe.checkpoint_steps == 0:
                now = time.perf_counter()
                progress.seconds, clock = progress.seconds + now - clock, now
                self._stop() if values["stop"] else self._checkpoint()
        progress.seconds += time.perf_counter() - clock

    def end_epoch(self) -> None:
        """Validate, keep the student if it is the best, write down how the epoch went."""
        progress = self.progress
        clock = time.perf_counter()
        train = {name: total / progress.rows for name, total in progress.sums.items()}
        validation = self.validate()
        learning_rate = self._learning_rate()
        self.scheduler.step(validation["loss"])
        improved = validation["loss"] < progress.best
        progress.epoch += 1
        if improved:
            progress.best, progress.best_epoch = validation["loss"], progress.epoch
            self._save_student()
        record = {
            "epoch": progress.epoch,
            "learning_rate": learning_rate,
            "seconds": round(progress.seconds + time.perf_counter() - clock, 2),
            "train": train,
            "validation": validation,
        }
        record |= {
            n: getattr(progress, n) for n in ("truncated", "skipped") if getattr(progress, n)
        }
        progress.log.append(record)
        if self.is_main:
            self.folder.append("training_log", record)
        self.accelerator.log(
            {f"validation/{name}": value for name, value in validation.items()}, step=progress.step
        )
        self.say(
            f"epoch {progress.epoch:3d}  "
            + "  ".join(f"{n} {train[n]:.3f}/{validation[n]:.3f}" for n in train)
            + f"  {record['seconds']:.0f} s"
            + (f"  {progress.truncated} answers cut" if progress.truncated else "")
            + (f"  {progress.skipped} micrographs skipped" if progress.skipped else "")
            + ("  saved" if improved else "")
        )
        self._show_samples()
        progress.batch = progress.rows = progress.truncated = progress.skipped = 0
        progress.seconds, progress.sums = 0.0, {}
        self._checkpoint()

    def validate(self) -> dict[str, float]:
        """Mean losses over the validation micrographs."""
        self.model.eval()
        sums, rows = {}, 0
        with torch.no_grad():
            for batch in self.validation_loader.epoch(0):
                values = self._reduced(self.model(**self._on_device(batch)), batch)
                if values["stop"]:  # the epoch's training is done, and need not be done again
                    self._stop()
                count = len(batch.image_ids)
                for name in LOSSES:
                    if name in values:
                        sums[name] = sums.get(name, 0.0) + values[name] * count
                rows += count
        return {name: total / rows for name, total in sums.items()}

    # ---- parts of a step ---------------------------------------------------------------------

    def _on_device(self, batch: Batch) -> dict[str, torch.Tensor]:
        device = self.accelerator.device
        return {n: t.to(device, non_blocking=True) for n, t in batch.inputs.items()}

    def _reduced(self, output, batch: Batch) -> dict[str, float]:
        """Losses over all processes, and what any of them has to say, in one message."""
        names = [name for name in LOSSES if output.get(name) is not None]
        told = [float(batch.truncated), float(len(batch.skipped)), float(self.signals.received)]
        own = torch.stack([output[name].detach().float() for name in names])
        values = self.accelerator.reduce(torch.cat([own, own.new_tensor(told)]), "mean").tolist()
        reduced = dict(zip([*names, "truncated", "skipped", "stop"], values, strict=True))
        for name in ("truncated", "skipped"):
            reduced[name] = round(reduced[name] * self.accelerator.num_processes)
        return reduced

    def _count(self, values: dict[str, float], rows: int) -> None:
        progress = self.progress
        for name in LOSSES:
            if name in values:
                progress.sums[name] = progress.sums.get(name, 0.0) + values[name] * rows
        progress.rows += rows
        progress.truncated += values["truncated"]
        progress.skipped += values["skipped"]
        progress.recent = [*progress.recent[-99:], values["loss"]]

    def _check(self, values: dict[str, float], batch: Batch) -> None:
        """Refuse a loss that is useless, before it has reached the weights."""
        loss, recent = values["loss"], self.progress.recent
        usual = statistics.median(recent) if len(recent) >= 20 else float("inf")
        if loss < 10 * usual:  # false for NaN
            return
        file = self.folder.path / "failed_batch.json"
        ids = gather_object(batch.image_ids)
        if self.is_main:
            failure = {
                "epoch": self.progress.epoch + 1,
                "step": self.progress.step + 1,
                "losses": {n: str(values[n]) for n in LOSSES if n in values},
                "median_loss": str(usual),
                "image_ids": ids,
            }
            write_json(file, failure)
        raise TrainingFailed(
            f"the loss is {loss} in step {self.progress.step + 1} of epoch "
            f"{self.progress.epoch + 1}; the ids of its micrographs are in {file}. The weights are "
            "untouched: look at these micrographs, or start again with a lower --learning_rate."
        )

    def _note_skipped(self, batch: Batch) -> None:
        skipped = gather_object(batch.skipped)
        if self.is_main:
            step = self.progress.step + 1
            self.folder.append("skipped", *({"step": step, "image_id": i} for i in skipped))

    def _learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    # ---- what is kept ------------------------------------------------------------------------

    def _checkpoint(self) -> str | None:
        self.progress.scheduler = self.scheduler.state_dict()
        state = dataclasses.asdict(self.progress)
        failure = self.checkpoints.save(self.progress.step, state)
        if failure:
            self.say(
                f"WARNING: no checkpoint after step {self.progress.step:,} ({failure}); the last "
                "good one is kept."
            )
        return failure

    def _stop(self) -> NoReturn:
        failure = self._checkpoint()
        saved = f"and could not be saved ({failure})" if failure else "and is saved"
        raise Interrupted(
            self.signals.received or signal.SIGTERM,  # of another process
            f"interrupted after step {self.progress.step:,}, {saved}; the same command goes on "
            f"with {self.folder.path}",
        )

    def _save_student(self) -> None:
        state = self.accelerator.get_state_dict(self.model)  # all processes, where it is sharded
        if not self.is_main:
            return
        model = self.accelerator.unwrap_model(self.model)
        if self.recipe.lora:
            save_adapters(model, self.folder.path, self.recipe.model)
        else:
            save_repository(model, self.folder.path, state)

    def _show_samples(self) -> None:
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if not self.recipe.sample_micrographs or sharded or not self.is_main:
            return
        model = self.accelerator.unwrap_model(self.model)
        samples = sample_answers(model, self.validation_rows, self.recipe.sample_micrographs)
        self.folder.append("samples", *({"epoch": self.progress.epoch, **s} for s in samples))
        text = format_samples(samples)
        self.say(text)
        self.accelerator.log({"samples": text}, step=self.progress.step)


class Signals:
    """SIGTERM and SIGINT ask a run to stop after its step; the second one stops at once.

    Attributes:
        received: number of the signal, 0 if there was none.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received = 0

    def __enter__(self) -> "Signals":
        self.before = {number: signal.signal(number, self._receive) for number in self.NUMBERS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
