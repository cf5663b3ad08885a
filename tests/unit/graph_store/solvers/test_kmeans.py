"""k-means against scikit-learn, by its invariants, and over any split of the rows."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import sklearn.cluster
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.kernels import kmeans_cpu
from labelmesh.graph_store.kernels.fixed_point import make_grid
from labelmesh.graph_store.kernels.kmeans_device import DeviceRows
from labelmesh.graph_store.solvers import KMeans, kmeans, match_clusters
from labelmesh.graph_store.solvers.kmeans_lloyd import Iteration
from torch import Tensor


def blobs(n: int, dim: int, num_blobs: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(num_blobs, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return (centers[torch.arange(n) % num_blobs] + noise).to(dtype)


def objective(x: Tensor, found: KMeans) -> float:
    """The sum of squared distances, the slow way."""
    is_in = found.labels >= 0
    gaps = x[is_in].double() - found.centers[found.labels[is_in]]
    return float(gaps.square().sum())


def same(a: KMeans, b: KMeans) -> bool:
    """To the last bit."""
    return (
        torch.equal(a.centers, b.centers)
        and torch.equal(a.objectives, b.objectives)
        and (a.objective, a.iterations, a.converged) == (b.objective, b.iterations, b.converged)
    )


class Shards:
    """Reductions between threads that wait for each other."""

    def __init__(self, size: int) -> None:
        self._barrier, self._parts = threading.Barrier(size, timeout=30), [torch.empty(0)] * size
        self.size = size

    def reductions(self, rank: int) -> dict[str, Callable[[Tensor], Tensor]]:
        def reduce(x: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
            self._parts[rank] = x
            self._barrier.wait()
            out = total(torch.stack(self._parts))
            self._barrier.wait()
            return out

        return {
            "all_sum": lambda x: reduce(x, lambda parts: parts.sum(0)),
            "all_max": lambda x: reduce(x, lambda parts: parts.amax(0)),
        }

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(function, range(self.size)))


def over_shards(x: Tensor, ids: Tensor, cuts: list[int], k: int, **options: Any) -> list[KMeans]:
    """k-means of `x[ids]` whose rows `cuts` divide among shards."""
    bounds = [0, *sorted(cuts), len(ids)]
    shards = Shards(len(bounds) - 1)

    def run(rank: int) -> KMeans:
        own = ids[bounds[rank] : bounds[rank + 1]]
        return kmeans(x[own], k, node_ids=own, **shards.reductions(rank), **options)

    return shards.run(run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "dim", "k"), [(900, 16, 7), (1500, 5, 40), (400, 130, 100)])
def test_same_as_scikit_learn_from_the_same_start(
    n: int, dim: int, k: int, dtype: torch.dtype
) -> None:
    x = blobs(n, dim, 9, n, dtype)
    init = x[:: n // k][:k]
    found = kmeans(x, k, seed=0, init=init, max_iter=300)
    theirs = sklearn.cluster.KMeans(k, init=init.double().numpy(), n_init=1, max_iter=300, tol=0)
    theirs.fit(x.double().numpy())
    assert np.array_equal(found.labels.numpy(), theirs.labels_)
    assert found.iterations == theirs.n_iter_
    assert found.converged
    np.testing.assert_allclose(found.centers.numpy(), theirs.cluster_centers_, rtol=0, atol=1e-12)
    assert found.objective == pytest.approx(theirs.inertia_, rel=1e-12)
    assert found.objectives[-1] == found.objective


def test_every_row_is_at_its_nearest_center_and_every_center_at_its_mean() -> None:
    x = blobs(2000, 12, 30, 0, torch.float32)
    found = kmeans(x, 25, seed=3)
    distances = torch.cdist(x.double(), found.centers, compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(found.labels, distances.argmin(1))
    means = torch.stack([x[found.labels == c].double().mean(0) for c in range(25)])
    torch.testing.assert_close(found.centers, means, rtol=0, atol=1e-13)
    assert found.objective == pytest.approx(objective(x, found), rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 120),
    k=st.integers(1, 20),
    dim=st.integers(1, 9),
    scale=st.sampled_from([1e-30, 1.0, 1e5]),
    offset=st.sampled_from([0.0, 1e3]),
    decimals=st.sampled_from([0, 6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_objective_never_rises(
    seed: int,
    n: int,
    k: int,
    dim: int,
    scale: float,
    offset: float,
    decimals: int,
    dtype: torch.dtype,
) -> None:
    """With duplicates and ties where numbers are rounded to whole ones, far from 0 or not."""
    x = ((blobs(n, dim, 3, seed, torch.float64).round(decimals=decimals) + offset) * scale).to(
        dtype
    )
    k = min(k, n)
    steps: list[Iteration] = []
    found = kmeans(x, k, seed=seed, on_iteration=steps.append, max_iter=50)
    assert bool((found.objectives.diff() <= 0).all())
    assert [step.number for step in steps] == list(range(1, found.iterations + 1))
    # Each value is what the iterations until then give when they are stopped there.
    for stop in range(1, min(3, found.iterations)):
        early = kmeans(x, k, seed=seed, max_iter=stop)
        assert early.objective <= float(found.objectives[stop - 1]) * (1 + 1e-12)
    tiny = 1e-20 * float(x.double().abs().max()) ** 2 * n
    assert found.objective == pytest.approx(objective(x, found), rel=1e-6, abs=tiny)
    assert len(torch.unique(found.labels)) == min(k, len(torch.unique(x, dim=0)))


@settings(max_examples=10, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000), decimals=st.sampled_from([0, 1, 6]))
def test_any_split_and_order_gives_the_same_bits(
    data: st.DataObject, seed: int, decimals: int
) -> None:
    n, k = 70, data.draw(st.integers(1, 12))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    x = blobs(n, 4, 5, seed, torch.float64).round(decimals=decimals).to(dtype)
    ids = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    cuts = data.draw(st.lists(st.integers(0, n), min_size=0, max_size=3))  # shards may be empty
    whole = kmeans(x, k, seed=seed)
    parts = over_shards(x, ids, cuts, k, seed=seed)
    assert all(same(part, whole) for part in parts)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels[ids])


def test_threads_and_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = blobs(3000, 32, 40, 1, torch.float32)
    whole = kmeans(x, 60, seed=5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(kmeans_cpu, "_LEAST_WORK", 1)
        monkeypatch.setattr(kmeans_cpu, "_BLOCK", 2000)
        other = kmeans(x, 60, seed=5)
    finally:
        torch.set_num_threads(before)
    assert same(whole, other)
    assert torch.equal(whole.labels, other.labels)


def test_bounds_leave_rows_out_and_change_nothing() -> None:
    """Against rows that are all compared with all centers, exactly."""
    x = blobs(1200, 6, 12, 2, torch.float32).round(decimals=1)  # with ties
    grid = make_grid(float(x.abs().max()), len(x), x.shape[1])
    rows, plain = kmeans_cpu.CpuRows(x, grid), DeviceRows(x, grid)
    centers = grid.rows(x[:48])
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        with rows.working():
            found = rows.assign(centers)
        expected = plain.assign(centers)
        exact = (grid.rows(x)[:, None] - centers).square().sum(-1).argmin(1)
        assert torch.equal(rows.labels, exact)
        assert torch.equal(plain.labels, exact)
        for name in ("sums", "tallies", "totals"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        shift = torch.randn(48, 6, generator=generator, dtype=torch.float64) * 0.1**step
        centers = centers + (shift * grid.scale).round() * (torch.arange(48) % 3 == 0)[:, None]


def test_equal_rows_lie_with_the_lowest_center() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    # 1 is as near to 2 as to 0. The last cluster, empty at first, gets it: 3 is as far, but later.
    found = kmeans(x, 3, seed=0, init=torch.tensor([[2.0], [0.0], [2.0]]), max_iter=1)
    assert found.labels.tolist() == [1, 2, 0, 0]
    assert found.centers[:, 0].tolist() == [2.5, 0.0, 1.0]
    tie = kmeans(x[:3], 2, seed=0, init=torch.tensor([[2.0], [0.0]]), max_iter=1)
    assert tie.centers[:, 0].tolist() == [1.5, 0.0]


def test_empty_cluster_gets_the_farthest_row_and_the_lowest_of_equals() -> None:
    x = torch.tensor([[0.0], [1.0], [10.0], [4.0], [-5.0]])
    init = torch.tensor([[0.0], [100.0], [9.0]])
    steps: list[Iteration] = []
    found = kmeans(x, 3, seed=0, init=init, on_iteration=steps.append)
    assert found.labels.tolist() == [0, 0, 2, 0, 1]
    assert found.centers[:, 0].tolist() == [5 / 3, -5.0, 10.0]
    tie = kmeans(torch.tensor([[5.0], [-5.0], [0.0]]), 2, seed=0, init=torch.tensor([[0.0], [90]]))
    assert tie.labels.tolist() == [1, 0, 0]
    last = torch.tensor([7, 3, 5])
    tie = kmeans(
        torch.tensor([[5.0], [-5.0], [0.0]]),
        2,
        seed=0,
        init=torch.tensor([[0.0], [90]]),
        node_ids=last,
    )
    assert tie.labels.tolist() == [0, 1, 0]


def test_many_empty_clusters_are_filled() -> None:
    x = blobs(200, 3, 4, 3, torch.float64)
    init = torch.full((12, 3), 50.0, dtype=torch.float64)
    found = kmeans(x, 12, seed=0, init=init)
    assert torch.bincount(found.labels, minlength=12).min() > 0
    assert bool((found.objectives.diff() <= 0).all())
    parts = over_shards(x, torch.arange(200), [20, 150], 12, seed=0, init=init)
    assert all(same(part, found) for part in parts)


def test_fewer_distinct_rows_than_clusters_leave_clusters_empty() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.1, 0.7]]).repeat(5, 1)
    found = kmeans(x, 7, seed=1)
    assert (found.objective, found.converged) == (0.0, True)
    assert len(torch.unique(found.labels)) == 3
    assert torch.equal(found.centers[found.labels].float(), x)
    assert bool(torch.isfinite(found.centers).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_cluster_is_the_mean_and_n_clusters_are_the_rows(dtype: torch.dtype) -> None:
    x = blobs(37, 3, 3, 4, dtype)
    one = kmeans(x, 1, seed=0)
    torch.testing.assert_close(one.centers[0], x.double().mean(0), rtol=0, atol=1e-14)
    assert one.iterations == 2
    every = kmeans(x, 37, seed=0)
    assert sorted(every.labels.tolist()) == list(range(37))
    torch.testing.assert_close(every.centers[every.labels], x.double(), rtol=0, atol=1e-13)
    assert every.objective < 1e-24


def test_absent_rows_take_no_part() -> None:
    x = blobs(120, 4, 5, 5, torch.float32)
    present = torch.arange(120) % 7 != 2
    expected = kmeans(x[present], 6, seed=2, node_ids=torch.arange(120)[present])
    x[~present] = torch.nan
    found = kmeans(x, 6, seed=2, present=present)
    assert same(found, expected)
    assert torch.equal(found.labels[present], expected.labels)
    assert bool((found.labels[~present] == -1).all())


def test_far_from_zero_and_with_outliers() -> None:
    """float32 products cannot tell these rows apart; exact distances can."""
    x = blobs(300, 4, 3, 6, torch.float64).mul(16).round().div(16)
    expected = kmeans(x, 3, seed=0, init=x[:3])
    moved = x.float() * 2.0**-6 + 4096
    assert len(torch.unique(moved, dim=0)) == 300
    found = kmeans(moved, 3, seed=0, init=moved[:3])
    assert torch.equal(found.labels, expected.labels)
    with_outlier = torch.cat([x, torch.full((1, 4), 1e8, dtype=torch.float64)]).float()
    init = torch.cat([x[:3], torch.full((1, 4), 1e8, dtype=torch.float64)]).float()
    found = kmeans(with_outlier, 4, seed=0, init=init)
    assert torch.equal(found.labels[:300], expected.labels)


def test_starting_at_the_result_changes_nothing() -> None:
    x = blobs(500, 6, 5, 7, torch.float64)
    first = kmeans(x, 9, seed=0)
    again = kmeans(x, 9, seed=1, init=first.centers)
    assert torch.equal(again.labels, first.labels)
    assert again.iterations == 2
    assert again.objective == pytest.approx(first.objective, rel=1e-14)


def test_stops_at_max_iter_with_labels_of_the_last_centers() -> None:
    x = blobs(600, 4, 5, 8, torch.float32)
    found = kmeans(x, 12, seed=0, max_iter=2)
    assert (found.iterations, found.converged) == (2, False)
    distances = torch.cdist(x.double(), found.centers, compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(found.labels, distances.argmin(1))


def test_greedy_start_is_no_worse_than_scikit_learns() -> None:
    x = blobs(1000, 8, 30, 9, torch.float32)
    ours = [float(kmeans(x, 30, seed=s, max_iter=1).objectives[0]) for s in range(8)]
    theirs = []
    for s in range(8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has not converged
            model = sklearn.cluster.KMeans(30, n_init=1, max_iter=1, random_state=s)
            theirs.append(model.fit(x.numpy()).inertia_)
    assert np.mean(ours) < 1.1 * np.mean(theirs)


def test_bad_input_is_named() -> None:
    x = blobs(20, 3, 2, 0, torch.float32)
    with pytest.raises(ValueError, match=r"21 clusters need .* 20 are present"):
        kmeans(x, 21, seed=0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        kmeans(x, 0, seed=0)
    with pytest.raises(ValueError, match=r"init must be .*\(2, 3\), got \(2, 2\)"):
        kmeans(x, 2, seed=0, init=x[:2, :2])
    with pytest.raises(ValueError, match="init has an entry that is NaN"):
        kmeans(x, 1, seed=0, init=torch.full((1, 3), torch.nan))
    for bad in (torch.nan, torch.inf):
        broken = x.clone()
        broken[[4, 11], 1] = bad
        with pytest.raises(ValueError, match="node 104 has a feature that is NaN"):
            kmeans(broken, 2, seed=0, node_ids=100 + torch.arange(20))


def test_every_shard_says_which_node_is_broken() -> None:
    x = blobs(30, 3, 2, 0, torch.float32)
    x[25] = torch.inf
    shards = Shards(3)

    def run(rank: int) -> str:
        own = torch.arange(10 * rank, 10 * rank + 10)
        with pytest.raises(ValueError, match="node 25") as error:
            kmeans(x[own], 2, seed=0, node_ids=own, **shards.reductions(rank))
        return str(error.value)

    assert len(set(shards.run(run))) == 1


@pytest.mark.parametrize("seed", range(8))
def test_matching_keeps_as_many_numbers_as_any_renaming(seed: int) -> None:
    k, generator = 5, torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, k, (60,), generator=generator)
    last = torch.randint(-1, k, (60,), generator=generator)
    found = match_clusters(labels, last, k)

    def kept(renamed: Tensor) -> int:
        return int(((renamed == last) & (renamed >= 0)).sum())

    names = [torch.tensor([*order, -1]) for order in itertools.permutations(range(k))]
    assert kept(found) == max(kept(order[labels]) for order in names)
    assert torch.equal(found < 0, labels < 0)
    # One to one.
    pairs = {(a, b) for a, b in zip(labels.tolist(), found.tolist())}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_matching_undoes_a_renaming_and_keeps_names_without_a_reason() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 3, -1])
    names = torch.tensor([2, 0, 3, 1])
    renamed = torch.where(labels >= 0, names[labels], labels)
    assert torch.equal(match_clusters(renamed, labels, 4), labels)
    nothing = torch.full_like(labels, -1)
    assert torch.equal(match_clusters(labels, nothing, 4), labels)
    with pytest.raises(ValueError, match="2 nodes have a cluster outside"):
        match_clusters(torch.tensor([0, 4, 1]), torch.tensor([-2, 0, 1]), 4)


def test_matching_counts_the_rows_of_all_shards() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, last = torch.randint(6, (2, 80), generator=generator)
    shards, cuts = Shards(3), [0, 5, 50, 80]

    def run(rank: int) -> Tensor:
        own = slice(cuts[rank], cuts[rank + 1])
        all_sum = shards.reductions(rank)["all_sum"]
        return match_clusters(labels[own], last[own], 6, all_sum=all_sum)

    assert torch.equal(torch.cat(shards.run(run)), match_clusters(labels, last, 6))
