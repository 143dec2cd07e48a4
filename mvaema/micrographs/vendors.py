"""What TIFF tags say of an image: calibration, settings, height of the info bar.

What is special about it:
- one function per vendor turns that vendor's tag into an `InstrumentRecord`; those that are XML are
  read in `xml_records.py`;
- only lengths that belong to the stored image are used: never a print resolution (DPI), and no
  record for another image width, since the image was then resized after it was taken;
- only listed settings are kept; operators, specimens, serial numbers and dates are not read.
"""

import re
from collections.abc import Mapping

from mvaema.micrographs.calibration import (
    InstrumentRecord,
    NotAMicrograph,
    axis_nm,
    ini,
    number,
    pair,
    scaled,
    settings,
)
from mvaema.micrographs.xml_records import (
    TIA_SCALE,
    TIA_UNIT,
    fibics,
    jeol_sightx,
    ome,
    orion,
    parse,
    rational,
    thermo,
    tia_scale,
)

# TIFF tags of the vendors, read by `read_tiff_tags`. FEI's hold INI or XML.
FEI_SFEG, FEI_HELIOS, FEI_TITAN = 34680, 34682, 34683
ZEISS = 34118
OLYMPUS = 33560
TVIPS = 37706
TESCAN = 50431
FIBICS, ORION = 51023, 65000
GATAN = range(65003, 65013)
GATAN_UNITS, GATAN_SCALES = (65003, 65004), (65009, 65010)
IMAGE_DESCRIPTION = 270
RESOLUTION = (282, 283)
VENDOR_TAGS = {FEI_SFEG, FEI_HELIOS, FEI_TITAN, ZEISS, OLYMPUS, TVIPS, TESCAN, FIBICS, *GATAN}
VENDOR_TAGS |= {*TIA_SCALE, TIA_UNIT}
DESCRIPTIONS = ("ImageJ=", "<OME", "<TemReporter")
ORION_XML = "<ImageTags"  # other programs use its tag, too


def names_instrument(tags: Mapping[int, object]) -> bool:
    """Whether the tags of a TIFF page, {code: value}, have something for `read_tiff_tags`."""
    description = str(tags.get(IMAGE_DESCRIPTION, ""))
    return (
        bool(VENDOR_TAGS & set(tags))
        or any(mark in description for mark in DESCRIPTIONS)
        or ORION_XML in str(tags.get(ORION, ""))
    )


def read_tiff_tags(tags: Mapping[int, object], size: tuple[int, int]) -> InstrumentRecord:
    """The record in the tags of one TIFF page.

    Args:
        tags: {code: value} as tifffile parses them, except that XML in FEI's tags is bytes.
        size: the page's (width, height) in pixels, also for the other readers of this module.

    Raises:
        NotAMicrograph: the tags say that the page is not an image of a specimen.
    """
    description = tags.get(IMAGE_DESCRIPTION)
    description = description if isinstance(description, str) else ""
    for code, reader in ((ORION, orion), (FIBICS, fibics)):
        root = parse(tags.get(code))
        if root is not None and root.tag in ("ImageTags", "Fibics"):
            zeiss = _zeiss(tags[ZEISS], size) if ZEISS in tags else InstrumentRecord()
            return reader(root, size).filled_from(zeiss)
    if {FEI_HELIOS, FEI_SFEG, FEI_TITAN, TIA_UNIT} & set(tags):
        return _thermo_fisher(tags, size)
    if ZEISS in tags:
        return _zeiss(tags[ZEISS], size)
    if TESCAN in tags:
        text = tags[TESCAN]
        text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
        return tescan(ini(text), size)
    if TVIPS in tags:
        return _tvips(tags[TVIPS])
    if OLYMPUS in tags:
        return _olympus(tags[OLYMPUS])
    if "<TemReporter" in description:
        return jeol_sightx(description)
    if any(code in tags for code in GATAN):
        return _gatan(tags)
    if description.startswith("ImageJ="):
        return _imagej(description, tags)
    if "<OME" in description:
        return ome(description)
    return InstrumentRecord()


def _thermo_fisher(tags: Mapping[int, object], size: tuple[int, int]) -> InstrumentRecord:
    """FEI / Thermo Fisher: the INI of the SEMs, else the XML, else TIA's resolution tags."""
    values = [tags.get(code) for code in (FEI_HELIOS, FEI_SFEG, FEI_TITAN)]
    for value in values:
        if value and isinstance(value, Mapping):
            return _fei(value, size)
    for value in reversed(values):
        root = parse(value)
        if root is not None:
            return thermo(root, tags, size)
    return InstrumentRecord(tia_scale(tags))


def _fei(fei: Mapping[str, Mapping[str, object]], size: tuple[int, int]) -> InstrumentRecord:
    """FEI / Thermo Fisher: INI sections in tag 34680 or 34682, lengths in m, voltages in V."""

    def get(section: str, key: str) -> object:
        return fei.get(section, {}).get(key)

    beam = str(get("Beam", "Beam") or "EBeam")
    width, rows = number(get("Image", "ResolutionX")), number(get("Image", "ResolutionY"))
    pixel = None
    # The Nav-Cam is an optical camera on the chamber door; its nominal field does not calibrate.
    if beam in ("EBeam", "IBeam") and width in (None, size[0]):
        for scan in ("Scan", str(get("Beam", "Scan") or "EScan")):
            pixel = pixel or pair(get(scan, "PixelWidth"), get(scan, "PixelHeight"), "m")
    field_width, canvas = number(get(beam, "HFW")), number(get("Image", "MagCanvasRealWidth"))
    technique = {"EBeam": "SEM", "IBeam": "FIB", "IRBeam": "optical"}.get(beam)
    # The "mag" that the data bar prints: width of the display over field of view.
    magnification = canvas / field_width if pixel and canvas and field_width else None
    return InstrumentRecord(
        pixel,
        settings(
            technique=technique,
            accelerating_voltage_kv=scaled(get("Beam", "HV"), 1e-3),
            working_distance_mm=scaled(get(beam, "WD"), 1e3),
            magnification=magnification,
            detector=get("Detectors", "Name"),
        ),
        int(rows) if rows and width == size[0] else None,
    )


def _zeiss(sem: Mapping[str, tuple], size: tuple[int, int]) -> InstrumentRecord:
    """Zeiss SmartSEM: named values (name, value, unit) in tag 34118."""

    def get(key: str) -> object:
        return sem[key][1] if len(sem.get(key, ())) > 1 else None

    def length(key: str) -> float | None:
        entry = sem.get(key, ())
        return axis_nm(entry[1], entry[2]) if len(entry) > 2 else None

    # "Image Pixel Size" belongs to the stored image. "Pixel Size", the only one in older files,
    # is that of a scan 1024 pixels wide, whatever the stored width.
    pixel = length("ap_image_pixel_size")
    if pixel is None and (scan := length("ap_pixel_size")) is not None:
        pixel = scan * 1024 / size[0]
    stored = re.match(r"(\d+) \* (\d+)", str(get("dp_image_store") or ""))
    if stored and int(stored[1]) != size[0]:
        pixel = None
    working_distance = length("ap_wd")
    return InstrumentRecord(
        (pixel, pixel) if pixel else None,
        settings(
            technique="FIB" if get("dp_fib_imaging") == "FIB" else "SEM",
            accelerating_voltage_kv=get("ap_actualkv"),
            working_distance_mm=working_distance and working_distance * 1e-6,
            magnification=_magnification(get("ap_mag")),
            detector=get("dp_detector_channel") or get("dp_detector_type"),
        ),
    )


def tescan(values: Mapping[str, str], size: tuple[int, int]) -> InstrumentRecord:
    """TESCAN: `key=value` in tag 50431 or an .hdr sidecar, lengths in m, voltages in V."""
    strip = number(values.get("ImageStripSize"))
    return InstrumentRecord(
        pair(values.get("PixelSizeX"), values.get("PixelSizeY"), "m"),
        settings(
            technique="SEM",
            accelerating_voltage_kv=scaled(
                values.get("HV", values.get("AcceleratorVoltage")), 1e-3
            ),
            working_distance_mm=scaled(values.get("WD"), 1e3),
            magnification=values.get("Magnification"),
            detector=values.get("Detector"),
        ),
        size[1] - int(strip) if strip and 0 < strip < size[1] else None,
    )


def _tvips(tvips: Mapping[str, object]) -> InstrumentRecord:
    """TVIPS cameras: tag 37706, pixel size in nm, voltage in V."""
    if tvips.get("TemMode") == 3:
        raise NotAMicrograph("diffraction", "it was taken in diffraction mode")
    return InstrumentRecord(
        pair(tvips.get("PixelSizeX"), tvips.get("PixelSizeY"), "nm"),
        settings(
            technique="TEM",
            accelerating_voltage_kv=scaled(tvips.get("TemHighTension"), 1e-3),
            magnification=tvips.get("TemMagnification"),
            detector=tvips.get("CameraType"),
        ),
    )


def _olympus(sis: Mapping[str, object]) -> InstrumentRecord:
    """Olympus / Soft Imaging analySIS: tag 33560, pixel size in m."""
    return InstrumentRecord(
        pair(sis.get("pixelsizex"), sis.get("pixelsizey"), "m"),
        settings(magnification=sis.get("magnification"), detector=sis.get("cameraname")),
    )


def _gatan(tags: Mapping[int, object]) -> InstrumentRecord:
    """Gatan DigitalMicrograph: units in tags 65003-65004, scales in 65009-65010, (x, y).

    Without a unit the scale is 1.0 per pixel and calibrates nothing.
    """
    x, y = (
        axis_nm(tags.get(scale), str(tags.get(unit) or ""))
        for scale, unit in zip(GATAN_SCALES, GATAN_UNITS, strict=True)
    )
    return InstrumentRecord((x, y) if x and y else None)


def _imagej(description: str, tags: Mapping[int, object]) -> InstrumentRecord:
    """ImageJ: `unit=` and `yunit=` in ImageDescription, pixels per unit in the resolution tags."""
    values = ini(description)
    per_unit = [rational(tags.get(code)) for code in RESOLUTION]
    if not all(per_unit):
        return InstrumentRecord()
    units = values.get("unit"), values.get("yunit", values.get("unit"))
    x, y = (axis_nm(1 / density, unit) for density, unit in zip(per_unit, units, strict=True))
    return InstrumentRecord((x, y) if x and y else None)


def _magnification(value: object) -> float | None:
    """Zeiss writes 4530 as "4.53 K X"."""
    return scaled(value, 1e3 if "K" in str(value) else 1.0)
