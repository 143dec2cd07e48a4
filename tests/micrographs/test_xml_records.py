"""What instruments write as XML into TIFF tags."""

import numpy as np
import pytest
import tifffile
from support.microscope_files import (
    FEI_INI,
    FIBICS_XML,
    ORION_XML,
    PHENOM_XML,
    SIGHTX_XML,
    THERMO_SEM_XML,
    THERMO_TEM_XML,
    TIA_XML,
    ZEISS_IMAGE_PIXEL,
    ZEISS_TEXT,
    text_tag,
)

from mvaema.micrographs.microscope import Micrograph, UnreadableMicrograph, read_micrograph

SFEG, HELIOS, TITAN = 34680, 34682, 34683
ORION, FIBICS, ZEISS = 65000, 51023, 34118
NOISE = np.random.default_rng(0).integers(60, 200, (48, 64), dtype=np.uint8)


@pytest.fixture
def read(tmp_path):
    """Writes pixels as TIFF with the given tags, and reads them."""

    def read(*tags, pixels=NOISE, metadata=None, **options) -> Micrograph:
        options |= {"extratags": tags, "metadata": metadata}
        tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
        return read_micrograph(tmp_path / "a.tif")

    return read


def reason(read, *tags) -> str:
    with pytest.raises(UnreadableMicrograph) as error:
        read(*tags)
    return error.value.reason


def ascii_tag(code: int, text: str) -> tuple:
    return (code, 2, len(text) + 1, text, True)


def tia_scale(pixel_nm: float, unit: int = 3) -> list[tuple]:
    """Pixels per cm (or inch) as a rational with the denominator 100, as TIA writes it."""
    per_unit = round(100 * {2: 2.54e7, 3: 1e7}[unit] / pixel_nm)
    tags = [(code, 5, 1, (per_unit, 100), True) for code in (65450, 65451)]
    return [*tags, (65452, 3, 1, unit, True)]


IMAGE, PATTERN, STEM = "TEM uP SA Zoom Image", "TEM uP SA Zoom Diffraction", "STEM nP SA Zoom"


@pytest.mark.parametrize("code", [SFEG, HELIOS, TITAN])
@pytest.mark.parametrize("tag", [text_tag, ascii_tag])
@pytest.mark.parametrize("unit", [2, 3])
def test_tia(read, code, tag, unit):
    micrograph = read(tag(code, TIA_XML.format(mode=IMAGE)), *tia_scale(1.7, unit))
    assert micrograph.pixel_size_nm == pytest.approx(1.7, rel=1e-6)
    assert micrograph.instrument == {
        "technique": "TEM",
        "accelerating_voltage_kv": 200.0,
        "magnification": 29_000.0,
    }


@pytest.mark.parametrize("code", [HELIOS, TITAN])
def test_a_tem_in_diffraction_mode_took_no_micrograph(read, code):
    tag = text_tag(code, TIA_XML.format(mode=PATTERN))
    assert reason(read, tag) == "diffraction"
    assert reason(read, tag, *tia_scale(1.7)) == "diffraction"
    pattern = THERMO_TEM_XML.format(
        operating="TEM", projector="Diffraction", width=64, height=48, unit="1/m", pixel=1e7
    )
    assert reason(read, text_tag(code, pattern)) == "diffraction"
    unit_lost = pattern.replace('unit="1/m"', 'unit=""')
    assert reason(read, text_tag(code, unit_lost)) == "diffraction"


def test_in_stem_the_projector_is_in_diffraction_mode_for_every_image(read):
    tag = text_tag(HELIOS, TIA_XML.format(mode=f"{STEM} Diffraction"))
    micrograph = read(tag, *tia_scale(0.5))
    assert micrograph.pixel_size_nm == pytest.approx(0.5)
    assert micrograph.instrument["technique"] == "STEM"
    scanned = THERMO_TEM_XML.format(
        operating="STEM", projector="Diffraction", width=64, height=48, unit="m", pixel=5e-10
    )
    assert read(text_tag(TITAN, scanned)).pixel_size_nm == pytest.approx(0.5)
    # A camera in STEM records patterns, in reciprocal metres.
    camera = scanned.replace('unit="m"', 'unit="1/m"')
    assert reason(read, text_tag(TITAN, camera)) == "diffraction"


def test_tias_scale_without_its_xml(read):
    assert read(*tia_scale(2.5)).pixel_size_nm == pytest.approx(2.5)
    no_unit = [*tia_scale(2.5)[:2], (65452, 3, 1, 1, True)]
    assert read(*no_unit).pixel_size_nm is None
    reciprocal = [(code, 5, 1, (1, 10**9), True) for code in (65450, 65451)]  # 1e16 nm wide
    assert reason(read, *reciprocal, (65452, 3, 1, 3, True)) == "diffraction"
    # Hamamatsu's scanners use these tags for other things.
    assert read(*((code, 4, 1, 5, True) for code in range(65450, 65453))).pixel_size_nm is None


@pytest.mark.parametrize("code", [HELIOS, TITAN])
def test_thermo_fishers_tem(read, code):
    xml = THERMO_TEM_XML.format(
        operating="TEM", projector="Imaging", width=64, height=48, unit="m", pixel=1.5e-10
    )
    micrograph = read(text_tag(code, xml))
    assert micrograph.pixel_size_nm == pytest.approx(0.15)
    assert micrograph.instrument == {
        "technique": "TEM",
        "accelerating_voltage_kv": 300.0,
        "magnification": 94_000.0,
        "detector": "BM-Ceta",
    }
    resized = read(text_tag(code, xml.replace("<X>64</X>", "<X>128</X>")))
    assert resized.pixel_size_nm is None and resized.instrument["magnification"] == 94_000.0


def test_titans_tag_beside_an_empty_one(read):
    """Titan's files have the tag of Helios too, without anything in it."""
    xml = TIA_XML.format(mode=PATTERN)
    assert reason(read, ascii_tag(HELIOS, ""), text_tag(TITAN, xml)) == "diffraction"


@pytest.mark.parametrize(("beam", "technique"), [("Electron", "SEM"), ("Ion", "FIB")])
def test_thermo_fishers_sem(read, beam, technique):
    pixels = np.vstack([NOISE, np.zeros((12, 64), np.uint8)])
    micrograph = read(text_tag(TITAN, THERMO_SEM_XML.format(beam=beam)), pixels=pixels)
    assert micrograph.pixel_size_nm == pytest.approx(4)
    assert micrograph.info_bar == (0, 48, 64, 60)  # 60 rows are stored, 48 were scanned
    assert micrograph.instrument == {
        "technique": technique,
        "accelerating_voltage_kv": 5.0,
        "working_distance_mm": 4.0,
        "detector": "TLD",
    }


def test_the_ini_of_an_sem_goes_before_its_xml(read):
    ini = text_tag(HELIOS, FEI_INI.format(width=64, height=48))
    micrograph = read(ini, text_tag(TITAN, THERMO_SEM_XML.format(beam="Electron")))
    assert micrograph.pixel_size_nm == pytest.approx(100)
    assert micrograph.instrument["detector"] == "ETD"


def test_phenom(read):
    micrograph = read(text_tag(TITAN, PHENOM_XML))
    assert micrograph.pixel_size_nm == pytest.approx(250)
    assert micrograph.info_bar == (0, 36, 64, 48)
    assert micrograph.instrument == {
        "technique": "SEM",
        "accelerating_voltage_kv": 15.0,
        "working_distance_mm": 6.5,
    }


@pytest.mark.parametrize("units", ["m", "Meters"])
def test_orion(read, units):
    xml = ORION_XML.replace("<Units>m<", f"<Units>{units}<")
    # Orion runs on Zeiss' software, whose own tag would say SEM.
    for zeiss in ([], [text_tag(ZEISS, ZEISS_TEXT + ZEISS_IMAGE_PIXEL)]):
        micrograph = read(text_tag(ORION, xml), *zeiss)
        assert micrograph.pixel_size_nm == pytest.approx(0.9765625)
        settings = micrograph.instrument
        assert settings["technique"] == "HIM" and settings["detector"] == "ETDetector"
        assert settings["accelerating_voltage_kv"] == pytest.approx(29.997)
        assert settings["working_distance_mm"] == 8.5
    resized = read(text_tag(ORION, xml.replace("<Value>64<", "<Value>128<")))
    assert resized.pixel_size_nm is None


@pytest.mark.parametrize(
    ("beam", "gas", "technique"),
    [("Orion", "", "HIM"), ("Orion", "He", "HIM"), ("SEM", "", "SEM"), ("FIB", "", "FIB")],
)
def test_fibics(read, beam, gas, technique):
    xml = FIBICS_XML.format(beam=beam, gas=gas)
    for tag in (text_tag, ascii_tag):
        micrograph = read(tag(FIBICS, xml))
        assert micrograph.pixel_size_nm == pytest.approx(40)
        assert micrograph.instrument == {
            "technique": technique,
            "accelerating_voltage_kv": 30.0,
            "detector": "ET",
        }
    resized = read(text_tag(FIBICS, xml.replace("<Width>64", "<Width>128")))
    assert resized.pixel_size_nm is None


def test_another_programs_tag_65000_is_not_orions(read, caplog):
    for text in ("Ada Lovelace", "<Dimap_Document/>", "<Argos/>"):
        micrograph = read(text_tag(ORION, text))
        assert micrograph.instrument == {} and micrograph.pixel_size_nm is None
    assert not caplog.records


def test_jeol_sightx(read):
    xml = SIGHTX_XML.format(mode="MAG")
    options = {"description": xml, "resolution": (93, 93), "resolutionunit": "INCH"}
    micrograph = read(**options)
    assert micrograph.pixel_size_nm == pytest.approx(1e9 / (3642 * 150_000))
    assert micrograph.instrument["technique"] == "TEM"
    assert micrograph.instrument["accelerating_voltage_kv"] == 200.0
    with pytest.raises(UnreadableMicrograph, match="diffraction"):
        read(description=SIGHTX_XML.format(mode="DIFF"))


def test_ome(read):
    metadata = {"axes": "YX", "PhysicalSizeX": 5.0, "PhysicalSizeXUnit": "nm"}
    metadata |= {"PhysicalSizeY": 5.0, "PhysicalSizeYUnit": "nm"}
    assert read(ome=True, metadata=metadata).pixel_size_nm == pytest.approx(5)


def test_damaged_xml_costs_the_calibration_not_the_image(read, caplog, tmp_path):
    micrograph = read(text_tag(HELIOS, "<Root><Data>"))
    assert np.array_equal(np.asarray(micrograph.image), NOISE)
    assert f"{tmp_path / 'a.tif'}: tags not understood" in caplog.text


def test_names_of_people_and_machines_are_not_read(read):
    for code, xml in (
        (HELIOS, TIA_XML.format(mode=IMAGE)),
        (TITAN, THERMO_SEM_XML.format(beam="Electron")),
        (TITAN, PHENOM_XML),
        (ORION, ORION_XML),
        (FIBICS, FIBICS_XML.format(beam="Orion", gas="He")),
    ):
        micrograph = read(text_tag(code, xml))
        assert micrograph.instrument and "secret" not in str(micrograph.instrument)
