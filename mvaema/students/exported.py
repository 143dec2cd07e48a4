"""A student that `mvaema export` wrote, from its folder.

What is special about it: neither this module nor the runner imports torch or transformers, and the
runner is imported only where there is such a student.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx_mvaema import OnnxStudent


def is_exported(source: str | os.PathLike) -> bool:
    """Whether this is the folder of an exported student."""
    return (Path(source) / "decoder.onnx").is_file()


def load_exported(folder: str | os.PathLike) -> "OnnxStudent":
    """The student in a folder.

    Raises:
        FileNotFoundError: a graph is missing.
        ValueError: ONNX Runtime or tokenizers are not installed.
    """
    try:
        from onnx_mvaema import OnnxStudent
    except ModuleNotFoundError as error:
        raise ValueError(
            f'{error}. An exported student needs onnxruntime: pip install "mvaema[onnx]"'
        ) from error
    return OnnxStudent(folder)
