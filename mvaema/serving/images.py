"""An image in a request to a micrograph, as `mvaema ask` would read its file.

What is special about it:
- its format is what its first bytes say. What the client calls it, name and MIME type, is ignored;
- microscopes' own formats work, and give the pixel size that the instrument recorded;
- an HDF5 file that points at other files is refused: they would be those of the server;
- sizes are checked before pixels are decoded. Packed files (gzip) are not taken;
- decoders read it from a folder of its own, without a sidecar, that is gone afterwards.
"""

import base64
import binascii
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mvaema.micrographs.microscope import Micrograph, UnreadableMicrograph, read_micrograph
from mvaema.serving.refusals import Refusal, bad_request

# The first bytes of the formats whose reader goes by the suffix; MRC has its mark later.
MAGIC = {
    b"\0\0\0\x03": ".dm3",
    b"\0\0\0\x04": ".dm4",
    b"\x89HDF\r\n\x1a\n": ".emd",
    b"II\x97\x01": ".ser",
}
MRC_MARK, MRC_MARK_AT = b"MAP", 208

# What a client is told, by the reason for which a file was refused.
ADVICE = {
    "empty": "is empty",
    "not-an-image": "is in no format that is read here; send PNG, JPEG, TIFF, DM3, DM4, EMD, SER "
    "or MRC",
    "damaged": "is truncated or damaged; export it again",
    "unsupported-pixels": "stores its pixels in a way that is not read; export it as 8-bit, or as "
    "16-bit grey",
    "spectrum": "is a spectrum and not a micrograph",
    "diffraction": "is a diffraction pattern and not a micrograph",
    "linked": "says that its data lie in other files, which are not read",
    "missing-extra": "is in a format that needs the extra `microscopy` on the server",
}


def limit_pixels(max_pixels: int) -> Callable[[], None]:
    """Let no decoder of this process take an image with more pixels; returns what undoes it.

    The readers of all formats keep to Pillow's limit, which is one for a process.
    """
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max(1, max_pixels // 2)
    return lambda: setattr(Image, "MAX_IMAGE_PIXELS", before)


def read_image(uri: str, max_pixels: int) -> Micrograph:
    """The micrograph in a data URI; for the rest, `read_content`."""
    return read_content(_decoded(uri), max_pixels)


def read_content(content: bytes, max_pixels: int) -> Micrograph:
    """The micrograph in a file's bytes. One thread at a time: what it does to warnings is global.

    Raises:
        Refusal: it is no image that can be read (400), or too large (413).
    """
    with tempfile.TemporaryDirectory(prefix="mvaema-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they would name the file, and tell nobody anything
        path = Path(folder, f"image{_suffix(content)}")
        path.write_bytes(content)
        del content
        try:
            if path.suffix == ".emd":
                _refuse_links(path)
            return read_micrograph(path)
        except UnreadableMicrograph as error:
            reason = error.reason
    if reason == "too-large":
        raise Refusal(
            413,
            "image_too_large",
            f"the image has more than {max_pixels / 1e6:g} million pixels. Send it smaller.",
            "messages",
        )
    said = ADVICE.get(reason, "cannot be read")
    raise bad_request(f"the image {said}.", "messages", f"image_{reason.replace('-', '_')}")


def _refuse_links(path: Path) -> None:
    """Raises UnreadableMicrograph where HDF5 takes data from other files, here the server's."""
    try:
        import h5py

        with h5py.File(path) as file:
            groups, seen = [file], set()
            while groups:
                group = groups.pop()
                for name in group:
                    link = group.get(name, getlink=True)
                    if isinstance(link, h5py.SoftLink):
                        continue  # to what is met by another way
                    found = group[name] if isinstance(link, h5py.HardLink) else None
                    is_data = isinstance(found, h5py.Dataset)
                    if found is None or (is_data and (found.external or found.is_virtual)):
                        raise UnreadableMicrograph(path, "linked", "its data lie in another file.")
                    address = h5py.h5o.get_info(found.id).addr
                    if isinstance(found, h5py.Group) and address not in seen:
                        groups.append(found)
                    seen.add(address)
    except ImportError as error:
        raise UnreadableMicrograph(path, "missing-extra", "needs h5py.") from error
    except (OSError, RuntimeError, KeyError) as error:
        raise UnreadableMicrograph(path, "damaged", "is damaged.") from error


def _decoded(uri: str) -> bytes:
    """The bytes in a data URI."""
    header, comma, encoded = uri.partition(",")
    if not comma or not header.lower().rstrip().endswith(";base64"):
        raise bad_request(
            "an image must be a data URI in base64: data:image/png;base64,...",
            "messages",
            "image_not_base64",
        )
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise bad_request("an image is not valid base64.", "messages", "image_not_base64") from None


def _suffix(content: bytes) -> str:
    """The suffix by which a reader is chosen; Pillow's formats need none."""
    if content[MRC_MARK_AT : MRC_MARK_AT + len(MRC_MARK)] == MRC_MARK:
        return ".mrc"
    return next((suffix for magic, suffix in MAGIC.items() if content.startswith(magic)), "")
