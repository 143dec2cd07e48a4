"""What torchvision needs beside PyTorch's CPU build.

PyPI's torchvision is built for CUDA. Beside `torch==2.13.0+cpu` its compiled operators do not load,
and importing it fails because `torchvision::nms` does not exist. No row needs these operators; with
their names defined, the rest of torchvision works.
"""

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
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + schema)
    return [library]
