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
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.files import locate
from ..datasets.names import check_path

BACKBONE_ABOUT = "backbone.json"
BACKBONE_WEIGHTS = "backbone.safetensors"


class RunDir:
    """Reads and writes the files of one run. Picklable; every worker may hold one."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._fs, self._root = locate(self.uri)

    @property
    def local_path(self) -> Path | None:
        """The folder, where it lies on a file system of this machine."""
        return Path(self._root) if "file" in _protocols(self._fs) else None

    def child(self, name: str) -> str:
        """URI of a file or folder in the run."""
        return f"{self.uri}/{name}"

    def exists(self, name: str = "") -> bool:
        return bool(self._fs.exists(self._path(name)))

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; empty if there is no such folder."""
        if not self.exists(folder):
            return []
        found = self._fs.ls(self._path(folder), detail=False, refresh=True)
        return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in found)

    def read_bytes(self, name: str) -> bytes:
        data = self._fs.cat_file(self._path(name))
        assert isinstance(data, bytes)
        return data

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file; empty if there is none."""
        if not self.exists(name):
            return []
        return [json.loads(line) for line in self.read_text(name).splitlines() if line]

    def write_bytes(self, name: str, data: bytes) -> None:
        path = self._path(name)
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        if self.local_path is None:
            self._fs.pipe_file(path, data)
            return
        # A reader sees the old file or the new one, never half of it.
        temporary = Path(f"{path}.partial")
        temporary.write_bytes(data)
        temporary.replace(path)

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
        """Add a line to a JSON-lines file."""
        line = json.dumps(record) + "\n"
        if self.local_path is not None:
            self._fs.makedirs(self._path(name).rsplit("/", 1)[0], exist_ok=True)
            with open(self._path(name), "a") as file:
                file.write(line)
            return
        # Object stores cannot append; these files are small.
        old = self.read_text(name) if self.exists(name) else ""
        self.write_text(name, old + line)

    def keep_lines(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines that `keep` refuses."""
        lines = [r for r in self.read_lines(name) if keep(r)]
        if self.exists(name):
            self.write_text(name, "".join(json.dumps(r) + "\n" for r in lines))

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder's files into the run's folder `name`."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            target = self._path(f"{name}/{path.relative_to(folder).as_posix()}")
            self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            self._fs.put_file(str(path), target)

    def download(self, name: str, folder: Path) -> None:
        """Copy the run's folder `name` into a local folder."""
        root = self._path(name)
        for path in self._fs.find(root):
            name = str(path)[len(root) :].lstrip("/")
            check_path(name, self.uri)  # keys of a bucket may have any parts, `..` too
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(path, str(target))

    def remove(self, name: str) -> None:
        if self.exists(name):
            self._fs.rm(self._path(name), recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")


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


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
