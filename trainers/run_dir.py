"""A run's directory: its files, at any fsspec URI.

`config.toml`, `environment.json`, `split.parquet`, `metrics.jsonl`, `rounds.jsonl`, `result.json`,
`checkpoints/`, `store/`, `labels.parquet`, `model.safetensors`, `report.html`; of pretrained
backbones `backbone.json` (how to build it), and of frozen ones before whose features training
begins `backbone.safetensors`.
"""

from __future__ import annotations

import io
import json
import platform
import subprocess
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..datasets.files import locate, parse_columns
from ..datasets.names import check_path
from ..graph_store.storage import DEFAULT_RETRY, Retry, Storage, attempt

BACKBONE_ABOUT = "backbone.json"
BACKBONE_WEIGHTS = "backbone.safetensors"


class RunDir:
    """Reads and writes the files of one run. Picklable; every worker may hold one.

    What a disk or a bucket refuses is a StorageError: one sentence for the user.
    """

    def __init__(self, uri: str, *, retry: Retry = DEFAULT_RETRY) -> None:
        self.uri = uri.rstrip("/")
        self.files = Storage(self.uri, locate(self.uri), retry)

    @property
    def local_path(self) -> Path | None:
        """The folder, where it lies on a file system of this machine."""
        return Path(self.files.root or "/") if self.files.is_local else None

    def child(self, name: str) -> str:
        """URI of a file or folder in the run."""
        return f"{self.uri}/{name}"

    def exists(self, name: str = "") -> bool:
        return self.files.exists(name)

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; empty if there is no such folder."""
        return self.files.names(folder)

    def read_bytes(self, name: str) -> bytes:
        return self.files.read(name)

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """These columns of a Parquet file (None: all).

        Raises:
            TooLargeError: They take far more memory than the file weighs.
        """
        content = self.read_bytes(name)
        return parse_columns(pa.BufferReader(content), len(content), columns, self.child(name))

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file; empty if there is none.

        A last line that was not written to its end is left out.

        Raises:
            ValueError: Another line is no JSON.
        """
        if not self.exists(name):
            return []
        content = self.read_bytes(name)
        whole, _, _ = content.rpartition(b"\n")
        lines = [line for line in whole.split(b"\n") if line]
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise ValueError(
                f"{self.child(name)}: a line is damaged ({error}); remove that line"
            ) from None

    def write_bytes(self, name: str, data: bytes) -> None:
        """A reader sees the old file or the new one, never half of it."""
        self.files.write(name, data)

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=1, sort_keys=True) + "\n")

    def write_arrays(self, name: str, arrays: dict[str, Any]) -> None:
        """Write an npz file of plain arrays."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        self.write_bytes(name, buffer.getvalue())

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add a line to a JSON-lines file; one that does not fit leaves the file as it was."""
        line = (json.dumps(record) + "\n").encode()
        if self.local_path is not None:
            path = self.local_path / name
            attempt(
                lambda: _append(path, line),
                uri=self.child(name),
                doing="writing",
                size_bytes=len(line),
            )
            return
        # Object stores cannot append; these files are small.
        old = self.read_bytes(name) if self.exists(name) else b""
        self.write_bytes(name, old + line)

    def keep_lines(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines that `keep` refuses."""
        lines = [r for r in self.read_lines(name) if keep(r)]
        if self.exists(name):
            self.write_text(name, "".join(json.dumps(r) + "\n" for r in lines))

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder's files into the run's folder `name`."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.files.put(path, f"{name}/{path.relative_to(folder).as_posix()}")

    def download(self, name: str, folder: Path, files: Iterable[str] | None = None) -> None:
        """Copy the run's folder `name`, or these files of it, into a local folder."""
        for file in self.files.find(name) if files is None else files:
            check_path(file, self.uri)  # keys of a bucket may have any parts, `..` too
            self.files.get(f"{name}/{file}", folder / file)

    def remove(self, name: str) -> None:
        self.files.remove(name)


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        start, written = file.tell(), 0
        try:
            while written < len(line):
                written += file.write(line[written:])
        except OSError:
            file.truncate(start)
            raise


def environment() -> dict[str, Any]:
    """Versions, devices and the source revision: what another person needs to repeat a run."""
    names = ["labelmesh", "torch", "ray", "deepspeed", "faiss-cpu", "faiss-gpu", "kornia", "numpy"]
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "versions": versions,
        "gpus": devices,
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
