"""Staging and published rounds."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.store import StoreSpec
from labelmesh.graph_store.table import Rounds, StagingTable

SPEC = StoreSpec(num_nodes=4, dim=2, num_classes=3, k=1)


def test_frozen_columns_do_not_change_any_more() -> None:
    table = StagingTable(SPEC, 4)
    table.write("features", torch.tensor([1]), torch.ones(1, 2))
    frozen = table.freeze()
    table.write("features", torch.tensor([1, 2]), torch.full((2, 2), 5.0))
    assert frozen["features"][:, 0].tolist() == [0, 1, 0, 0]
    assert table.freeze()["features"][:, 0].tolist() == [0, 5, 5, 0]


def test_columns_that_did_not_change_are_shared_between_freezes() -> None:
    table = StagingTable(SPEC, 4)
    first = table.freeze()
    table.write("present", torch.tensor([0]), torch.tensor([True]))
    second = table.freeze()
    assert second["features"] is first["features"]
    assert second["present"] is not first["present"]


def test_half_precision_is_how_features_lie_in_memory() -> None:
    spec = StoreSpec(num_nodes=4, dim=2, num_classes=3, k=1, dtype="float16")
    columns = StagingTable(spec, 4).freeze()
    assert columns["features"].dtype == torch.float16
    assert columns["probs"].dtype == torch.float32


def test_the_last_two_rounds_are_kept() -> None:
    rounds = Rounds()
    for number in (0, 1, 5):
        rounds.publish(number, {"x": torch.tensor([number])})
    assert rounds.numbers() == (1, 5)
    assert rounds.get(1)["x"].item() == 1
    with pytest.raises(ValueError, match=r"round 0 cannot be read; published are \[1, 5\]"):
        rounds.get(0)


def test_publishing_an_earlier_round_again_drops_the_later_ones() -> None:
    rounds = Rounds()
    for number in (3, 4, 4, 3):
        rounds.publish(number, {"x": torch.tensor([number])})
    assert rounds.numbers() == (3,)
