"""WordNet for METEOR, from wherever this machine has it; without it an error, not a substitute.

Searched in this order: NLTK's own data; NLTK's download, only on request, since an evaluation does
not use the network by itself; Debian's `wordnet-base`. All are WordNet 3.0 and read by NLTK.
"""

import io
from functools import cache
from pathlib import Path

import nltk
from nltk.corpus import WordNetCorpusReader

DEBIAN_FOLDER = Path("/usr/share/wordnet")

# `lexnames` of WordNet 3.0 (lexnames(5WN)), which Debian does not ship: the lexicographer files in
# order of their numbers, and the number of each part of speech.
PARTS_OF_SPEECH = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}
LEXNAMES = """
adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body
noun.cognition noun.communication noun.event noun.feeling noun.food noun.group noun.location
noun.motive noun.object noun.person noun.phenomenon noun.plant noun.possession noun.process
noun.quantity noun.relation noun.shape noun.state noun.substance noun.time verb.body verb.change
verb.cognition verb.communication verb.competition verb.consumption verb.contact verb.creation
verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative verb.weather
adj.ppl
"""


class DebianWordNet(WordNetCorpusReader):
    """NLTK's reader for Debian's files, plus the two things that only NLTK's own data has."""

    def __init__(self, folder: Path | None = None):
        folder = folder or DEBIAN_FOLDER
        # NLTK reads only below registered folders.
        if str(folder) not in nltk.data.path:
            nltk.data.path.append(str(folder))
        # Any value but None: NLTK would warn that there is no multilingual reader.
        super().__init__(str(folder), omw_reader=False)

    def open(self, file):
        if file != "lexnames":
            return super().open(file)
        lines = (
            f"{number:02d}\t{name}\t{PARTS_OF_SPEECH[name.split('.')[0]]}\n"
            for number, name in enumerate(LEXNAMES.split())
        )
        return io.StringIO("".join(lines))

    def map_wn(self, version="wordnet"):
        # Sense keys of other WordNet versions; only the multilingual functions need them.
        return None


@cache
def ensure_wordnet(download: bool = False) -> WordNetCorpusReader:
    """A loaded WordNet reader, as NLTK's `single_meteor_score(..., wordnet=)` takes it.

    Args:
        download: let NLTK download its `wordnet` package (10 MB) if it is missing.

    Raises:
        LookupError: this machine has no WordNet; the message says how to get it.
    """
    sources = [_nltk_wordnet, DebianWordNet]
    if download:
        sources.insert(1, _downloaded_wordnet)
    for source in sources:
        try:
            return source()
        except (LookupError, OSError, ValueError):  # ValueError: how NLTK reports a failed download
            continue
    raise LookupError(
        f"METEOR needs WordNet; none was found in NLTK's data folders or in {DEBIAN_FOLDER}. "
        "Install it with `python -m nltk.downloader wordnet` or "
        "`apt-get install wordnet-base wordnet-sense-index`, or score without synonyms "
        "(--no_synonyms); that metric is called meteor_no_synonyms."
    )


def has_wordnet() -> bool:
    """Whether METEOR can be scored here; if not, the reason is printed.

    For commands that fall back to `meteor_no_synonyms` instead of stopping.
    """
    try:
        ensure_wordnet()
    except LookupError as error:
        print(f"Scoring METEOR without synonyms. {error}")
        return False
    return True


def _nltk_wordnet() -> WordNetCorpusReader:
    nltk.corpus.wordnet.ensure_loaded()
    return nltk.corpus.wordnet


def _downloaded_wordnet() -> WordNetCorpusReader:
    nltk.download("wordnet", quiet=True, raise_on_error=True)
    return _nltk_wordnet()
