"""Views of micrographs: drawn by torch's seed, one for each, and true of a micrograph."""

import pytest
import torch
from support.row_checks import stripes_and_dots

from baselines.views import draw, framing, looks, quarter_turns

pytest.importorskip("torchvision", reason="needs the environment of `make baselines`")


def drawn(transform, pictures, seed=0):
    torch.manual_seed(seed)
    return draw(transform, pictures)


def test_a_seed_draws_the_same_views_and_another_one_others():
    pictures, _ = stripes_and_dots(64, 4)
    transform = looks(48, 0.2)
    first = drawn(transform, pictures)
    assert first.shape == (4, 3, 48, 48)
    assert torch.equal(first, drawn(transform, pictures))
    assert not torch.equal(first, drawn(transform, pictures, seed=1))


def test_each_micrograph_of_a_batch_has_a_view_of_its_own():
    pictures, _ = stripes_and_dots(64, 1)
    views = drawn(framing(64, 0.2), pictures.expand(6, -1, -1, -1))
    different = {tuple(view[0, ::8, ::8].flatten().tolist()) for view in views}
    assert len(different) == 6


def test_grey_stays_grey_and_values_stay_in_range():
    pictures, _ = stripes_and_dots(64, 8)
    views = drawn(looks(64, 0.2), pictures)
    torch.testing.assert_close(views[:, 0], views[:, 1])
    torch.testing.assert_close(views[:, 0], views[:, 2])
    assert views.min() >= -1 and views.max() <= 1
    # Brightness and contrast do change: some views do not span the whole range.
    assert (views.amax((1, 2, 3)) < 0.9).any()


def test_pixels_stay_square():
    """A slope along x and one along y: a view has as much of both, in whichever direction."""
    ramp = torch.linspace(-1, 1, 64)
    picture = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)])
    views = drawn(framing(64, 0.2, 0.5), picture.expand(16, -1, -1, -1))
    spans = views.amax((2, 3)) - views.amin((2, 3))
    torch.testing.assert_close(spans[:, 0], spans[:, 1], atol=0.02, rtol=0)
    # Half of the turns exchange x and y, and magnifications differ.
    along = (views[:, 0, :, 0] - views[:, 0, :, -1]).abs().amax(1) > 0.1
    assert 0 < along.sum() < 16
    assert spans[:, 0].max() - spans[:, 0].min() > 0.1
    assert spans[:, 0].square().max() / 4 <= 0.52


def test_all_eight_symmetries_are_drawn():
    picture = torch.arange(16.0).reshape(1, 4, 4)
    torch.manual_seed(0)
    turned = {tuple(quarter_turns(picture).flatten().tolist()) for _ in range(40)}
    assert len(turned) == 4
    views = drawn(framing(4, 1.0), (picture / 16).expand(80, 3, 4, 4))
    assert len({tuple(view[0].flatten().mul(16).round().tolist()) for view in views}) == 8
