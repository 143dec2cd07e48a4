"""What it costs to feed a training run: memory, waiting, padding, decoding; and which views it has.

    python benchmarks/data_feeding.py stream --rows 20000
    nice python benchmarks/data_feeding.py stream --rows 1000000 --batches 1000
    OMP_NUM_THREADS=1 python benchmarks/data_feeding.py waiting --micrographs data/micrographs
    OMP_NUM_THREADS=1 python benchmarks/data_feeding.py padding --micrographs data/micrographs
    python benchmarks/data_feeding.py views --micrographs data/micrographs
    python benchmarks/data_feeding.py decoding

`stream` writes `--rows` small micrographs with answers as Parquet shards, finds their folds, and
reads `--batches` of an epoch (default: all) in a fresh process, without and with a worker.
`waiting` trains the `paper` preset for a few steps with 0, 1 and 2 workers. `padding` counts the
tokens of a few epochs with and without length bucketing. `views` counts how often answers contain
words that limit a view. `decoding` compares JPEGs read whole with Pillow's draft mode, which
decodes at a reduced size.
"""

import argparse
import collections
import dataclasses
import io
import itertools
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from million_rows import drawn, encoded, fields, measured
from PIL import Image

from configuration_mvaema import QUESTIONS, MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.micrographs.dataset import load_micrographs
from mvaema.micrographs.schema import pixel_hash
from mvaema.micrographs.shards import write_shards
from mvaema.training.batches import BatchLoader
from mvaema.training.examples import Draws, ExampleDrawer
from mvaema.training.recipe import Recipe
from mvaema.training.split import Rows, good_answers, load_rows
from mvaema.training.views import CUT_OFF, survives_close_up, transposes
from processing_mvaema import MVaEMaProcessor, train_tokenizer


def student(rows: Rows) -> MVaEMaModel:
    """A new `paper` student with a tokenizer for these rows."""
    texts = [text for qa in rows.texts["qa"] for pair in good_answers(qa) for text in pair]
    tokenizer = train_tokenizer(texts)
    processor = MVaEMaProcessor.from_tokenizer(tokenizer)
    torch.manual_seed(0)
    model = MVaEMaModel(MVaEMaConfig.from_preset("paper", **processor.token_fields()))
    model.processor = processor
    return model


# ---------------------------------------------------------------------------- stream


def answers(number: int) -> list[dict]:
    words = ("smooth", "rough", "bright", "dark", "round", "flat", "fused", "separate")
    said = " ".join(words[number >> shift & 7] for shift in range(0, 18, 3))
    return [
        {
            "question_id": name,
            "question": text,
            "answer": f"Discs, {name}: {said}.",
            "outcome": "ok",
        }
        for name, text in itertools.islice(QUESTIONS.items(), 4)
    ]


def stage_write(folder: Path, count: int) -> str:
    rows = (
        {
            "image": {"bytes": encoded(number)},
            "image_id": pixel_hash(drawn(number)),
            "qa": answers(number),
            **fields(number),
        }
        for number in range(count)
    )
    shards = write_shards(rows, folder, total=count)
    return f"{len(shards)} shards, {sum(p.stat().st_size for p in shards) / 2**30:.2f} GiB"


def stream_recipe(folder: Path, workers: int) -> Recipe:
    return Recipe(str(folder), "", streaming=True, workers=workers)


def stage_folds(folder: Path, count: int) -> str:
    rows = load_rows(stream_recipe(folder, 0))
    return f"{len(rows.train):,} to train on, {len(rows.validation):,} to validate"


def read_epoch(folder: Path, batches: int, workers: int) -> str:
    recipe = stream_recipe(folder, workers)
    rows = load_rows(recipe)
    drawer = ExampleDrawer("Which?", Draws.of(recipe))
    loader = BatchLoader(rows.train, drawer, student(rows).processor, recipe)
    seen, started = 0, time.perf_counter()
    for batch in itertools.islice(loader.epoch(0), batches or None):
        seen += len(batch.image_ids)
    rate = seen / (time.perf_counter() - started)
    del loader
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    said = f"{seen:,} micrographs of an epoch, {rate:.0f} a second"
    return said + (f"; the worker {worker:.2f} GiB resident" if workers else "")


def stage_epoch(folder: Path, batches: int) -> str:
    return read_epoch(folder, batches, 0)


def stage_epoch_worker(folder: Path, batches: int) -> str:
    return read_epoch(folder, batches, 1)


def stream(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ["HF_DATASETS_CACHE"] = f"{name}/cache"
        folder = args.folder or Path(name) / "data"
        stages = [
            (stage_folds, args.rows),
            (stage_epoch, args.batches),
            (stage_epoch_worker, args.batches),
        ]
        if not folder.exists():
            stages.insert(0, (stage_write, args.rows))
        print(f"{'stage':14}{'seconds':>9}{'own GiB':>9}{'resident':>10}")
        context = multiprocessing.get_context("spawn")
        for stage, count in stages:
            results = context.Queue()
            process = context.Process(target=measured, args=(stage, folder, count, results))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{stage.__name__} failed; see above.")
            said, seconds, own, resident = results.get()
            label = stage.__name__.removeprefix("stage_")
            print(f"{label:14}{seconds:9.1f}{own:9.2f}{resident:10.2f}   {said}", flush=True)


# ---------------------------------------------------------------------------- steps


def micrographs(args: argparse.Namespace) -> tuple[Recipe, Rows]:
    recipe = Recipe(str(args.micrographs), "", seed=args.seed, workers=args.workers)
    return recipe, load_rows(recipe)


def waiting(args: argparse.Namespace) -> None:
    recipe, rows = micrographs(args)
    print(f"{'workers':>8}{'step s':>9}{'waiting':>9}")
    for workers in (0, 1, 2):
        model = student(rows)
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
        loader = BatchLoader(
            rows.train,
            ExampleDrawer(model.config.category_question, Draws.of(recipe)),
            model.processor,
            dataclasses.replace(recipe, workers=workers),
        )
        batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
        waited = computed = 0.0
        for step in range(args.steps + 1):
            start = time.perf_counter()
            batch = next(batches)
            arrived = time.perf_counter()
            model(**batch.inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step:  # the first waits for the workers to start
                waited += arrived - start
                computed += time.perf_counter() - arrived
        total = waited + computed
        print(f"{workers:8}{total / args.steps:9.2f}{waited / total:9.1%}", flush=True)


def padding(args: argparse.Namespace) -> None:
    recipe, rows = micrographs(args)
    model = student(rows)
    names = {"input_ids": "questions", "labels": "answers", "statement_ids": "statements"}
    print(
        f"{'bucketing':10}{'seconds':>8}{'tokens':>10}{'padding':>9}"
        + "".join(f"{name:>12}" for name in names.values())
    )
    for bucketing in (False, True):
        changed = dataclasses.replace(recipe, length_bucketing=bucketing)
        drawer = ExampleDrawer(model.config.category_question, Draws.of(changed))
        loader = BatchLoader(rows.train, drawer, model.processor, changed)
        tokens, words, start = collections.Counter(), 0, time.perf_counter()
        for batch in itertools.chain.from_iterable(map(loader.epoch, range(args.epochs))):
            for name in names:
                tokens[name] += batch.inputs[name].numel()
            words += int(batch.inputs["attention_mask"].sum())
            words += int(batch.inputs["statement_mask"].sum())
            words += int((batch.inputs["labels"] != -100).sum())
        spent = time.perf_counter() - start
        print(
            f"{bucketing!s:10}{spent:8.1f}{tokens.total():10,}{1 - words / tokens.total():9.1%}"
            + "".join(f"{tokens[name]:12,}" for name in names),
            flush=True,
        )


# ---------------------------------------------------------------------------- views


def views(args: argparse.Namespace) -> None:
    rows = load_micrographs(args.micrographs).remove_columns("image")
    said = [text for row in rows for _, text in good_answers(row["qa"])]
    of_answers = collections.Counter(len(transposes([text])) for text in said)
    survive = sum(map(survives_close_up, said))
    print(f"{len(said):,} answers: {survive / len(said):.1%} survive a close-up")
    names = ("sense", "side", "up or down", "place", "overlay", "count", "share", "%")
    for name, pattern in zip(names, CUT_OFF, strict=True):
        print(f"  name a {name:12}{sum(bool(pattern.search(t)) for t in said) / len(said):7.1%}")
    for count, found in sorted(of_answers.items()):
        print(f"  allow {count} of 8 flips and turns{found / len(said):7.1%}")
    recipe = Recipe(str(args.micrographs), "", seed=args.seed)
    drawer = ExampleDrawer("Which category?", Draws.of(recipe))
    allowed, close_ups, total = collections.Counter(), 0, 0
    for epoch, (number, row) in itertools.product(range(10), enumerate(rows)):
        texts = drawer.draw(row, number, epoch)
        words = [text for pair in texts.pairs for text in pair] + texts.statements
        allowed[len(transposes(words))] += 1
        close_ups += texts.close_up
        total += 1
    print(f"micrographs as drawn in 10 epochs: {close_ups / total:.1%} close-ups")
    for count, found in sorted(allowed.items()):
        print(f"  allow {count} of 8 flips and turns{found / total:7.1%}")


# ---------------------------------------------------------------------------- decoding


def decoding(args: argparse.Namespace) -> None:
    """Discs and grain at the size of the SEM dataset of Aversa et al., to 224 pixels."""
    rng = np.random.default_rng(args.seed)
    y, x = np.mgrid[:768, :1024]
    pixels = rng.normal(60, 12, (768, 1024))
    for cx, cy, radius, grey in rng.uniform((0, 0, 10, 60), (1024, 768, 90, 160), (60, 4)):
        pixels[np.hypot(x - cx, y - cy) < radius] += grey / 2
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    size, results = (224, 224), {}
    for form, options in (("JPEG", {"quality": 90}), ("PNG", {})):
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        for draft in (False, True):
            start = time.perf_counter()
            for _ in range(args.steps):
                opened = Image.open(io.BytesIO(buffer.getvalue()))
                if draft:
                    opened.draft(None, size)
                small = opened.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
            spent = (time.perf_counter() - start) / args.steps
            results[form, draft] = np.asarray(small, float)
            difference = np.abs(results[form, draft] - results[form, False]).mean()
            print(
                f"{form:5}{'draft' if draft else 'whole':6} {opened.size} {1000 * spent:6.1f} ms, "
                f"differs by {difference:.2f} grey levels"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = {f.__name__: f for f in (stream, waiting, padding, views, decoding)}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=0, help="of a streamed epoch (all)")
    parser.add_argument(
        "--folder", type=Path, help="where shards are kept and found again (a temporary folder)"
    )
    parser.add_argument("--micrographs", type=Path, help="a real micrograph dataset")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="of `padding`")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    commands[args.command](args)


if __name__ == "__main__":
    main()
