"""Images of any depth as 8-bit pictures."""

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from support.pictures import by_hand, expected_picture

from pixels_mvaema import UnsupportedPixels, picture, stored_pixels, stretch, to_8bit

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


@pytest.mark.parametrize("kind", ["even", "few", "bright", "bar"])
def test_16_bit_levels_are_stretched_between_numpy_s_percentiles(kind):
    """Counted levels give what sorted ones do, pixel for pixel."""
    rng = np.random.default_rng(0)
    for size in [(16, 16), (33, 47), (201, 100), (512, 384)]:
        pixels = rng.integers(0, 2**16, size, dtype=np.uint16)
        if kind == "few":
            pixels = rng.choice(np.array([0, 7, 65535], np.uint16), size)
        elif kind == "bright":
            pixels = rng.integers(65000, 2**16, size, dtype=np.uint16)
        elif kind == "bar" and size[0] > 100:
            pixels[-40:] = 65535
        picture = pixels[:-40] if kind == "bar" and size[0] > 100 else pixels
        low, high = (float(level) for level in np.percentile(picture, (0.1, 99.9)))
        if high <= low:
            low, high = float(picture.min()), float(picture.max())
        shares = ((pixels.astype(np.float32) - low) / (high - low)).clip(0, 1)
        assert np.array_equal(stretch(pixels), np.rint(shares * 255).astype(np.uint8))


def test_deep_images_are_stretched_and_not_clipped():
    """A hot pixel does not turn the rest black; a 12-bit image in a 16-bit file is not dark."""
    deep = RNG.integers(0, 4096, (200, 200), dtype=np.uint16)
    deep[0, 0] = 65535
    shallow = np.asarray(to_8bit(deep))
    assert shallow[0, 0] == 255
    assert 120 < shallow.mean() < 135
    assert np.count_nonzero(shallow == 0) < 200 > np.count_nonzero(shallow == 255)
    order = np.argsort(deep.ravel()[1000:1100])
    assert (np.diff(shallow.ravel()[1000:1100][order].astype(int)) >= 0).all()


def test_transparent_pixels_are_white():
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[:10, :, 3] = 255
    image = np.asarray(to_8bit(pixels))
    assert image[:10].max() == 0 and image[10:].min() == 255


def test_flat_and_broken_arrays():
    assert np.ptp(np.asarray(to_8bit(np.full((20, 20), 7.0)))) == 0
    holes = np.random.default_rng(0).normal(size=(20, 20))
    holes[3, 3] = np.nan
    assert np.asarray(to_8bit(holes)).std() > 10
    with pytest.raises(ValueError, match="no finite pixel"):
        to_8bit(np.full((20, 20), np.nan))
    with pytest.raises(ValueError, match=r"shape \(20, 20, 7\)"):
        to_8bit(np.zeros((20, 20, 7), np.uint8))


def test_too_small_images_are_refused():
    with pytest.raises(ValueError, match=r"1 x 1 pixels is too small.*16"):
        to_8bit(Image.new("L", (1, 1)))
    with pytest.raises(ValueError, match="400 x 1 pixels"):
        to_8bit(np.zeros((1, 400), np.uint8))


def test_unreadable_files_are_named(tmp_path):
    path = tmp_path / "broken µ.png"
    Image.fromarray(RNG.integers(0, 256, (40, 60), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"broken µ\.png cannot be read as an image"):
        to_8bit(path)
    with pytest.raises(ValueError, match=r"missing\.png"):
        to_8bit(tmp_path / "missing.png")
