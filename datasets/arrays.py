"""NumPy files of strangers: checked against what they hold before memory is taken for them."""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import numpy as np
from numpy.lib import format as npy

from .limits import check_limit, check_unpacked

_HEADERS: dict[Any, Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_ZIP = b"PK"


def read_arrays(data: bytes, source: str) -> np.ndarray | dict[str, np.ndarray]:
    """The array of an .npy file, or those of an .npz file by name.

    Args:
        source: What the file is called in errors about its size.

    Raises:
        TooLargeError: An archive that unpacks to far more than it weighs.
        Exception: Anything else is wrong: object arrays, a shape that the file does not hold, ...
    """
    if data[:2] != _ZIP:
        return _read(io.BytesIO(data), len(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        check_limit("SHARD_MEMBERS", len(members), source)
        check_unpacked(sum(member.file_size for member in members), len(data), source)
        arrays = {}
        for member in members:
            with archive.open(member) as file:
                arrays[member.filename.removesuffix(".npy")] = _read(file, member.file_size)
    return arrays


def _read(file: Any, size: int) -> np.ndarray:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"format {version[0]}.{version[1]} of NumPy's files is not known")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which would have to be executed")
    wanted, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or wanted > held:
        raise ValueError(f"it says {shape} of {dtype}, {wanted} bytes, but holds {held}")
    file.seek(0)
    array: np.ndarray = npy.read_array(file, allow_pickle=False)
    return array
