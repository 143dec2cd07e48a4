"""One row for files with the same pixels: who supplies what, and who contradicts whom."""

import pytest

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.micrographs.rows import FileColumns, merge


def merged(*files: dict) -> dict:
    return merge("id", [FileColumns(columns) for columns in files])[0]


def test_each_column_is_from_the_first_file_that_states_it():
    row = merged(
        {"group": "wafer"},
        {"pixel_size_nm": 2.0, "category": "Tips", "group": "lot"},
        {"pixel_size_nm": 2.01, "technique": "SEM", "qa": [{"question": "?"}]},
    )
    assert row == {
        "category": "Tips",
        "caption": CATEGORY_CAPTIONS["Tips"],
        "pixel_size_nm": 2.0,
        "technique": "SEM",
        "group": "wafer",
        "qa": [{"question": "?"}],
    }
    assert merged({"qa": []}) == {"group": "id"}


def test_a_licence_stays_with_its_source():
    row = merged({"licence": "MIT"}, {"source": "A", "licence": "CC-BY-4.0"}, {"source": "B"})
    assert (row["source"], row["licence"]) == ("A", "CC-BY-4.0")
    row = merged({"licence": "MIT"}, {"source": "A"})
    assert row["source"] == "A" and "licence" not in row


@pytest.mark.parametrize("order", [1, -1])
def test_a_contradiction_is_not_decided_by_the_order(order):
    files = [
        FileColumns({"category": "Tips", "caption": "A tip.", "pixel_size_nm": 1.0}),
        FileColumns({"category": "Powder", "pixel_size_nm": 2.0, "technique": "SEM"}),
    ]
    row, contradictions = merge("id", files[::order])
    assert row == {"technique": "SEM", "group": "id"}
    assert contradictions == ["category", "pixel_size_nm"]


def test_files_that_are_gone_supply_measurements_but_no_labels():
    here = FileColumns({"group": "new"})
    gone = FileColumns({"category": "Tips", "pixel_size_nm": 3.0, "group": "old"}, present=False)
    row, contradictions = merge("id", [here, gone])
    assert row == {"pixel_size_nm": 3.0, "group": "new"} and not contradictions
    row, _ = merge("id", [gone])
    assert row["category"] == "Tips" and row["group"] == "old"
    moved = FileColumns({"category": "Powder", "pixel_size_nm": 4.0})
    assert merge("id", [moved, gone])[1] == []
