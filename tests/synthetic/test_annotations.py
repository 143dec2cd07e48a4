"""What is printed over micrographs, measured on plain pictures."""

import itertools

import numpy as np
import pytest
from PIL import Image

from mvaema.synthetic.annotations import ScaleBar, mark


@pytest.mark.parametrize("length_nm", [100, 231, 310])
def test_every_style_of_scale_bar_has_its_length(length_nm):
    corners = set()
    for seed in range(60):
        bar = ScaleBar.draw(np.random.default_rng(seed), 224)
        image = Image.new("L", (224, 224), 128)
        bar.burn(image, 5.0, length_nm)
        pixels = np.asarray(image)
        runs = [
            len(list(run))
            for row in pixels
            for ink, run in itertools.groupby(row)
            if ink == bar.ink
        ]
        assert max(runs) == round(length_nm / 5)
        y, x = np.nonzero(pixels == bar.ink)
        assert (y.mean() < 112) == bar.top and (x.mean() > 112) == bar.right
        corners.add((bar.top, bar.right))
    assert len(corners) == 4


def test_marks_are_named_if_and_only_if_they_are_printed():
    names = set()
    for seed in range(80):
        image = Image.new("L", (224, 200), 128)
        marks = mark(np.random.default_rng(seed), image)
        assert bool(marks) == (np.asarray(image) != 128).any()
        names.update(marks)
    assert names == {"a panel letter", "a caption", "an arrow", "a box"}
