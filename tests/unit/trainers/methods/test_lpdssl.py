"""LPDSSL's round on two cliques and its loss by hand."""

import math
from dataclasses import replace

import pytest
import torch
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.sharded_view import ShardedGraphView, ShardGroup
from labelmesh.graph_store.view import NodeState, PseudoLabels
from labelmesh.tests.distributed.test_sharded_view import run_on_shards
from labelmesh.trainers.labeling import onehot, targets_and_weight
from labelmesh.trainers.losses import mixup_pairs, prediction_mse, ramp_up, soft_cross_entropy
from labelmesh.trainers.method import Batch, Network
from labelmesh.trainers.methods.lpdssl import LPDSSL, aligned
from torch import Tensor, nn


def _cliques() -> tuple[LocalGraphView, NodeState]:
    """Nodes 0-2 and 3-7 are cliques, node 8 has no neighbours; 0 and 3 are labeled."""
    ids = torch.full((9, 4), -1)
    for members in (range(3), range(3, 8)):
        for i in members:
            others = [j for j in members if j != i]
            ids[i, : len(others)] = torch.tensor(others)
    exists = ids >= 0
    similarity = torch.where(exists, 0.8, 0.0)
    distance = torch.where(exists, math.sqrt(0.4), math.inf)
    labels = torch.tensor([0, -1, -1, 1, -1, -1, -1, -1, -1])
    present = torch.ones(9, dtype=torch.bool)
    state = NodeState(torch.zeros(9, 2), torch.full((9, 2), 0.5), labels, torch.ones(9), present)
    return LocalGraphView(ids, similarity, distance), state


def test_labels_stay_in_their_clique_with_full_certainty() -> None:
    made = LPDSSL().refresh(*_cliques())
    assert made.probs[:3].argmax(1).tolist() == [0] * 3
    assert made.probs[3:8].argmax(1).tolist() == [1] * 5
    torch.testing.assert_close(made.weight[:8], torch.ones(8))


def test_unreached_nodes_have_no_weight() -> None:
    made = LPDSSL().refresh(*_cliques())
    assert made.weight[8] == 0
    assert made.probs[8].tolist() == [0.5, 0.5]


def test_rare_classes_weigh_more() -> None:
    made = LPDSSL().refresh(*_cliques())
    torch.testing.assert_close(made.extra["class_weight"][:3], torch.ones(3))
    torch.testing.assert_close(made.extra["class_weight"][3:8], torch.full((5,), 3 / 5))


def test_the_next_round_starts_at_the_scores_of_the_last() -> None:
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    found = knn_graph(x, k=6, metric="cosine")
    graph = LocalGraphView(found.ids, found.distances, (2 - 2 * found.distances).sqrt())
    labels, present = torch.full((80,), -1), torch.ones(80, dtype=torch.bool)
    labels[:6] = torch.arange(6) % 2
    state = NodeState(x, torch.full((80, 2), 0.5), labels, torch.ones(80), present)
    solved = LPDSSL(max_iter=1000, tol=1e-9).refresh(graph, state)
    assert solved.numbers["solve_residual"] <= 1e-9
    hurried = LPDSSL(max_iter=1)
    cold, warm = (hurried.refresh(graph, replace(state, last=last)) for last in (None, solved))
    assert cold.numbers["solve_iterations"] == warm.numbers["solve_iterations"] == 1
    assert warm.numbers["solve_residual"] < 0.5 * cold.numbers["solve_residual"]
    errors = [float((part.probs - solved.probs).abs().max()) for part in (cold, warm)]
    assert errors[1] < 0.25 * errors[0]


INPUTS = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [0.0, 0.0]])


def _loss(pseudo: PseudoLabels | None) -> float:
    def view(name: str, rows: Tensor | None = None) -> Tensor:
        return INPUTS if rows is None else INPUTS[rows]

    net = LPDSSL().build(nn.Identity(), 2, 2)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(torch.eye(2) if name.endswith("weight") else torch.zeros(2))
    labels, generator = torch.tensor([0, -1, -1]), torch.Generator()
    batch = Batch("mixed", torch.arange(3), labels, pseudo, None, view, generator)
    return LPDSSL().loss(net, batch).total.item()


def test_loss_by_hand() -> None:
    probs = torch.tensor([[0.5, 0.5], [0.4, 0.6], [0.5, 0.5]])
    extra = {"class_weight": torch.tensor([0.5, 1.0, 1.0])}
    pseudo = PseudoLabels(probs, torch.tensor([1.0, 0.25, 0.0]), extra)
    # hard pseudo-label 1 of the second row, which the network gives 1/4
    expected = (0.5 * math.log(2) + 0.25 * -math.log(0.25)) / 3
    assert _loss(pseudo) == pytest.approx(expected, rel=1e-6)


def test_before_round_zero_only_labeled_rows_count() -> None:
    assert _loss(None) == pytest.approx(math.log(2), rel=1e-6)


B, C, D = 10, 3, 4


def _net(method: LPDSSL, seed: int = 0) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return method.build(nn.Linear(5, D), D, C)


def _batch(method: LPDSSL, *, with_round: bool = True) -> tuple[Batch, list[tuple[str, Tensor]]]:
    """Four labeled rows and six others; views are noise, and are kept in the order of calls."""
    rng, generator = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    x = torch.randn(B, 5, generator=rng)
    labels = torch.tensor([0, 1, 2, 0] + [-1] * 6)
    extra = {"class_weight": torch.rand(B, generator=rng)}
    weight = torch.rand(B, generator=rng)
    weight[-1] = 0
    pseudo = PseudoLabels(torch.rand(B, C, generator=rng).softmax(1), weight, extra)
    seen: list[tuple[str, Tensor]] = []

    def view(name: str, rows: Tensor | None = None) -> Tensor:
        chosen = x if rows is None else x[rows]
        out = chosen + {"weak": 0.1, "strong": 1.0}[name] * torch.randn(
            chosen.shape, generator=generator
        )
        seen.append((name, out))
        return out

    batch = Batch(
        "mixed",
        torch.arange(B),
        labels,
        pseudo if with_round else None,
        None,
        view,
        generator,
        epoch=1.0,
        teacher=_net(method, seed=7),
    )
    return batch, seen


def _rows_cost(batch: Batch, logits: Tensor) -> Tensor:
    """LPDSSL's mean cost of a round's rows, written out (eq. 11)."""
    targets, weight = targets_and_weight(batch.labels, batch.pseudo, C)
    assert batch.pseudo is not None
    hard = onehot(targets.argmax(dim=1), C)
    return soft_cross_entropy(logits, hard, weight * batch.pseudo.extra["class_weight"])


@pytest.mark.parametrize("with_round", [True, False])
def test_without_options_the_loss_is_lpdssls_bit_for_bit(with_round: bool) -> None:
    method = LPDSSL()
    net = _net(method)
    batch, seen = _batch(method, with_round=with_round)
    loss = method.loss(net, batch)
    (view,) = seen
    if with_round:
        expected = _rows_cost(batch, net(view[1]).logits)
    else:
        expected = soft_cross_entropy(net(view[1]).logits, onehot(batch.labels[:4], C))
    assert view[0] == "weak"
    assert torch.equal(loss.total, expected)
    other, _ = _batch(method, with_round=with_round)
    other.view("weak", other.labels >= 0 if not with_round else None)
    draws = [torch.rand((), generator=b.generator).item() for b in (batch, other)]
    assert draws[0] == draws[1]


def test_views_are_averaged_and_strong_for_unlabeled_rows() -> None:
    method = LPDSSL(unlabeled_view="strong", num_views=3)
    net = _net(method)
    batch, seen = _batch(method)
    loss = method.loss(net, batch)
    assert [name for name, _ in seen] == ["weak", "strong"] * 3
    assert [x.shape[0] for _, x in seen] == [4, 6] * 3
    views = [torch.cat([seen[i][1], seen[i + 1][1]]) for i in range(0, 6, 2)]
    costs = [_rows_cost(batch, net(x).logits) for x in views]
    torch.testing.assert_close(loss.total, sum(costs) / 3)
    assert len({cost.item() for cost in costs}) == 3


def test_mixup_mixes_rows_and_their_weighted_costs() -> None:
    method = LPDSSL(mixup=0.7, num_views=2)
    net = _net(method)
    batch, seen = _batch(method)
    partner, share = mixup_pairs(B, 0.7, torch.Generator().manual_seed(2))
    loss = method.loss(net, batch)
    targets, weight = targets_and_weight(batch.labels, batch.pseudo, C)
    assert batch.pseudo is not None
    weight = weight * batch.pseudo.extra["class_weight"]
    classes, total = targets.argmax(dim=1), torch.zeros(())
    for _, x in seen:
        mixed = share[:, None] * x + (1 - share[:, None]) * x[partner]
        log_p = net(mixed).logits.log_softmax(1)
        own = -log_p.gather(1, classes[:, None])[:, 0] * weight
        others = -log_p.gather(1, classes[partner][:, None])[:, 0] * weight[partner]
        total = total + (share * own + (1 - share) * others).mean() / 2
    torch.testing.assert_close(loss.total, total)


def test_mean_teacher_adds_the_ramped_distance_to_another_view() -> None:
    method = LPDSSL(mean_teacher=2.5, rampup_epochs=4.0, num_views=2, unlabeled_view="strong")
    net = _net(method)
    batch, seen = _batch(method)
    loss = method.loss(net, batch)
    plain, _ = _batch(method)
    without = LPDSSL(num_views=2, unlabeled_view="strong").loss(net, plain)
    assert [name for name, _ in seen] == ["weak", "strong"] * 2 + ["weak"]
    assert batch.teacher is not None
    student = net(torch.cat([seen[0][1], seen[1][1]])).logits
    cost = prediction_mse(student, batch.teacher(seen[4][1]).logits)
    expected = without.total + 2.5 * ramp_up(1.0, 4.0) * cost
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.parts["consistency"], cost)
    torch.testing.assert_close(loss.parts["classification"], without.total)


def test_mean_teacher_and_mixup_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="set one of the two to 0"):
        LPDSSL(mean_teacher=1.0, mixup=1.0)


def test_before_round_zero_views_and_mixup_are_of_labeled_rows() -> None:
    method = LPDSSL(mixup=1.0, num_views=2, unlabeled_view="strong")
    batch, seen = _batch(method, with_round=False)
    assert torch.isfinite(method.loss(_net(method), batch).total)
    assert [(name, x.shape[0]) for name, x in seen] == [("weak", 4)] * 2


def test_aligned_factors_by_hand() -> None:
    """Odds 8, 4, 2 and 1/2 for class 0; half of the four rows can be of it only if both others'
    odds fall below one: factors with a ratio in (2, 4)."""
    odds = torch.tensor([8.0, 4.0, 2.0, 0.5], dtype=torch.float64)
    probs = torch.stack([odds, torch.ones(4)], dim=1) / (1 + odds)[:, None]
    labels, counted = torch.full((4,), -1), torch.ones(4, dtype=torch.bool)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    made = aligned(probs, labels, counted, half)
    assert made.argmax(1).tolist() == [0, 0, 1, 1]
    ratio = (made[:, 0] / made[:, 1]) / odds
    assert 0.25 < ratio[0].item() < 0.5
    torch.testing.assert_close(ratio, ratio[:1].expand(4))
    torch.testing.assert_close(made.sum(1), torch.ones(4, dtype=torch.float64))


def test_aligned_keeps_zero_rows_out_and_counts_given_labels() -> None:
    rng = torch.Generator().manual_seed(0)
    probs = (3 * torch.randn(300, 3, generator=rng, dtype=torch.float64) + 1).softmax(1)
    probs[:, 0] *= 5
    probs[200:] = 0
    labels = torch.full((300,), -1)
    labels[:30] = 2
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    made = aligned(probs, labels, torch.arange(300) < 200, shares)
    classes = torch.where(labels >= 0, labels, made.argmax(1))[:200]
    assert torch.bincount(classes).tolist() == pytest.approx([40, 60, 100], abs=1)
    assert torch.isfinite(made).all()


def _blobs(n: int = 240) -> tuple[LocalGraphView, NodeState]:
    """Three overlapping groups, the first twice as often labeled; five nodes are absent."""
    rng = torch.Generator().manual_seed(3)
    group = torch.arange(n) % 3
    x = 1.2 * nn.functional.one_hot(group, 6).float() + 0.5 * torch.randn(n, 6, generator=rng)
    found = knn_graph(x, k=6, metric="cosine")
    graph = LocalGraphView(found.ids, found.distances, (2 - 2 * found.distances).sqrt())
    labels, present = torch.full((n,), -1), torch.ones(n, dtype=torch.bool)
    labels[:6] = group[:6]
    labels[[9, 12]] = 0
    present[-5:] = False
    return graph, NodeState(x, torch.full((n, 3), 1 / 3), labels, torch.ones(n), present)


@pytest.mark.parametrize(
    ("align", "shares"), [("uniform", [1 / 3] * 3), ("labels", [0.5, 0.25, 0.25])]
)
def test_aligned_rounds_have_classes_of_the_wanted_sizes(align: str, shares: list[float]) -> None:
    graph, state = _blobs()
    plain, made = LPDSSL().refresh(graph, state), LPDSSL(align=align).refresh(graph, state)
    sizes = [torch.bincount(m.probs[state.present].argmax(1)) / 235 for m in (plain, made)]
    wanted = torch.tensor(shares)
    assert (sizes[1] - wanted).abs().max() < 0.01 < (sizes[0] - wanted).abs().max()
    assert torch.equal(made.probs[:6].argmax(1), state.labels[:6])
    assert (made.weight[-5:] == 0).all()
    assert made.weight[:235].min() >= 0
    assert made.weight.max() == 1
    zeta = torch.stack([made.extra["class_weight"][made.probs.argmax(1) == j][0] for j in range(3)])
    sizes_of_all = torch.bincount(made.probs.argmax(1)).float()
    torch.testing.assert_close(zeta, sizes_of_all.min() / sizes_of_all)


def test_unweighted_rounds_count_every_row_that_is_reached() -> None:
    made = LPDSSL(weighted=False, align="uniform").refresh(*_cliques())
    assert made.weight.tolist() == [1.0] * 8 + [0.0]
    assert made.extra["class_weight"].tolist() == [1.0] * 9


def test_aligned_rounds_of_shards_are_those_of_one_process() -> None:
    """Threads that talk over gloo; the last of three shards has no labeled node."""
    graph, state = _blobs()
    method = LPDSSL(align="labels")

    def run(group: ShardGroup) -> PseudoLabels:
        partition = Partition.even(240, 3)
        own = slice(*partition.span(group.rank))
        columns = (graph.neighbor_ids[own], graph.similarity[own], graph.distances[own])
        rows = (state.features, state.probs, state.labels, state.density, state.present)
        view = ShardedGraphView(group, partition, *columns, "cosine")
        return method.refresh(view, NodeState(*(column[own] for column in rows)))

    parts, expected = run_on_shards(3)(run), method.refresh(graph, state)
    for got, whole in (
        (torch.cat([part.probs for part in parts]), expected.probs),
        (torch.cat([part.weight for part in parts]), expected.weight),
        (torch.cat([part.extra["class_weight"] for part in parts]), expected.extra["class_weight"]),
    ):
        # sums over shards differ in their last bits
        torch.testing.assert_close(got, whole, rtol=0, atol=1e-4)
