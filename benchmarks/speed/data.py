"""From files to tensors, and what of a training step is spent waiting for them.

The micrographs are 8-bit grayscale of 1024 x 768 pixels, put together from synthetic ones, so that
they have noise at their full size, which is what makes decoding slow.
"""

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers.utils import is_torchvision_available

from benchmarks.speed import inference, measure
from benchmarks.speed.report import Comparison
from benchmarks.speed.settings import Settings
from benchmarks.speed.training import training_step
from benchmarks.speed.workload import processor
from configuration_mvaema import MVaEMaConfig
from mvaema.micrographs.dataset import decode_image, load_micrographs
from mvaema.micrographs.shards import write_shards
from mvaema.synthetic.dataset import SyntheticSplit, rows
from mvaema.training.batches import BatchLoader
from mvaema.training.examples import Draws, ExampleDrawer
from mvaema.training.recipe import Recipe

RENDERED, WIDTH, HEIGHT = 512, 1024, 768
FORMATS = {
    "JPEG": (".jpg", {"quality": 90}),
    "TIFF": (".tif", {}),
    "PNG": (".png", {}),
}


def write_micrographs(folder: Path, count: int) -> Dataset:
    """`count` micrographs in each file format, in folders named by them, and as Parquet."""
    made = []
    for number, row in enumerate(rows(SyntheticSplit(seed=1, size=RENDERED), count)):
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        image = Image.fromarray(np.tile(pixels, (2, 2))[:HEIGHT, :WIDTH])
        for name, (suffix, options) in FORMATS.items():
            (folder / name).mkdir(exist_ok=True)
            image.save(folder / name / f"{number:04d}{suffix}", **options)
        made.append(row | {"image": image})
    write_shards(made, folder / "Parquet", progress=False)
    return load_micrographs(folder / "Parquet")


def blip_processors(config: MVaEMaConfig) -> dict[str, Callable]:
    """The image processors of BLIP that can run here, at our image size."""
    found = {"BLIP": inference.image_processor_of_blip(config)}
    if is_torchvision_available():
        from transformers import BlipImageProcessor

        size = {"height": config.image_size, "width": config.image_size}
        found["BLIP, torchvision"] = BlipImageProcessor(size=size)
    return found


def read(settings: Settings) -> Iterator[Comparison]:
    """Micrographs per second, one process, from each format to `pixel_values`."""
    config, count = settings.workload().config(), settings.batch or 24
    ours = processor(config).image_processor
    theirs = blip_processors(config)

    def ours_from(paths):
        return ours(paths, return_tensors="pt")["pixel_values"]

    def theirs_from(paths, process):
        # As in their documentation: an image is opened before it is processed.
        return process([Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]

    def decode(paths):
        for path in paths:
            Image.open(path).load()

    with tempfile.TemporaryDirectory() as name:
        dataset = write_micrographs(Path(name), count)
        decoded = dataset.cast_column("image", ImageFeature())
        cases = {
            "Parquet": {
                "ours": lambda: ours([decode_image(row) for row in dataset], return_tensors="pt"),
                "decoding alone": lambda: [decode_image(row) for row in dataset],
            }
            | {
                who: lambda process=process: process(
                    [row["image"] for row in decoded], return_tensors="pt"
                )
                for who, process in theirs.items()
            }
        }
        for kind in FORMATS:
            paths = sorted(str(path) for path in (Path(name) / kind).iterdir())
            cases[kind] = {
                "ours": lambda paths=paths: ours_from(paths),
                "decoding alone": lambda paths=paths: decode(paths),
            } | {
                who: lambda paths=paths, process=process: theirs_from(paths, process)
                for who, process in theirs.items()
            }
        for kind, functions in cases.items():
            times = measure.alternate(functions, settings.repeats, settings.clock)
            rates = {who: count / median(seconds) for who, seconds in times.items()}
            for who in (*theirs, "decoding alone"):
                yield Comparison(
                    f"read {kind}",
                    settings.preset,
                    "micrographs/s",
                    rates["ours"],
                    who,
                    rates[who],
                    measure.ratio(times[who], times["ours"]),
                    details={"seconds": {w: times[w] for w in ("ours", who)}},
                )


def wait(settings: Settings) -> Iterator[Comparison]:
    """Share of training with all losses that is spent waiting for the next batch.

    "Ours" is with one worker, as the recipe has it; "no worker" prepares batches in between.
    """
    steps = 4
    workload = settings.workload(losses="all", questions=4)
    model, optimize = training_step("ours", workload)

    def share(batches: Iterator) -> float:
        waited, start = 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            inputs = next(batches).inputs
            waited += time.perf_counter() - asked
            optimize({name: tensor.to(workload.device) for name, tensor in inputs.items()})
            measure.synchronize()
        return waited / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as name:
        dataset = write_micrographs(Path(name), 24)
        # As many rows as the turns take, over and over.
        wanted = workload.batch * (steps + 4)
        dataset = dataset.select(np.resize(np.arange(len(dataset)), wanted))
        loaders = {
            who: BatchLoader(
                dataset,
                ExampleDrawer(model.config.category_question, Draws()),
                processor(model.config),
                Recipe(name, name, batch_size=workload.batch, workers=workers),
            )
            for who, workers in {"ours": 1, "no worker": 0}.items()
        }
        shares = {who: [] for who in loaders}
        for turn in range(settings.repeats):
            for who, loader in loaders.items():
                batches = loader.epoch(turn)
                next(batches)  # the worker's start
                shares[who].append(share(batches))
                batches.close()
    yield Comparison(
        "waiting for data, 1 worker",
        settings.preset,
        "% of a step",
        100 * median(shares["ours"]),
        "no worker",
        100 * median(shares["no worker"]),
        measure.ratio(shares["ours"], shares["no worker"]),
        details={"shares": shares},
    )
