"""Info bars are found on pixels alone, and pictures are left alone."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from support import ROOT

from mvaema.micrographs.info_bar import find_info_bar

SHARED = os.environ.get("MVAEMA_SHARED")
LABELS = ROOT / "benchmarks/info_bar_labels.json"


def picture(width: int = 512, height: int = 384, seed: int = 0, dark: bool = False) -> Image.Image:
    """Noisy discs on a background, as particles look."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width), 8.0 if dark else 110.0)
    for _ in range(60):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(8, 30)
        image[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.uniform(120, 230)
    noisy = image + rng.normal(0, 6, image.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def draw_bar(image: Image.Image, upper: int, lower: int, paper: int, ink: int) -> Image.Image:
    """A strip with settings and a scale bar, as instruments draw them."""
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, upper, image.width, lower - 1), fill=paper)
    font = ImageFont.load_default((lower - upper) * 0.45)
    draw.text((8, upper + 4), "HV 5.00 kV  WD 4.0 mm  ETD  20 000 x", fill=ink, font=font)
    middle = (upper + lower) // 2
    draw.rectangle((image.width * 0.8, middle, image.width * 0.95, middle + 2), fill=ink)
    return image


def as_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return Image.open(buffer)


@pytest.mark.parametrize("jpeg", [False, True], ids=["pixels", "JPEG"])
@pytest.mark.parametrize(("paper", "ink"), [(0, 255), (255, 0)], ids=["black", "white"])
@pytest.mark.parametrize(("upper", "lower"), [(356, 384), (340, 372)], ids=["bottom", "inner"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_bars_are_found(upper, lower, paper, ink, jpeg, dark):
    image = draw_bar(picture(dark=dark), upper, lower, paper, ink)
    box = find_info_bar(as_jpeg(image) if jpeg else image)
    if dark and paper == 0 and box is None:
        return  # a dark picture may hide the edge of a black bar: missed rather than guessed
    assert box is not None
    assert np.abs(np.subtract(box, (0, upper, 512, lower))).max() <= 2


@pytest.mark.parametrize("scale", [1, 3])
def test_bars_scale_with_the_image(scale):
    image = draw_bar(picture(512 * scale, 384 * scale), 356 * scale, 384 * scale, 0, 255)
    box = find_info_bar(image)
    assert np.abs(np.subtract(box, np.array((0, 356, 512, 384)) * scale)).max() <= 2


def test_a_bar_in_colour_is_found():
    image = draw_bar(picture(), 350, 384, 255, 0).convert("RGB")
    ImageDraw.Draw(image).rectangle((460, 354, 500, 380), fill=(0, 0, 160))  # a logo
    box = find_info_bar(image)
    assert np.abs(np.subtract(box, (0, 350, 512, 384))).max() <= 2


def test_a_grey_bar_is_found_where_a_program_drew_it():
    """As some TEM software writes it: a light grey strip in a black frame, without any noise."""
    image = draw_bar(picture(), 350, 384, 211, 0)
    ImageDraw.Draw(image).rectangle((0, 350, 511, 383), outline=0, width=2)
    box = find_info_bar(image)
    assert np.abs(np.subtract(box, (0, 350, 512, 384))).max() <= 2
    noisy = np.asarray(image).copy()
    noisy[350:] = (noisy[350:] + np.random.default_rng(1).normal(0, 2, (34, 512))).clip(0, 255)
    assert find_info_bar(Image.fromarray(noisy)) is None  # it may be a plain background


def overlay(image: Image.Image) -> Image.Image:
    draw = ImageDraw.Draw(image)
    draw.text((8, 360), "10.0kV 14.2mm x1.00k SE(M)", fill=255, font=ImageFont.load_default(16))
    return image


def corner_box(image: Image.Image) -> Image.Image:
    bar = draw_bar(Image.new("L", (200, 30)), 0, 30, 255, 0)
    image.paste(bar, (0, 354))
    return image


def ragged_edge(image: Image.Image) -> Image.Image:
    """A film seen in section above a black background with print on it."""
    pixels = np.asarray(image).copy()
    edge = 330 + 20 * np.sin(np.arange(512) / 9)
    pixels[np.arange(384)[:, None] > edge] = 0
    return overlay(Image.fromarray(pixels))


def trenches(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).copy()
    pixels[340:370] = np.random.default_rng(1).normal(20, 4, (30, 512)).clip(0)
    return Image.fromarray(pixels)


def margin(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).rectangle((0, 364, 512, 384), fill=255)
    return image


@pytest.mark.parametrize(
    "change", [lambda image: image, overlay, corner_box, ragged_edge, trenches, margin]
)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pictures_are_left_alone(change, dark):
    assert find_info_bar(change(picture(dark=dark))) is None


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 300), (300, 4), (64, 64)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_plain_and_tiny_images(size, level):
    assert find_info_bar(Image.new("L", size, level)) is None


@pytest.mark.skipif(not SHARED, reason="MVAEMA_SHARED is not set")
def test_real_micrographs_labelled_by_eye():
    found, true, hits = 0, 0, 0
    for name, labels in json.loads(LABELS.read_text()).items():
        paths = {
            path.stem: path for path in Path(SHARED, name.partition(",")[0]).glob("**/images/*")
        }
        for image_id, label in labels.items():
            box = find_info_bar(Image.open(paths[image_id]))
            found += box is not None
            true += label is not None
            hits += box is not None and label is not None
    assert hits / found >= 0.97
    assert hits / true >= 0.9
