"""Data sets come from strangers: what they say about themselves is not believed."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.datasets.arrays import read_arrays
from labelmesh.datasets.decoding import open_image
from labelmesh.datasets.files import locate, read_columns
from labelmesh.datasets.importing import import_dataset
from labelmesh.datasets.limits import TooLargeError, check_unpacked, limit
from labelmesh.datasets.manifest import check, load_index, load_info
from labelmesh.datasets.names import check_key, check_path
from labelmesh.datasets.reader import Reader
from labelmesh.datasets.shards import list_members
from labelmesh.datasets.sources import read_maybe_gzip
from labelmesh.datasets.writer import DatasetWriter, encode_png
from PIL import ImageFile

_OUTSIDE = ["../secret.tar", "/etc/passwd", "shards/../../x.tar", "s3://bucket/x.tar", "a//b.tar"]
_OUTSIDE += [
    "file:///etc/x",
    "zip::http://h/x",
    "C:\\x.tar",
    "x.tar?versionId=1",
    "~/x",
    "%2e%2e/x",
]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four grey images of 2x2 pixels in one shard."""
    writer = DatasetWriter(str(tmp_path / "data"), name="small", kind="image")
    for i in range(4):
        image = np.full((1, 2, 2), 60 * i, np.uint8)
        writer.add("train", f"image-{i}", image, truth=i % 2)
    writer.finish(["a", "b"])
    return tmp_path / "data"


def _set_column(dataset: Path, name: str, values: Any) -> None:
    table = pq.read_table(dataset / "manifest.parquet")
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, pa.array(values)), dataset / "manifest.parquet")


def _set_info(dataset: Path, **changes: Any) -> None:
    body = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**body, **changes}))


def _set_shard(dataset: Path, *members: tarfile.TarInfo) -> None:
    with tarfile.open(dataset / "shards/train-000000.tar", "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)


def _member(name: str, **fields: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


@pytest.mark.parametrize("shard", _OUTSIDE)
def test_shard_outside_of_the_data_set_is_refused(dataset: Path, shard: str) -> None:
    _set_column(dataset, "shard", [shard] * 4)
    with pytest.raises(ValueError, match=r"manifest\.parquet: the path .* leads out"):
        load_index(str(dataset))


@pytest.mark.parametrize("key", ["../up", "/etc/passwd", "a/../../b", "C:\\x", "..\\x", "a\x1bb"])
def test_key_that_is_a_path_to_elsewhere_is_refused(dataset: Path, key: str) -> None:
    _set_column(dataset, "key", [key, "b", "c", "d"])
    with pytest.raises(ValueError, match="is an absolute path, has a part"):
        load_index(str(dataset))
    with pytest.raises(ValueError, match="is an absolute path, has a part"):
        DatasetWriter(str(dataset), name="x", kind="embedding").add(
            "train", key, np.zeros(2, np.float32), truth=None
        )


@given(st.text("ab./\\:~\x00", max_size=12))
def test_path_that_is_allowed_stays_inside(path: str) -> None:
    try:
        check_path(path, "m")
        check_key(path, "m")
    except ValueError:
        return
    assert Path("/data", path).resolve().is_relative_to("/data")
    assert path == Path(path).as_posix()


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (_member("../image-0.png"), "has a part '..'"),
        (_member("/image-0.png"), "is an absolute path"),
        (_member("image-0.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "symbolic link"),
        (_member("image-0.png", type=tarfile.LNKTYPE, linkname="x"), "is a hard link"),
        (_member("image-0.png", type=tarfile.CHRTYPE), "is a device"),
        (_member("image-0.png", type=tarfile.FIFOTYPE), "is a device"),
    ],
)
def test_member_of_a_shard_that_is_no_plain_file_is_refused(
    dataset: Path, member: tarfile.TarInfo, message: str
) -> None:
    _set_shard(dataset, _member("image-1.png", size=3), member)
    table = pq.read_table(dataset / "manifest.parquet").drop_columns(["offset", "size"])
    pq.write_table(table, dataset / "manifest.parquet")
    with pytest.raises(ValueError, match=f"train-000000.tar: .*{message}"):
        load_index(str(dataset))


def test_shard_of_too_many_or_too_large_members_is_refused(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABELMESH_MAX_SHARD_MEMBERS", "3")
    with pytest.raises(TooLargeError, match=r"000\.tar has 4 members, more than the limit of 3"):
        check(str(dataset))
    monkeypatch.setenv("LABELMESH_MAX_SHARD_MEMBERS", "4")
    check(str(dataset))
    monkeypatch.setenv("LABELMESH_MAX_SAMPLE_BYTES", "9")
    with pytest.raises(TooLargeError, match=r"'image-0' has \d+ bytes, .*_SAMPLE_BYTES"):
        check(str(dataset))


@pytest.mark.parametrize(
    ("offsets", "sizes", "message"),
    [
        ([-512] * 4, [70] * 4, "no file has such a place"),
        ([512] * 4, [-1] * 4, "no file has such a place"),
        ([2**63 - 1] * 4, [70] * 4, "no file has such a place"),
        ([0] * 4, [2**40] * 4, "1,099,511,627,776 bytes, more than the limit of 67,108,864"),
        ([0] * 4, [2**20] * 4, "4194304 bytes together, but lie within 1048576"),
        ([0.5] * 4, [1] * 4, "column 'offset' .* has type double"),
        ([None, 0, 0, 0], [1] * 4, "column 'offset' .* 1 empty rows"),
    ],
)
def test_place_that_no_shard_has_is_refused(
    dataset: Path, offsets: list[Any], sizes: list[Any], message: str
) -> None:
    _set_column(dataset, "offset", offsets)
    _set_column(dataset, "size", sizes)
    with pytest.raises(ValueError, match=message):
        load_index(str(dataset))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shape": [3, 10**6, 10**6]},
            r"dataset\.json: a sample has 1,000,000,000,000 pixels, more",
        ),
        ({"kind": "embedding", "shape": [10**12]}, "4,000,000,000,000 bytes, more than the limit"),
        ({"shape": [1, -2, 2]}, "positive whole numbers"),
        ({"shape": [1, 0, 2]}, "positive whole numbers"),
        ({"shape": [7, 2, 2]}, "images have 1 or 3 channels"),
        ({"kind": "../x"}, "must be 'image' or 'embedding'"),
        ({"counts": {"train": -1}}, "must be whole numbers from 0"),
        ({"counts": [1]}, "not the description of a data set"),
    ],
)
def test_description_of_a_giant_is_refused(
    dataset: Path, changes: dict[str, Any], message: str
) -> None:
    _set_info(dataset, **changes)
    with pytest.raises(ValueError, match=message):
        load_info(str(dataset))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format_version": ' + "9" * 5000 + "}", "\xff"])
def test_description_that_is_no_json_is_refused(dataset: Path, text: str) -> None:
    (dataset / "dataset.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="not the description of a data set"):
        load_info(str(dataset))


def test_description_of_gigabytes_is_not_read(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABELMESH_MAX_JSON_BYTES", "10")
    with pytest.raises(TooLargeError, match=r"json has \d+ bytes, more than the limit of 10"):
        load_info(str(dataset))


def _png(width: int, height: int) -> bytes:
    """A file of 100 bytes that says it is an image of this size."""
    small = encode_png(np.zeros((1, 1, 1), np.uint8))
    header = struct.pack(">II", width, height) + small[24:29]
    return small[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + small[33:]


def test_image_of_another_size_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # Below Pillow's warning, its warning, its error.
    files = [_png(side, side) for side in (9_000, 10_000, 60_000)]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    for file in files:
        with pytest.raises(ValueError, match=r"has shape|cannot be decoded"):
            open_image(file, shape=(1, 2, 2))
    monkeypatch.setenv("LABELMESH_MAX_IMAGE_PIXELS", "80000000")
    with pytest.raises(TooLargeError, match="81,000,000 pixels, more than the limit of 80,000,000"):
        open_image(files[0])


def test_image_of_a_format_that_starts_programs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n(touch) show\n"
    )
    with pytest.raises(ValueError, match=r"no readable sample .*cannot be decoded"):
        import_dataset("folder", str(tmp_path), str(tmp_path / "out"))


def test_reading_never_leaves_the_data_set_by_protocol() -> None:
    for uri in (
        "reference://x",
        "reference::file:///tmp/x.json",
        "simplecache::dvc://x",
        "dask://x",
    ):
        with pytest.raises(ValueError, match="is not allowed, as what it reads may give orders"):
            locate(uri)


def _npy(shape: str, descr: str = "'|u1'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 8


@pytest.mark.parametrize("shape", ["(1125899906842624,)", "(9, 9)", "(-8,)", "(-1, -8)", "8"])
@pytest.mark.parametrize("packed", [False, True])
def test_array_that_says_more_than_it_holds_is_refused(shape: str, packed: bool) -> None:
    content = _npy(shape)
    if packed:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("x.npy", content)
        content = buffer.getvalue()
    with pytest.raises((ValueError, TypeError)):
        read_arrays(content, "x")


def test_array_of_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="holds Python objects"):
        read_arrays(_npy("(1,)", "'|O'"), "x")


def test_archive_that_unpacks_to_far_more_than_it_weighs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABELMESH_MAX_UNPACKED_BYTES", "100000")
    np.savez_compressed(tmp_path / "bomb.npz", X=np.zeros((1000, 1000), np.uint8))
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(10**6)))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(10**6, np.float32)), 1000)
    pq.write_table(pa.table({"features": flat}), tmp_path / "bomb.parquet")
    message = r"unpacked, more than the limit of .*set the environment variable LABELMESH_MAX_"
    for name in ("bomb.npz", "bomb.parquet"):
        with pytest.raises(TooLargeError, match=message):
            import_dataset("embeddings", str(tmp_path / name), str(tmp_path / "out"))
    with pytest.raises(TooLargeError, match=message):
        read_maybe_gzip(str(tmp_path / "bomb.gz"))
    with pytest.raises(TooLargeError, match=message):
        read_columns(str(tmp_path / "bomb.parquet"), ["features"])


def test_large_file_may_unpack_to_a_hundred_times_its_size() -> None:
    check_unpacked(limit("UNPACKED_BYTES"), 1, "x")
    check_unpacked(100 << 30, 1 << 30, "x")
    with pytest.raises(TooLargeError, match=r"x has 107,374,182,401 bytes unpacked, more"):
        check_unpacked((100 << 30) + 1, 1 << 30, "x")


def test_idx_file_of_negative_or_endless_sizes_is_refused(tmp_path: Path) -> None:
    for sizes in ((-2, -2, 2), (2**31 - 1, 2**31 - 1, 2**31 - 1), (1 << 16, 1 << 16, 1 << 16)):
        for prefix in ("train", "t10k"):
            head = struct.pack(">4B3i", 0, 0, 8, 3, *sizes)
            (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(head + bytes(8))
        with pytest.raises(ValueError, match="it may be cut off"):
            import_dataset("idx", str(tmp_path), str(tmp_path / "out"))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4 * 1024 + 1023), st.binary(min_size=1, max_size=40))
def test_damaged_shard_never_gives_more_than_an_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, junk: bytes
) -> None:
    content = bytearray(_small_shard(tmp_path_factory).read_bytes())
    content[place : place + len(junk)] = junk
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "x.tar").write_bytes(content)
    try:
        members = list_members(str(folder / "x.tar"))
    except ValueError:
        return
    assert all(size >= 0 and ".." not in key.split("/") for key, _, _, size in members)


def _small_shard(factory: pytest.TempPathFactory) -> Path:
    path = factory.getbasetemp() / "small-shard.tar"
    if not path.exists():
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for i in range(3):
                member = _member(f"image-{i}" + "é" * 60 * i + ".png", size=10)
                tar.addfile(member, io.BytesIO(b"x" * 10))
    return path


def test_data_set_that_is_what_it_says_is_still_read(dataset: Path) -> None:
    check(str(dataset))
    batch = Reader(str(dataset), torch.arange(4), torch.full((4,), -1)).read(torch.arange(4))
    assert batch.inputs[:, 0, 0, 0].tolist() == [0, 60, 120, 180]
