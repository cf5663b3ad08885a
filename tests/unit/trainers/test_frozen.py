"""The cache of a frozen backbone's features: what it holds, what it survives, who shares it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelmesh.datasets.importing import import_dataset
from labelmesh.datasets.manifest import load_index
from labelmesh.datasets.reader import Reader
from labelmesh.trainers import frozen
from labelmesh.trainers.backbones.frozen import Frozen, freeze
from labelmesh.trainers.engine import LocalComm
from labelmesh.trainers.frozen import (
    FeatureCache,
    FeatureSource,
    cache_folder,
    dataset_fingerprint,
    in_parts,
    weights_fingerprint,
)
from labelmesh.trainers.networks import plain_view
from labelmesh.trainers.run_dir import RunDir
from labelmesh.trainers.statistics import StepStatistics, average_over_ranks
from torch import Tensor, nn

SHAPE = (1, 8, 8)
WIDTH = 6
ROWS = torch.tensor([40, 3, 17, 900, 8, 5, 21, 11, 30, 2])
LABELS = torch.tensor([1, -1, 2, -1, -1, 0, -1, -1, -1, -1])


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, WIDTH)
        )
        made(torch.randn(16, *SHAPE))  # the statistics of batch norm move
        return made


class Counted(nn.Module):
    """Counts the rows that pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.rows = module, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.rows += len(inputs)
        out: Tensor = self.module(inputs)
        return out


class Rank(LocalComm):
    """One of several ranks that meet at a barrier."""

    def __init__(self, rank: int, world_size: int, barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self._barrier = rank, world_size, barrier

    def barrier(self) -> None:
        self._barrier.wait(timeout=60)


def source(
    uri: str, folder: Path, module: nn.Module | None = None, **changes: Any
) -> tuple[FeatureSource, Counted]:
    counted = Counted(net() if module is None else module)
    options: dict[str, Any] = {
        "width": WIDTH,
        "view": plain_view(SHAPE),
        "cache_dir": folder,
        "name": "test",
        "about": {},
        "device": torch.device("cpu"),
        "comm": LocalComm(),
        "chunk": 4,
        "max_broken_share": 0.01,
    }
    return FeatureSource(uri, Frozen(counted), **{**options, **changes}), counted


@torch.no_grad()
def direct(uri: str, rows: Tensor) -> Tensor:
    """Features as the network gives them, in one pass."""
    images = Reader(uri, rows, torch.full_like(rows, -1)).read(torch.arange(len(rows))).inputs
    out: Tensor = net().eval()(plain_view(SHAPE)(images, torch.Generator()))
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_cached_features_are_those_of_the_network(digits: str, tmp_path: Path) -> None:
    made, counted = source(digits, tmp_path)
    reader = made.reader(ROWS, LABELS)
    ids = torch.tensor([9, 0, 4, 4])
    batch = reader.read(ids)
    assert counted.rows == len(reader) == len(ROWS)
    assert torch.equal(batch.node_ids, ids)
    assert torch.equal(batch.labels, LABELS[ids])
    assert batch.inputs.dtype == torch.float32
    torch.testing.assert_close(batch.inputs, direct(digits, ROWS)[ids], rtol=1e-5, atol=1e-5)
    assert torch.equal(reader.groups, Reader(digits, ROWS, LABELS).groups)
    with pytest.raises(ValueError, match=r"node 10: ids are 0\.\.9"):
        reader.read(torch.tensor([10]))


def test_a_second_run_computes_nothing_and_reads_no_image(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = source(digits, tmp_path)[0].reader(ROWS, LABELS).read(torch.arange(10))
    monkeypatch.setattr(Reader, "read", lambda *_: pytest.fail("a sample was read"))
    made, counted = source(digits, tmp_path)
    again = made.reader(ROWS.flip(0), LABELS.flip(0)).read(torch.arange(10))
    assert counted.rows == 0
    assert torch.equal(again.inputs, first.inputs.flip(0))


def test_another_split_computes_its_other_rows_alone(digits: str, tmp_path: Path) -> None:
    source(digits, tmp_path)[0].reader(ROWS, LABELS)
    made, counted = source(digits, tmp_path)
    rows = torch.cat([ROWS[:5], torch.tensor([100, 101])])
    read = made.reader(rows, torch.full((7,), -1)).read(torch.arange(7)).inputs
    assert counted.rows == 2
    torch.testing.assert_close(read, direct(digits, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_compute_parts_of_their_own(num_ranks: int, digits: str, tmp_path: Path) -> None:
    alone = source(digits, tmp_path / "alone")[0].reader(ROWS, LABELS).read(torch.arange(10))
    barrier, found, counts = threading.Barrier(num_ranks), {}, {}
    # made before the threads: weights are drawn from the global generator
    made = [
        source(digits, tmp_path / "shared", comm=Rank(rank, num_ranks, barrier))
        for rank in range(num_ranks)
    ]

    def work(rank: int) -> None:
        features, counted = made[rank]
        found[rank] = features.reader(ROWS, LABELS).read(torch.arange(10)).inputs
        counts[rank] = counted.rows

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts.values()) == len(ROWS)
    assert all(torch.equal(found[rank], alone.inputs) for rank in range(num_ranks))


def test_ranks_that_share_no_folder_compute_the_rest_themselves(
    digits: str, tmp_path: Path
) -> None:
    made, counted = source(digits, tmp_path, comm=Rank(1, 2, threading.Barrier(1)))
    read = made.reader(ROWS, LABELS).read(torch.arange(10))
    assert counted.rows == len(ROWS)
    torch.testing.assert_close(read.inputs, direct(digits, ROWS), rtol=1e-5, atol=1e-5)


def test_an_interrupted_run_keeps_its_whole_parts(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "ROWS_PER_PART", 4)
    made, counted = source(digits, tmp_path)
    write, calls = FeatureCache.write, []

    def second_fails(self: FeatureCache, rows: Tensor, features: Tensor) -> None:
        calls.append(len(rows))
        if len(calls) == 2:
            raise OSError("the disk is full")
        write(self, rows, features)

    monkeypatch.setattr(FeatureCache, "write", second_fails)
    with pytest.raises(OSError, match="full"):
        made.reader(ROWS, LABELS)
    monkeypatch.setattr(FeatureCache, "write", write)
    made, counted = source(digits, tmp_path)
    read = made.reader(ROWS, LABELS).read(torch.arange(10))
    assert counted.rows == 6
    torch.testing.assert_close(read.inputs, direct(digits, ROWS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_part_that_is_cut_off_is_computed_again(keep: int, digits: str, tmp_path: Path) -> None:
    made, _ = source(digits, tmp_path)
    first = made.reader(ROWS, LABELS).read(torch.arange(10))
    (part,) = made.folder.glob("part-*.npy")
    whole = part.read_bytes()
    part.write_bytes(whole[:keep])
    (made.folder / "part-0.npy.abc.tmp").write_bytes(whole)  # a crash before the rename
    made, counted = source(digits, tmp_path)
    assert torch.equal(made.reader(ROWS, LABELS).read(torch.arange(10)).inputs, first.inputs)
    assert counted.rows == len(ROWS)
    assert part.read_bytes() == whole


def test_two_writers_at_once_leave_whole_parts(tmp_path: Path) -> None:
    rows = torch.arange(500)
    features = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(0))
    caches = [FeatureCache(tmp_path / "shared", 500, WIDTH) for _ in range(4)]
    barrier = threading.Barrier(4)

    def work(cache: FeatureCache) -> None:
        barrier.wait(timeout=60)
        for start in range(0, 500, 50):
            cache.write(rows[start : start + 50], features[start : start + 50])

    threads = [threading.Thread(target=work, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files(tmp_path)) == 10
    cache = FeatureCache(tmp_path / "shared", 500, WIDTH)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    assert torch.equal(cache.read(order), features[order])


def test_foreign_files_are_left_aside(tmp_path: Path) -> None:
    np.save(tmp_path / "part-a.npy", np.zeros((3, WIDTH), np.float32))
    cache = FeatureCache(tmp_path, 2, WIDTH)
    FeatureCache(tmp_path, 9, WIDTH).write(torch.tensor([8]), torch.zeros(1, WIDTH))
    FeatureCache(tmp_path, 2, 3).write(torch.tensor([0]), torch.zeros(1, 3))
    cache.reload()
    assert not cache.has(torch.arange(2)).any()


def test_the_folder_is_that_of_data_and_weights(digits: str, tmp_path: Path) -> None:
    def folder(module: nn.Module | None = None, uri: str = digits, **changes: Any) -> str:
        return source(uri, tmp_path, module, **changes)[0].folder.name

    other_data = str(tmp_path / "other")
    import_dataset("digits", None, other_data)
    moved = net()
    moved[1].get_buffer("running_var").add_(1e-6)  # type: ignore[operator]
    assert folder() == folder(chunk=7) == folder(uri=other_data)
    different = [folder(), folder(net(1)), folder(moved), folder(name="x"), folder(about={"a": 1})]
    assert len(set(different)) == len(different)


def test_the_order_of_rows_is_part_of_the_data(digits: str) -> None:
    index = load_index(digits)
    base = dataset_fingerprint(index)
    assert dataset_fingerprint(replace(index, uri="elsewhere")) == base
    assert dataset_fingerprint(replace(index, sha256=index.sha256[::-1])) != base
    assert dataset_fingerprint(replace(index, offsets=index.offsets + 1)) != base
    unsummed = replace(index, sha256=index.sha256[:0])
    assert dataset_fingerprint(unsummed) != base


def test_weights_of_another_type_are_others() -> None:
    assert weights_fingerprint(net()) == weights_fingerprint(net())
    assert weights_fingerprint(net()) != weights_fingerprint(net().double())


def test_unreadable_samples_are_left_out(tmp_path: Path) -> None:
    uri = str(tmp_path / "digits")
    import_dataset("digits", None, uri)
    index = load_index(uri)
    shard = tmp_path / "digits" / index.shards[0]
    data, start = bytearray(shard.read_bytes()), int(index.offsets[3])
    data[start : start + 20] = bytes(20)
    shard.write_bytes(bytes(data))
    made, _ = source(uri, tmp_path / "cache", max_broken_share=0.1)
    batch = made.reader(ROWS, LABELS).read(torch.arange(10))
    assert batch.node_ids.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert torch.equal(batch.labels, LABELS[batch.node_ids])
    made, counted = source(uri, tmp_path / "cache", max_broken_share=0.05)
    with pytest.raises(ValueError, match="1 of 10 samples cannot be read"):
        made.reader(ROWS, LABELS)
    assert counted.rows == 0


def test_caches_lie_beside_runs_in_local_folders(tmp_path: Path) -> None:
    local, remote = RunDir(str(tmp_path / "runs" / "a")), RunDir("memory://runs/a")
    assert cache_folder(None, local) == tmp_path / "runs" / "cache"
    assert cache_folder(str(tmp_path), local) == cache_folder(str(tmp_path), remote) == tmp_path
    for uri, run in ((None, remote), ("s3://bucket/cache", local)):
        with pytest.raises(ValueError, match=r"set model\.cache_dir to a folder"):
            cache_folder(uri, run)


def test_parts_are_put_together() -> None:
    batches = [(torch.arange(n), torch.full((n, 2), float(n))) for n in (3, 2, 4, 1)]
    parts = list(in_parts(iter(batches), 5))
    assert [len(ids) for ids, _ in parts] == [5, 5]
    assert parts[0][1][:, 0].tolist() == [3, 3, 3, 2, 2]
    assert list(in_parts(iter([]), 5)) == []


def test_a_frozen_part_does_not_move(digits: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = nn.Sequential(Frozen(net()), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 2))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    statistics = StepStatistics(network, 3)
    statistics.before_step()
    for index in range(3):
        rng = torch.Generator().manual_seed(index)
        network(torch.randn(5, *SHAPE, generator=rng)).sum().backward()
        statistics.after_micro_batch(index)
    average_over_ranks(network, LocalComm())
    after = network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("0."))
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert all(p.grad is None for p in network[0].parameters())
    assert network.training
    assert not any(m.training for m in network[0].modules())


def test_freezing_leaves_the_projection_to_training() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.project = net(), nn.Linear(WIDTH, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.project(self.blocks(inputs))
            return out

    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    backbone = Backbone().eval()
    wanted = backbone(x)
    frozen_part, behind, width = freeze(backbone, 3)
    assert width == WIDTH
    assert torch.equal(behind(frozen_part(x)), wanted)
    assert all(p.requires_grad for p in behind.parameters())
    assert not any(p.requires_grad for p in frozen_part.parameters())
    whole, nothing, width = freeze(net(), WIDTH)
    assert width == WIDTH
    assert list(nothing.parameters()) == []
    assert torch.equal(nothing(whole(x)), net().eval()(x))
