"""A run's directory behaves alike on the local disk and on any other file system."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelmesh.datasets.limits import TooLargeError
from labelmesh.trainers.run_dir import RunDir


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDir:
    if request.param == "local":
        return RunDir(str(tmp_path / "run"))
    return RunDir(f"memory://{tmp_path.name}/run")


def test_only_the_local_disk_has_a_path(tmp_path: Path) -> None:
    assert RunDir(str(tmp_path)).local_path == tmp_path
    assert RunDir("memory://x").local_path is None


def test_files_round_trip(run: RunDir) -> None:
    assert not run.exists("a/b.json")
    assert run.names("a") == []
    run.write_json("a/b.json", {"x": 1.5})
    assert run.read_json("a/b.json") == {"x": 1.5}
    assert run.names("a") == ["b.json"]
    run.remove("a")
    assert not run.exists("a/b.json")


def test_a_table_that_unpacks_to_far_more_than_it_weighs_is_refused(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"key": pa.array(["a"] * 1_000_000).dictionary_encode(), "round": [0] * 10**6})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    run.write_bytes("labels.parquet", sink.getvalue().to_pybytes())
    assert run.read_table("labels.parquet", ["round"]).num_rows == 10**6
    monkeypatch.setenv("LABELMESH_MAX_UNPACKED_BYTES", "1000000")
    with pytest.raises(TooLargeError, match=r"labels.parquet has [\d,]+ bytes unpacked"):
        run.read_table("labels.parquet")


def test_lines_are_appended_and_dropped(run: RunDir) -> None:
    assert run.read_lines("m.jsonl") == []
    for epoch in range(4):
        run.append("m.jsonl", {"epoch": epoch})
    run.keep_lines("m.jsonl", lambda r: r["epoch"] < 2)
    assert run.read_lines("m.jsonl") == [{"epoch": 0}, {"epoch": 1}]


def test_a_line_that_was_cut_off_is_left_out(run: RunDir) -> None:
    run.append("m.jsonl", {"epoch": 0})
    whole = run.read_bytes("m.jsonl")
    run.write_bytes("m.jsonl", whole + b'{"epoch": 1, "lo')
    assert run.read_lines("m.jsonl") == [{"epoch": 0}]
    run.keep_lines("m.jsonl", lambda r: True)
    run.append("m.jsonl", {"epoch": 1})
    assert run.read_lines("m.jsonl") == [{"epoch": 0}, {"epoch": 1}]
    run.write_bytes("m.jsonl", b'{"epo\n' + whole)
    with pytest.raises(ValueError, match=r"m.jsonl: a line is damaged .*remove that line"):
        run.read_lines("m.jsonl")


def test_folders_are_copied_both_ways(run: RunDir, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "x.bin").write_bytes(b"\x00\x01")
    run.upload(source, "kept")
    run.download("kept", target)
    assert (target / "deep" / "x.bin").read_bytes() == b"\x00\x01"


def test_arrays_need_no_pickle(run: RunDir, tmp_path: Path) -> None:
    run.write_arrays("a.npz", {"x": np.arange(3), "names": np.array(["a", "bc"])})
    path = tmp_path / "a.npz"
    path.write_bytes(run.read_bytes("a.npz"))
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["names"].tolist() == ["a", "bc"]
