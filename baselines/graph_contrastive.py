"""Graph contrastive learning of Table 3: a graph encoder learns without categories.

What is special about it:
- the losses are a few own lines on torch-geometric, because PyGCL is dead. Each is its paper's
  formula, and a test computes that formula naively;
- two views of a graph have edges dropped and pixels of the patches masked by
  torch-geometric's functions, with the probabilities that GRACE's paper has for Cora. InfoGraph
  has no views: it compares patches with whole micrographs;
- the papers' graphs are single, or molecules. Here a batch of micrographs is one graph, so GRACE's
  negatives are all other patches of the batch;
- the encoder of GBT, GRACE and BGRL is the one of the supervised row `gcn`, with its layer norm
  where GBT and BGRL have a batch norm. So nothing in a frozen encoder depends on the batch;
- what is probed is the mean over a micrograph's nodes, standardised over the batch: the states of
  the encoders have different scales, and share a learning rate.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.graphs import LAYERS, gcn, in_turn
from baselines.patch_graphs import WIDTH, GraphEncoder, Graphs, PatchGraphs, of_micrographs
from baselines.probed import Probed
from baselines.rows import Row, Shapes

# Of the two views.
DROPPED_EDGES = (0.2, 0.4)
MASKED_PIXELS = (0.3, 0.4)
GRACE_TEMPERATURE = 0.4
# Of BGRL's target encoder. Its paper lets it rise to 1 by the end, which a budget in minutes has
# no steps to plan for.
MOMENTUM = 0.99
# Against the division by the deviation of a state that is the same for all nodes.
TINY = 1e-6


def redundancy(first: Tensor, second: Tensor) -> Tensor:
    """Barlow Twins' loss, as GBT takes it: the correlation of two views' states is to be identity.

    Args:
        first: states (nodes, width) of one view.
        second: those of the other.
    """
    first, second = (
        (states - states.mean(0)) / (states.std(0, correction=0) + TINY)
        for states in (first, second)
    )
    correlation = first.T @ second / len(first)
    diagonal = correlation.diagonal()
    crossed = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + crossed / len(correlation)


def node_contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """GRACE's loss: a node's other view is to be nearer than all other nodes of both views.

    Args:
        first: states (nodes, width) of one view.
        second: those of the other.
        temperature: of the cosine similarities.
    """
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    same = torch.arange(len(first), device=first.device)

    def one_way(anchor: Tensor, other: Tensor) -> Tensor:
        within = (anchor @ anchor.T).fill_diagonal_(-torch.inf)
        return F.cross_entropy(torch.cat([anchor @ other.T, within], dim=1) / temperature, same)

    return (one_way(first, second) + one_way(second, first)) / 2


def bootstrap(predicted: Tensor, target: Tensor) -> Tensor:
    """BGRL's loss, -2 × the mean cosine of nodes' predicted and target states (nodes, width)."""
    return -2 * F.cosine_similarity(predicted, target, dim=1).mean()


def local_global(scores: Tensor, micrograph: Tensor) -> Tensor:
    """InfoGraph's loss, minus its Jensen-Shannon estimate of mutual information.

    Args:
        scores: (nodes, batch) of each node with each micrograph.
        micrograph: (nodes,), the one that a node is from.
    """
    own = F.one_hot(micrograph, scores.shape[1]).bool()
    loss = F.softplus(-scores[own]).mean()
    if scores.shape[1] > 1:  # a micrograph alone has no others
        loss = loss + F.softplus(scores[~own]).mean()
    return loss


class GraphContrast(Probed):
    """An encoder of graphs, and a linear probe of its micrographs' mean states.

    Args:
        shapes: what it is built for.
        layers: of the encoder.
        width: of the states that the layers give.
    """

    def __init__(self, shapes: Shapes, layers: nn.Module, width: int = WIDTH):
        graphs = PatchGraphs(shapes.image_size)
        super().__init__(GraphEncoder(graphs.features, layers), width, shapes.classes)
        self.graphs = graphs

    def features(self, pixel_values: Tensor) -> Tensor:
        return of_micrographs(self.encoder(self.graphs(pixel_values)))

    def views(self, pixel_values: Tensor) -> list[Graphs]:
        """Two, with edges dropped and pixels masked."""
        from torch_geometric.utils import dropout_edge, mask_feature

        graphs = self.graphs(pixel_values)
        drawn = []
        for dropped, masked in zip(DROPPED_EDGES, MASKED_PIXELS, strict=True):
            edges, kept = dropout_edge(graphs.edges, p=dropped)
            nodes, _ = mask_feature(graphs.nodes, p=masked)
            drawn.append(Graphs(nodes, edges, graphs.offsets[kept], graphs.micrograph))
        return drawn


class GBT(GraphContrast):
    """Graph Barlow Twins: no negatives, no second encoder."""

    def __init__(self, shapes: Shapes):
        super().__init__(shapes, gcn())

    def pretraining_loss(self, pixel_values: Tensor) -> Tensor:
        return redundancy(*map(self.encoder, self.views(pixel_values)))


def mlp() -> nn.Module:
    """A head that is used in the first phase only."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ELU(), nn.Linear(WIDTH, WIDTH))


class GRACE(GraphContrast):
    """Nodes against all other nodes."""

    def __init__(self, shapes: Shapes):
        super().__init__(shapes, gcn())
        self.head = mlp()

    def pretraining_loss(self, pixel_values: Tensor) -> Tensor:
        first, second = (self.head(self.encoder(view)) for view in self.views(pixel_values))
        return node_contrast(first, second, GRACE_TEMPERATURE)


class BGRL(GraphContrast):
    """A view's states predict those that a slowly following encoder has of the other view."""

    def __init__(self, shapes: Shapes):
        super().__init__(shapes, gcn())
        self.predictor = mlp()
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)

    def pretraining_loss(self, pixel_values: Tensor) -> Tensor:
        first, second = self.views(pixel_values)
        with torch.no_grad():
            of_first, of_second = self.target(first), self.target(second)
        return bootstrap(self.predictor(self.encoder(first)), of_second) + bootstrap(
            self.predictor(self.encoder(second)), of_first
        )

    @torch.no_grad()
    def after_step(self) -> None:
        for target, online in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
            target.lerp_(online, 1 - MOMENTUM)


def gin() -> nn.Module:
    """Graph isomorphism layers, whose states of all depths are put side by side."""
    from torch_geometric.nn import GINConv, JumpingKnowledge

    steps, before = [], "x"
    for number in range(LAYERS):
        after = f"state_{number}"
        inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        steps += [(GINConv(inner), f"{before}, edges -> {after}"), nn.LayerNorm(WIDTH), nn.ReLU()]
        before = after

    def listed(*states: Tensor) -> list[Tensor]:
        return list(states)

    depths = ", ".join(f"state_{number}" for number in range(LAYERS))
    steps += [(listed, f"{depths} -> states"), (JumpingKnowledge("cat"), "states -> x")]
    return in_turn(*steps)


def discriminator_side() -> nn.Module:
    """What nodes, or micrographs, pass before they are compared; it keeps their width."""
    width = LAYERS * WIDTH
    return nn.Sequential(nn.Linear(width, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


class InfoGraph(GraphContrast):
    """Patches are to be told from those of other micrographs by the micrograph's mean state."""

    def __init__(self, shapes: Shapes):
        super().__init__(shapes, gin(), width=LAYERS * WIDTH)
        self.of_node, self.of_micrograph = discriminator_side(), discriminator_side()

    def pretraining_loss(self, pixel_values: Tensor) -> Tensor:
        graphs = self.graphs(pixel_values)
        states = self.encoder(graphs)
        scores = self.of_node(states) @ self.of_micrograph(of_micrographs(states)).T
        return local_global(scores, graphs.micrograph)


def contrast_row(
    name: str,
    title: str,
    build: Callable[[Shapes], GraphContrast],
    top_1: float,
    top_5: float,
    note: str,
) -> Row:
    """A row of Table 3 that learns without categories, then is probed."""
    return Row(
        name=name,
        title=title,
        table=3,
        group="Graph contrastive (GCL)",
        library="torch-geometric",
        build=build,
        paper={"top_1": top_1, "top_5": top_5},
        note=note,
    )


OWN_LINES = "loss in own lines, since PyGCL is no longer kept"
ROWS = [
    contrast_row("gbt", "GBT", GBT, 0.547, 0.706, OWN_LINES),
    contrast_row("grace", "GRACE", GRACE, 0.598, 0.750, OWN_LINES),
    contrast_row(
        "bgrl", "BGRL", BGRL, 0.556, 0.696, f"{OWN_LINES}; momentum {MOMENTUM}, not rising to 1"
    ),
    contrast_row("infograph", "InfoGraph", InfoGraph, 0.526, 0.702, OWN_LINES),
]
