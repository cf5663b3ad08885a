"""DNA against a loop over the tree of neighbours, and its limiting cases."""

import math

import pytest
import torch
from labelmesh.graph_store.view import Hop, Neighborhood
from labelmesh.trainers.layers.neighbor_attention import (
    NeighborAttention,
    NeighborClassifier,
    attention_weights,
    join_neighborhoods,
    weighted_sum,
)
from torch import Tensor, nn

N, D, K = 12, 5, 3


class Bank:
    """A feature bank and kNN table, in float64 so that sums agree to rounding."""

    def __init__(self, seed: int = 0, *, missing: bool = True) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.features = torch.randn(N, D, generator=rng, dtype=torch.float64)
        self.density = torch.rand(N, generator=rng, dtype=torch.float64)
        self.neighbors = torch.stack([torch.randperm(N, generator=rng)[:K] for _ in range(N)])
        if missing:
            self.neighbors[2, 1:] = -1
            self.neighbors[5] = -1

    def neighborhood(self, roots: Tensor, hops: int) -> Neighborhood:
        levels, above = [], self.neighbors[roots]
        for _ in range(hops):
            ids = above[above >= 0].unique()
            index = torch.where(above >= 0, torch.searchsorted(ids, above.clamp(min=0)), -1)
            levels.append(Hop(index, ids, self.features[ids], self.density[ids]))
            above = self.neighbors[ids]
        return Neighborhood(tuple(levels))


def _layer(hops: int, *, use_density: bool = True) -> NeighborAttention:
    rng = torch.Generator().manual_seed(9)
    layer = NeighborAttention(D, hops, use_density=use_density).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return layer


def _walk(
    layer: NeighborAttention, bank: Bank, feature: Tensor, neighbors: list[int], level: int
) -> Tensor:
    """Eqs. 4-7 for one node of the tree, by recursion."""
    summed = torch.zeros(D, dtype=feature.dtype)
    scores, values = [], []
    for v in neighbors:
        p = torch.dot(feature / feature.norm(), bank.features[v] / bank.features[v].norm())
        scores.append(math.exp(p + (bank.density[v] if layer.use_density else 0)))
        below = [int(w) for w in bank.neighbors[v] if w >= 0]
        leaf = level + 1 == layer.hops
        values.append(
            bank.features[v] if leaf else _walk(layer, bank, bank.features[v], below, level + 1)
        )
    for score, value in zip(scores, values):
        summed += score / sum(scores) * value
    linear = layer.levels[level]
    assert isinstance(linear, nn.Linear)
    return linear.weight @ (feature + summed) + linear.bias


@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("use_density", [True, False])
def test_layer_equals_a_walk_over_the_tree(hops: int, use_density: bool) -> None:
    bank, layer = Bank(), _layer(hops, use_density=use_density)
    roots = torch.tensor([0, 5, 7, 0, 2])
    rng = torch.Generator().manual_seed(1)
    features = torch.randn(5, D, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        out = layer(features, bank.neighborhood(roots, hops))
        for row, root in enumerate(roots.tolist()):
            neighbors = [int(v) for v in bank.neighbors[root] if v >= 0]
            expected = _walk(layer, bank, features[row], neighbors, 0)
            torch.testing.assert_close(out[row], expected, rtol=1e-12, atol=1e-12)


def test_weights_sum_to_one_or_zero() -> None:
    bank = Bank()
    hop = bank.neighborhood(torch.arange(N), 1).hops[0]
    weights = attention_weights(bank.features, hop.features, hop.density, hop.index)
    expected = torch.ones(N, dtype=torch.float64)
    expected[5] = 0
    torch.testing.assert_close(weights.sum(dim=1), expected)
    assert (weights[hop.index < 0] == 0).all()
    assert (weights >= 0).all()


def test_equal_densities_reduce_to_the_softmax_of_similarities() -> None:
    bank = Bank(missing=False)
    hop = bank.neighborhood(torch.arange(N), 1).hops[0]
    constant = torch.full_like(hop.density, 0.37)
    unit = nn.functional.normalize(bank.features, dim=1)
    expected = (unit @ unit.T).gather(1, bank.neighbors).softmax(dim=1)
    for density in (constant, None):
        weights = attention_weights(bank.features, hop.features, density, hop.index)
        torch.testing.assert_close(weights, expected)


def test_denser_neighbour_of_equal_similarity_weighs_more_by_hand() -> None:
    root = torch.tensor([[1.0, 0.0]])
    neighbors = torch.tensor([[0.0, 2.0], [0.0, -3.0]])
    weights = attention_weights(
        root, neighbors, torch.tensor([math.log(3.0), 0.0]), torch.tensor([[0, 1]])
    )
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25]]))


def test_zero_hops_equal_the_plain_classifier() -> None:
    net = NeighborClassifier(nn.Identity(), D, 3, hops=0)
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x).logits, net.classifier(x))


def test_layer_starts_as_the_mean_of_feature_and_neighbourhood() -> None:
    bank = Bank(missing=False)
    layer = NeighborAttention(D, 1).double()
    neighborhood = bank.neighborhood(torch.arange(N), 1)
    hop = neighborhood.hops[0]
    weights = attention_weights(bank.features, hop.features, hop.density, hop.index)
    around = weighted_sum(hop.features, weights, hop.index)
    torch.testing.assert_close(layer(bank.features, neighborhood), (bank.features + around) / 2)


def test_no_neighbourhood_equals_neighbourhoods_without_neighbours() -> None:
    layer = _layer(2)
    x = torch.randn(3, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nothing = torch.zeros(0, D, dtype=torch.float64)
    empty = Hop(torch.full((3, K), -1), torch.zeros(0, dtype=torch.int64), nothing, nothing[:, 0])
    leaves = Hop(torch.zeros(0, K, dtype=torch.int64), empty.node_ids, nothing, nothing[:, 0])
    torch.testing.assert_close(layer(x, Neighborhood((empty, leaves))), layer(x, None))


def test_gradient_reaches_the_root_through_the_weights_too() -> None:
    bank, layer = Bank(), _layer(2)
    neighborhood = bank.neighborhood(torch.tensor([0, 5, 7]), 2)
    x = torch.randn(3, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: layer(f, neighborhood), (x,))
    layer(x, neighborhood).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_half_precision_bank_is_widened() -> None:
    bank = Bank()
    hop = bank.neighborhood(torch.arange(2), 1).hops[0]
    half = Hop(hop.index, hop.node_ids, hop.features.half(), hop.density.float())
    out = NeighborAttention(D, 1)(bank.features[:2].float(), Neighborhood((half,)))
    assert out.dtype == torch.float32


def test_wrong_depth_is_refused() -> None:
    bank = Bank()
    with pytest.raises(ValueError, match="has 2 hops"):
        _layer(1)(bank.features[:1], bank.neighborhood(torch.arange(1), 2))


def test_joined_neighbourhood_holds_both_parents() -> None:
    bank = Bank()
    joined = join_neighborhoods(bank.neighborhood(torch.arange(3), 2), torch.tensor([1, 0, 2]))
    first = joined.hops[0]
    ids = torch.where(first.index >= 0, first.node_ids[first.index.clamp(min=0)], -1)
    expected = torch.cat([bank.neighbors[:3], bank.neighbors[torch.tensor([1, 0, 2])]], dim=1)
    assert torch.equal(ids, expected)


def test_joining_a_neighbourhood_with_itself_changes_nothing() -> None:
    bank, layer = Bank(), _layer(2)
    plain = bank.neighborhood(torch.arange(4), 2)
    x = bank.features[:4]
    torch.testing.assert_close(
        layer(x, join_neighborhoods(plain, torch.arange(4))), layer(x, plain)
    )
