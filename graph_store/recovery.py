"""Where the shards of a store log, and how one comes back from it.

<log_uri>/<store>/store.json         says that the folder belongs to this store
<log_uri>/<store>/shard-0000/...     see `journal_files`
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from .journal import FORMAT, Journal
from .journal_files import JournalError
from .places import locate
from .shard import Shard

_MARK = "store.json"


def prepare_logs(log_uri: str, lineage: str) -> None:
    """Make the folder of a store that begins; what other stores have left beside it is deleted.

    Raises:
        JournalError: Nothing can be written there.
    """
    fs, root = locate(log_uri)
    try:
        for name in _stores(fs, root):
            fs.rm(f"{root}/{name}", recursive=True)
        fs.makedirs(f"{root}/{lineage}", exist_ok=True)
        mark = json.dumps({"format": FORMAT, "lineage": lineage})
        fs.pipe_file(f"{root}/{lineage}/{_MARK}", mark.encode())
    except OSError as error:
        raise JournalError(f"log_uri = {log_uri!r} cannot be written to ({error})") from error


def remove_log(log_uri: str, lineage: str) -> None:
    """Delete the logs of a store that has ended; where that fails, the next one will do it."""
    fs, root = locate(log_uri)
    with suppress(OSError):
        fs.rm(f"{root}/{lineage}", recursive=True)


def _stores(fs: Any, root: str) -> list[str]:
    """Folders of stores; whatever else may lie there is nobody's business here."""
    fs.invalidate_cache()
    if not fs.exists(root):
        return []
    names = [path.rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(root, detail=False)]
    return [name for name in names if fs.exists(f"{root}/{name}/{_MARK}")]


def open_journal(log_uri: str, lineage: str, rank: int) -> Journal:
    """The log of one shard; empty where it has not logged anything yet.

    Raises:
        JournalError: The store's folder is not there, as seen from here, or the log is unreadable.
    """
    fs, root = locate(log_uri)
    fs.invalidate_cache()
    try:
        is_there = fs.exists(f"{root}/{lineage}/{_MARK}")
    except OSError as error:
        raise JournalError(f"log_uri = {log_uri!r} cannot be read ({error})") from error
    if not is_there:
        raise JournalError(
            f"log_uri = {log_uri!r}: the logs of {lineage} are not there as seen from this node; "
            f"use a URI that all nodes share"
        )
    return Journal(f"{log_uri.rstrip('/')}/{lineage}/shard-{rank:04d}", lineage)


def recover(shard: Shard, journal: Journal) -> bool:
    """Make a new shard what its log says, and let it log from now on; whether there was a log."""
    found = False
    for record in journal.replay():
        shard.replay(record)
        found = True
    journal.begin()
    shard.keep_log(journal)
    return found
