"""Making a data set from a source: finds the importer by the name of its file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

from .files import is_empty, locate
from .schema import DatasetInfo


def importer_names() -> list[str]:
    """Formats that can be imported, sorted: the files in `importers/`."""
    folder = Path(__file__).parent / "importers"
    return sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if m.name[0] != "_")


def import_dataset(format: str, source: str | None, dest: str, **options: Any) -> DatasetInfo:
    """Write a data set at `dest` from a source in one of `importer_names()`.

    What was written is removed again if the import fails.

    Args:
        source: Folder, file or URI; None for formats that need none.
        dest: Any fsspec URI; must not exist or be empty.
        options: Of the importer, see its `import_samples`.

    Raises:
        ValueError: Unknown format or option, `dest` is not empty, or the source is not as expected.
    """
    if format not in importer_names():
        raise ValueError(f"format {format!r}: must be one of {', '.join(importer_names())}")
    module = importlib.import_module(f"{__package__}.importers.{format}")
    known = list(inspect.signature(module.import_samples).parameters)[2:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"{format} has no option {unknown[0]!r}; options are {', '.join(known) or 'none'}"
        )
    if not is_empty(dest):
        raise ValueError(f"{dest} is not empty; delete it or choose another folder")
    try:
        info: DatasetInfo = module.import_samples(source, dest, **options)
    except BaseException:
        _remove(dest)
        raise
    return info


def _remove(dest: str) -> None:
    fs, path = locate(dest)
    if fs.exists(path):
        fs.rm(path, recursive=True)
