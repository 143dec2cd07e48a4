"""What of an instrument's metadata may enter a dataset, and what never does."""

import pytest

from mvaema.micrographs.schema import FEATURES, INSTRUMENT_COLUMNS, instrument_columns


def test_the_columns_are_nullable_and_name_their_units():
    types = {name: FEATURES.arrow_schema.field(name) for name in INSTRUMENT_COLUMNS}
    assert {name: str(field.type) for name, field in types.items()} == {
        "technique": "string",
        "accelerating_voltage_kv": "double",
        "working_distance_mm": "double",
        "detector": "string",
    }
    assert all(field.nullable for field in types.values())


@pytest.mark.parametrize(
    "name",
    # As FEI, Zeiss, TESCAN, JEOL, Hitachi, Velox, Olympus and SightX write them.
    [
        *("ETD", "TLD", "InLens", "SE2", "HE-SE2", "E-T", "In-Beam BSE", "SEI", "SE(UL)"),
        *("LA-BSE(U)", "HAADF", "DF4", "Quemesa IntX", "screenCamera", "Nav-Cam", "STEM 3+"),
    ],
)
def test_detectors_of_the_vendors_are_kept(name):
    assert instrument_columns({"detector": name}) == {"detector": name}


@pytest.mark.parametrize(
    "name",
    [
        *("Schmidt's camera", "TemCam F416 sn 50231", "SE2 (lot 17)", "ETD 4711", "SE\nBSE " * 9),
        *("BSE Müller", "", "1234567", "C:\\users\\meier\\ETD"),
    ],
)
def test_a_detector_with_other_words_or_a_number_is_not(name):
    assert instrument_columns({"detector": name, "technique": "SEM"}) == {"technique": "SEM"}


def test_nothing_else_passes():
    instrument = {"technique": "SEM of lot 17", "operator": "x", "magnification": 100.0}
    assert instrument_columns(instrument | {"working_distance_mm": 4.5}) == {
        "working_distance_mm": 4.5
    }
