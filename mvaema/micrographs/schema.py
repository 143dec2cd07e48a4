"""The schema of a micrograph dataset, one row per micrograph, which all stages share.

Every stage that writes a dataset writes these columns, and every stage that reads one may rely on
them. The questions and captions are in `configuration_mvaema.py`, because a checkpoint carries
them too.
"""

import hashlib

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
        "scale_bar": Value("string"),  # length the burnt-in scale bar states ("500 nm"), or null
        "group": Value("string"),  # rows of one group never fall into different folds
        "qa": List(QA_FEATURES),
        "source": Value("string"),
        "licence": Value("string"),
    }
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
