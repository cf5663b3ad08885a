"""The promise of every method on disk: frozen, pure, deterministic, blind to node order."""

from collections.abc import Callable

import pytest
import torch
from labelmesh.graph_store.kernels.density import density
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.view import Hop, Neighborhood, NodeState, PseudoLabels
from labelmesh.trainers.method import (
    BaseRows,
    Batch,
    Loss,
    Method,
    Network,
    Phase,
    find_method,
    method_names,
)
from pydantic import ValidationError
from torch import Tensor, nn

B, C, D, N, K = 12, 3, 6, 30, 4
INPUTS = 5

methods = pytest.mark.parametrize("name", method_names())
graph_methods = pytest.mark.parametrize(
    "name", [name for name in method_names() if find_method(name)().uses_graph]
)


def _method(name: str) -> Method:
    return find_method(name)()


def _build(method: Method) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return method.build(nn.Sequential(nn.Linear(INPUTS, D), nn.BatchNorm1d(D)), D, C)


def _graph(permutation: Tensor | None = None) -> tuple[LocalGraphView, NodeState]:
    """Three noisy groups of nodes, one labeled node each, in any order."""
    rng = torch.Generator().manual_seed(1)
    group = torch.arange(N) % C
    features = nn.functional.one_hot(group, D).float() + 0.4 * torch.randn(N, D, generator=rng)
    probs = torch.rand(N, C, generator=rng).softmax(dim=1)
    labels = torch.where(torch.arange(N) < C, group, -1)
    if permutation is not None:
        features, probs, labels = features[permutation], probs[permutation], labels[permutation]
    probs[labels >= 0] = nn.functional.one_hot(labels[labels >= 0], C).float()
    unit = nn.functional.normalize(features.double(), dim=1)
    distance = torch.cdist(unit, unit).fill_diagonal_(torch.inf)
    near = distance.topk(K, largest=False)
    similarity = (1 - near.values.square() / 2).float()
    view = LocalGraphView(near.indices, similarity, near.values.float())
    rho = density(similarity, near.indices)
    return view, NodeState(features, probs, labels, rho, torch.ones(N, dtype=torch.bool))


def _neighborhood(rows: int, hops: int) -> Neighborhood:
    rng = torch.Generator().manual_seed(2)
    levels = []
    for m in [9, 8, 7][:hops]:
        index = torch.randint(-1, m, (rows, K), generator=rng)
        ids = torch.arange(m)
        features = torch.randn(m, D, generator=rng)
        levels.append(Hop(index, ids, features, torch.rand(m, generator=rng)))
        rows = m
    return Neighborhood(tuple(levels))


def _phases(method: Method, *, with_round: bool) -> tuple[Phase, ...]:
    """The phases that have a round to read, or those that come before the first one."""
    return method.phases if with_round or not method.uses_graph else (method.warm_up,)


def _batch(
    method: Method, phase: Phase, *, with_round: bool, seed: int = 3, labeled: int = 4
) -> Batch:
    """A micro-batch; weak and strong views are noise from the generator."""
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(B, INPUTS, generator=rng)
    labels = torch.randint(C, (B,), generator=rng)
    if phase.nodes != "labeled":
        labels[labeled:] = -1
    generator = torch.Generator().manual_seed(seed)

    def views_of(x: Tensor) -> Callable[..., Tensor]:
        def view(name: str, rows: Tensor | None = None) -> Tensor:
            chosen = x if rows is None else x[rows]
            scale = {"plain": 0.0, "weak": 0.1, "strong": 0.5}[name]
            return chosen + scale * torch.randn(chosen.shape, generator=generator)

        return view

    base = None
    if phase.base is not None:
        beside = torch.randn(2 * C, INPUTS, generator=rng)
        base = BaseRows(torch.arange(B, B + 2 * C), torch.arange(2 * C) % C, views_of(beside))

    pseudo = None
    if with_round and method.uses_graph:
        # `extra` is the method's own: take the columns that its refresh makes
        made = method.refresh(*_graph())
        if made is not None:
            extra = {key: column[:B] for key, column in made.extra.items()}
            pseudo = PseudoLabels(made.probs[:B], made.weight[:B], extra)
    neighborhood = _neighborhood(B, phase.hops) if with_round and phase.hops else None
    averaged = _build(method).eval()
    return Batch(
        phase.name,
        torch.arange(B),
        labels,
        pseudo,
        neighborhood,
        views_of(inputs),
        generator,
        base,
        epoch=1.5,
        teacher=torch.no_grad()(averaged),
        statistics=method.statistics(C),
    )


def _losses(
    name: str, *, with_round: bool, seed: int = 3, labeled: int = 4
) -> list[tuple[Loss, Network]]:
    """Of one micro-batch of each phase, with a network of its own."""
    method, out = _method(name), []
    for phase in _phases(method, with_round=with_round):
        net = _build(method).train()
        batch = _batch(method, phase, with_round=with_round, seed=seed, labeled=labeled)
        out.append((method.loss(net, batch), net))
    return out


@methods
def test_method_is_frozen(name: str) -> None:
    method = _method(name)
    key = next(iter(type(method).model_fields), "anything")
    with pytest.raises(ValidationError):
        setattr(method, key, 0.5)


@methods
def test_unknown_hyperparameters_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        find_method(name)(no_such_key=1)  # type: ignore[call-arg]


@methods
def test_every_hyperparameter_says_what_it_is(name: str) -> None:
    assert all(field.description for field in find_method(name).model_fields.values())


@methods
def test_phases_have_names_of_their_own(name: str) -> None:
    names = [phase.name for phase in _method(name).phases]
    assert len(set(names)) == len(names)


@methods
def test_only_a_method_with_nothing_to_train_is_without_a_phase(name: str) -> None:
    parameters = [key for key, _ in _build(_method(name)).named_parameters()]
    has_own = any(not key.startswith("backbone.") for key in parameters)
    assert bool(_method(name).phases) == has_own


@methods
def test_network_gives_features_and_logits(name: str) -> None:
    net = _build(_method(name))
    x = torch.randn(4, INPUTS, generator=torch.Generator().manual_seed(0))
    out = net(x)
    assert net.feature_dim == D
    assert out.features.shape == (4, D)
    assert out.logits.shape == (4, C)
    assert torch.equal(out.outputs[:, :C], out.logits)


@methods
@pytest.mark.parametrize("with_round", [False, True])
def test_loss_is_finite_and_reaches_backbone_and_classifier(name: str, with_round: bool) -> None:
    for loss, net in _losses(name, with_round=with_round):
        assert torch.isfinite(loss.total)
        loss.total.backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        assert all(torch.isfinite(g).all() for g in gradients)
        assert next(net.parameters()).grad is not None
        assert gradients[-1].abs().sum() > 0


@methods
def test_logged_parts_are_detached_scalars(name: str) -> None:
    for loss, _ in _losses(name, with_round=True):
        assert loss.parts
        assert all(part.ndim == 0 and not part.requires_grad for part in loss.parts.values())


@methods
@pytest.mark.parametrize("with_round", [False, True])
def test_running_statistics_keep_names_and_shapes(name: str, with_round: bool) -> None:
    start = _method(name).statistics(C)
    for loss, _ in _losses(name, with_round=with_round):
        assert {k: v.shape for k, v in loss.statistics.items()} == {
            k: v.shape for k, v in start.items()
        }
        assert all(torch.isfinite(v).all() for v in loss.statistics.values())


@methods
@pytest.mark.parametrize("with_round", [False, True])
def test_loss_is_a_function_of_the_generator(name: str, with_round: bool) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (
        [loss.total for loss, _ in _losses(name, with_round=with_round, seed=seed)]
        for seed in (3, 3, 4)
    )
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert torch.equal(state, torch.random.get_rng_state())


@methods
def test_loss_of_labeled_nodes_alone_is_finite(name: str) -> None:
    for loss, _ in _losses(name, with_round=False, labeled=B):
        assert torch.isfinite(loss.total)


@graph_methods
def test_pseudo_labels_are_valid(name: str) -> None:
    view, state = _graph()
    made = _method(name).refresh(view, state)
    assert made is not None
    assert made.probs.shape == (N, C)
    assert made.probs.dtype == made.weight.dtype == torch.float32
    total = made.probs.sum(dim=1)
    assert ((total - 1).abs().lt(1e-5) | (total == 0)).all()
    assert (made.probs >= 0).all()
    assert ((made.weight >= 0) & (made.weight <= 1)).all()
    assert (made.weight[total == 0] == 0).all()
    assert all(column.shape[0] == N for column in made.extra.values())
    assert torch.equal(made.probs[:C], torch.eye(C))
    assert (made.weight[:C] == 1).all()


@graph_methods
def test_absent_nodes_get_no_weight(name: str) -> None:
    view, state = _graph()
    present = torch.arange(N) != 7
    absent = NodeState(state.features, state.probs, state.labels, state.density, present)
    made = _method(name).refresh(view, absent)
    assert made is not None
    assert made.weight[7] == 0


@graph_methods
def test_permuting_nodes_permutes_pseudo_labels(name: str) -> None:
    permutation = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    method = _method(name)
    made, permuted = method.refresh(*_graph()), method.refresh(*_graph(permutation))
    assert made is not None
    assert permuted is not None
    torch.testing.assert_close(permuted.probs, made.probs[permutation], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(permuted.weight, made.weight[permutation], atol=1e-4, rtol=1e-4)


@graph_methods
def test_refresh_leaves_its_arguments_alone(name: str) -> None:
    view, state = _graph()
    copies: dict[str, Callable[[], Tensor]] = {
        "probs": state.probs.clone,
        "labels": state.labels.clone,
    }
    kept = {key: copy() for key, copy in copies.items()}
    _method(name).refresh(view, state)
    assert torch.equal(state.probs, kept["probs"])
    assert torch.equal(state.labels, kept["labels"])


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known are"):
        find_method("dagg")
