"""Pictures of a measurement show what its words say."""

import numpy as np
import pytest
from support import drawn_structures as drawn

pytest.importorskip("skimage")

from mvaema.measuring import overlay
from mvaema.measuring.measure import measure
from mvaema.measuring.scale import Scale


@pytest.mark.parametrize("sign", "µ–…")
def test_each_sign_of_a_result_can_be_printed(sign):
    glyphs = [bytes(overlay._font().getmask(text)) for text in (sign, "\uffff")]
    assert glyphs[0] != glyphs[1]


def test_outlines_are_where_the_objects_are():
    centres = [(40 + 45 * i, 35 + 45 * j) for i in range(3) for j in range(3)] + [(0, 58)]
    image = drawn.discs(centres, [10.0] * 10).image
    result = measure(image, kind="particles", scale=Scale(None, None))
    pixels = np.asarray(overlay.draw_overlay(image, result)).astype(int)[overlay.BANNER :]
    zoom = pixels.shape[0] / image.height
    for colour, (x, y) in ((overlay.SIZED, centres[0]), (overlay.CUT, centres[-1])):
        rows, columns = np.nonzero((pixels == colour).all(-1))
        distance = np.hypot(columns / zoom - x, rows / zoom - y)
        assert np.median(distance[distance < 14]) == pytest.approx(10, abs=1)
