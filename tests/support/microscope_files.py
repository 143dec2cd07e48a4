"""Writes files as instruments do, byte by byte where no library writes the format."""

import json
import struct
from pathlib import Path

import h5py
import numpy as np
import tifffile

FEI_INI = """[User]\r\nUserText=secret operator\r\n[System]\r\nSystemType=Helios\r\n
[Beam]\r\nHV=5000\r\nBeam=EBeam\r\nScan=EScan\r\n
[EBeam]\r\nHFW=6.4e-06\r\nWD=0.00403\r\n
[Scan]\r\nPixelWidth=1e-07\r\nPixelHeight=1e-07\r\n
[Image]\r\nResolutionX={width}\r\nResolutionY={height}\r\nMagCanvasRealWidth=0.128\r\n
[Detectors]\r\nNumber=1\r\nName=ETD\r\n"""

ZEISS_TEXT = (
    "0\r\n0\r\n0\r\n1.953125e-08\r\n"
    "AP_ACTUALKV\r\nEHT =  5.00 kV\r\nAP_WD\r\nWD =  4.6 mm\r\n"
    "AP_MAG\r\nMag =    5.72 K X\r\nDP_DETECTOR_CHANNEL\r\nSignal A = SE2\r\n"
    "SV_USER_NAME\r\nUser Name = secret operator\r\n"
    "AP_PIXEL_SIZE\r\nPixel Size =  19.53 nm\r\n"
)
ZEISS_IMAGE_PIXEL = "AP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size =  9.766 nm\r\n"

TESCAN_HDR = (
    "[MAIN]\r\nDevice=TESCAN\r\nUserName=secret operator\r\nImageStripSize={strip}\r\n"
    "Magnification=1000\r\nPixelSizeX=5e-08\r\nPixelSizeY=5e-08\r\n"
    "[SEM]\r\nDetector=SE\r\nHV=20000.0\r\nWD=0.0095\r\n"
)

HITACHI_TXT = (
    "[SemImageFile]\r\nInstructName=SU8000\r\nSampleName=secret lot\r\nDataSize=1280x960\r\n"
    "PixelSize=24.8\r\nSignalName=SE(UL)\r\nAcceleratingVoltage=10000 Volt\r\n"
    "Magnification=4000\r\nWorkingDistance=11200 um\r\n"
)

JEOL_TXT = (
    "$CM_FORMAT JEOL-SEM\r\n$CM_OPERATOR secret\r\n$CM_ACCEL_VOLT 7.00\r\n$CM_MAG 95\r\n"
    "$$SM_WD 10.52\r\n$CM_DETECTOR SEI\r\n$$SM_MICRON_BAR 101\r\n$$SM_MICRON_MARKER 100um\r\n"
    "$CM_FULL_SIZE 1280 960\r\n"
)

SIGHTX_XML = """<?xml version="1.0"?><TemReporter><Operator>secret</Operator>
<Eos><EosMode>eosTEM</EosMode></Eos>
<ElectronGun><AccelerationVoltage>200000</AccelerationVoltage></ElectronGun>
<ImageFormingSystem><ModeString>{mode}</ModeString><SelectorValue>150000</SelectorValue>
</ImageFormingSystem><Camera><ImageDataInformation><PixelsPerMeter><Horizontal>3642</Horizontal>
</PixelsPerMeter></ImageDataInformation></Camera></TemReporter>"""


# TIA, on FEI's TEMs: labels, values and units. The scale is in tags 65450 to 65452.
TIA_XML = (
    "<Root><Data><Label>Microscope</Label><Value>Tecnai 200 kV secret number</Value><Unit></Unit>"
    "</Data><Data><Label>User</Label><Value>secret operator</Value><Unit></Unit></Data>"
    "<Data><Label>Mode</Label><Value>{mode}</Value><Unit></Unit></Data>"
    "<Data><Label>High tension</Label><Value>200</Value><Unit>kV</Unit></Data>"
    "<Data><Label>Magnification</Label><Value>29000</Value><Unit>x</Unit></Data>"
    "<Data><Label>Camera length</Label><Value>0.91</Value><Unit>m</Unit></Data></Root>"
)

# Velox, MAPS and the newer SEMs. Of a TEM: TEM or STEM, Imaging or Diffraction.
THERMO_TEM_XML = """<?xml version="1.0"?>
<Metadata xmlns:nil="http://schemas.fei.com/Metadata/v1/2013/07"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<Core><UserID>secret operator</UserID></Core>
<Acquisition><SourceType>XFEG</SourceType></Acquisition>
<Optics><AccelerationVoltage>300000</AccelerationVoltage><OperatingMode>{operating}</OperatingMode>
<ProjectorMode>{projector}</ProjectorMode><CameraLength>0.3</CameraLength>
<NominalMagnification>94000</NominalMagnification></Optics>
<BinaryResult><Detector>BM-Ceta</Detector><ImageSize><X>{width}</X><Y>{height}</Y></ImageSize>
<PixelSize><X unit="{unit}" unitPrefixPower="1">{pixel}</X>
<Y unit="{unit}" unitPrefixPower="1">{pixel}</Y></PixelSize></BinaryResult></Metadata>"""

THERMO_SEM_XML = """<?xml version="1.0"?>
<Metadata xmlns:nil="http://schemas.fei.com/Metadata/v1/2013/07">
<Core><UserID>secret operator</UserID></Core>
<Acquisition><BeamType>{beam}</BeamType></Acquisition>
<Optics><AccelerationVoltage>5000</AccelerationVoltage>
<WorkingDistance>0.004</WorkingDistance></Optics>
<Detectors><ScanningDetector><DetectorName>TLD</DetectorName></ScanningDetector></Detectors>
<BinaryResult><ImageSize><X>64</X><Y>48</Y></ImageSize><PixelSize>
<X unit="m" unitPrefixPower="1">4E-09</X><Y unit="m" unitPrefixPower="1">4E-09</Y>
</PixelSize></BinaryResult></Metadata>"""

PHENOM_XML = (
    '<?xml version="1.0"?><FeiImage><databarHeight>12</databarHeight>'
    '<pixelWidth unit="um">0.25</pixelWidth><pixelHeight unit="um">0.25</pixelHeight>'
    '<workingDistance unit="mm">6.5</workingDistance><acquisition><scan>'
    '<highVoltage unit="kV">-15</highVoltage><spotSize>3.3</spotSize></scan></acquisition>'
    "<instrument><uniqueID>secret number</uniqueID></instrument></FeiImage>"
)

# Zeiss Orion, a helium-ion microscope.
ORION_XML = (
    "<ImageTags><UserName><Value>secret operator</Value><Units></Units></UserName>"
    "<AccelerationVoltage><Value>29997</Value><Units>Volts</Units></AccelerationVoltage>"
    "<WorkingDistance><Value>8.5</Value><Units>mm</Units></WorkingDistance>"
    "<ScalingX><Value>9.765625E-10</Value><Units>m</Units></ScalingX>"
    "<ScalingY><Value>9.765625E-10</Value><Units>m</Units></ScalingY>"
    "<ImageWidth><Value>64</Value><Units></Units></ImageWidth>"
    "<GFIS.IonGas><Value>Helium</Value><Units></Units></GFIS.IonGas>"
    "<DetectorName><Value>ETDetector</Value><Units></Units></DetectorName></ImageTags>"
)

# Fibics NPVE, which also drives electron microscopes.
FIBICS_XML = (
    '<?xml version="1.0" encoding="iso-8859-1"?><Fibics version="1.0">'
    "<Image><Width>64</Width><Height>48</Height><Machine>secret number</Machine>"
    "<Beam>{beam}</Beam><Detector>ET</Detector></Image>"
    '<Scan><FOV_X units="um">2.56</FOV_X><FOV_Y units="um">1.92</FOV_Y></Scan>'
    '<BeamInfo><item name="AccV">30000</item><item name="GFISGas">{gas}</item></BeamInfo></Fibics>'
)


def text_tag(code: int, text: str) -> tuple:
    """An extra tag for `tifffile.imwrite` that holds text as bytes."""
    data = text.encode("latin-1") + b"\0"
    return (code, 7, len(data), data, True)


def write_olympus(
    path: Path,
    pixels: np.ndarray,
    pixel_m: float,
    magnification: float,
    first: np.ndarray | None = None,
) -> None:
    """A TIFF with the OlympusSIS tag 33560, whose pointer is a position in the file.

    `first` is a page before it, without that tag, as some JEOL TEMs write it.
    """
    marker = struct.pack("<hhI", 1, 1, 0xDEADBEEF)
    header = struct.pack("<4s6xhhhhh6x32sH", b"SIS0", 0, 0, 1, 0, 116, b"secret name", 1)
    body = struct.pack(
        "<10xhdd8xd2x34s32s", -9, pixel_m * 1e9, pixel_m * 1e9, magnification, b"Quemesa", b"Gray"
    )
    blob = header + marker + body
    with tifffile.TiffWriter(path) as tiff:
        if first is not None:
            tiff.write(first, metadata=None)
        tiff.write(pixels, extratags=[(33560, 7, len(blob), blob, True)], metadata=None)
    data = path.read_bytes()
    start = data.index(header)
    pointer = start + len(header)
    position = struct.pack("<hhI", 1, 1, pointer + len(marker))
    path.write_bytes(data[:pointer] + position + data[pointer + len(marker) :])


def write_mrc(
    path: Path,
    pixels: np.ndarray,
    cell_angstrom: tuple[float, float],
    imod_flags: int | None = None,
) -> None:
    """An MRC image or stack (sections, rows, columns) with a cell in Å; bytes, else float32.

    `imod_flags` marks it as IMOD's.
    """
    stack = pixels if pixels.itemsize == 1 else pixels.astype("<f4")
    stack = stack.reshape(-1, *pixels.shape[-2:])
    sections, rows, columns = stack.shape
    header = np.zeros(256, "<i4")
    header[0:4] = columns, rows, sections, 0 if stack.itemsize == 1 else 2
    header[7:10] = columns, rows, sections
    floats = header.view("<f4")
    floats[10:13] = *cell_angstrom, float(sections)
    header[52] = int.from_bytes(b"MAP ", "little")
    if imod_flags is not None:
        header[38:40] = int.from_bytes(b"IMOD", "little"), imod_flags
    path.write_bytes(header.tobytes() + stack.tobytes())


def write_ser(path: Path, pixels: np.ndarray, pixel_m: float) -> None:
    """A one-image TIA series of uint16; TIA stores the lowest row first."""
    rows, columns = pixels.shape
    image = struct.pack("<ddIddIHII", 0, pixel_m, 0, 0, pixel_m, 0, 2, columns, rows)
    image += pixels[::-1].astype("<u2").tobytes()
    dimension = struct.pack("<IddII6sI0s", 1, 0, 1, 0, 6, b"Number", 0, b"")
    start = 30 + len(dimension) + 8
    header = struct.pack(
        "<HHHIIIIII", 0x4949, 0x0197, 0x0210, 0x4122, 0x4152, 1, 1, 30 + len(dimension), 1
    )
    offsets = struct.pack("<II", start, start + len(image))
    path.write_bytes(header + dimension + offsets + image + struct.pack("<HHI", 0x4152, 0, 0))


def write_emd_ncem(path: Path, pixels: np.ndarray, pixel: float, unit: str) -> None:
    """A Berkeley EMD file with one data group."""
    with h5py.File(path, "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        group = file.create_group("data/single")
        group.attrs["emd_group_type"] = 1
        group["data"] = pixels
        for index, size in enumerate(pixels.shape, 1):
            axis = group.create_dataset(f"dim{index}", data=np.arange(size) * pixel)
            axis.attrs["name"], axis.attrs["units"] = "yx"[index - 1 : index], unit


def write_emd_velox(
    path: Path, images: dict[str, tuple[np.ndarray, float]], analytical: tuple[str, ...] = ()
) -> None:
    """A Velox EMD file with images {detector: (pixels, pixel size in m)}; none: a spectrum.

    Detectors called `analytical` count X-rays, each with two segments.
    """
    detectors = [(name, "ScanningDetector") for name in images if name not in analytical]
    detectors += [(f"{name}{part}", "AnalyticalDetector") for name in analytical for part in (1, 2)]
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        version = json.dumps({"format": "Velox", "version": "10"})
        file.create_dataset("Version", data=[version.encode()], dtype="S100")
        operations = {}
        for index, (detector, (pixels, pixel_m)) in enumerate(images.items()):
            key = f"{index:032x}"
            metadata = {
                "BinaryResult": {
                    "PixelSize": {"width": str(pixel_m), "height": str(pixel_m)},
                    "PixelUnitX": "m",
                    "Detector": detector,
                },
                "Optics": {"AccelerationVoltage": "200000"},
                "Instrument": {"InstrumentClass": "Talos"},
                "Scan": {"FrameTime": "1.0"},
                "Detectors": {
                    f"Detector-{number}": {"DetectorName": name, "DetectorType": kind}
                    for number, (name, kind) in enumerate(detectors)
                },
                "Core": {"MetadataSchemaVersion": "v1"},
                "CustomProperties": {"StemMagnification": {"value": "320000"}},
                "Acquisition": {"AcquisitionStartDatetime": {"DateTime": "0"}},
            }
            data = np.frombuffer(json.dumps(metadata).encode().ljust(4000, b"\0"), np.uint8)
            group = file.create_group(f"Data/Image/{key}")
            group.create_dataset("Data", data=pixels[..., None], chunks=True)
            group["Metadata"] = data[:, None]
            operations[key] = json.dumps({"dataPath": f"/Data/Image/{key}", "detector": detector})
        if not images:
            group = file.create_group("Data/Spectrum/0")
            group["Data"] = np.zeros((4096, 1), np.uint32)
            group["Metadata"] = np.zeros((10, 1), np.uint8)
        for key, operation in operations.items():
            name = f"Operations/StemInputOperation/{key}"
            file.create_dataset(name, data=[operation], dtype=text)


def _dm3_tag(name: str, value: object) -> bytes:
    """One DM3 tag: a group (dict or list), a text, a number or an array of pixels."""
    encoded = name.encode()
    head = struct.pack(">H", len(encoded)) + encoded
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else (("", item) for item in value)
        content = [_dm3_tag(key, item) for key, item in items]
        return b"\x14" + head + struct.pack(">bbI", 0, 0, len(content)) + b"".join(content)
    if isinstance(value, str):
        data = value.encode("utf-16-le")
        info = struct.pack(">IIII", 3, 20, 4, len(value))
    elif isinstance(value, np.ndarray):
        data = value.tobytes()
        codes = {"float32": 6, "uint16": 4, "uint32": 5}
        info = struct.pack(">IIII", 3, 20, codes[value.dtype.name], value.size)
    elif isinstance(value, float):
        data, info = struct.pack("<f", value), struct.pack(">II", 1, 6)
    else:
        data, info = struct.pack("<I", value), struct.pack(">II", 1, 5)
    return b"\x15" + head + b"%%%%" + info + data


def write_dm3(
    path: Path, pixels: np.ndarray, axes: list[tuple[float, str]], voltage: float = 200_000.0
) -> None:
    """A DM3 file with one image; `axes` are (scale, unit) of x, y, ..., as DM orders them.

    uint32 pixels of `axes` are written as DM's RGBA when their dtype is a view of four bytes.
    """
    kinds = {"float32": 2, "uint16": 10, "uint32": 23}
    image = {
        "ImageData": {
            "Calibrations": {
                "Brightness": {"Origin": 0.0, "Scale": 1.0, "Units": ""},
                "Dimension": [{"Origin": 0.0, "Scale": s, "Units": unit} for s, unit in axes],
            },
            "Data": pixels.ravel(),
            "DataType": kinds[pixels.dtype.name],
            "Dimensions": list(pixels.shape[::-1]),
            "PixelDepth": pixels.itemsize,
        },
        "ImageTags": {
            "Microscope Info": {
                "Voltage": voltage,
                "Illumination Mode": "STEM NANOPROBE",
                "Indicated Magnification": 40_000.0,
            },
            "Session Info": {"Operator": "secret operator"},
        },
        "Name": "secret name",
    }
    tags = _dm3_tag("ImageList", [image])
    content = struct.pack(">bbI", 0, 0, 1) + tags + bytes(8)
    path.write_bytes(struct.pack(">III", 3, len(content), 1) + content)
