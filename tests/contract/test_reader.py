"""What a reader promises, for images and embeddings, at every kind of URI, whatever it caches."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.datasets.files import join, list_files, locate, read_bytes, write_atomic
from labelmesh.datasets.importing import import_dataset
from labelmesh.datasets.manifest import check, load_index, load_labels
from labelmesh.datasets.reader import Reader
from labelmesh.datasets.sampler import make_plan
from labelmesh.datasets.samples import decode_image
from labelmesh.datasets.splits import write_split
from labelmesh.datasets.truth import load_truth
from labelmesh.datasets.writer import DatasetWriter, encode_png
from PIL import Image

NUM_NODES = 40
SHAPES = {"image": (3, 6, 5), "embedding": (7,)}


@pytest.fixture(scope="module")
def s3_uri() -> Iterator[str]:
    """A bucket on an S3 server of our own."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="samples")
        client.close()
        yield "s3://samples"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module", params=["local", "memory", "s3"])
def base_uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "local":
        return str(tmp_path_factory.mktemp("data"))
    return "memory://samples" if request.param == "memory" else request.getfixturevalue("s3_uri")


def values_of(kind: str) -> np.ndarray:
    draw = np.random.default_rng(0)
    if kind == "image":
        return draw.integers(0, 256, (NUM_NODES, *SHAPES[kind]), dtype=np.uint8)
    return draw.normal(size=(NUM_NODES, *SHAPES[kind])).astype(np.float32)


def write(uri: str, kind: str) -> None:
    writer = DatasetWriter(uri, name="tiny", kind=kind, shard_samples=9)
    for i, value in enumerate(values_of(kind)):
        writer.add("train", f"train-{i:03d}", value, truth=i % 3)
    writer.finish(["a", "b", "c"])


@pytest.fixture(scope="module", params=["image", "embedding"])
def data(request: pytest.FixtureRequest, base_uri: str) -> tuple[str, np.ndarray]:
    uri = f"{base_uri}/{request.param}"
    write(uri, request.param)
    return uri, values_of(request.param)


@pytest.fixture(scope="module")
def local_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("images"))
    write(uri, "image")
    return uri


def reader_of(uri: str, **options: object) -> Reader:
    labels = torch.full((NUM_NODES,), -1)
    labels[::5] = torch.arange(8) % 3
    return Reader(uri, torch.arange(NUM_NODES), labels, **options)  # type: ignore[arg-type]


CACHES = {"everything": 1 << 20, "five": 5 * 90, "nothing": 0}


@pytest.mark.parametrize("cache_bytes", CACHES.values(), ids=CACHES)
def test_samples_come_in_the_order_asked_for(
    data: tuple[str, np.ndarray], cache_bytes: int
) -> None:
    uri, values = data
    check(uri)
    reader = reader_of(uri, cache_bytes=cache_bytes, verify_sha=True)
    draw = torch.Generator().manual_seed(0)
    for _ in range(6):
        ids = torch.randint(NUM_NODES, (15,), generator=draw)
        batch = reader.read(ids)
        assert torch.equal(batch.node_ids, ids)
        np.testing.assert_array_equal(batch.inputs.numpy(), values[ids])
        assert torch.equal(batch.labels >= 0, ids % 5 == 0)
    assert reader.broken == {}


def test_nodes_are_rows_of_the_split(data: tuple[str, np.ndarray]) -> None:
    uri, values = data
    rows = torch.tensor([3, 17, 39])
    batch = Reader(uri, rows, torch.tensor([-1, 2, -1])).read(torch.tensor([2, 1]))
    np.testing.assert_array_equal(batch.inputs.numpy(), values[[39, 17]])
    assert batch.labels.tolist() == [-1, 2]


def test_stream_keeps_order_and_reads_ahead(data: tuple[str, np.ndarray]) -> None:
    uri, values = data
    ids = torch.randperm(NUM_NODES, generator=torch.Generator().manual_seed(1))
    batches = list(reader_of(uri).stream(ids.split(7), prefetch=3))
    assert [len(batch.node_ids) for batch in batches] == [7, 7, 7, 7, 7, 5]
    assert torch.equal(torch.cat([batch.node_ids for batch in batches]), ids)
    np.testing.assert_array_equal(
        torch.cat([batch.inputs for batch in batches]).numpy(), values[ids]
    )


def test_closed_stream_leaves_no_thread(local_images: str) -> None:
    before = threading.active_count()
    stream = reader_of(local_images).stream(torch.arange(NUM_NODES).split(2))
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


@settings(max_examples=25, deadline=None)
@given(
    num_ranks=st.sampled_from([1, 2, 3, 6]),
    start_step=st.integers(0, 4),
    epoch=st.integers(0, 2),
    has_groups=st.booleans(),
)
def test_epoch_is_the_same_for_every_number_of_ranks_and_resumes_exactly(
    local_images: str, num_ranks: int, start_step: int, epoch: int, has_groups: bool
) -> None:
    reader = reader_of(local_images)
    labels = reader.read(torch.arange(NUM_NODES)).labels
    plan = make_plan(
        "mixed",
        labels,
        batch_size=12,
        labeled_per_batch=6,
        micro_batches=6,
        seed=3,
        epoch=epoch,
        groups=reader.groups if has_groups else None,
    )
    whole = {(s, i): b.node_ids.tolist() for s, i, b in reader.epoch(plan)}
    assert list(whole) == [(s, i) for s in range(plan.num_steps) for i in range(6)]
    parts = {
        (s, i): b.node_ids.tolist()
        for rank in range(num_ranks)
        for s, i, b in reader.epoch(plan, rank=rank, num_ranks=num_ranks, start_step=start_step)
    }
    assert parts == {place: ids for place, ids in whole.items() if place[0] >= start_step}
    unlabeled = [n for ids in whole.values() for n in ids if labels[n] < 0]
    assert sorted(unlabeled) == [n for n in range(NUM_NODES) if labels[n] < 0]


def damage(uri: str, row: int, how: str) -> None:
    index = load_index(uri)
    shard = join(uri, index.shards[index.shard_ids[row]])
    content = bytearray(read_bytes(shard))
    offset, size = int(index.offsets[row]), int(index.sizes[row])
    if how == "zeros":
        content[offset : offset + size] = bytes(size)
    elif how == "cut":
        del content[offset + size // 2 :]
    if how == "gone":
        fs, path = locate(shard)
        fs.rm(path)
    else:
        write_atomic(shard, bytes(content))


@pytest.mark.parametrize(
    ("how", "row", "count", "reason"),
    [
        ("zeros", 4, 1, "'train-004' cannot be decoded"),
        ("cut", 38, 2, "shards/train-000004.tar is cut off"),
        ("gone", 36, 4, "shards/train-000004.tar is missing"),
    ],
)
def test_broken_images_are_named_and_left_out(
    base_uri: str, how: str, row: int, count: int, reason: str
) -> None:
    uri = f"{base_uri}/broken-{how}"
    write(uri, "image")
    damage(uri, row, how)
    reader = reader_of(uri, max_broken_share=0.1)
    batch = reader.read(torch.arange(NUM_NODES))
    broken = sorted(reader.broken)
    assert len(broken) == count
    assert row in broken
    assert reason in reader.broken[row]
    assert sorted(batch.node_ids.tolist() + broken) == list(range(NUM_NODES))
    np.testing.assert_array_equal(batch.inputs.numpy(), values_of("image")[batch.node_ids.numpy()])
    again = reader.read(torch.tensor([row, 0]))
    assert again.node_ids.tolist() == [0]
    assert len(reader.broken) == count
    with pytest.raises(ValueError, match=f"{count} of 40 samples cannot be read.*{reason}"):
        reader_of(uri, max_broken_share=0.001).read(torch.arange(NUM_NODES))


def test_broken_embeddings_are_named_and_left_out(base_uri: str) -> None:
    uri = f"{base_uri}/broken-embeddings"
    values = values_of("embedding")
    values[5, 2] = np.nan
    writer = DatasetWriter(uri, name="tiny", kind="embedding")
    for i, value in enumerate(values):
        writer.add("train" if i < 30 else "test", f"row-{i:03d}", value, truth=i % 3)
    writer.finish(["a", "b", "c"])
    damage(uri, 35, "gone")
    reader = reader_of(uri, max_broken_share=0.5)
    batch = reader.read(torch.arange(NUM_NODES))
    assert batch.node_ids.tolist() == [i for i in range(30) if i != 5]
    np.testing.assert_array_equal(batch.inputs.numpy(), np.delete(values[:30], 5, axis=0))
    assert reader.broken[5] == "sample 'row-005' has NaN or infinite features"
    assert "features/test-000000.parquet cannot be read" in reader.broken[35]


def test_import_and_split_work_at_every_kind_of_uri(base_uri: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=values_of("embedding"), y=np.arange(NUM_NODES) % 4)
    uri = f"{base_uri}/imported"
    import_dataset("embeddings", f"{tmp_path}/a.npz", uri, test_share=0.1)
    with pytest.raises(ValueError, match="is not empty"):
        import_dataset("embeddings", f"{tmp_path}/a.npz", uri)
    assert write_split(uri, labels_per_class=1) == {"labeled": 4, "unlabeled": 32}
    check(uri)
    labels = load_labels(uri)
    assert labels[labels >= 0].sort().values.tolist() == [0, 1, 2, 3]
    truth = load_truth(uri, torch.arange(NUM_NODES))
    assert truth.bincount().tolist() == [10] * 4


def test_failed_import_leaves_nothing(base_uri: str, tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        height = 4 if name[0] == "a" else 5
        (tmp_path / name).write_bytes(encode_png(np.zeros((3, height, 4), np.uint8)))
    uri = f"{base_uri}/failed"
    with pytest.raises(ValueError, match="all samples must be alike"):
        import_dataset("folder", str(tmp_path), uri)
    assert list_files(uri) == []
    import_dataset("folder", str(tmp_path), uri, size=(4, 4))


def test_large_images_are_decoded_in_threads_in_order(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 150, 150), dtype=np.uint8)
    writer = DatasetWriter(str(tmp_path), name="large", kind="image")
    for i, image in enumerate(images):
        writer.add("train", f"train-{i}", image, truth=None)
    writer.finish(["a"])
    reader = Reader(str(tmp_path), torch.arange(6), torch.full((6,), -1), num_threads=3)
    np.testing.assert_array_equal(reader.read(torch.arange(6)).inputs.numpy(), images)


def test_other_bytes_than_the_manifests_are_found_if_asked_for(local_images: str) -> None:
    index = load_index(local_images)
    uri = join(local_images, index.shards[0])
    content = read_bytes(uri)
    a, b = (slice(int(o), int(o + s)) for o, s in zip(index.offsets[:2], index.sizes[:2]))
    swapped = bytearray(content)
    # Another sample's image: it decodes, only the sum tells.
    swapped[a] = content[b].ljust(a.stop - a.start, b"\0")[: a.stop - a.start]
    try:
        write_atomic(uri, bytes(swapped))
        reader = reader_of(local_images, verify_sha=True, max_broken_share=0.1)
        reader.read(torch.arange(NUM_NODES))
        assert reader.broken == {0: "sample 'train-000' differs from the manifest's sha256"}
    finally:
        write_atomic(uri, content)


def test_image_of_another_shape_or_mode_is_broken() -> None:
    image = values_of("image")[0]
    np.testing.assert_array_equal(decode_image(encode_png(image), (3, 6, 5)), image)
    with pytest.raises(ValueError, match=r"has shape \(3, 6, 5\), expected \(3, 5, 5\)"):
        decode_image(encode_png(image), (3, 5, 5))
    with pytest.raises(ValueError, match="is a L image, expected RGB"):
        decode_image(encode_png(image[:1]), (3, 6, 5))
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 5), 40_000, np.uint16)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="has 16-bit mode I;16; convert to 8 bits"):
        decode_image(buffer.getvalue(), (1, 6, 5))


def test_image_of_too_many_pixels_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"cannot be decoded .*exceeds limit"):
        decode_image(encode_png(values_of("image")[0]), (3, 6, 5))


def test_reader_refuses_what_is_not_there(local_images: str) -> None:
    with pytest.raises(ValueError, match="there is no data set"):
        Reader("memory://nothing", torch.arange(1), torch.arange(1))
    with pytest.raises(ValueError, match="row 40, but the manifest has 40"):
        Reader(local_images, torch.tensor([40]), torch.tensor([-1]))
    with pytest.raises(ValueError, match=r"node 40: ids are 0\.\.39"):
        reader_of(local_images).read(torch.tensor([40]))
