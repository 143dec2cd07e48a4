"""Images of any depth as 8-bit pictures."""

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from support.pictures import by_hand, expected_picture

from pixels_mvaema import UnsupportedPixels, picture, stored_pixels, to_8bit

RNG = np.random.default_rng(0)


def twelve_bits(channels: int) -> np.ndarray:
    """Colours in the lowest twelve of sixteen bits; the last of 2 or 4 channels is alpha."""
    pixels = RNG.integers(0, 4096, (48, 64, channels), dtype=np.uint16)
    if channels in (2, 4):
        pixels[..., -1] = RNG.choice([0, 20_000, 65_535], (48, 64))
    return pixels


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_every_bit_and_is_stretched(tmp_path, channels):
    """Pillow keeps 8 of them: a 12-bit picture in 16 bits was nearly black."""
    pixels = twelve_bits(channels).squeeze()
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(pixels))
    with Image.open(path) as image:
        assert np.array_equal(stored_pixels(image), pixels)
    extra = "unassalpha" if channels in (2, 4) else None
    expected = expected_picture(pixels, "rgb" if channels > 2 else "minisblack", extra)
    shown = to_8bit(path)
    assert shown.mode == ("RGB" if channels > 2 else "L")
    assert np.abs(np.asarray(shown) - expected).max() <= 1.5
    with Image.open(path) as image:  # given to the processor before anything was loaded
        assert np.array_equal(np.asarray(to_8bit(image)), np.asarray(shown))


def test_a_transparent_16_bit_colour_is_refused_not_ignored(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(twelve_bits(3)))
    with Image.open(path) as image:
        image.info["transparency"] = (1, 2, 3)
        with pytest.raises(UnsupportedPixels, match="transparent"):
            stored_pixels(image)


def test_hidden_pixels_do_not_set_black_and_white():
    """Under full transparency programs leave zeros."""
    pixels = RNG.integers(30_000, 31_000, (48, 64, 2)).astype(np.uint16)
    pixels[..., 1] = 65_535
    visible = np.asarray(picture(pixels)).copy()
    pixels[:20] = 0
    shown = np.asarray(picture(pixels))
    assert (shown[:20] == 255).all()
    assert np.abs(shown[20:].astype(int) - by_hand(pixels[20:, :, 0])).max() <= 1
    assert visible[20:].std() > 50 and shown[20:].std() > 50


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa"])
def test_alpha_of_every_kind_is_laid_on_white(mode):
    """A lower-case a: the colours are multiplied by it."""
    grey = Image.fromarray(RNG.integers(0, 256, (48, 64), dtype=np.uint8))
    straight = grey.convert(mode.upper())
    alpha = np.full((48, 64), 255, np.uint8)
    alpha[:10], alpha[10:20] = 0, 128
    straight.putalpha(Image.fromarray(alpha))
    shown = np.asarray(to_8bit(straight.convert(mode)).convert("L")).astype(float)
    expected = 255 - alpha / 255 * (255 - np.asarray(grey).astype(float))
    assert np.abs(shown - expected).max() <= 2
    assert (shown[:10] == 255).all()


def test_pictures_that_pillow_loaded_before_are_taken_as_they_are(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(RNG.integers(0, 65_536, (48, 64), dtype=np.uint16)).save(path)
    with Image.open(path) as image:
        image.load()
        assert np.array_equal(np.asarray(to_8bit(image)), np.asarray(to_8bit(path)))
