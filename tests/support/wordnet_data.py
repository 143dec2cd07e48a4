"""Whether this machine has WordNet; tests of METEOR are skipped without it, with the reason."""

import pytest

from mvaema.evaluation.wordnet import ensure_wordnet

try:
    ensure_wordnet()
    missing = ""
except LookupError as error:
    missing = str(error)

needs_wordnet = pytest.mark.skipif(bool(missing), reason=missing or "WordNet is here")
