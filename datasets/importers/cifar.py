"""CIFAR-10 and CIFAR-100: the official "python version", packed (.tar.gz) or unpacked.

Its batches are pickles. They are read by an unpickler that knows arrays of bytes and plain
containers and refuses everything else, so a tampered archive cannot run code.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..files import join, list_files, locate, read_bytes
from ..limits import check_unpacked
from ..names import check_member
from ..schema import DatasetInfo, SplitName
from ..sources import name_of, require_source
from ..writer import DatasetWriter

_TRAIN_NAMES = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST_NAMES = ("test_batch", "test")
_META_NAMES = ("batches.meta", "meta")


def import_samples(
    source: str | None,
    dest: str,
    *,
    labels: str = "fine",
    name: str | None = None,
) -> DatasetInfo:
    """Write an official archive (`cifar-10-python.tar.gz`) or its unpacked folder.

    Args:
        labels: "fine" or "coarse": CIFAR-100's 100 classes or its 20.

    Raises:
        ValueError: Not such an archive, a batch is missing, damaged or of another size than the
            others, or it holds something that no CIFAR batch does.
    """
    source = require_source(source, "cifar-10-python.tar.gz, cifar-100-python.tar.gz or a folder")
    if labels not in ("fine", "coarse"):
        raise ValueError(f"labels = {labels!r}: must be 'fine' or 'coarse'")
    writer = DatasetWriter(dest, name=name_of(source, name), kind="image")
    classes: list[str] | None = None
    sizes: dict[str, int] = {}
    for base, content in _batches(source):
        body = _unpickle(content, f"{source}: {base}")
        if base in _META_NAMES:
            classes = _class_names(body, labels)
        else:
            split: SplitName = "test" if base in _TEST_NAMES else "train"
            sizes[base] = _add_batch(writer, split, base, body, labels, source)
    _check_batches(sizes, source)
    num_test = sum(sizes.get(base, 0) for base in _TEST_NAMES)
    num_train = sum(sizes.values()) - num_test
    if classes is None or not num_train or not num_test:
        raise ValueError(
            f"{source}: found {num_train} train and {num_test} test images and "
            f"{'no' if classes is None else 'a'} file of class names; it may be cut off"
        )
    return writer.finish(classes)


def _batches(source: str) -> Iterator[tuple[str, bytes]]:
    fs, path = locate(source)
    if fs.isdir(path):
        for file in list_files(source):
            if _is_batch(base := file.rsplit("/", 1)[-1]):
                yield base, read_bytes(join(source, file))
        return
    try:
        with fs.open(path, "rb") as handle, tarfile.open(fileobj=handle, mode="r|*") as tar:
            unpacked = 0
            for member in tar:
                check_member(member, source)
                unpacked += member.size
                check_unpacked(unpacked, fs.size(path), source)
                base = member.name.rsplit("/", 1)[-1]
                if member.isfile() and _is_batch(base):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield base, content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{source}: not a readable tar archive ({error})") from None


def _is_batch(base: str) -> bool:
    return base.startswith("data_batch_") or base in ("train", *_TEST_NAMES, *_META_NAMES)


def _check_batches(sizes: dict[str, int], source: str) -> None:
    """CIFAR-10's five batches must be there; an image's number follows from their one size."""
    present = {base: size for base, size in sizes.items() if base.startswith("data_batch_")}
    unknown = sorted(set(present) - set(_TRAIN_NAMES))
    if unknown:
        raise ValueError(f"{source}: has {unknown[0]}, expected {', '.join(_TRAIN_NAMES)}")
    missing = [base for base in _TRAIN_NAMES if base not in present]
    if present and missing:
        raise ValueError(f"{source}: has no {', '.join(missing)}; it may be cut off")
    if len(set(present.values())) > 1:
        raise ValueError(f"{source}: batches differ in their number of images: {present}")


def _class_names(body: dict[Any, Any], labels: str) -> list[str]:
    fields = _text_keys(body)
    names = fields.get("label_names", fields.get(f"{labels}_label_names"))
    if not names:
        raise ValueError(f"the file of class names has only {sorted(fields)}")
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names]


def _add_batch(
    writer: DatasetWriter,
    split: SplitName,
    base: str,
    body: dict[Any, Any],
    labels: str,
    source: str,
) -> int:
    fields = _text_keys(body)
    data = fields.get("data")
    truth = fields.get("labels", fields.get(f"{labels}_labels"))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise ValueError(f"{source}: {base} holds no n x 3072 array of uint8 pixels")
    if truth is None or len(truth) != len(data):
        raise ValueError(f"{source}: {base} has {len(data)} images, but other labels")
    # Archives list the batches in any order; the original order is that of their numbers.
    number = int(base.rsplit("_", 1)[-1]) - 1 if base in _TRAIN_NAMES else 0
    first = number * len(data)
    for i, (image, label) in enumerate(zip(data.reshape(-1, 3, 32, 32), truth), start=first):
        writer.add(split, f"{split}-{i:06d}", image, truth=int(label), order=i)
    return len(data)


def _text_keys(body: dict[Any, Any]) -> dict[str, Any]:
    return {k.decode() if isinstance(k, bytes) else str(k): v for k, v in body.items()}


class _Array:
    """Stands for an array of bytes while a pickle is read; NumPy's own unpickling is not reached,
    whose states say how memory is to be understood."""

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        if not isinstance(dtype, _Bytes) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it has an array of other things than bytes")
        flat = np.frombuffer(raw, np.uint8)
        self.values = flat.reshape(shape, order="F" if is_fortran else "C")


class _Bytes:
    """Stands for the type of such an array."""

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it has an array of {name!r}, expected bytes (u1)")

    def __setstate__(self, state: Any) -> None:
        pass


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Functions are made anew each time: a pickle can set attributes of what it gets.
        if name == "_reconstruct" and module.startswith("numpy."):
            return lambda *_: _Array()
        if (module, name) == ("numpy", "ndarray"):
            return None  # an argument of _reconstruct
        if (module, name) == ("numpy", "dtype"):
            return lambda *arguments: _Bytes(*arguments)
        if (module, name) == ("_codecs", "encode"):
            # How Python 3 writes bytes in an old pickle protocol.
            return lambda text, _: text.encode("latin-1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")


def _unpickle(content: bytes, source: str) -> dict[Any, Any]:
    try:
        body = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:
        # A damaged pickle can raise anything.
        raise ValueError(f"{source} cannot be read ({error})") from None
    if not isinstance(body, dict):
        raise ValueError(f"{source} holds a {type(body).__name__}, expected a dict")
    return {k: v.values if isinstance(v, _Array) else v for k, v in body.items()}
