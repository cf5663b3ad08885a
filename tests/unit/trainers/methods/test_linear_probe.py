"""The linear probe's optimum is scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelmesh.trainers.method import Batch, Network
from labelmesh.trainers.methods.linear_probe import LinearProbe
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

D, C, N = 6, 3, 60
DECAY = 0.02


def points() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % C
    centers = torch.randn(C, D, generator=rng)
    return centers[labels] + torch.randn(N, D, generator=rng), labels


def batch(features: Tensor, labels: Tensor) -> Batch:
    def view(name: str, rows: Tensor) -> Tensor:
        return features[rows]

    ids = torch.arange(len(labels))
    return Batch("probe", ids, labels, None, None, view, torch.Generator().manual_seed(0))


def trained(method: LinearProbe, features: Tensor, labels: Tensor) -> Network:
    """By L-BFGS on the method's loss and an explicit penalty of the weights, not of the bias."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = method.build(nn.Identity(), D, C).double().train()
    weight = net.get_parameter("classifier.weight")
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = method.loss(net, batch(features, labels)).total
        total = total + DECAY / 2 * weight.square().sum()
        total.backward()
        return total

    optimizer.step(closure)  # type: ignore[arg-type]
    return net


@pytest.mark.parametrize("standardize", [False, True])
def test_the_optimum_is_logistic_regression(standardize: bool) -> None:
    features, labels = points()
    features = features.double() * torch.logspace(-1, 1, D, dtype=torch.float64)
    net = trained(LinearProbe(standardize=standardize), features, labels)
    seen = features.numpy()
    if standardize:
        seen = (seen - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-5)
    theirs = LogisticRegression(C=1 / (N * DECAY), tol=1e-10, max_iter=5000)
    theirs.fit(seen, labels.numpy())
    probs = net(features).logits.softmax(1).detach().numpy()
    np.testing.assert_allclose(probs, theirs.predict_proba(seen), atol=1e-4)
    np.testing.assert_allclose(
        net.get_parameter("classifier.weight").detach().numpy(), theirs.coef_, atol=1e-3
    )


def test_features_stay_as_they_are() -> None:
    features, _ = points()
    net = LinearProbe().build(nn.Identity(), D, C)
    assert torch.equal(net(features).features, features)
    assert "standardize.running_mean" in net.state_dict()


def test_unlabeled_rows_cost_nothing() -> None:
    features, labels = points()
    method = LinearProbe()
    net = method.build(nn.Identity(), D, C)
    some = torch.where(torch.arange(N) < 20, labels, -1)
    wanted = method.loss(net, batch(features[:20], labels[:20])).total
    torch.testing.assert_close(method.loss(net, batch(features, some)).total, wanted)


def test_the_probe_reads_labeled_nodes_of_a_frozen_backbone() -> None:
    method = LinearProbe()
    assert [phase.nodes for phase in method.phases] == ["labeled"]
    assert method.needs_frozen_backbone
    assert not method.uses_graph
