"""What the reader makes of a file: its pixels, or the reason why it has none."""

from pathlib import Path

import numpy as np
import pytest

from mvaema.micrographs.microscope import UnreadableMicrograph, read_micrograph


def pixels(path: Path) -> np.ndarray:
    return np.asarray(read_micrograph(path).image)


def reason(path: Path) -> str:
    with pytest.raises(UnreadableMicrograph) as error:
        read_micrograph(path)
    assert str(path) in str(error.value)
    return error.value.reason
