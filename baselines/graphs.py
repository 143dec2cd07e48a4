"""Graph neural networks of Table 3, on graphs of patches.

What is special about it:
- one `GraphClassifier` for all rows: a row is a function that lists its layers. The states of a
  micrograph's nodes are averaged, and a linear head gives its logits;
- a row has three layers or rounds, except where its paper asks for another depth. Rows that are
  plain stacks of a convolution have a layer norm and a ReLU after each (`rounds`): without it,
  sums over 9 nodes grow from layer to layer. The others follow their papers.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.learners import Learner
from baselines.patch_graphs import WIDTH, GraphEncoder, PatchGraphs, of_micrographs
from baselines.rows import Row, Shapes

LAYERS = 3
HEADS = 8
# What a step of layers may ask for: states of the nodes, then the fields of `Graphs`.
INPUTS = "x, edges, offsets, micrograph"
# NNConv makes a width × width matrix for each edge of each micrograph.
MPNN_WIDTH = 32
# SuperGAT's weight of the attention's loss, that of torch-geometric's example.
ATTENTION_WEIGHT = 4.0


class GraphClassifier(Learner):
    """Logits of micrographs that are seen as graphs.

    Args:
        shapes: what it is built for.
        layers: those of a `GraphEncoder`; they keep the width.
        width: of the states.
    """

    def __init__(self, shapes: Shapes, layers: nn.Module, width: int = WIDTH):
        super().__init__()
        self.graphs = PatchGraphs(shapes.image_size)
        self.encoder = GraphEncoder(self.graphs.features, layers, width)
        self.head = nn.Linear(width, shapes.classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(of_micrographs(self.encoder(self.graphs(pixel_values))))


class AttentionWithin(nn.Module):
    """SuperGAT's attention, whose pairs that are no neighbours are drawn within micrographs."""

    def __init__(self):
        from torch_geometric.nn import SuperGATConv

        super().__init__()
        self.attention = SuperGATConv(WIDTH, WIDTH // HEADS, heads=HEADS)

    def forward(self, x: Tensor, edges: Tensor, micrograph: Tensor) -> Tensor:
        return self.attention(x, edges, batch=micrograph)


class SuperGATClassifier(GraphClassifier):
    """Its attention also learns to tell neighbours from other patches of the same micrograph."""

    def loss(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, and in training the attention's loss summed over the layers."""
        loss = super().loss(pixel_values, labels)
        if self.training:
            for layer in self.encoder.layers.modules():
                if isinstance(layer, AttentionWithin):
                    loss = loss + ATTENTION_WEIGHT * layer.attention.get_attention_loss()
        return loss


class MessagePassingNetwork(nn.Module):
    """Rounds of one NNConv, whose weights come from the sender's offset, and one GRU."""

    def __init__(self):
        from torch_geometric.nn import NNConv

        super().__init__()
        width = MPNN_WIDTH
        of_offset = nn.Sequential(nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, width * width))
        self.message = NNConv(width, width, of_offset, aggr="mean")
        self.update = nn.GRUCell(width, width)

    def forward(self, x: Tensor, edges: Tensor, offsets: Tensor, micrograph: Tensor) -> Tensor:
        for _ in range(LAYERS):
            x = self.update(F.relu(self.message(x, edges, offsets)), x)
        return x


def in_turn(*steps: nn.Module | tuple[Callable, str]) -> nn.Module:
    """Layers from steps; a step may say what it takes and gives: `(GCNConv(…), "x, edges -> x")`.

    A step that does not say takes and gives what the step before it gave.
    """
    from torch_geometric.nn import Sequential

    return Sequential(INPUTS, list(steps))


def rounds(convolution: Callable[[], nn.Module], call: str = "x, edges -> x") -> nn.Module:
    """Three times a convolution, a layer norm and a ReLU."""
    steps = []
    for _ in range(LAYERS):
        steps += [(convolution(), call), nn.LayerNorm(WIDTH), nn.ReLU()]
    return in_turn(*steps)


def gcn() -> nn.Module:
    from torch_geometric.nn import GCNConv

    return rounds(lambda: GCNConv(WIDTH, WIDTH))


def graph_conv() -> nn.Module:
    from torch_geometric.nn import GraphConv

    return rounds(lambda: GraphConv(WIDTH, WIDTH))


def gat() -> nn.Module:
    from torch_geometric.nn import GATConv

    return rounds(lambda: GATConv(WIDTH, WIDTH // HEADS, heads=HEADS))


def supergat() -> nn.Module:
    return rounds(AttentionWithin, "x, edges, micrograph -> x")


def arma() -> nn.Module:
    from torch_geometric.nn import ARMAConv

    return rounds(lambda: ARMAConv(WIDTH, WIDTH, num_stacks=3, num_layers=2, shared_weights=True))


def cheb_conv() -> nn.Module:
    from torch_geometric.nn import ChebConv

    return rounds(lambda: ChebConv(WIDTH, WIDTH, K=3))


def tag_conv() -> nn.Module:
    from torch_geometric.nn import TAGConv

    return rounds(lambda: TAGConv(WIDTH, WIDTH, K=3))


def res_gated_graph_conv() -> nn.Module:
    from torch_geometric.nn import ResGatedGraphConv

    return rounds(lambda: ResGatedGraphConv(WIDTH, WIDTH))


def agnn() -> nn.Module:
    """Its paper takes the weights and non-linearities between propagations away."""
    from torch_geometric.nn import AGNNConv

    return in_turn(*((AGNNConv(), "x, edges -> x") for _ in range(LAYERS)))


def appnp() -> nn.Module:
    """Predict, then propagate ten times with a chance of 0.1 to return."""
    from torch_geometric.nn import APPNP

    return in_turn(
        (nn.Linear(WIDTH, WIDTH), "x -> x"),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        (APPNP(K=10, alpha=0.1), "x, edges -> x"),
    )


def dna() -> nn.Module:
    """Each node attends to all earlier states of its neighbours."""
    from torch_geometric.nn import DNAConv

    def begin(x: Tensor) -> Tensor:
        return x[:, None]

    def append(history: Tensor, x: Tensor) -> Tensor:
        return torch.cat([history, x[:, None]], dim=1)

    steps = [(begin, "x -> history")]
    for number in range(LAYERS):
        steps += [(DNAConv(WIDTH, heads=HEADS, groups=HEADS), "history, edges -> x"), nn.ReLU()]
        if number < LAYERS - 1:
            steps.append((append, "history, x -> history"))
    return in_turn(*steps)


def gated_graph_conv() -> nn.Module:
    from torch_geometric.nn import GatedGraphConv

    return in_turn((GatedGraphConv(WIDTH, num_layers=LAYERS), "x, edges -> x"))


def gcn2() -> nn.Module:
    """Each layer sees the first states again."""
    from torch_geometric.nn import GCN2Conv

    steps = [(nn.Identity(), "x -> first")]
    for number in range(1, 2 * LAYERS + 1):
        layer = GCN2Conv(WIDTH, alpha=0.1, theta=0.5, layer=number)
        steps += [(layer, "x, first, edges -> x"), nn.ReLU()]
    return in_turn(*steps)


def graph_unet() -> nn.Module:
    """49 nodes, then 25, 13 and 7, and back."""
    from torch_geometric.nn import GraphUNet

    return in_turn((GraphUNet(WIDTH, WIDTH, WIDTH, depth=LAYERS), "x, edges, micrograph -> x"))


def build(
    layers: Callable[[], nn.Module],
    width: int,
    classifier: type[GraphClassifier],
    shapes: Shapes,
) -> Learner:
    return classifier(shapes, layers(), width)


def graph_row(
    name: str,
    title: str,
    layers: Callable[[], nn.Module],
    top_1: float,
    top_5: float,
    *,
    width: int = WIDTH,
    classifier: type[GraphClassifier] = GraphClassifier,
    note: str = "",
) -> Row:
    """A row of Table 3 that is trained with categories."""
    return Row(
        name=name,
        title=title,
        table=3,
        group="Graph neural networks",
        library="torch-geometric",
        build=partial(build, layers, width, classifier),
        paper={"top_1": top_1, "top_5": top_5},
        note=note,
    )


ROWS = [
    graph_row("appnp", "APPNP", appnp, 0.632, 0.786),
    graph_row("agnn", "AGNN", agnn, 0.538, 0.894),
    graph_row("arma", "ARMA", arma, 0.582, 0.987),
    graph_row("dna", "DNA", dna, 0.622, 0.916),
    graph_row("gat", "GAT", gat, 0.491, 0.985),
    graph_row("gated-graph-conv", "GGConv", gated_graph_conv, 0.563, 0.992),
    graph_row("graph-conv", "GraphConv", graph_conv, 0.658, 0.996),
    graph_row("gcn2", "GCN2Conv", gcn2, 0.732, 0.998, note="six layers"),
    graph_row("cheb-conv", "ChebConv", cheb_conv, 0.504, 0.951),
    graph_row(
        "gcn",
        "GCN",
        gcn,
        0.509,
        0.993,
        note="a guess: the paper lists GraphConv twice, with one reference and two results",
    ),
    graph_row("graph-unet", "GraphUNet", graph_unet, 0.657, 0.978),
    graph_row(
        "mpnn",
        "MPNN",
        MessagePassingNetwork,
        0.603,
        0.999,
        width=MPNN_WIDTH,
        note=f"NNConv and a GRU, {MPNN_WIDTH} wide; averaged like the others, not by Set2Set",
    ),
    graph_row("res-gated-graph-conv", "RGGConv", res_gated_graph_conv, 0.618, 0.961),
    graph_row(
        "supergat",
        "SuperGAT",
        supergat,
        0.598,
        0.985,
        classifier=SuperGATClassifier,
        note=f"{ATTENTION_WEIGHT:g} × the attention's loss is added",
    ),
    graph_row("tag-conv", "TAGConv", tag_conv, 0.598, 0.999),
]
