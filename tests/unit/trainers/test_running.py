"""Running statistics: the recurrence by hand, and the same for any number of ranks."""

import pytest
import torch
from labelmesh.trainers.engine import LocalComm
from labelmesh.trainers.running import RunningStatistics
from torch import Tensor

CPU = torch.device("cpu")


class OneOf:
    """A rank among several that adds what the others would have sent."""

    def __init__(self, others: list[Tensor]) -> None:
        self.rank, self.world_size = 0, len(others) + 1
        self._others = others

    def all_sum(self, x: Tensor) -> Tensor:
        return torch.stack([x, *self._others]).sum(0)

    def barrier(self) -> None:
        return None


def test_recurrence_by_hand() -> None:
    running = RunningStatistics({"a": torch.tensor(1.0), "b": torch.zeros(2)}, 0.9, CPU)
    running.add({"a": torch.tensor(2.0), "b": torch.tensor([1.0, 0.0])})
    running.add({"a": torch.tensor(4.0), "b": torch.tensor([0.0, 1.0])})
    running.step(LocalComm())
    torch.testing.assert_close(running.values["a"], torch.tensor(0.9 * 1 + 0.1 * 3))
    torch.testing.assert_close(running.values["b"], torch.tensor([0.05, 0.05]))
    running.add({"a": torch.tensor(0.0), "b": torch.zeros(2)})
    running.step(LocalComm())
    torch.testing.assert_close(running.values["a"], torch.tensor(0.9 * 1.2))


def test_two_ranks_give_what_one_gives() -> None:
    start = {"a": torch.tensor(0.5), "b": torch.ones(3)}
    parts = [{"a": torch.rand(()), "b": torch.rand(3)} for _ in range(4)]
    one = RunningStatistics(start, 0.99, CPU)
    for part in parts:
        one.add(part)
    one.step(LocalComm())
    two = RunningStatistics(start, 0.99, CPU)
    for part in parts[:2]:
        two.add(part)
    others = torch.cat([sum(p[n].flatten() for p in parts[2:]) for n in ("a", "b")])
    two.step(OneOf([others]))
    for name, value in one.values.items():
        torch.testing.assert_close(two.values[name], value)


def test_no_statistics_need_no_exchange() -> None:
    running = RunningStatistics({}, 0.9, CPU)
    running.add({})
    running.step(OneOf([torch.full((3,), torch.nan)]))
    assert running.values == {}


def test_values_are_kept_without_their_graph() -> None:
    running = RunningStatistics({"a": torch.tensor(0.0)}, 0.5, CPU)
    running.add({"a": torch.tensor(1.0, requires_grad=True) * 2})
    running.step(LocalComm())
    assert not running.values["a"].requires_grad


@pytest.mark.parametrize(
    ("values", "sentence"),
    [({}, "gave running statistics"), ({"a": torch.zeros(2)}, "has shape")],
)
def test_other_names_or_shapes_are_refused(values: dict[str, Tensor], sentence: str) -> None:
    running = RunningStatistics({"a": torch.tensor(0.0)}, 0.5, CPU)
    with pytest.raises(ValueError, match=sentence):
        running.add(values)


def test_decay_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="statistics_decay"):
        RunningStatistics({}, 1.5, CPU)
