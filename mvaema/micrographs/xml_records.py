"""Instruments that describe their image in XML, inside a TIFF tag.

What is special about it:
- TIA and Velox call a pattern "Diffraction". In STEM the projector is in that mode for every
  image, so it says something only of TEM;
- a pixel size counts only for an image of the size that the XML states, where it states one.
"""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping

from mvaema.micrographs.calibration import (
    InstrumentRecord,
    NotAMicrograph,
    axis_nm,
    number,
    refuse_diffraction,
    scaled,
    settings,
)

# TIA's own resolution tags: x, y, and their unit as in TIFF's ResolutionUnit.
TIA_SCALE, TIA_UNIT = (65450, 65451), 65452
TIA_UNITS_NM = {2: 2.54e7, 3: 1e7}

# Of Thermo Fisher's operating modes (TEMs) and kinds of beam (SEMs).
TECHNIQUES = {"TEM": "TEM", "STEM": "STEM", "Electron": "SEM", "Ion": "FIB"}

KV_PER_VOLT = {"v": 1e-3, "volt": 1e-3, "volts": 1e-3}


def parse(value: object) -> ET.Element | None:
    """The root of the XML in a tag's value, or None where it holds none.

    Raises:
        xml.etree.ElementTree.ParseError: it begins like XML and is not.
    """
    if isinstance(value, bytes):
        value = value.strip(b"\0 \r\n\t\xef\xbb\xbf")
        return ET.fromstring(value) if value.startswith(b"<") else None
    text = value.strip("\0 \r\n\t\ufeff") if isinstance(value, str) else ""
    return ET.fromstring(text) if text.startswith("<") else None


def thermo(root: ET.Element, tags: Mapping[int, object], size: tuple[int, int]) -> InstrumentRecord:
    """FEI / Thermo Fisher: XML of TIA, of Velox, MAPS and the newer SEMs, or of Phenom.

    Raises:
        NotAMicrograph: it is a diffraction pattern.
    """
    readers = {
        "Root": lambda: _tia(root, tags),
        "Metadata": lambda: _metadata(root, size),
        "FeiImage": lambda: _phenom(root, size),
    }
    return readers.get(_name(root), InstrumentRecord)()


def tia_scale(tags: Mapping[int, object]) -> tuple[float, float] | None:
    """The (x, y) length of a pixel in nm in TIA's resolution tags, or None.

    Hamamatsu's scanners use the numbers of these tags for other things, never for rationals.
    """
    unit = TIA_UNITS_NM.get(tags.get(TIA_UNIT))
    per_unit = [rational(tags.get(code)) for code in TIA_SCALE]
    if unit is None or not all(per_unit):
        return None
    x, y = (unit / density for density in per_unit)
    refuse_diffraction(max(x, y))
    return x, y


def rational(value: object) -> float | None:
    """A TIFF rational (numerator, denominator) above zero."""
    if isinstance(value, tuple) and len(value) == 2 and value[0] > 0 and value[1] > 0:
        return value[0] / value[1]
    return None


def _name(root: ET.Element) -> str:
    return root.tag.rpartition("}")[2]


def _texts(root: ET.Element) -> Callable[[str], str | None]:
    """A function from a path in a document, namespaces left out, to the text there."""
    return lambda path: root.findtext("/".join(f"{{*}}{part}" for part in path.split("/")))


def _kilovolts(value: object, unit: str | None) -> float | None:
    """A voltage in kV; some instruments give it the sign of the potential."""
    voltage = scaled(value, KV_PER_VOLT.get((unit or "").strip().lower(), 1.0))
    return None if voltage is None else abs(voltage)


def _refuse_diffraction_mode(mode: str | None, projector: str | None) -> None:
    if "STEM" not in (mode or "") and "diffraction" in (projector or "").lower():
        raise NotAMicrograph("diffraction", "it was taken in diffraction mode")


def _tia(root: ET.Element, tags: Mapping[int, object]) -> InstrumentRecord:
    """TIA: a list of label, value and unit; the calibration is in tags of its own."""
    entries = {
        entry.findtext("Label"): (entry.findtext("Value"), entry.findtext("Unit"))
        for entry in root.iter("Data")
    }
    mode, _ = entries.get("Mode", ("", ""))
    _refuse_diffraction_mode(mode, mode)
    voltage = entries.get("High tension", (None, None))
    return InstrumentRecord(
        tia_scale(tags),
        settings(
            technique="STEM" if "STEM" in (mode or "") else "TEM",
            accelerating_voltage_kv=_kilovolts(*voltage),
            magnification=entries.get("Magnification", (None,))[0],
        ),
    )


def _metadata(root: ET.Element, size: tuple[int, int]) -> InstrumentRecord:
    """`Metadata` of Thermo Fisher's microscopes; lengths in m, voltages in V."""
    get = _texts(root)
    mode, beam = get("Optics/OperatingMode"), get("Acquisition/BeamType")
    _refuse_diffraction_mode(mode, get("Optics/ProjectorMode"))
    sides = [root.find(f"{{*}}BinaryResult/{{*}}PixelSize/{{*}}{axis}") for axis in "XY"]
    pixel = None
    if None not in sides:
        x, y = (axis_nm(side.text, side.get("unit", "m")) for side in sides)
        refuse_diffraction(x)
        pixel = (x, y) if x and y else None
    image, scan = "BinaryResult/ImageSize", "ScanSettings/ScanSize"
    width = number(get(f"{image}/X") or get(f"{scan}/Width"))
    rows = number(get(f"{image}/Y") or get(f"{scan}/Height"))
    custom = {
        entry.get("name"): entry.get("value") for entry in root.iterfind(".//{*}CustomProperty")
    }
    return InstrumentRecord(
        pixel if width in (None, size[0]) else None,
        settings(
            technique=TECHNIQUES.get(mode or beam),
            accelerating_voltage_kv=scaled(get("Optics/AccelerationVoltage"), 1e-3),
            working_distance_mm=None if mode else scaled(get("Optics/WorkingDistance"), 1e3),
            magnification=get("Optics/NominalMagnification") or custom.get("StemMagnification"),
            detector=get("BinaryResult/Detector") or get("Detectors/ScanningDetector/DetectorName"),
        ),
        int(rows) if rows and width == size[0] else None,
    )


def _phenom(root: ET.Element, size: tuple[int, int]) -> InstrumentRecord:
    """Phenom: lengths and voltages with their units; the height of the data bar in pixels."""
    pixel = []
    for name in ("pixelWidth", "pixelHeight"):
        side = root.find(f"{{*}}{name}")
        pixel.append(None if side is None else axis_nm(side.text, side.get("unit", "m")))
    voltage = root.find("{*}acquisition/{*}scan/{*}highVoltage")
    distance = root.find("{*}workingDistance")
    distance_nm = None if distance is None else axis_nm(distance.text, distance.get("unit", "m"))
    bar = number(root.findtext("{*}databarHeight"))
    return InstrumentRecord(
        tuple(pixel) if all(pixel) else None,
        settings(
            technique="SEM",
            accelerating_voltage_kv=None
            if voltage is None
            else _kilovolts(voltage.text, voltage.get("unit")),
            working_distance_mm=distance_nm and distance_nm * 1e-6,
        ),
        size[1] - int(bar) if bar and 0 < bar < size[1] else None,
    )


def orion(root: ET.Element, size: tuple[int, int]) -> InstrumentRecord:
    """Zeiss Orion, a helium-ion microscope: value and units by name; voltages in V."""
    get = _texts(root)

    def length(name: str, default: str) -> float | None:
        value = get(f"{name}/Value")
        return axis_nm(value, get(f"{name}/Units")) or axis_nm(value, default)

    x, y = length("ScalingX", "m"), length("ScalingY", "m")
    width = number(get("ImageWidth/Value"))
    distance = length("WorkingDistance", "mm")
    return InstrumentRecord(
        (x, y) if x and y and width in (None, size[0]) else None,
        settings(
            technique="HIM",
            accelerating_voltage_kv=_kilovolts(
                get("AccelerationVoltage/Value"), get("AccelerationVoltage/Units") or "V"
            ),
            working_distance_mm=distance and distance * 1e-6,
            magnification=get("MagnificationDisplay/Value"),
            detector=get("DetectorName/Value"),
        ),
    )


def fibics(root: ET.Element, size: tuple[int, int]) -> InstrumentRecord:
    """Fibics NPVE and Atlas, which drive ion and electron microscopes; voltages in V."""
    get = _texts(root)
    width, height = number(get("Image/Width")), number(get("Image/Height"))
    pixel = None
    if (width, height) == size:
        x, y = root.find("{*}Scan/{*}FOV_X"), root.find("{*}Scan/{*}FOV_Y")
        if x is not None and y is not None:
            fields = axis_nm(x.text, x.get("units", "um")), axis_nm(y.text, y.get("units", "um"))
            pixel = (fields[0] / width, fields[1] / height) if all(fields) else None
    beam_info = {item.get("name"): item.text for item in root.iterfind("{*}BeamInfo/{*}item")}
    beam = (get("Image/Beam") or "").strip()
    helium = beam == "Orion" or beam_info.get("GFISGas")
    return InstrumentRecord(
        pixel,
        settings(
            technique="HIM" if helium else beam if beam in ("SEM", "FIB") else None,
            accelerating_voltage_kv=scaled(beam_info.get("AccV"), 1e-3),
            detector=get("Image/Detector"),
        ),
    )


def jeol_sightx(description: str) -> InstrumentRecord:
    """JEOL SightX TEM: XML in ImageDescription; pixels per metre on the camera, magnification.

    Raises:
        NotAMicrograph: it is a diffraction pattern.
    """
    start, end = description.index("<TemReporter"), description.rindex(">") + 1
    root = ET.fromstring(description[start:end])
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


def ome(description: str) -> InstrumentRecord:
    """OME-TIFF: PhysicalSizeX and PhysicalSizeY of the first image, in µm by default."""
    pixels = ET.fromstring(description.strip("\0 \r\n")).find(".//{*}Pixels")
    if pixels is None:
        return InstrumentRecord()
    x, y = (
        axis_nm(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        for axis in "XY"
    )
    return InstrumentRecord((x, y) if x and y else None)
