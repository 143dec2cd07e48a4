"""The microscopes' own formats (DM3, DM4, EMD, SER, MRC), through RosettaSciIO.

What is special about it:
- of several images in a file the largest is read, or the first of equals; a map of X-ray counts,
  a spectrum and a diffraction pattern are no micrographs;
- a calibration that the program only filled in is none.
"""

import importlib
import math
from pathlib import Path

import numpy as np

from mvaema.micrographs.calibration import (
    InstrumentRecord,
    NotAMicrograph,
    axis_nm,
    refuse_diffraction,
    refuse_energy,
    settings,
)
from mvaema.micrographs.refusals import check_size

# RosettaSciIO's reader for each suffix of a microscope's own format.
NATIVE_READERS = {
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".mrc": "mrc",
    ".ser": "tia",
}

# Velox: images only. MRC: no search for files beside one that is called movie.
NATIVE_OPTIONS = {"emd": {"select_type": "images"}, "mrc": {"metadata_file": None}}

# The settings to keep: their name in RosettaSciIO's metadata (keV, mm) and ours.
NATIVE_SETTINGS = {
    "acquisition_mode": "technique",
    "beam_energy": "accelerating_voltage_kv",
    "working_distance": "working_distance_mm",
    "magnification": "magnification",
}

# IMOD marks its MRC files; a flag then says whether bytes have a sign. MRC2014's always have.
IMOD_STAMP, IMOD_SIGNED = b"IMOD", 1
IMOD_HEADER = slice(20, 28)  # stamp and flags, in the header's second group of spare bytes


def read_native(path: Path) -> tuple[np.ndarray, InstrumentRecord]:
    """The pixels (height, width) or (height, width, 3) of a microscope's file, and its record.

    Raises:
        ImportError: it needs the extra `microscopy`.
        NotAMicrograph: it holds no image of a specimen.
    """
    reader = NATIVE_READERS[path.suffix.lower()]
    plugin = importlib.import_module(f"rsciio.{reader}")
    options = NATIVE_OPTIONS.get(reader, {})
    try:
        signals = plugin.file_reader(str(path), lazy=True, **options)
    except ValueError as error:
        if "RGBA" not in str(error):  # the only kind of DM image that cannot be read lazily
            raise
        signals = plugin.file_reader(str(path), **options)
    images, refusal = [], NotAMicrograph("spectrum", "it holds no image")
    for signal in signals:
        try:
            images.append((signal, _frame(signal)))
        except NotAMicrograph as error:
            refusal = error
    if not images:
        raise refusal
    signal, (frame, pixel_nm) = max(images, key=lambda item: math.prod(item[1][0].shape[:2]))
    check_size(*frame.shape[:2])
    pixels = np.asarray(frame)
    if reader == "mrc":
        header = signal["original_metadata"]
        if not _mrc_is_calibrated(header):
            pixel_nm = None
        if _mrc_has_signed_bytes(header["std_header"]):
            pixels = pixels.view(np.int8)
    return pixels, InstrumentRecord(pixel_nm, _settings(signal))


def _frame(signal: dict) -> tuple:
    """The first frame of a RosettaSciIO signal, not loaded yet, and its pixel's (x, y) in nm."""
    data, axes = signal["data"], signal["axes"]
    kind = signal["metadata"].get("Signal", {}).get("signal_type")
    plane = [axis for axis in axes if not axis["navigate"]]
    if kind or len(plane) < 2 or min(axis["size"] for axis in plane[-2:]) < 2:
        raise NotAMicrograph("spectrum", f"its data is a spectrum or a profile ({kind or '1-D'})")
    for axis in axes:
        refuse_energy(axis["units"])
    _refuse_count_map(signal["original_metadata"])
    calibration = [axis_nm(axis["scale"], axis["units"]) for axis in plane]
    y, x = calibration[-2:]
    refuse_diffraction(x)
    # Axes before the last two are a stack, a series or a scan; its first frame is read.
    data = data[(0,) * (len(axes) - 2)] if len(axes) > 2 else data
    if data.dtype.names:  # a structured array of R, G, B
        data = np.stack([np.asarray(data[name]) for name in data.dtype.names[:3]], axis=-1)
    if [str(axis["name"]).lower() for axis in plane[-2:]] == ["x", "y"]:  # EMD by ncempy
        data, x, y = data.swapaxes(0, 1), y, x
    if np.iscomplexobj(data):
        message = "its values are complex numbers: a Fourier transform or the phase of a hologram"
        raise NotAMicrograph("not-an-image", message)
    return data, (x, y) if x and y else None


def _refuse_count_map(metadata: dict) -> None:
    """Raises NotAMicrograph for Velox's map of an element: its detector counts X-rays."""
    detector = metadata.get("BinaryResult", {}).get("Detector")
    analytical = [
        str(entry.get("DetectorName", ""))
        for entry in metadata.get("Detectors", {}).values()
        if entry.get("DetectorType") == "AnalyticalDetector"
    ]
    # A detector of several segments is listed with their numbers: SuperXG2 as SuperXG21 to 24.
    if detector and any(name == detector or name[:-1] == detector for name in analytical):
        raise NotAMicrograph("spectrum", f"its image is a map of X-ray counts ({detector})")


def _mrc_is_calibrated(header: dict) -> bool:
    """Whether an MRC file states a pixel size.

    Programs that do not know it write an empty, negative or 1 Å cell, or 1 Å per pixel.
    """
    if "fei_header" in header:
        return True
    cell = header["std_header"]
    return all(
        cell[f"M{axis}"] > 0
        and cell[f"{axis}len"] > 0
        and cell[f"{axis}len"] not in (1, cell[f"M{axis}"])
        for axis in "XY"
    )


def _mrc_has_signed_bytes(header: dict) -> bool:
    """Whether an MRC file holds bytes (mode 0) with a sign, as MRC2014 has it."""
    imod = bytes.fromhex(header["EXTRA2"])[IMOD_HEADER]
    unsigned = imod.startswith(IMOD_STAMP) and not imod[4] & IMOD_SIGNED
    return header["MODE"] == 0 and not unsigned


def _settings(signal: dict) -> dict[str, str | float]:
    """The settings that RosettaSciIO maps to HyperSpy's names, under our names."""
    metadata = signal["original_metadata"]
    values = {"detector": metadata.get("BinaryResult", {}).get("Detector")}  # Velox
    for source, target in signal.get("mapping", {}).items():
        name, convert = target if target else ("", None)
        key = NATIVE_SETTINGS.get(name.rpartition(".")[2])
        value = metadata
        for part in source.split("."):
            value = value.get(part) if hasattr(value, "get") else None
        if key and value is not None:
            values[key] = convert(value) if convert else value
    return settings(**values)
