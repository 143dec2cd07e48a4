"""Whether the objects of a field are bright or dark, decided by what either choice would find.

What is special about it:
- both are tried. Real objects are convex, have steep edges all around and are many; what lies
  between them has pointed corners, and cuts across plain ground are not steep;
- the choice and how clear it was are stated with the result.
"""

from dataclasses import replace

import numpy as np
from skimage.measure import regionprops_table

from mvaema.measuring import particles
from mvaema.measuring.field import Field
from mvaema.measuring.foreground import Foreground, find_foreground
from mvaema.measuring.outlines import outline_steepness

# The power to which convexity counts beside the steepness of edges.
CONVEX_POWER = 3
# From this many objects on, their number says nothing about which choice is right.
ENOUGH = 6
# How much a choice loses if the border cuts all that it finds, as it cuts what is behind.
CUT_LOSS = 0.7
# Every n-th pixel in each direction is enough to decide.
STEP = 2


def choose_foreground(field: Field) -> tuple[Foreground, float, float]:
    """The better of both foregrounds, its score, and its ratio to the other (1 is a tie)."""
    scored = []
    for bright in (True, False):
        foreground = find_foreground(field, bright)
        scored.append((objects_score(foreground, field.zoom), foreground))
    scored.sort(key=lambda entry: -entry[0])
    (best, foreground), (other, _) = scored
    return foreground, best, float(best / max(other, 1e-6))


def objects_score(foreground: Foreground, zoom: float) -> float:
    """How much the parts of a foreground look like objects: steep and convex, by area."""
    coarse = replace(
        foreground,
        signal=foreground.signal[::STEP, ::STEP],
        valid=foreground.valid[::STEP, ::STEP],
    )
    labels = particles.segment(coarse, zoom / STEP)
    if not labels.any():
        return 0.0
    table = regionprops_table(labels, properties=("label", "area", "solidity"))
    weights = np.minimum(table["area"], np.percentile(table["area"], 90))
    solid = np.average(np.clip((table["solidity"] - 0.5) * 2, 0, 1), weights=weights)
    several = min(1.0, (len(table["area"]) + 1) / ENOUGH)
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    cut = np.isin(table["label"], rim)
    whole = 1 - CUT_LOSS * float(table["area"][cut].sum() / table["area"].sum())
    return float(whole * several * outline_steepness(coarse, labels) * solid**CONVEX_POWER)
