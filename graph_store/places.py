"""Addresses that a store takes, and names that its files give.

What `datasets/files.py` and `datasets/names.py` are to data sets; neither part imports the other.
"""

from __future__ import annotations

import re
from typing import Any

import fsspec

# Protocols of fsspec whose addresses are programs, or lead to machines with settings of their own:
# a "reference" fills in templates that its file brings.
REFUSED = frozenset({"reference", "generic", "dask", "dvc"})


def locate(uri: str) -> tuple[Any, str]:
    """The file system and the path in it, without a slash at its end.

    Raises:
        ValueError: Unknown protocol, one whose package is not installed, or that is refused.
    """
    for part in uri.split("::"):
        protocol = part.partition("://")[0].lower()
        if protocol in REFUSED:
            raise ValueError(
                f"the protocol {protocol!r} is not allowed, as what it reads may give orders; copy "
                "the files to a folder or a bucket"
            )
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise ValueError(f"{error}; for s3:// install labelmesh[s3]") from None
    return fs, path.rstrip("/")


def check_name(name: object, pattern: re.Pattern[str], where: str) -> str:
    """The name of a file that another file gives, if it is one that labelmesh writes.

    Raises:
        ValueError: It is no such name; it might lead out of the folder.
    """
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ValueError(
            f"{where} names the file {name!r}, which labelmesh writes nowhere; it is damaged, or "
            "was made to lead elsewhere"
        )
    return name
