"""`mvaema synthetic`: a new dataset, one that is resumed, one that is refused."""

from datasets import load_dataset

from mvaema.commands.synthetic import main
from mvaema.micrographs.schema import FEATURES, pixel_hash


def test_the_command_writes_resumes_and_refuses(tmp_path, capsys):
    folder = tmp_path / "synthetic"
    common = ["--output_dir", str(folder), "--size", "96", "--workers", "0", "--validation", "0.25"]
    assert main(["--count", "24", *common]) == 0
    dataset = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in dataset.items()} == {"train": 18, "validation": 6}
    assert dataset["train"].features == FEATURES
    assert not set(dataset["train"]["group"]) & set(dataset["validation"]["group"])
    first = dataset["train"][0]
    assert pixel_hash(first["image"]) == first["image_id"] and first["image"].size == (96, 96)
    card = (folder / "README.md").read_text("utf-8")
    assert "Every image in this dataset is simulated" in card
    assert "18 training and 6 validation images, 96 × 96 pixels" in card
    assert "mvaema synthetic --count 24 --seed 0 --validation 0.25 --views 2 --size 96" in card

    # A larger count adds rows, and keeps those that are there.
    assert main(["--count", "32", *common]) == 0
    grown = load_dataset(str(folder), cache_dir=str(tmp_path / "cache2"))
    assert grown["train"]["image_id"][:18] == dataset["train"]["image_id"]
    assert grown["train"].num_rows == 24 and len(set(grown["train"]["image_id"])) == 24

    # Other settings do not mix into it.
    before = sorted(path.name for path in folder.iterdir())
    assert main(["--count", "32", "--seed", "1", *common]) == 1
    assert "was made with another seed or other settings" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before
    assert main(["--count", "0", *common]) == 1
    assert "count must be at least 1" in capsys.readouterr().err
