"""The vote of the nearest labeled nodes against scikit-learn's classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelmesh.trainers.layers.probes import INSIDE_LOG, vote
from labelmesh.trainers.method import Base, Batch
from labelmesh.trainers.methods.knn import Knn
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

D, C = 5, 4


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    scale = torch.rand(count, 1, generator=rng) * 10 + 0.1
    features = torch.randn(count, D, generator=rng) * scale
    return features, torch.randint(C, (count,), generator=rng)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.5), (60, 5.0)])
def test_votes_are_those_of_scikit_learn(k: int, temperature: float) -> None:
    (train, labels), (test, _) = points(60, 0), points(200, 1)
    theirs = KNeighborsClassifier(
        k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(train.double().numpy(), labels.numpy())
    probs = vote(test, Base(train, labels, C), k=k, temperature=temperature)
    wanted = theirs.predict_proba(test.double().numpy())
    np.testing.assert_allclose(probs.numpy(), wanted, atol=1e-5)
    assert np.array_equal(probs.argmax(1).numpy(), theirs.predict(test.double().numpy()))


def test_a_vote_by_hand() -> None:
    base = Base(torch.tensor([[1.0, 0], [0, 2], [-1, 0]]), torch.tensor([0, 2, 1]), 4)
    probs = vote(torch.tensor([[3.0, 0]]), base, k=2, temperature=0.5)
    e = np.exp(np.array([1, 0]) / 0.5)
    assert probs.tolist()[0] == pytest.approx([e[0] / e.sum(), 0, e[1] / e.sum(), 0])


def test_a_small_temperature_does_not_overflow() -> None:
    train, labels = points(30, 0)
    probs = vote(train, Base(train, labels, C), k=9, temperature=1e-4)
    assert torch.isfinite(probs).all()
    assert torch.equal(probs.argmax(1), labels)


def test_few_base_rows_all_vote_and_their_order_is_no_matter() -> None:
    (train, labels), (test, _) = points(3, 0), points(5, 1)
    probs = vote(test, Base(train, labels, C), k=20, temperature=0.3)
    again = vote(test, Base(train.flip(0), labels.flip(0), C), k=20, temperature=0.3)
    torch.testing.assert_close(probs, again)


def test_the_predictor_votes_and_its_gradient_reaches_the_inputs() -> None:
    method = Knn(k=6)
    (train, labels), (test, _) = points(40, 0), points(7, 1)
    untrained = method.build(nn.Identity(), D, C)
    assert untrained(test).logits.tolist() == torch.zeros(7, C).tolist()
    network = method.predictor(untrained, Base(train, labels, C))
    inputs = test.requires_grad_()
    logits = network(inputs).logits
    wanted = (vote(test, Base(train, labels, C), k=6, temperature=0.07) + INSIDE_LOG).log()
    torch.testing.assert_close(logits, wanted)
    logits[:, 0].sum().backward()
    assert inputs.grad is not None
    assert torch.isfinite(inputs.grad).all()
    assert sorted(network.state_dict()) == ["base_features", "base_labels"]


def test_there_are_no_steps() -> None:
    method = Knn()
    assert method.phases == ()
    assert not method.uses_graph
    empty = torch.zeros(0, dtype=torch.int64)
    batch = Batch("", empty, empty, None, None, lambda name: torch.zeros(0), torch.Generator())
    with pytest.raises(ValueError, match="it trains nothing"):
        method.loss(method.build(nn.Identity(), D, C), batch)
