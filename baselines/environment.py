"""What torchvision needs beside PyTorch's CPU build.

PyPI's torchvision is built for CUDA. Beside `torch==2.13.0+cpu` its compiled operators do not load,
and importing it fails because `torchvision::nms` does not exist. No row needs these operators; with
their names defined, the rest of torchvision works. Where they load, nothing is defined.

transformers imports torchvision wherever it is installed. So this module, which defines them when
it is imported, comes first.
"""

import importlib.util
from pathlib import Path

import torch

OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def define_operators() -> list[torch.library.Library]:
    """Define the operators that torchvision's modules name when they are imported.

    Returns:
        what keeps the definitions alive.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return []
    for compiled in Path(spec.origin).parent.glob("_C*.*"):
        try:
            torch.ops.load_library(compiled)
        except OSError:  # of another build
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + schema)
    return [library]


LIBRARIES = define_operators()
