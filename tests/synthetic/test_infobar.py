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
        styles[scene.facts.bar] += 1
        # Bars over the specimen are measured in test_annotations.py; JPEG blurs the ends.
        if scene.facts.bar in (None, "overlay") or scene.facts.jpeg:
            continue
        value, unit = scene.scale_bar.split()
        stated = axis_nm(value, unit)
        pixels = np.asarray(scene.image).astype(int)
        ink = 0 if scene.facts.bar == "white strip" else 255
        longest = 0
        for row in pixels[len(scene.clean) :, pixels.shape[1] // 2 :]:
            runs = (len(list(g)) for value, g in itertools.groupby(row) if value == ink)
            # The border of a white strip is paper, not ink.
            longest = max(longest, *runs, 0, 0)
        assert longest * scene.pixel_size_nm == pytest.approx(stated, abs=scene.pixel_size_nm)
    assert set(styles) == {"black strip", "white strip", "overlay", None}


def test_a_length_is_stated_where_a_bar_is_printed(scenes):
    for scene in scenes:
        assert (scene.scale_bar is None) == (scene.facts.bar is None)
        assert scene.image.size == (224, 224)
        if scene.scale_bar:
            value, unit = scene.scale_bar.split()
            assert 0.1 < axis_nm(value, unit) / scene.facts.field_of_view_nm < 0.35
