"""A micrograph as a graph of 7 × 7 patches, and what encodes such graphs.

What is special about it:
- a node is a patch, its features are the patch's pixels. A linear projection, a layer norm and a
  ReLU make them the first states. Nothing else tells a node where it is;
- each node receives messages from the 8 patches whose centres are nearest, so a corner has as many
  neighbours as the middle. Of equally near ones the first in reading order is taken. An edge at the
  border may therefore point one way only;
- a side that is no multiple of 7 is resized to the next one (96 pixels to 98): padding would give
  the outer patches an edge that the sample does not have.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRID = 7
NODES = GRID * GRID
NEIGHBOURS = 8
WIDTH = 128


class Graphs(NamedTuple):
    """The micrographs of a batch as one graph that falls into parts.

    Attributes:
        nodes: features (batch × 49, features).
        edges: numbers (2, batch × 392) of the nodes that send and that receive.
        offsets: (batch × 392, 2), rows and columns from the receiver to the sender, in patches.
        micrograph: (batch × 49,), the number in the batch of the micrograph that a node is from.
    """

    nodes: Tensor
    edges: Tensor
    offsets: Tensor
    micrograph: Tensor


class PatchGraphs(nn.Module):
    """Makes graphs of micrographs. It has no weights.

    Args:
        image_size: height and width of the micrographs in pixels.
    """

    def __init__(self, image_size: int):
        super().__init__()
        self.patch = -(-image_size // GRID)
        self.features = 3 * self.patch**2
        centres = torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID))
        apart = (centres[:, None] - centres).square().sum(-1)
        apart.fill_diagonal_(2 * GRID**2)  # farther than any other patch
        sender = apart.argsort(dim=1, stable=True)[:, :NEIGHBOURS].flatten()
        receiver = torch.arange(NODES).repeat_interleave(NEIGHBOURS)
        self.register_buffer("edges", torch.stack([sender, receiver]), persistent=False)
        self.register_buffer(
            "offsets", (centres[sender] - centres[receiver]).float(), persistent=False
        )

    def forward(self, pixel_values: Tensor) -> Graphs:
        """Of `pixel_values` (batch, 3, image_size, image_size)."""
        batch, side = len(pixel_values), GRID * self.patch
        if pixel_values.shape[-1] != side:
            pixel_values = F.interpolate(pixel_values, (side, side), mode="bilinear")
        nodes = F.unfold(pixel_values, self.patch, stride=self.patch).transpose(1, 2).flatten(0, 1)
        numbers = torch.arange(batch, device=nodes.device)
        return Graphs(
            nodes,
            (self.edges[:, None] + NODES * numbers[:, None]).flatten(1),
            self.offsets.to(nodes.dtype).repeat(batch, 1),
            numbers.repeat_interleave(NODES),
        )


class GraphEncoder(nn.Module):
    """States of the nodes of graphs.

    Args:
        features: of a node.
        layers: maps the projected features and the other fields of `Graphs` to states.
        width: of the projected features.
    """

    def __init__(self, features: int, layers: nn.Module, width: int = WIDTH):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width), nn.ReLU())
        self.layers = layers

    def forward(self, graphs: Graphs) -> Tensor:
        """States (batch × 49, width of the layers)."""
        return self.layers(self.project(graphs.nodes), *graphs[1:])


def of_micrographs(states: Tensor) -> Tensor:
    """The mean (batch, width) over each micrograph's nodes; `states` are (batch × 49, width)."""
    return states.unflatten(0, (-1, NODES)).mean(1)
