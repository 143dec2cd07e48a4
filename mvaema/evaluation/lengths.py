"""How far lengths in an answer ("about 80 nm", "5–10 µm") are off, since n-gram scores miss wrong
numbers. What a length is, `lengths_mvaema.py` says.
"""

from collections.abc import Iterable

import numpy as np
from scipy.optimize import linear_sum_assignment

from lengths_mvaema import Length, parse_lengths, relative_error


def length_errors(prediction: str, reference: str) -> list[float]:
    """The relative error of each length in `reference`, `inf` where `prediction` states none.

    Lengths are paired one to one, nearest on a logarithmic scale. Further lengths in the prediction
    are ignored.
    """
    true, predicted = parse_lengths(reference), parse_lengths(prediction)
    errors = np.full(len(true), np.inf)
    for row, column in pair_lengths(true, predicted):
        errors[row] = relative_error(predicted[column], true[row])
    return errors.tolist()


def pair_lengths(lengths: list[Length], others: list[Length]) -> Iterable[tuple[int, int]]:
    """Indices of lengths paired one to one so that they are nearest on a logarithmic scale."""
    if not lengths or not others:
        return []
    middles = [np.log([sum(length) for length in side]) for side in (lengths, others)]
    rows, columns = linear_sum_assignment(np.abs(np.subtract.outer(*middles)))
    return zip(rows.tolist(), columns.tolist(), strict=True)
