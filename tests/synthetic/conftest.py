"""What several tests of the synthetic microscope share."""

import pytest

from mvaema.synthetic.scenes import CATEGORIES, render


@pytest.fixture(scope="session")
def scenes():
    """A few scenes of every category, difficulty and info bar."""
    return [
        render(100 * n + k, category, difficulty=k / 11)
        for n, category in enumerate(CATEGORIES)
        for k in range(12)
    ]
