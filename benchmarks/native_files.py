"""python benchmarks/native_files.py data/native

Reads every file in a folder of real microscope files and prints a Markdown table: format, pixel
size found, pixel size expected, verdict. `EXPECTED` is what the metadata of each file states, read
without `mvaema.micrographs.microscope` from the folder's README and the files' tags.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from mvaema.micrographs.microscope import UnreadableMicrograph, read_micrograph

# File name -> (format, pixel size in nm; None without calibration; the reason of a refusal).
EXPECTED: dict[str, tuple[str, float | str | None]] = {
    "analysis32_cu_au.tif": ("analySIS TIFF", 1.5376),
    "fei_fibsem_slice001.tif": ("FEI TIFF", 385.417),
    "fei_porous_sample1.tif": ("FEI TIFF", 134.896),
    "fei_rgba_nanowires.tif": ("FEI TIFF, RGBA, LZW", 8.324),
    "gatan_08_carbon.dm3": ("DM3, EELS spectrum", "spectrum"),
    # 2 Å by 1 nm: resampled to squares of the finer side.
    "gatan_dmTest_nonsquare.dm3": ("DM3, pixels not square", 0.2),
    "gatan_dmTest_nonsquare.dm4": ("DM4, pixels not square", 0.2),
    "gatan_dm_image_um_unit.dm3": ("DM3", 168.67469),
    "gatan_tiff_dm_export.tif": ("Gatan TIFF", 168.67469),
    "gatan_tiff_nanodiamond.tif": ("Gatan TIFF, no unit", None),
    "hitachi_nometa_nanowire_13.tif": ("Hitachi TIFF, no sidecar", None),
    # A bar of 101 pixels is 100 µm.
    "jeol_sem_image000.txt": ("JEOL sidecar", 100_000 / 101),
    # 3642 pixels per metre on the camera at 150,000 x; 247.72 nm are 135.33 pixels on its ruler.
    "jeol_sightx_tem_mag_dummy.tif.gz": ("JEOL SightX TIFF, gzip", 247.72 / 135.33),
    "ncem_Acquisition_18.emd": ("EMD (NCEM)", 0.0122465),
    "olympus_sis_tem_myelin.tif": ("Olympus TIFF", 5.9622214),
    "rsciio_fei_FEI-Helios-Ebeam-16bits.tif": ("FEI TIFF, 16 bit", 3372.4),
    "rsciio_fei_FEI-Helios-Ebeam-8bits.tif": ("FEI TIFF", 3372.4),
    # An optical camera's view of the chamber: PixelWidth is absent.
    "rsciio_fei_FEI-Helios-navcam-with-no-IRBeam.tif": ("FEI TIFF, Nav-Cam", None),
    "rsciio_fei_FEI-Helios-navcam.tif": ("FEI TIFF, Nav-Cam", None),
    "rsciio_zeiss_ZEISS_SEM_multipage.tif": ("Zeiss TIFF, 2 pages", 12.33),
    "rsciio_zeiss_test_tiff_Zeiss_SEM_1k.tif": ("Zeiss TIFF", 2615.0),
    # No "Image Pixel Size", but a width of 5.965 µm on 512 pixels.
    "rsciio_zeiss_test_tiff_Zeiss_SEM_512pix.tif": ("Zeiss TIFF, older", 5965 / 512),
    "tescan_minimal.hdr": ("TESCAN sidecar", 50.0),
    "zeiss_composite_5LGr.tif": ("Zeiss TIFF", 2.93),
    "zeiss_fibres_sample01.tif": ("Zeiss TIFF", 9.766),
}
# Sidecars without their image: each is read beside a blank image of the size it states.
SIDECAR_IMAGES = {"jeol_sem_image000.txt": (1280, 960), "tescan_minimal.hdr": (1024, 768)}
TOLERANCE = 1e-3


def found(path: Path) -> float | str | None:
    """The pixel size in nm that is read, or None, or the reason of a refusal."""
    try:
        if path.name not in SIDECAR_IMAGES:
            return read_micrograph(path).pixel_size_nm
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(path, folder)
            image = Path(folder, path.with_suffix(".tif").name)
            Image.new("L", SIDECAR_IMAGES[path.name], 128).save(image)
            return read_micrograph(image).pixel_size_nm
    except UnreadableMicrograph as error:
        return error.reason


def agrees(value: float | str | None, expected: float | str | None) -> bool:
    """Whether a pixel size is as expected to 0.1 %, or a reason is the expected one."""
    if isinstance(value, float) and isinstance(expected, float):
        return abs(value - expected) <= TOLERANCE * expected
    return value == expected


def main(folder: str) -> None:
    def text(value: float | str | None) -> str:
        return {float: lambda: f"{value:.6g} nm", str: lambda: f"refused: {value}"}.get(
            type(value), lambda: "none"
        )()

    paths = sorted(path for path in Path(folder).iterdir() if path.name != "README.md")
    right = 0
    print("| file | format | found | expected | verdict |\n|---|---|---|---|---|")
    for path in paths:
        kind, expected = EXPECTED[path.name]
        value = found(path)
        right += agrees(value, expected)
        verdict = "ok" if agrees(value, expected) else "WRONG"
        print(f"| {path.name} | {kind} | {text(value)} | {text(expected)} | {verdict} |")
    print(f"\n{right} of {len(paths)} as expected")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder of microscope files")
    main(parser.parse_args().folder)
