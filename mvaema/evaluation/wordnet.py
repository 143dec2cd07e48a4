"""WordNet for METEOR, from wherever this machine has it, and never a silent substitute.

Looked for in this order: NLTK's own data; NLTK's download, only when asked for, since nothing here
reaches for the network by itself; Debian's `wordnet-base`. All are WordNet 3.0 and read by NLTK.
"""

import io
from functools import cache
from pathlib import Path

import nltk
from nltk.corpus import WordNetCorpusReader

DEBIAN_FOLDER = Path("/usr/share/wordnet")

# `lexnames` of WordNet 3.0 (lexnames(5WN)), which Debian does not ship: the names of the
# lexicographer files by number, with the number of their part of speech.
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
    """NLTK's reader over Debian's files, with the two things that NLTK's own data adds."""

    def __init__(self, folder: Path = DEBIAN_FOLDER):
        # NLTK reads below registered folders only.
        if str(folder) not in nltk.data.path:
            nltk.data.path.append(str(folder))
        # Any value but None: without a multilingual reader NLTK would warn that there is none.
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
        # Sense keys of other WordNet versions, needed for the multilingual functions only.
        return None


@cache
def ensure_wordnet(download: bool = False) -> WordNetCorpusReader:
    """A loaded WordNet reader, as NLTK's `single_meteor_score(..., wordnet=)` takes it.

    Args:
        download: whether NLTK may fetch its `wordnet` package (10 MB) when it is missing.

    Raises:
        LookupError: there is no WordNet on this machine; the message says how to get it.
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
        "METEOR needs WordNet, and there is none in NLTK's data folders nor in "
        f"{DEBIAN_FOLDER}. Run `python -m nltk.downloader wordnet`, or "
        "`apt-get install wordnet-base`, or call mvaema.evaluation.wordnet.ensure_wordnet(download=True). "
        "To score without synonyms ask for the metric `meteor_no_synonyms`."
    )


def has_wordnet() -> bool:
    """Whether METEOR proper can be scored here; if not, the reason is printed.

    For commands that rather score `meteor_no_synonyms` than stop.
    """
    try:
        ensure_wordnet()
    except LookupError as error:
        print(f"METEOR without synonyms: {error}")
        return False
    return True


def _nltk_wordnet() -> WordNetCorpusReader:
    nltk.corpus.wordnet.ensure_loaded()
    return nltk.corpus.wordnet


def _downloaded_wordnet() -> WordNetCorpusReader:
    nltk.download("wordnet", quiet=True, raise_on_error=True)
    return _nltk_wordnet()
