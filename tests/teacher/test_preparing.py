"""From sources to prepared images: duplicates, shards, unreadable files, scales."""

import dataclasses
import shutil

from PIL import Image
from support.teacher_helpers import make_images

from mvaema.micrographs.schema import INSTRUMENT_COLUMNS
from mvaema.micrographs.shards import write_shards
from mvaema.micrographs.sources import Problem
from mvaema.teacher.journal import Journal
from mvaema.teacher.preparing import Preparation, Preparer, open_source, shard_of


def test_what_is_unreadable_is_counted_and_tried_again(tmp_path, capsys):
    images = make_images(tmp_path / "images", 3)
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (images / "empty.tif").touch()
    shutil.copy(images / "Nanowires" / "CUSTOMER_lot0.png", images / "copy.png")
    with Journal(tmp_path / "out" / "journal.sqlite", {}) as journal:
        preparer = Preparer(journal, Preparation())
        found = [image for image in preparer(open_source(str(images))) if image]
        assert len(found) == 3 and preparer.duplicates == 1
        assert preparer.problems.total() == 2
        shutil.copy(images / "Nanowires" / "CUSTOMER_lot1.png", images / "broken.png")
        preparer = Preparer(journal, Preparation())
        assert len([image for image in preparer(open_source(str(images))) if image]) == 3
        assert preparer.problems.total() == 1 and preparer.duplicates == 2


def test_shards_are_disjoint_and_complete(tmp_path):
    images = make_images(tmp_path / "images", 40)
    parts = []
    for shard in range(3):
        with Journal(tmp_path / f"{shard}" / "journal.sqlite", {}) as journal:
            preparer = Preparer(journal, Preparation(), shard, 3)
            parts.append({i.image_id for i in preparer(open_source(str(images))) if i})
    assert sum(map(len, parts)) == len(set().union(*parts)) == 40
    assert min(map(len, parts)) > 0
    assert {shard_of(bytes([i]), 7) for i in range(200)} == set(range(7))


def test_info_bar_and_scale(tmp_path):
    """Downscaling changes the pixel size with the pixels."""
    images = make_images(tmp_path / "images", 1, size=(60, 120))
    [file] = (images / "Nanowires").iterdir()
    table = images / "table.csv"
    table.write_text(f"path,pixel_size_nm,category\nNanowires/{file.name},2.0,Tips\n")
    with Journal(tmp_path / "out" / "journal.sqlite", {}) as journal:
        [image] = Preparer(journal, Preparation(max_side=60))(open_source(str(table)))
    assert (image.width, image.height) == (60, 30)
    assert image.pixel_size_nm == 4.0
    assert image.category == "Tips" and image.caption == "An electron micrograph of a tip."


def test_a_dataset_with_settings_is_prepared_and_they_stay_in_it(tmp_path):
    """What is sent, and the dataset of the answers, which may be pushed, have none of them."""
    settings = {"technique": "SEM", "accelerating_voltage_kv": 5.0}
    settings |= {"working_distance_mm": 4.0, "detector": "SE2"}
    image = Image.linear_gradient("L")
    row = {"image": image, "image_id": "a", "pixel_size_nm": 2.0, "category": "Tips", **settings}
    write_shards([row], tmp_path / "data")
    source = open_source(str(tmp_path / "data"))
    assert set(settings) <= set(next(iter(source)).fields)
    with Journal(tmp_path / "out" / "journal.sqlite", {}) as journal:
        [prepared] = Preparer(journal, Preparation())(source)
    assert (prepared.pixel_size_nm, prepared.category) == (2.0, "Tips")
    assert not set(INSTRUMENT_COLUMNS) & set(dataclasses.asdict(prepared))


def test_images_are_absent_after_a_complete_pass_only(tmp_path):
    images = make_images(tmp_path / "images", 3)
    with Journal(tmp_path / "out" / "journal.sqlite", {}) as journal:

        def absent(entries, complete):
            list(Preparer(journal, Preparation())(entries, complete))
            return journal.query("SELECT count(*) FROM absent")[0][0]

        entries = list(open_source(str(images)))
        unmounted = Problem("folder", "permission-denied", "no", hides_more=True)
        assert absent(entries, True) == 0
        assert absent(entries[:2], False) == 0
        assert absent([*entries[:2], unmounted], True) == 0
        assert absent([*entries[:2], Problem("file", "unreadable", "no")], True) == 1
        assert absent(entries[1:], False) == 0, "it is back"
        assert absent(entries[:1], True) == 2


def test_first_of_two_files_with_the_same_pixels_labels_them(tmp_path):
    """The order of the files decides, not the order in which they appeared."""
    images = make_images(tmp_path / "images", 1, category="Tips")
    [file] = (images / "Tips").iterdir()

    def category():
        with Journal(tmp_path / "out" / "journal.sqlite", {}) as journal:
            preparer = Preparer(journal, Preparation())
            return [image.category for image in preparer(open_source(str(images))) if image]

    assert category() == ["Tips"]
    first = images / "Nanowires" / file.name
    first.parent.mkdir()
    shutil.copy(file, first)
    assert category() == ["Nanowires"]
    assert category() == ["Nanowires"]
    first.unlink()
    assert category() == ["Tips"]


def test_a_link_to_an_image_that_is_read_anyway_is_no_problem(tmp_path):
    images = make_images(tmp_path / "images", 1)
    [file] = (p for p in images.rglob("*") if p.is_file())
    (images / "link.png").symlink_to(file)
    with Journal(tmp_path / "out" / "journal.sqlite", {}) as journal:
        preparer = Preparer(journal, Preparation())
        assert sum(image is not None for image in preparer(open_source(str(images)))) == 1
    assert not preparer.problems
