"""The schema of a micrograph dataset, one row per micrograph, which all stages share.

Every stage that writes a dataset writes these columns, and every stage that reads one may rely on
them. The questions and captions are in `configuration_mvaema.py`, because a checkpoint carries
them too.

What is special about it:
- of an instrument's metadata, only the facts in `INSTRUMENT_COLUMNS` can enter a dataset. Their
  texts come from closed lists: a camera may be named after its owner or its serial number.
"""

import hashlib
import re
from collections.abc import Mapping

import numpy as np
from datasets import Features, Image, List, Value
from PIL import Image as PILImage

# Only `ok` is trained on; the others are kept because they were paid for.
OUTCOMES = ("ok", "truncated", "refused", "filtered", "empty", "error")

# The label of a micrograph that fits none of the ten categories; it has no caption.
OTHER = "Other"

QA_FEATURES = {
    "question_id": Value("string"),
    "question": Value("string"),
    "answer": Value("string"),
    "outcome": Value("string"),
    "reasoning": Value("string"),  # what the teacher wrote before its answer, or null
    "flags": List(Value("string")),  # reasons for a second look (mvaema/teacher/flags.py)
    "teacher_model": Value("string"),
    "prompt_version": Value("string"),
}

FEATURES = Features(
    {
        "image": Image(),  # 8-bit, cleaned of metadata
        "image_id": Value("string"),  # hash of the pixels, never the customer's file name
        "category": Value("string"),  # one of the ten, "Other", or null when unknown
        "caption": Value("string"),  # names the category; null when it is unknown or Other
        "pixel_size_nm": Value("float64"),  # length of one pixel of `image`, null when unknown
        "pixel_size_source": Value("string"),  # one of PIXEL_SIZE_SOURCES, null when unknown
        "scale_bar": Value("string"),  # length the burnt-in scale bar states ("500 nm"), or null
        "technique": Value("string"),  # one of TECHNIQUES; these four are null when unknown
        "accelerating_voltage_kv": Value("float64"),
        "working_distance_mm": Value("float64"),
        "detector": Value("string"),  # made of DETECTOR_WORDS, such as "InLens" or "SE2"
        "group": Value("string"),  # rows of one group never fall into different folds
        "qa": List(QA_FEATURES),
        "source": Value("string"),
        "licence": Value("string"),
    }
)

INSTRUMENT_COLUMNS = ("technique", "accelerating_voltage_kv", "working_distance_mm", "detector")

# Who says how long a pixel is: the instrument, a person, or the scale bar in the pixels, read.
PIXEL_SIZE_SOURCES = ("recorded", "typed", "read")

TECHNIQUES = ("SEM", "TEM", "STEM", "FIB", "HIM", "optical")

# The words that a detector's name may consist of, lower case; punctuation and up to two digits
# may stand between them.
DETECTOR_WORDS = frozenset(
    """
    abf abs adf all angle annular asb astem axial b backscatter backscattered beam bec bed bei
    bf bottom bright bs bsd bse c cam camera cbs ccd cd cdem ceta cl cmos comp compo cz d dark
    dbs de detector df dic dual duo e ebsd electron energy esb et etd everhart falcon faraday
    fast field g gad gas gaseous gsd gsed haadf hadf hdbsd he high i icd ice in inbeam inlens
    inlensduo intx ion keenview l la le led lei lens lfd low lower lv lvd lvstd md megaview mid
    mix mode morada multidetector nav navcam nts o oneview orius pd pdbse pmd qbsd quemesa rbse
    s screencamera se secondary sed sei selective sem sesi solid state stem t te thornley
    through tld top topo u ued uhd ul upper usd vcd veleta vpse x yag yagbse
    """.split()
)
MAX_DETECTOR = 24  # characters


def instrument_columns(instrument: Mapping[str, str | float]) -> dict[str, str | float]:
    """What of an instrument's settings is public: the known ones among `INSTRUMENT_COLUMNS`.

    Args:
        instrument: as in `mvaema.micrographs.microscope.Micrograph`.
    """
    allowed = {name: instrument[name] for name in INSTRUMENT_COLUMNS if name in instrument}
    if allowed.get("technique") not in TECHNIQUES:
        allowed.pop("technique", None)
    if not _is_detector(str(allowed.get("detector", ""))):
        allowed.pop("detector", None)
    return allowed


def _is_detector(name: str) -> bool:
    words = re.findall(r"[a-z]+", name.lower())
    return (
        0 < len(name) <= MAX_DETECTOR
        and name.isascii()
        and bool(words)
        and all(word in DETECTOR_WORDS for word in words)
        and len(re.findall(r"\d", name)) <= 2
    )


def pixel_hash(image: PILImage.Image | np.ndarray) -> str:
    """The stable id of a micrograph: 16 hex digits of the SHA-256 of its 8-bit pixels.

    Mode and size are part of the hash; file format and metadata are not. The same pixels in a PNG
    and a TIFF get the same id.
    """
    if isinstance(image, np.ndarray):
        image = PILImage.fromarray(image)
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:16]
