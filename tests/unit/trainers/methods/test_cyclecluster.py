"""CycleCluster: two sets of labels from one round, and its two losses by hand."""

import math
from dataclasses import replace

import pytest
import torch
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.view import NodeState, PseudoLabels
from labelmesh.trainers.method import Batch, ModelOutput
from labelmesh.trainers.methods.cyclecluster import CLUSTER, CycleCluster
from labelmesh.trainers.methods.lpdssl import LPDSSL
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn
from torch.nn import functional

N, C, K = 90, 3, 5


def _round() -> tuple[LocalGraphView, NodeState, Tensor]:
    """Three groups of directions; one labeled node in each."""
    draw = torch.Generator().manual_seed(0)
    group = torch.arange(N) % C
    x = functional.normalize(
        functional.one_hot(group, 6).float() + 0.15 * torch.randn(N, 6, generator=draw), dim=1
    )
    found = knn_graph(x, k=6, metric="cosine")
    graph = LocalGraphView(
        found.ids, found.distances, (2 - 2 * found.distances).clamp(min=0).sqrt()
    )
    labels = torch.where(torch.arange(N) < C, group, -1)
    present = torch.ones(N, dtype=torch.bool)
    return graph, NodeState(x, torch.full((N, C), 1 / C), labels, torch.ones(N), present), group


def test_a_round_finds_groups_as_clusters_and_as_labels() -> None:
    graph, state, group = _round()
    made = CycleCluster(num_clusters=C).refresh(graph, state)
    assert adjusted_rand_score(group, made.extra[CLUSTER]) == 1.0
    assert torch.equal(made.probs.argmax(1), group)
    assert made.numbers["cluster_objective"] > 0


def test_labels_and_certainties_are_those_of_lpdssl() -> None:
    graph, state, _ = _round()
    made, lpdssl = CycleCluster().refresh(graph, state), LPDSSL().refresh(graph, state)
    assert torch.equal(made.probs, lpdssl.probs)
    assert torch.equal(made.weight, lpdssl.weight)


def test_class_weights_have_mean_one_over_classes() -> None:
    graph, state, group = _round()
    labels = torch.where(torch.arange(N) < C, group % 2, -1)  # the third class has no label
    made = CycleCluster().refresh(graph, replace(state, labels=labels))
    counts = torch.bincount(made.probs.argmax(1), minlength=C).double()
    assert counts[2] == 0
    inverse = 1 / counts[:2]
    expected = (inverse / inverse.mean()).float()[made.probs.argmax(1)]
    torch.testing.assert_close(made.extra["class_weight"], expected)


def test_matched_clusters_keep_their_numbers() -> None:
    graph, state, _ = _round()
    first = CycleCluster(num_clusters=C, clusters="matched").refresh(graph, state)
    renamed = (first.extra[CLUSTER] + 1) % C
    last = replace(first, extra={**first.extra, CLUSTER: renamed})
    method = CycleCluster(num_clusters=C, clusters="matched", cluster_seed=7)
    made = method.refresh(graph, replace(state, last=last))
    assert torch.equal(made.extra[CLUSTER], renamed)


def test_clusters_can_be_numbered_like_the_classes() -> None:
    graph, state, group = _round()
    made = CycleCluster(num_clusters=C, clusters="classes", cluster_seed=3).refresh(graph, state)
    assert torch.equal(made.extra[CLUSTER], group)
    two = CycleCluster(num_clusters=2, clusters="classes").refresh(graph, state)
    assert set(two.extra[CLUSTER].tolist()) < {0, 1, 2}


def test_without_clusters_there_is_one_phase_and_no_clustering() -> None:
    method = CycleCluster(clusters="none")
    assert [p.name for p in method.phases] == ["label"]
    assert CLUSTER not in method.refresh(*_round()[:2]).extra
    assert method.build(nn.Identity(), 6, C)(torch.ones(2, 6)).outputs.shape == (2, C)


@pytest.mark.parametrize(("num_clusters", "width"), [(2, C), (K, K)])
def test_one_layer_serves_both_tasks(num_clusters: int, width: int) -> None:
    net = CycleCluster(num_clusters=num_clusters).build(nn.Identity(), 6, C)
    out = net(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    assert out.outputs.shape == (4, width)
    assert torch.equal(out.logits, out.outputs[:, :C])
    assert torch.equal(net.head(out.features, None), out.logits)
    torch.testing.assert_close(out.features.norm(dim=1), torch.ones(4))
    assert sum(isinstance(m, nn.Linear) for m in net.modules()) == 1


INPUTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
LOG3 = math.log(3.0)


def _net(method: CycleCluster) -> nn.Module:
    """Outputs log 3 times the unit feature, and 0 for the further clusters."""
    net = method.build(nn.Identity(), 2, 2)
    with torch.no_grad():
        weight = net.get_parameter("classifier.weight")
        weight.zero_()
        weight[:2] = LOG3 * torch.eye(2)
        net.get_parameter("classifier.bias").zero_()
    return net


def _batch(phase: str, pseudo: PseudoLabels | None) -> Batch:
    def view(name: str, rows: Tensor | None = None) -> Tensor:
        shown = INPUTS if name == "weak" else INPUTS.flip(0)
        return shown if rows is None else shown[rows]

    def teacher(inputs: Tensor) -> ModelOutput:
        logits = torch.zeros(inputs.shape[0], 2)
        return ModelOutput(inputs, logits, logits)

    labels = torch.tensor([0, 0, -1, -1])
    generator = torch.Generator()
    ids = torch.arange(4)
    return Batch(phase, ids, labels, pseudo, None, view, generator, epoch=9.0, teacher=teacher)


def _pseudo() -> PseudoLabels:
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.6, 0.4]])
    extra = {
        "class_weight": torch.tensor([0.5, 0.5, 0.5, 0.5]),
        CLUSTER: torch.tensor([0, 2, 1, 1]),
    }
    return PseudoLabels(probs, torch.tensor([1.0, 1.0, 0.8, 0.2]), extra)


def test_clustering_loss_by_hand() -> None:
    method = CycleCluster(num_clusters=3)
    loss = method.loss(_net(method), _batch("cluster", _pseudo()))
    # outputs of a row: 3 to the power of (1, 0, 0) or (0, 1, 0), over their sum 5
    expected = (math.log(5 / 3) + math.log(5) + math.log(5) + math.log(5 / 3)) / 4
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)


def test_classification_loss_by_hand() -> None:
    method = CycleCluster(num_clusters=3)
    loss = method.loss(_net(method), _batch("label", _pseudo()))
    near, far = math.log(4 / 3), math.log(4)
    labeled = (0.5 * near + 0.5 * far) / 2
    unlabeled = (0.5 * 0.8 * near + 0.5 * 0.2 * far) / 2
    assert loss.total.item() == pytest.approx(labeled + unlabeled, rel=1e-6)


def test_strong_views_in_both_phases() -> None:
    method = CycleCluster(num_clusters=3, rand_augment=True)
    loss = method.loss(_net(method), _batch("cluster", _pseudo()))
    # the strong view shows the rows in reverse
    expected = (math.log(5) + math.log(5) + math.log(5 / 3) + math.log(5)) / 4
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)


def test_teacher_has_its_say_when_asked() -> None:
    plain, asked = CycleCluster(), CycleCluster(mean_teacher=2.0)
    first = plain.loss(_net(plain), _batch("label", _pseudo())).total.item()
    second = asked.loss(_net(asked), _batch("label", _pseudo())).total.item()
    # students say (3/4, 1/4) or the other way round, the teacher (1/2, 1/2)
    assert second - first == pytest.approx(2.0 * 2 * 0.25**2, rel=1e-5)


def test_before_round_zero_only_given_labels_count() -> None:
    method = CycleCluster()
    loss = method.loss(_net(method), _batch("warmup", None))
    assert loss.total.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-6)
