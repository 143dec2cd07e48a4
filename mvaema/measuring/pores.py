"""Pores: the share of the area that is open, and the size of each opening.

What is special about it:
- pores are dark, as in a scanning microscope, unless bright ones explain the picture far better,
  as holes in a film seen in transmission do;
- openings that a narrow neck joins are two, wider ones are one pore of winding shape.
"""

import numpy as np
from scipy import ndimage

from mvaema.measuring import particles
from mvaema.measuring.field import Field
from mvaema.measuring.foreground import Foreground, find_foreground
from mvaema.measuring.polarity import objects_score

# A neck below this share of the smaller opening separates two pores.
NECK = 0.5
# An opening's enclosed floor is part of it up to this share of the field; a pore below this share
# of the width of those that make up the area is a speck.
MAX_FILLED, SPECK = 0.15, 0.2
# How much better bright openings must explain the picture.
BRIGHT_FACTOR = 3.0


def pore_foreground(field: Field) -> tuple[Foreground, float]:
    """The openings of a field, and how much they look like objects."""
    dark, bright = find_foreground(field, False), find_foreground(field, True)
    scores = [objects_score(foreground, field.zoom) for foreground in (dark, bright)]
    if scores[1] > BRIGHT_FACTOR * scores[0]:
        return bright, scores[1]
    return dark, scores[0]


def segment(foreground: Foreground, zoom: float, shift: float = 0.0) -> np.ndarray:
    """Pores by number, int32 (height, width); 0 is solid."""
    mask = ndimage.binary_opening(foreground.mask(shift), iterations=max(1, round(zoom / 2)))
    threshold = (foreground.share + shift) * foreground.level
    mask = _with_floors(particles.fill_holes(mask, foreground.signal, threshold))
    return _without_specks(particles.without_small(particles.split(mask, NECK), zoom))


def _with_floors(mask: np.ndarray) -> np.ndarray:
    """The mask with the bright floors that are seen inside an opening filled.

    They are not, where openings run around solid: there what is enclosed is solid.
    """
    parts, _ = ndimage.label(mask)
    for number, place in enumerate(ndimage.find_objects(parts), start=1):
        part = parts[place] == number
        filled = ndimage.binary_fill_holes(part)
        if filled.sum() < MAX_FILLED * mask.size:
            mask[place] |= filled
    return mask


def _without_specks(labels: np.ndarray) -> np.ndarray:
    """The labels without specks of a texture, far smaller than the pores that have the area."""
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    order = np.argsort(areas)
    total = np.cumsum(areas[order])
    if not total[-1]:
        return labels
    typical = areas[order][np.searchsorted(total, total[-1] / 2)]
    return np.where((areas < SPECK**2 * typical)[labels], 0, labels)
