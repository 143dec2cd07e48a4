"""Arguments that several commands take, for `type=` of argparse."""

import argparse
import math


def positive_length(text: str) -> float:
    """A length in nm.

    Raises:
        ArgumentTypeError: it is no positive number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive length in nm, got {text!r}")
    return value
