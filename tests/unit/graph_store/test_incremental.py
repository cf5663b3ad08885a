"""A graph that follows moving rows: after every update what a build from nothing would say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from labelmesh.graph_store import sharded_lists, tracking
from labelmesh.graph_store.incremental import LiveGraph
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.peers import Peers
from labelmesh.graph_store.store import KnnReport
from labelmesh.tests.fuzz.updates import (
    KINDS,
    Case,
    Step,
    brute_force,
    check,
    check_case,
    follow,
    history,
    random_case,
    start,
    state_of,
)
from torch import Tensor

CASE = Case(num_rows=200, dim=12, k=6, slack=24, kind="random", num_steps=0, seed=5)


class Follower:
    """A graph of moving rows that is checked after every update."""

    def __init__(self, case: Case, **changes: Any) -> None:
        self.case = replace(case, **changes)
        self.generator = torch.Generator().manual_seed(case.seed)
        case = self.case
        self.x = start(case.kind, case.num_rows, case.dim, self.generator)
        self.active = torch.ones(case.num_rows, dtype=torch.bool)
        peers = Peers(Partition.even(case.num_rows, 1))
        self.live = LiveGraph(peers, case.k, case.slack, keep_scale=case.keep_scale)
        self.update()

    def update(self, eta: float = 0.0) -> KnnReport:
        rows, active = self.x.float(), self.active.clone()
        report = self.live.update(rows, active, eta=eta)
        check(self.case, Step(rows, active, eta, ""), state_of(self.live, rows, report))
        return report

    def noise(self) -> Tensor:
        return torch.randn(self.x.shape, generator=self.generator, dtype=torch.float64)

    def some(self, share: float) -> Tensor:
        return torch.rand(len(self.x), generator=self.generator) < share

    def spacing(self) -> float:
        """Median distance to the k-th neighbour."""
        return float(self.live.distances[self.active, -1].median())

    @property
    def build(self) -> float:
        n = int(self.active.sum())
        return n * (n - 1) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slack", [7, 24])
def test_any_share_of_moving_rows_gives_the_graph_of_a_build(kind: str, slack: int) -> None:
    f = Follower(CASE, kind=kind, slack=slack, num_rows=120, dim=4)
    for share in (0.006, 0.05, 0.2, 1.0):
        moving = f.some(share)[:, None]
        f.x = torch.where(moving, f.x + 0.3 * f.noise(), f.x + 0.0)
        f.update()
    f.x = f.x + torch.where(f.some(0.1)[:, None], 1.0, 1e-4) * f.noise()
    f.update()


@pytest.mark.parametrize("dim", [1, 2, 7, 64, 256])
def test_any_width(dim: int) -> None:
    f = Follower(CASE, dim=dim, kind="clustered", num_rows=150)
    for size in (0.01, 1.0, 1e-5):
        f.x = f.x + size * f.noise()
        f.update()


@pytest.mark.parametrize("seed", range(300, 310))
def test_random_histories(seed: int) -> None:
    """All kinds of motion, insertion and removal; `make fuzz` goes on with further seeds."""
    case = random_case(seed)
    check_case(replace(case, num_rows=min(case.num_rows, 150), num_steps=4))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_paths_that_only_much_data_takes(share: float) -> None:
    case = replace(CASE, num_rows=220, num_steps=10, seed=78, small_blocks=True, small_share=share)
    check_case(case)


@pytest.mark.parametrize("num_rows", [1, 2, 6, 7, 8])
def test_fewer_rows_than_a_list_holds_are_always_certified(num_rows: int) -> None:
    f = Follower(CASE, num_rows=num_rows, dim=3)
    for _ in range(3):
        f.x = f.x + f.noise()
        assert f.update().certified == num_rows


def test_nobody_takes_part() -> None:
    f = Follower(CASE, num_rows=20)
    f.active[:] = False
    assert f.update().certified == 0
    f.active[4:9] = True
    assert f.update().certified == 5


def test_rows_come_and_go() -> None:
    f = Follower(CASE)
    f.active[:100] = False
    assert f.update().searched == 0  # nobody has to be searched because others have gone
    f.active[:10] = True
    report = f.update()
    assert not report.rebuilt
    assert report.searched >= 10
    f.active ^= f.some(0.3)
    f.x = f.x + 0.01 * f.noise()
    f.update()


def test_room_for_further_rows() -> None:
    f = Follower(CASE, num_rows=250)
    more = start("random", 40, 12, f.generator)
    f.x, f.active = torch.cat([f.x, more]), torch.ones(290, dtype=torch.bool)
    f.case = replace(f.case, num_rows=290)
    f.live.grow(Peers(Partition.even(290, 1)))
    report = f.update()
    assert (report.searched, report.certified, report.rebuilt) == (40, 290, False)
    f.live.grow(Peers(Partition.even(290, 1)))
    f.x[0] += 1.0
    assert f.update().searched == 1


# What it costs


def test_nothing_is_computed_when_nothing_moved() -> None:
    f = Follower(CASE)
    report = f.update()
    assert (report.searched, report.changed, report.distances) == (0, 0, 0)
    assert (report.certified, report.exact, report.recall, report.bound) == (200, True, 1.0, 1.0)
    assert not report.rebuilt


def test_only_rows_that_moved_far_are_searched() -> None:
    f = Follower(CASE, num_rows=400, slack=30)
    before = f.live.neighbor_ids
    f.x[[3, 77, 300]] += f.noise()[:3]
    report = f.update()
    assert report.searched == 3
    assert report.changed == int((f.live.neighbor_ids != before).any(1).sum()) > 0
    assert report.certified == 400
    assert 3 * 398 <= report.distances <= 3 * 400 + 400 * 30


@pytest.mark.parametrize("kind", ["random", "clustered", "manifold"])
def test_small_drift_of_all_rows_needs_no_search(kind: str) -> None:
    f = Follower(CASE, kind=kind, slack=48, num_rows=700, dim=16)
    step = 0.002 * f.spacing() * torch.nn.functional.normalize(f.noise(), dim=1)
    f.x = f.x + step
    report = f.update()
    assert (report.searched, report.certified) == (0, 700)
    assert 0 < report.distances <= 700 * 48


@pytest.mark.parametrize("keep_scale", [False, True])
def test_a_common_motion_costs_no_search(keep_scale: bool) -> None:
    f = Follower(CASE, num_rows=700, slack=24, keep_scale=keep_scale)
    for _ in range(3):
        q = torch.linalg.qr(f.noise()[:12])[0]
        f.x = f.x @ q * (1.0 if keep_scale else 1.7) + 5 * f.noise()[:1]
        f.x = f.x + 2e-4 * f.spacing() * f.noise()
        report = f.update()
        assert (report.searched, report.certified, report.rebuilt) == (0, 700, False)


def test_a_bank_that_is_rewritten_piece_by_piece_is_searched_piece_by_piece() -> None:
    """2 % of the rows per step: the floor of what must be searched, and hardly more."""
    f = Follower(CASE, num_rows=500, slack=48, kind="clustered")
    searched = []
    for number in range(60):
        part = (torch.arange(10) + 10 * number) % 500
        f.x[part] = f.x[part] + 0.5 * f.noise()[part]
        rows = f.x.float()
        report = f.live.update(rows, f.active)
        searched.append(report.searched)
        if number % 20 == 19:
            check(f.case, Step(rows, f.active, 0.0, ""), state_of(f.live, rows, report))
    assert min(searched) >= 10
    assert sum(searched) <= 1.2 * 10 * 60


def test_an_update_never_costs_much_more_than_a_build() -> None:
    """A build, the lists' distances, and what was scanned before it was clear that all have to."""
    f = Follower(CASE, num_rows=250, slack=12, kind="clustered")
    refresh = 250 * 12
    for size in (1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0):
        for _ in range(2):
            f.x = f.x + size * f.noise()
            assert f.update().distances <= 1.9 * f.build + 2 * refresh
    assert f.update().distances == 0


def test_when_all_have_moved_away_the_graph_is_built_anew_with_longer_lists() -> None:
    f = Follower(CASE, slack=None, num_rows=700, dim=3)
    size = f.live._reference.lists.size if f.live._reference else 0
    f.x = f.x + 0.06 * f.spacing() * f.noise()
    f.update()
    f.x = f.x + 3 * f.noise()
    assert f.update().rebuilt
    assert f.live._reference is not None
    assert f.live._reference.lists.size >= size


def test_more_copies_than_a_list_holds_are_right_but_searched_every_time() -> None:
    f = Follower(CASE, kind="random", slack=8)
    f.x[:40] = f.x[0]
    f.update()
    assert f.live.neighbor_ids[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert f.live.neighbor_ids[39].tolist() == [0, 1, 2, 3, 4, 5]
    for _ in range(2):
        f.x[150] += 0.1
        report = f.update()
        assert 40 <= report.searched <= 60
        assert report.exact
        assert report.certified <= 160


def test_references_that_all_were_left_behind_are_paid_for_once() -> None:
    f = Follower(CASE, num_rows=300, slack=24, dim=8)
    refresh, costs = 300 * 24 / f.build, []
    for _ in range(12):
        f.x = f.x + 0.005 * f.spacing() * f.noise()
        costs.append(f.update().distances / f.build)
    assert min(costs) <= refresh
    assert sum(costs) <= 6 + 12 * refresh


# Tolerance


@pytest.mark.parametrize(("eta", "kind"), [(0.02, "random"), (0.05, "grid"), (0.2, "clustered")])
def test_tolerance_bounds_every_rank_and_saves_searches(eta: float, kind: str) -> None:
    """`check` compares the bound and the recall with the truth, rank by rank."""
    loose = Follower(CASE, kind=kind, slack=16)
    exact = Follower(CASE, kind=kind, slack=16)
    saved = 0
    for _ in range(4):
        step = 0.02 * loose.spacing() * loose.noise()
        loose.x, exact.x = loose.x + step, exact.x + step
        report = loose.update(eta)
        saved += exact.update().searched - report.searched
        assert report.bound <= 1 + eta
        assert report.exact == (report.bound == 1.0) or report.recall < 1.0
    assert saved >= 0
    assert loose.update(0.0).exact


def test_negative_tolerance_is_refused_and_harms_nothing() -> None:
    f = Follower(CASE)
    for eta in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="eta must be >= 0, got"):
            f.live.update(f.x.float(), f.active, eta=eta)
    assert f.update().distances == 0


# Numbers of any size


@pytest.mark.parametrize("factor", [1e-10, 1e-14, 1e-15, 1e-16, 1e-17, 1e-25])
def test_rows_that_shrink_together_beyond_rounding(factor: float) -> None:
    """Motions once lost more than the distances between the rows, and certified anything."""
    for noise in (0.0, 0.1):
        f = Follower(CASE, dim=8, k=5, slack=40)
        f.x = (f.x + noise * f.noise()) * factor
        f.update()


@pytest.mark.parametrize("scale", [1e-18, 1e-21, 1e-22])
def test_references_of_which_squares_are_lost(scale: float) -> None:
    """Squares below float32's range once were taken for exact."""
    f = Follower(CASE, num_rows=900, dim=4, slack=8)
    f.x = torch.zeros_like(f.x)
    f.update()
    f.active[400:] = False
    f.x[:400] = scale * f.noise()[:400]
    assert f.update().certified == 400


@pytest.mark.parametrize("factor", [3.0, 30.0, 1e3, 1e5, 1e8, 1e30])
def test_rows_that_leave_the_frame(factor: float) -> None:
    f = Follower(CASE, slack=16)
    f.x[7] *= factor
    f.update()
    f.x[20:40] += 0.1 * f.noise()[20:40]
    report = f.update()
    # An attempt, a build, and where one row is 1e30 times as far away, which float32 cannot hold
    # beside the others, a search of all.
    assert report.distances <= (3.4 if factor == 1e30 else 2.2) * f.build
    f.x[7] /= factor
    f.update()
    f.x[20:40] += 0.1 * f.noise()[20:40]
    report = f.update()
    assert report.certified == 200
    assert report.distances < 0.5 * f.build


@pytest.mark.parametrize("unit", [1e-42, 1e-30, 1e30])
def test_tiny_and_huge_rows(unit: float) -> None:
    check_case(replace(CASE, num_rows=150, unit=unit, num_steps=6, seed=11))


def test_results_are_new_tensors_every_time() -> None:
    f = Follower(CASE)
    before, copy = f.live.neighbor_ids, f.live.neighbor_ids.clone()
    f.x = f.x + f.noise()
    f.update()
    assert torch.equal(before, copy)


def test_an_update_that_fails_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    f = Follower(CASE)
    f.x = f.x + 0.5 * f.noise()

    def fail(*_: object) -> None:
        raise ArithmeticError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "rank_lists", fail)
        with pytest.raises(ArithmeticError, match="interrupted"):
            f.live.update(f.x.float(), f.active)
    assert f.update().rebuilt


def test_states_of_a_history_do_not_depend_on_the_threads() -> None:
    case = replace(CASE, num_steps=6, seed=33, small_blocks=False)
    steps, before = list(history(case)), torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(follow(case, steps))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.distances, other.distances)
        assert replace(one.report, seconds=0.0) == replace(other.report, seconds=0.0)


def test_brute_force_by_hand() -> None:
    rows = torch.tensor([[0.0], [1.0], [1.0], [5.0]])
    ids, distances = brute_force(rows, torch.tensor([True, True, True, False]), 3)
    assert ids.tolist() == [[1, 2, -1], [2, 0, -1], [1, 0, -1], [-1, -1, -1]]
    assert distances[0].tolist() == [1.0, 1.0, torch.inf]


def test_rows_that_collapse_are_not_within_reach_of_everybody_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In many dimensions the middle is as near to a row as its neighbours: once n^2 / 4 hits."""
    f = Follower(CASE, num_rows=600, dim=64)
    counts = []
    admit = tracking.admit

    def count_and_admit(lists: Any, hits: Any, errors: Tensor) -> None:
        counts.append(len(hits.rows))
        admit(lists, hits, errors)

    monkeypatch.setattr(tracking, "admit", count_and_admit)
    monkeypatch.setattr(sharded_lists, "MOST_HITS", 32 * 600)
    f.x[:300] *= 0.01
    f.update()
    assert max(counts) <= 300 * 48
    assert sum(counts) <= 300 * 150
