"""Building datasets: what comes in, what is refused, and what a kill leaves behind."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset
from PIL import Image as PILImage
from support import ROOT

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.commands.build import main
from mvaema.micrographs.build import build
from mvaema.micrographs.schema import FEATURES, QA_FEATURES, pixel_hash
from mvaema.micrographs.shards import shard_paths, write_shards
from mvaema.micrographs.sources import DatasetSource, Entry, FolderSource, Labelling, TableSource


def picture(seed: int, size=(24, 16)) -> PILImage.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    return PILImage.fromarray(pixels)


def row(seed: int) -> dict:
    image = picture(seed)
    return {"image": image, "image_id": pixel_hash(image), "group": f"g{seed % 3}"}


def save(path: Path, seed: int, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, **options)
    return path


def load(folder: Path, split="train") -> Dataset:
    with tempfile.TemporaryDirectory() as cache:
        return load_dataset(str(folder), split=split, cache_dir=cache, keep_in_memory=True)


def table(folder: Path, split="train") -> dict[str, dict]:
    """The private table, by file name."""
    path = folder.with_name(folder.name + ".private") / f"{split}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return {Path(line["file"]).name: line for line in csv.DictReader(file)}


# Writing shards


def test_shards_read_back_with_the_schema_and_the_same_pixels(tmp_path):
    qa = [{"question_id": "basics", "question": "?", "answer": "µm", "outcome": "ok"}]
    rows = [row(seed) for seed in range(7)]
    rows[3] |= {"qa": qa, "pixel_size_nm": 2.5, "category": "Tips"}
    paths = write_shards(rows, tmp_path / "data", shard_bytes=1000)
    assert len(paths) > 1
    write_shards(rows[:2], tmp_path / "data", "validation")

    dataset = load(tmp_path / "data")
    assert dataset.features == FEATURES
    assert dataset["image_id"][:] == [r["image_id"] for r in rows]
    for ours, theirs in zip(rows, dataset, strict=True):
        assert np.array_equal(ours["image"], theirs["image"])
    assert dataset[3]["qa"] == [{**dict.fromkeys(QA_FEATURES), **qa[0]}]
    assert dataset[3]["pixel_size_nm"] == 2.5
    assert dataset[0]["qa"] == [] and dataset[0]["category"] is None
    assert len(load(tmp_path / "data", "validation")) == 2
    generic = load_dataset(
        "parquet", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")
    )
    assert generic["train"].features == FEATURES


def test_rows_of_another_run_are_appended(tmp_path):
    write_shards([row(0)], tmp_path)
    write_shards([row(1)], tmp_path)
    assert [path.name for path in shard_paths(tmp_path, "train")] == [
        "train-00000.parquet",
        "train-00001.parquet",
    ]
    assert len(load(tmp_path)) == 2


def test_shards_of_an_earlier_version_get_the_columns_first(tmp_path):
    """All shards of a split must have the same columns, or `load_dataset` refuses them."""
    features = Features({name: FEATURES[name] for name in ("image", "image_id", "licence")})
    old = {name: v for name, v in row(0).items() if name != "group"} | {"licence": "MIT"}
    write_shards([old], tmp_path, features=features)
    write_shards([row(1) | {"technique": "TEM"}], tmp_path)
    dataset = load(tmp_path)
    assert dataset.features == FEATURES
    assert dataset["licence"][:] == ["MIT", None] and dataset["technique"][:] == [None, "TEM"]
    assert np.array_equal(dataset[0]["image"], picture(0))
    with pytest.raises(ValueError, match=r"the dataset does not have: .*technique"):
        write_shards([old], tmp_path, features=features)
    assert len(load(tmp_path)) == 2


def test_what_fails_half_way_leaves_complete_shards_only(tmp_path):
    def rows():
        for seed in range(5):
            yield row(seed)
        raise RuntimeError("the microscope caught fire")

    with pytest.raises(RuntimeError, match="caught fire"):
        write_shards(rows(), tmp_path, shard_bytes=800)
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    assert 0 < len(load(tmp_path)) < 5


def test_refused_rows_are_named(tmp_path):
    with pytest.raises(ValueError, match="file_name"):
        write_shards([row(0) | {"file_name": "lot 4711.tif"}], tmp_path)
    with pytest.raises(ValueError, match="L or RGB"):
        write_shards([row(0) | {"image": picture(0).convert("RGBA")}], tmp_path)
    with pytest.raises(ValueError, match="train, validation, test"):
        write_shards([row(0)], tmp_path, "dev")
    assert not list(tmp_path.iterdir())


def test_rows_are_on_the_disk_long_before_the_last_one_comes(tmp_path):
    """At most one row group, 1,000 rows, is in memory, however many go through."""

    def rows():
        for seed in range(2500):
            if seed % 1000 == 100:
                written = sum(path.stat().st_size for path in tmp_path.iterdir())
                assert written >= seed // 1000 * 1000 * 300  # an image takes more than 300 bytes
            yield row(seed)

    (path,) = write_shards(rows(), tmp_path)
    metadata = pq.ParquetFile(path).metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [1000, 1000, 500]


# Sources


def test_class_folders_label_what_they_hold(tmp_path):
    save(tmp_path / "in" / "Nanowires" / "a.png", 0)
    save(tmp_path / "in" / "porous sponge" / "deep" / "b.png", 1)
    save(tmp_path / "in" / "wires" / "c.tif", 2)
    save(tmp_path / "in" / "misc" / "d.bmp", 3)
    source = FolderSource(tmp_path / "in", Labelling(synonyms={"wires": "Nanowires"}))
    build(source, tmp_path / "out")
    rows = {r["image_id"]: r for r in load(tmp_path / "out")}
    categories = [rows[pixel_hash(picture(seed))]["category"] for seed in range(4)]
    assert categories == ["Nanowires", "Porous_Sponge", "Nanowires", None]
    wires = rows[pixel_hash(picture(0))]
    assert wires["caption"] == CATEGORY_CAPTIONS["Nanowires"]
    assert wires["group"] == wires["image_id"]


@pytest.mark.parametrize("group_by", ["folder", "stem"])
def test_groups_from_names_are_pseudonyms(tmp_path, group_by):
    for seed, name in enumerate(["lot7/top_01.png", "lot7/top_02.png", "lot8/edge 3.png"]):
        save(tmp_path / "in" / name, seed)
    save(tmp_path / "in" / "Tips" / "tip.png", 3)
    build(FolderSource(tmp_path / "in", Labelling(group_by=group_by)), tmp_path / "out")
    group = {r["image_id"]: r["group"] for r in load(tmp_path / "out")}
    a, b, c, d = (group[pixel_hash(picture(seed))] for seed in range(4))
    assert a == b != c
    # A class folder, or a name without a number, says nothing about the specimen.
    assert d == pixel_hash(picture(3))


def test_no_name_and_no_metadata_enters_the_dataset(tmp_path):
    exif = PILImage.Exif()
    exif[0x010E] = "operator SECRETNAME"
    path = tmp_path / "in" / "SECRETFOLDER" / "SECRETFILE_01.jpg"
    save(path, 0, exif=exif, comment=b"SECRETCOMMENT")
    build(FolderSource(tmp_path / "in", Labelling(group_by="stem")), tmp_path / "out")
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"SECRET" not in written.upper()
    image = load(tmp_path / "out").cast_column("image", Image(decode=False))[0]["image"]
    assert image["path"] is None
    opened = PILImage.open(io.BytesIO(image["bytes"]))
    assert not opened.info and not opened.getexif()
    # The owner can find it again, outside the dataset.
    assert table(tmp_path / "out")["SECRETFILE_01.jpg"]["image_id"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_tables_state_what_names_do_not(tmp_path, suffix):
    for seed in range(3):
        save(tmp_path / "files" / f"{seed}.png", seed)
    listed = [
        {"file": f"files/{seed}.png", "label": "tips", "group": f"s{seed}", "pixel_size_nm": 2.5}
        for seed in range(3)
    ]
    path = tmp_path / f"list{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, listed[0])
            writer.writeheader()
            writer.writerows(listed)
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, listed)))
    else:
        pq.write_table(pa.Table.from_pylist(listed), path)
    with pytest.raises(ValueError, match="unknown column 'file', 'label'"):
        TableSource(path)
    options = "--max_side 12 --licence MIT --columns path=file category=label".split()
    assert main(["table", str(path), str(tmp_path / "out"), *options]) == 0
    rows = load(tmp_path / "out")
    assert sorted(rows["group"]) == ["s0", "s1", "s2"]
    assert set(rows["category"]) == {"Tips"} and set(rows["licence"]) == {"MIT"}
    assert rows[0]["image"].size == (12, 8)
    assert set(rows["pixel_size_nm"]) == {5.0}  # half as many pixels, each twice as long


def test_a_bad_line_of_a_table_is_reported_and_the_rest_goes_on(tmp_path):
    save(tmp_path / "a.png", 0)
    save(tmp_path / "b.png", 1)
    path = tmp_path / "list.csv"
    path.write_text(
        "path,category,pixel_size_nm\na.png,Tips,1\nb.png,Unicorns,\nc.png,,\nb.png,,-3\n,,\n"
    )
    report = build(TableSource(path), tmp_path / "out")
    assert report.rows == 1
    assert report.failed == {"bad-value": 1, "not-found": 1, "no-path": 1}
    assert "pixel_size_nm" in table(tmp_path / "out")["b.png"]["detail"]


def test_hugging_face_datasets_keep_their_labels(tmp_path):
    features = Features(
        {"picture": Image(), "label": ClassLabel(names=["powder", "tips"]), "note": Value("string")}
    )
    images = [picture(seed) for seed in range(3)]
    columns = {"picture": images, "label": [0, 1, None], "note": ["a", "b", "c"]}
    Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "hf")
    source = DatasetSource(tmp_path / "hf", columns={"category": "label"})
    assert source.left_out == ["note"]
    report = build(source, tmp_path / "out")
    assert load(tmp_path / "out")["category"][:] == ["Powder", "Tips", None]
    assert report.read == 3
    assert build(source, tmp_path / "out").read == 0
    # What was built can itself be built from, and nothing is lost on the way.
    build(DatasetSource(tmp_path / "out"), tmp_path / "again")
    assert load(tmp_path / "again").to_list() == load(tmp_path / "out").to_list()
    with pytest.raises(ValueError, match="'note' is not an image column"):
        DatasetSource(tmp_path / "hf", columns={"image": "note"})


# Bad input


def test_every_bad_file_is_reported_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 5000)
    folder = tmp_path / "in"
    save(folder / "good with spaces.png", 0)
    save(folder / "Größe_µm_试样.tif", 1)
    save(folder / "twin.png", 0)
    whole = save(folder / "truncated.tif", 2, compression="tiff_lzw").read_bytes()
    (folder / "truncated.tif").write_bytes(whole[: len(whole) // 2])
    whole = save(folder / "truncated.png", 3).read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.tif").write_bytes(b"")
    (folder / "text.tif").write_text("Dear colleague,\n")
    PILImage.new("1", (300, 300)).save(folder / "bomb.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "loop").symlink_to(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to(folder / "sub" / "..")
    os.mkfifo(folder / "pipe.tif")  # opening it would wait for ever
    (folder / "notes.docx").write_bytes(b"?")
    save(folder / ".hidden.png", 4)
    raw = os.fsencode(folder) + b"/not\xffutf8.png"
    Path(os.fsdecode(raw)).write_bytes((folder / "twin.png").read_bytes())

    report = build(FolderSource(folder), tmp_path / "out")
    assert report.rows == 2 and report.duplicates == 2
    assert report.failed.total() == 8
    assert report.failed["empty"] == 1 and report.failed["too-large"] == 1
    assert report.ignored == {".docx": 1}
    lines = table(tmp_path / "out")
    failed = {name for name, line in lines.items() if line["status"] == "failed"}
    assert failed == {
        *("truncated.tif", "truncated.png", "zero.tif", "text.tif", "bomb.png"),
        *("dangling.png", "self.png", "pipe.tif"),
    }
    assert all(lines[name]["reason"] and lines[name]["detail"] for name in failed)
    assert "same pixels as" in lines["twin.png"]["detail"]
    assert "\\udcff" in next(name for name in lines if "utf8" in name)
    assert {r["image_id"] for r in load(tmp_path / "out")} == {
        pixel_hash(picture(0)),
        pixel_hash(picture(1)),
    }
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".parquet"}


def test_a_folder_without_permission_is_reported():
    """As an ordinary user: root may read everything."""
    with tempfile.TemporaryDirectory() as name:
        tmp_path = Path(name)
        save(tmp_path / "in" / "open" / "a.png", 0)
        save(tmp_path / "in" / "closed" / "b.png", 1)
        save(tmp_path / "in" / "unlisted" / "c.png", 2)
        (tmp_path / "in" / "closed").chmod(0o000)
        (tmp_path / "in" / "unlisted").chmod(0o444)
        tmp_path.chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            report = build(FolderSource(tmp_path / "in"), tmp_path / "out")
        finally:
            if root:
                os.seteuid(0)
            (tmp_path / "in" / "closed").chmod(0o700)
            (tmp_path / "in" / "unlisted").chmod(0o700)
        assert report.rows == 1
        assert report.failed == {"permission-denied": 2}
        lines = table(tmp_path / "out")
        assert lines["closed"]["reason"] == lines["c.png"]["reason"] == "permission-denied"


# Building again


def reads(report) -> tuple[int, int]:
    return report.read, report.unchanged


def test_a_rebuild_reads_new_and_changed_files_only(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed in range(4):
        save(folder / f"{seed}.png", seed)
    assert reads(build(FolderSource(folder), out, shard_bytes=500)) == (4, 0)
    assert reads(build(FolderSource(folder), out)) == (0, 4)

    save(folder / "1.png", 11)  # changed
    save(folder / "4.png", 4)  # new
    (folder / "2.png").unlink()  # gone
    (folder / "5.png").write_bytes(b"")
    report = build(FolderSource(folder), out)
    assert reads(report) == (3, 2) and report.missing == 1 and report.failed == {"empty": 1}
    expected = {pixel_hash(picture(seed)) for seed in (0, 11, 2, 3, 4)}
    assert set(load(out)["image_id"]) == expected
    assert table(out)["2.png"]["status"] == "missing"

    (folder / "5.png").unlink()
    assert not build(FolderSource(folder), out).failed
    build(FolderSource(folder), out, prune=True)
    assert set(load(out)["image_id"]) == expected - {pixel_hash(picture(2))}
    assert len(load(out)) == 4


def test_labels_change_without_reading_files_again(tmp_path):
    for seed in range(3):
        save(tmp_path / f"{seed}.png", seed)
    path, out = tmp_path / "list.csv", tmp_path / "out"
    path.write_text("path,category\n0.png,Tips\n1.png,Tips\n2.png,\n")
    build(TableSource(path), out)
    path.write_text("path,category,group\n0.png,Tips,s\n1.png,Powder,s\n2.png,,t\n")
    assert reads(build(TableSource(path), out)) == (0, 3)
    rows = {r["image_id"]: r for r in load(out)}
    second = rows[pixel_hash(picture(1))]
    assert second["category"] == "Powder" and second["group"] == "s"
    assert second["caption"] == CATEGORY_CAPTIONS["Powder"]
    assert np.array_equal(second["image"], picture(1))


def test_a_file_that_breaks_keeps_its_row_and_is_tried_again(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    path = save(folder / "a.png", 0)
    save(folder / "b.png", 1)
    build(FolderSource(folder), out)
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    report = build(FolderSource(folder), out)
    assert report.failed.total() == 1 and report.rows == len(load(out)) == 2
    path.write_bytes(whole)
    report = build(FolderSource(folder), out)
    assert reads(report) == (1, 1) and not report.failed and len(load(out)) == 2


def test_the_row_of_twins_goes_with_the_last_of_them(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "Powder" / "a.png", 0)
    save(folder / "Tips" / "b.png", 0)
    assert build(FolderSource(folder), out).duplicates == 1
    assert load(out)["category"][:] == [None]  # they contradict each other
    (folder / "Powder" / "a.png").unlink()
    assert reads(build(FolderSource(folder), out, prune=True)) == (0, 1)
    assert load(out)["category"][:] == ["Tips"]
    (folder / "Tips" / "b.png").unlink()
    assert build(FolderSource(folder), out, prune=True).rows == 0
    assert not list(out.iterdir())


def test_shards_of_another_origin_are_not_touched(tmp_path):
    write_shards([row(0)], tmp_path / "out")
    save(tmp_path / "in" / "a.png", 1)
    with pytest.raises(ValueError, match="no build recorded"):
        build(FolderSource(tmp_path / "in"), tmp_path / "out")
    assert len(load(tmp_path / "out")) == 1


def test_lost_shards_are_built_again(tmp_path):
    for seed in range(3):
        save(tmp_path / "in" / f"{seed}.png", seed)
    build(FolderSource(tmp_path / "in"), tmp_path / "out", shard_bytes=1)
    shard_paths(tmp_path / "out", "train")[1].unlink()
    assert reads(build(FolderSource(tmp_path / "in"), tmp_path / "out")) == (1, 2)
    assert len(load(tmp_path / "out")) == 3


def test_two_builds_at_once_are_refused(tmp_path):
    save(tmp_path / "in" / "a.png", 0)

    class Nested(FolderSource):
        def __iter__(self):
            with pytest.raises(RuntimeError, match="is in use"):
                build(FolderSource(self.root), tmp_path / "out")
            return super().__iter__()

    assert build(Nested(tmp_path / "in"), tmp_path / "out").rows == 1


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 5])
def test_killed_builds_lose_and_repeat_nothing(tmp_path, kills):
    """kill -9 again and again while shards are written; the last run completes the dataset."""
    count = 300
    for seed in range(count):
        save(tmp_path / "in" / f"{seed:03}.png", seed)
    out = tmp_path / "out"
    script = tmp_path / "build.py"
    script.write_text(
        "from mvaema.micrographs.build import build\n"
        "from mvaema.micrographs.sources import FolderSource\n"
        f"print(build(FolderSource({str(tmp_path / 'in')!r}), {str(out)!r}, shard_bytes=4000))\n"
    )
    command = [sys.executable, str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(kills):
        before = len(shard_paths(out, "train"))
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while len(shard_paths(out, "train")) < before + 3 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        kept = load(out)["image_id"][:]  # what is there is complete and readable
        assert len(set(kept)) == len(kept) < count
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    read, unchanged = map(int, re.search(r"(\d+) files read, (\d+) unch", done.stdout).groups())
    assert (read, unchanged) == (count - len(kept), len(kept))
    ids = load(out)["image_id"][:]
    assert sorted(ids) == sorted(pixel_hash(picture(seed)) for seed in range(count))
    assert {path.suffix for path in out.iterdir()} == {".parquet"}


@pytest.mark.parametrize("moment", ["ledger written", "shard renamed"])
def test_a_kill_between_ledger_and_shard_is_settled(tmp_path, monkeypatch, moment):
    for seed in range(3):
        save(tmp_path / "in" / f"{seed}.png", seed)
    publish = Path.replace

    def killed(self, target):
        if target.suffix != ".parquet":
            return publish(self, target)
        if moment == "shard renamed":
            publish(self, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            build(FolderSource(tmp_path / "in"), tmp_path / "out", shard_bytes=1)
    report = build(FolderSource(tmp_path / "in"), tmp_path / "out", shard_bytes=1)
    assert reads(report) == ((3, 0) if moment == "ledger written" else (2, 1))
    assert len(set(load(tmp_path / "out")["image_id"])) == len(load(tmp_path / "out")) == 3


@pytest.mark.slow
def test_several_processes_build_the_same_dataset(tmp_path):
    for seed in range(12):
        save(tmp_path / "in" / f"{seed}.png", seed)
    (tmp_path / "in" / "zero.png").write_bytes(b"")
    one = build(FolderSource(tmp_path / "in"), tmp_path / "one")
    command = ["-m", "mvaema", "build", "folder", str(tmp_path / "in"), str(tmp_path / "two")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *command, "--workers", "2"], env=environment, check=True)
    assert one.failed == {"empty": 1}
    assert load(tmp_path / "one").to_list() == load(tmp_path / "two").to_list()


def test_content_that_cannot_be_fetched_is_one_failed_file(tmp_path):
    def crash():
        raise ZeroDivisionError("in a third-party parser")

    entries = [Entry("a", "1", crash, ".tif"), Entry("b", "1", lambda: b"bytes", ".tif")]
    entries.append(Entry("c", "1", save(tmp_path / "c.png", 0), ".png"))
    report = build(entries, tmp_path / "out")
    assert report.failed == {"unreadable": 1, "not-an-image": 1} and report.rows == 1
    assert "ZeroDivisionError" in table(tmp_path / "out")["a"]["detail"]


def test_what_a_hugging_face_dataset_lacks_is_named(tmp_path):
    Dataset.from_dict({"image": [picture(0)]}).save_to_disk(tmp_path / "saved")
    write_shards([row(0)], tmp_path / "shards")
    for source in ("saved", "shards"):
        with pytest.raises(ValueError, match="there is no column nothing"):
            DatasetSource(tmp_path / source, columns={"category": "nothing"})
    with pytest.raises(ValueError, match="cannot read split 'exam'"):
        DatasetSource(tmp_path / "shards", "exam")
    with pytest.raises(ValueError, match=r"cannot read split 'train' of .*nowhere"):
        DatasetSource(tmp_path / "nowhere")
