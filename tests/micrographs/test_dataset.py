"""Micrograph datasets are read from every kind of place, and columns may be null."""

import pytest
from support.micrograph_data import write_dataset

from mvaema.micrographs.dataset import DatasetError, load_micrographs


def test_every_kind_of_place_is_read(tmp_path):
    rows = load_micrographs(write_dataset(tmp_path / "data", 6))
    rows.save_to_disk(tmp_path / "disk")
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    for place in ("disk", "parquet"):
        again = load_micrographs(tmp_path / place)
        assert again["image_id"][:] == rows["image_id"][:]
        assert again["pixel_size_nm"][0] is None


def test_a_column_may_be_null_throughout_one_split(tmp_path):
    folder = write_dataset(tmp_path / "data", 6)
    write_dataset(folder, 4, "validation", 20, scale_bar=None, category=None)
    assert load_micrographs(folder)["scale_bar"][1] == "1 µm"
    assert load_micrographs(folder, "validation")["scale_bar"][:] == [None] * 4
    with pytest.raises(DatasetError, match="split 'test'"):
        load_micrographs(folder, "test")
