from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from labelmesh.datasets.shards import ShardWriter, list_members, read_ranges, split_name
from webdataset.tariterators import group_by_keys, tar_file_expander


def write(dest: str, contents: dict[str, bytes], **options: int) -> list[object]:
    writer = ShardWriter(dest, "train", **options)
    places = [writer.add(key, content, "png") for key, content in contents.items()]
    writer.close()
    return places


CONTENTS = {f"class/sample-{i:02d}": bytes([i]) * (37 * i) for i in range(30)}


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    write(str(tmp_path), CONTENTS, max_samples=12)
    urls = sorted(str(path) for path in (tmp_path / "shards").iterdir())
    assert [Path(url).name for url in urls] == [f"train-00000{i}.tar" for i in range(3)]
    with contextlib.ExitStack() as stack:
        # webdataset would leave its files to the garbage collector, which is a warning here.
        files = [{"url": url, "stream": stack.enter_context(open(url, "rb"))} for url in urls]
        samples = list(group_by_keys(tar_file_expander(files)))
    assert {sample["__key__"]: sample["png"] for sample in samples} == CONTENTS


@pytest.mark.parametrize("where", ["{tmp}", "memory://shards"])
def test_places_hold_the_samples_even_under_long_names(where: str, tmp_path: Path) -> None:
    dest = where.format(tmp=tmp_path)
    contents = CONTENTS | {f"{'long-' * 60}{i}": b"x" * i for i in range(1, 4)}
    places = write(dest, contents, max_bytes=9000)
    shards = sorted({place.shard for place in places})
    assert len(shards) > 1
    order = np.random.default_rng(0).permutation(len(places))
    found = read_ranges(
        dest,
        shards,
        np.array([shards.index(places[i].shard) for i in order]),
        np.array([places[i].offset for i in order]),
        np.array([places[i].size for i in order]),
    )
    assert found == [list(contents.values())[i] for i in order]
    listed = [member for shard in shards for member in list_members(f"{dest}/{shard}")]
    assert [(key, "png", p.offset, p.size) for key, p in zip(contents, places)] == listed


def test_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(str(tmp_path / name), CONTENTS)
    shard = "shards/train-000000.tar"
    assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


def test_key_with_a_dot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"key 'a/b\.c'"):
        write(str(tmp_path), {"a/b.c": b""})
    assert split_name("a.x/b.seg.png") == ("a.x/b", "seg.png")


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar" * 100)
    with pytest.raises(ValueError, match=r"x\.tar: not a readable tar file"):
        list_members(f"{tmp_path}/x.tar")
    with pytest.raises(ValueError, match=r"y\.tar: the manifest lists"):
        list_members(f"{tmp_path}/y.tar")
