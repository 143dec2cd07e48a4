"""Units in all their spellings, and what is no length."""

import pytest

from mvaema.micrographs.calibration import InstrumentRecord, NotAMicrograph, axis_nm


@pytest.mark.parametrize(
    ("spellings", "nanometres"),
    [
        (("m", "meter", "Meters", "metre", "metres"), 1e9),
        (("cm", "centimeter", "centimetres"), 1e7),
        (("mm", "millimeters", "Millimetre"), 1e6),
        (("um", "µm", "μm", "\\u00B5m", "\\u03BCm", "u_m", "[u_m]"), 1e3),
        (("micron", "microns", "micrometer", "micrometers", "micrometres", "Micrometer"), 1e3),
        (("nm", "nm\0", " nm ", "n_m", "[n_m]", "nanometer", "nanometers", "nanometre"), 1.0),
        (("A", "Å", "\u212b", "A\u030a", "\\u00C5", "\\u212B", "angstrom", "Angstroms"), 0.1),
        (("ångström", "Ångströms"), 0.1),
        (("pm", "picometer", "picometers"), 1e-3),
    ],
)
def test_units_of_length(spellings, nanometres):
    for unit in spellings:
        assert axis_nm(0.25, unit) == pytest.approx(0.25 * nanometres), unit
        assert axis_nm("-0.25", unit) == pytest.approx(0.25 * nanometres)  # a flipped axis


@pytest.mark.parametrize(
    "unit", [None, "", "pixel", "pixels", "px", "inch", "a", "M", "NM", "\\u00B0", "%", "s m"]
)
def test_what_is_no_length_calibrates_nothing(unit):
    assert axis_nm(0.25, unit) is None


@pytest.mark.parametrize("scale", [None, 0, "0.0", "nan", "inf", "", "unknown"])
def test_what_is_no_number_calibrates_nothing(scale):
    assert axis_nm(scale, "nm") is None


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        *((unit, "spectrum") for unit in ("eV", "keV", "s", "ms")),
        *((unit, "diffraction") for unit in ("1/nm", "1 / nm", "nm^-1", "[1/n_m]", "[n_m^-1]")),
        *((unit, "diffraction") for unit in ("nm⁻¹", "mrad", "rad", "1/m")),
    ],
)
def test_energy_time_and_reciprocal_space_are_refused(unit, reason):
    with pytest.raises(NotAMicrograph) as error:
        axis_nm(0.25, unit)
    assert error.value.reason == reason


def test_one_record_is_filled_from_another():
    own = InstrumentRecord((1.0, 1.0), {"technique": "HIM"})
    other = InstrumentRecord((2.0, 2.0), {"technique": "SEM", "detector": "ET"}, rows=48)
    filled = own.filled_from(other)
    assert filled == InstrumentRecord((1.0, 1.0), {"technique": "HIM", "detector": "ET"}, rows=48)
