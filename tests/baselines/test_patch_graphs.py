"""A micrograph's graph: which pixels a node has, and who its neighbours are."""

import pytest
import torch

from baselines.patch_graphs import NEIGHBOURS, NODES, PatchGraphs, of_micrographs


def numbered(side: int) -> torch.Tensor:
    """Two micrographs (2, 3, side, side) whose pixels all differ."""
    return torch.arange(2.0 * 3 * side * side).view(2, 3, side, side)


def test_a_node_is_a_patch():
    graphs = PatchGraphs(21)(numbered(21))
    assert graphs.nodes.shape == (2 * NODES, 3 * 3 * 3)
    # Of the second micrograph, the patch in row 2 and column 5.
    patch = numbered(21)[1, :, 6:9, 15:18]
    assert torch.equal(graphs.nodes[NODES + 2 * 7 + 5], patch.flatten())
    assert graphs.micrograph.tolist() == [0] * NODES + [1] * NODES


@pytest.mark.parametrize("side", [224, 96])
def test_both_sizes_fit(side):
    patch = {224: 32, 96: 14}[side]
    assert PatchGraphs(side)(numbered(side)).nodes.shape == (2 * NODES, 3 * patch * patch)


def test_resizing_keeps_every_part_of_the_picture():
    """96 pixels become 98: a ramp stays a ramp from edge to edge."""
    ramp = torch.linspace(-1, 1, 96).expand(1, 3, 96, 96)
    of_column = PatchGraphs(96)(ramp).nodes.mean(1).view(7, 7)
    assert torch.allclose(of_column[0], of_column[6])
    steps = of_column[0].diff()
    assert torch.allclose(steps, steps.mean().expand(6), rtol=0.03)
    assert of_column.mean().abs() < 1e-6


def test_every_node_has_its_eight_nearest_neighbours():
    edges = PatchGraphs(21).edges
    assert edges.shape == (2, NODES * NEIGHBOURS)
    for node in range(NODES):
        neighbours = set(edges[0, edges[1] == node].tolist())
        assert len(neighbours) == NEIGHBOURS and node not in neighbours
        squares = {
            other: (other // 7 - node // 7) ** 2 + (other % 7 - node % 7) ** 2
            for other in range(NODES)
            if other != node
        }
        farthest = max(squares[other] for other in neighbours)
        assert all(other in neighbours for other in squares if squares[other] < farthest)
        row, column = divmod(node, 7)
        if 0 < row < 6 and 0 < column < 6:
            assert farthest == 2  # those around it


def test_graphs_of_a_batch_do_not_touch():
    graphs = PatchGraphs(21)(numbered(21))
    sender, receiver = graphs.edges
    assert torch.equal(graphs.micrograph[sender], graphs.micrograph[receiver])
    first = PatchGraphs(21)(numbered(21)[:1])
    assert torch.equal(graphs.edges[:, : NODES * NEIGHBOURS], first.edges)
    rows, columns = sender % NODES // 7 - receiver % NODES // 7, sender % 7 - receiver % 7
    # `% 7` holds for the second micrograph too: 49 is a multiple of 7.
    assert torch.equal(graphs.offsets, torch.stack([rows, columns], dim=1).float())


def test_the_mean_is_of_each_micrograph():
    states = torch.cat([torch.full((NODES, 4), 1.0), torch.full((NODES, 4), 3.0)])
    assert torch.equal(of_micrographs(states), torch.tensor([[1.0] * 4, [3.0] * 4]))
