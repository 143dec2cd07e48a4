"""What an instrument recorded about its image: calibration, settings, height of the info bar.

What is special about it:
- one function per vendor turns that vendor's TIFF tag into an `InstrumentRecord`;
- only lengths that belong to the stored image are used: never a print resolution (DPI), and no
  record for another image width, since the image was then resized after it was taken;
- only listed settings are kept; operators, specimens, serial numbers and dates are not read.
"""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field

# TIFF tags of the vendors, read by `read_tiff_tags`.
FEI_SFEG, FEI_HELIOS = 34680, 34682
ZEISS = 34118
OLYMPUS = 33560
TVIPS = 37706
TESCAN = 50431
GATAN = range(65003, 65013)
GATAN_UNITS, GATAN_SCALES = (65003, 65004), (65009, 65010)
IMAGE_DESCRIPTION, MAKE = 270, 271
VENDOR_TAGS = {FEI_SFEG, FEI_HELIOS, ZEISS, OLYMPUS, TVIPS, TESCAN, *GATAN}
DESCRIPTIONS = ("ImageJ=", "<OME", "<TemReporter")

# Nanometres per unit of length, in the spellings found in files.
NANOMETRES = {
    **dict.fromkeys(("m", "meter", "meters", "metre"), 1e9),
    **dict.fromkeys(("cm", "centimeter"), 1e7),
    **dict.fromkeys(("mm", "millimeter"), 1e6),
    **dict.fromkeys(("um", "µm", "μm", "\\u00B5m", "micron", "microns", "micrometer"), 1e3),
    **dict.fromkeys(("nm", "n_m", "nanometer"), 1.0),
    **dict.fromkeys(("A", "Å", "Å", "angstrom", "Angstrom"), 0.1),
    **dict.fromkeys(("pm", "picometer"), 1e-3),
}


class NotAMicrograph(Exception):
    """The record says that the file is not an image of a specimen; `reason` is a short slug."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class InstrumentRecord:
    """What an instrument recorded.

    Attributes:
        pixel_nm: (x, y) length of a stored pixel in nm, or None.
        instrument: settings under the keys of `Micrograph.instrument`.
        rows: rows of the image above an info bar that the instrument added, or None.
        sidecar: path of the text file that the record is from, or None.
    """

    pixel_nm: tuple[float, float] | None = None
    instrument: dict[str, str | float] = field(default_factory=dict)
    rows: int | None = None
    sidecar: str | None = None


def refuse_energy(unit: str | None) -> None:
    """Raises NotAMicrograph for a unit of energy: the data is a spectrum or spectrum image."""
    if str(unit).strip("\0 ").lower() in ("ev", "kev"):
        raise NotAMicrograph("spectrum", f"one of its axes is in {unit}: a spectrum")


def axis_nm(scale: object, unit: str | None) -> float | None:
    """The calibration of one axis of an image in nm per pixel, or None if it has none.

    Raises:
        NotAMicrograph: the unit is that of a spectrum, a time trace or reciprocal space.
    """
    refuse_energy(unit)
    unit = (unit or "").strip("\0 ")
    if unit.lower() in ("s", "ms", "sec"):
        raise NotAMicrograph("spectrum", f"one of its axes is in {unit}: a time trace")
    if re.search(r"^1 ?/|\^?-1$|⁻¹|^m?rad$", unit):
        message = f"one of its axes is in {unit}: a diffraction pattern or a Fourier transform"
        raise NotAMicrograph("diffraction", message)
    length = number(scale)
    if unit not in NANOMETRES or not length:
        return None
    return abs(length) * NANOMETRES[unit]  # Gatan gives a flipped axis a negative scale


def read_tiff_tags(tags: Mapping[int, object], size: tuple[int, int]) -> InstrumentRecord:
    """The record in the tags of one TIFF page, {code: value} as tifffile parses them.

    `size` is the page's (width, height) in pixels, also for the other readers of this module.

    Raises:
        NotAMicrograph: the tags say that the page is not an image of a specimen.
    """
    description = tags.get(IMAGE_DESCRIPTION)
    description = description if isinstance(description, str) else ""
    if FEI_HELIOS in tags or FEI_SFEG in tags:
        return _fei(tags.get(FEI_HELIOS) or tags[FEI_SFEG], size)
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
        return _jeol_sightx(description)
    if any(code in tags for code in GATAN):
        return _gatan(tags)
    if description.startswith("ImageJ="):
        return _imagej(description, tags)
    if "<OME" in description:
        return _ome(description)
    return InstrumentRecord()


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


def _jeol_sightx(description: str) -> InstrumentRecord:
    """JEOL SightX TEM: XML in ImageDescription; pixels per metre on the camera, magnification."""
    root = ET.fromstring(
        description[description.index("<TemReporter") : description.rindex(">") + 1]
    )
    imaging = "ImageFormingSystem"
    stem = root.findtext("Eos/EosMode") != "eosTEM"
    pixel = None
    if not stem and root.findtext(f"{imaging}/ModeString") == "DIFF":
        raise NotAMicrograph("diffraction", "it was taken in diffraction mode")
    magnification = number(root.findtext(f"{imaging}/SelectorValue"))
    # More precise than the resolution tag, which holds whole DPI.
    density = number(root.findtext(".//ImageDataInformation/PixelsPerMeter/Horizontal"))
    if not stem and magnification and density:
        pixel = 1e9 / (density * magnification)
    return InstrumentRecord(
        (pixel, pixel) if pixel else None,
        settings(
            technique="STEM" if stem else "TEM",
            accelerating_voltage_kv=scaled(root.findtext("ElectronGun/AccelerationVoltage"), 1e-3),
            magnification=magnification,
            detector=root.findtext("ImageSourceDetector"),
        ),
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
    """Gatan DigitalMicrograph: units in tags 65003-65004, scales in 65009-65010, (y, x).

    Without a unit the scale is 1.0 per pixel and calibrates nothing.
    """
    y, x = (
        axis_nm(tags.get(scale), str(tags.get(unit) or ""))
        for scale, unit in zip(GATAN_SCALES, GATAN_UNITS, strict=True)
    )
    return InstrumentRecord((x, y) if x and y else None)


def _imagej(description: str, tags: Mapping[int, object]) -> InstrumentRecord:
    """ImageJ: `unit=` in ImageDescription, pixels per unit in the resolution tags."""
    unit = ini(description).get("unit")
    per_unit = [_rational(tags.get(code)) for code in (282, 283)]
    if unit == "inch" or not all(per_unit):
        return InstrumentRecord()
    x, y = (axis_nm(1 / density, unit) for density in per_unit)
    return InstrumentRecord((x, y) if x and y else None)


def _ome(description: str) -> InstrumentRecord:
    """OME-TIFF: PhysicalSizeX and PhysicalSizeY of the first image, in µm by default."""
    pixels = ET.fromstring(description.strip("\0 \r\n")).find(".//{*}Pixels")
    if pixels is None:
        return InstrumentRecord()
    x, y = (
        axis_nm(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        for axis in "XY"
    )
    return InstrumentRecord((x, y) if x and y else None)


def ini(text: str) -> dict[str, str]:
    """The `key=value` lines of a text; sections are ignored, a key's first value is used."""
    pairs = re.findall(r"^\s*(\w+)[ \t]*=[ \t]*([^\r\n]*)", text, re.MULTILINE)
    return {key: value.strip() for key, value in reversed(pairs)}


def number(value: object) -> float | None:
    """The finite number that `value` is or starts with ("10000 Volt"), else None."""
    match = re.match(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", str(value))
    number = float(match[0]) if match else math.nan
    return number if math.isfinite(number) else None


def scaled(value: object, factor: float) -> float | None:
    found = number(value)
    return None if found is None else found * factor


def _magnification(value: object) -> float | None:
    """Zeiss writes 4530 as "4.53 K X"."""
    return scaled(value, 1e3 if "K" in str(value) else 1.0)


def _rational(value: object) -> float | None:
    """A TIFF rational (numerator, denominator)."""
    if isinstance(value, tuple) and len(value) == 2 and value[0] > 0 and value[1] > 0:
        return value[0] / value[1]
    return None


def pair(x: object, y: object, unit: str) -> tuple[float, float] | None:
    x, y = axis_nm(x, unit), axis_nm(y, unit)
    return (x, y) if x and y else None


TEXTS = ("technique", "detector")


def settings(**values: object) -> dict[str, str | float]:
    """The settings that have a value: non-empty texts, and numbers above zero (6 digits)."""
    known: dict[str, str | float] = {}
    for key, value in values.items():
        if key in TEXTS:
            text = str(value or "").strip("\0 ")
            if text:
                known[key] = text
        else:
            found = number(value)
            if found is not None and found > 0:
                known[key] = float(f"{found:.6g}")
    return known
