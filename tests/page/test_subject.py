"""What is known of one micrograph: the scale that counts, the region, the sizes."""

import numpy as np
import pytest
from PIL import Image
from support.drawn_structures import scattered_discs

from mvaema.measuring.measure import measure
from mvaema.measuring.scale import Scale, ScaleReading
from mvaema.micrographs.microscope import Micrograph
from mvaema.micrographs.schema import pixel_hash
from mvaema.page.subject import Subject


def subject(recorded: float | None = None, **known) -> Subject:
    image = Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60))
    return Subject(Micrograph(image, recorded, {}, None), **known)


READ = ScaleReading(5.0, 0.9, 500.0, 100.0, "500 nm")


def test_typed_comes_before_recorded_before_read():
    one = subject(2.0)
    assert (one.scale.pixel_size_nm, one.scale.source) == (2.0, "recorded")
    one.typed_nm = 3.0
    assert (one.scale.pixel_size_nm, one.scale.source) == (3.0, "typed")
    other = subject(found=Scale(5.0, "read", READ))
    assert (other.scale.pixel_size_nm, other.scale.source) == (5.0, "read")
    assert subject().scale.pixel_size_nm is None


@pytest.mark.parametrize("typed, contradicts", [(5.1, False), (7.0, True)])
def test_a_typed_scale_that_the_bar_contradicts_is_said(typed, contradicts):
    one = subject(found=Scale(5.0, "read", READ), typed_nm=typed)
    assert (one.scale.contradiction is not None) == contradicts
    if contradicts:
        assert "5 nm per pixel" in one.scale.contradiction and "7 nm" in one.scale.contradiction
        assert one.sizes is None  # the bar is not believed


@pytest.mark.parametrize(
    "sides, box",
    [
        ((10, 5, 30, 25), (10, 5, 30, 25)),
        ((30, 25, 10, 5), (10, 5, 30, 25)),  # from corner to corner, either way
        ((-5, -5, 30, 99), (0, 0, 30, 40)),
        ((0, 0, 60, 40), None),  # all of it
        ((10, 5, 10, 25), None),
        ((None, 5, 10, 25), None),
        ((0, 0, 0, 0), None),
    ],
)
def test_a_region_lies_in_the_micrograph(sides, box):
    one = subject()
    one.choose(sides)
    assert one.region == box
    size = (box[2] - box[0], box[3] - box[1]) if box else (60, 40)
    assert one.shown.size == size


def test_sizes_are_those_of_what_is_shown():
    one = subject(found=Scale(5.0, "read", READ))
    assert one.sizes == "Scale bar: 500 nm."
    result = measure(scattered_discs().image, kind="particles", pixel_size_nm=1.0)
    one.measurement, one.measured_region = result, None
    assert one.sizes == result.sentence()
    one.region = (0, 0, 20, 20)
    assert one.sizes == "Scale bar: 500 nm."


def test_the_id_is_that_of_the_pixels_and_metadata_are_the_public_ones():
    one = subject()
    assert one.image_id == pixel_hash(one.image)
    facts = {"technique": "SEM", "detector": "Bob's camera", "magnification": 7.0, "operator": "B"}
    micrograph = Micrograph(one.image, None, facts, None)
    assert Subject(micrograph).instrument == {"technique": "SEM"}
