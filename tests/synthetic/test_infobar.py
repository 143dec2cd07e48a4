"""The info bar: what it states is what it shows."""

import collections
import itertools

import numpy as np
import pytest

from mvaema.micrographs.calibration import axis_nm


def test_the_scale_bar_is_true(scenes):
    """Its length in pixels, times the pixel size, is what its text states."""
    styles = collections.Counter()
    for scene in scenes:
        if scene.scale_bar is None:
            continue
        value, unit = scene.scale_bar.split()
        stated = axis_nm(value, unit)
        pixels = np.asarray(scene.image).astype(int)
        ink = 0 if scene.facts.bar == "white strip" else 255
        below = len(scene.clean) if scene.facts.bar != "overlay" else int(0.8 * len(pixels))
        longest = 0
        for row in pixels[below:, pixels.shape[1] // 2 :]:
            runs = (len(list(g)) for value, g in itertools.groupby(row) if value == ink)
            # The border of a white strip is paper, not ink.
            longest = max(longest, *runs, 0, 0)
        assert longest * scene.pixel_size_nm == pytest.approx(stated, abs=scene.pixel_size_nm)
        assert 0.1 < stated / scene.facts.field_of_view_nm < 0.35
        styles[scene.facts.bar] += 1
    assert set(styles) == {"black strip", "white strip", "overlay"}
