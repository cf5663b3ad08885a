"""Names that come out of files: paths of shards, members of archives, keys of samples.

A name may say where something lies within its data set or archive, and nothing else: it never
leads out of it, to another machine, or to a device.
"""

from __future__ import annotations

import re
import tarfile

import pyarrow as pa
import pyarrow.compute as pc

# What leads elsewhere: a scheme or drive, a chain of file systems, a query, an escape (%2e%2e), a
# pattern of other names.
_NOT_IN_PATHS = re.compile(r"[\\:?#%*\[\]\x00-\x1f\x7f]")
_LEADS_OUT = r"^[/\\~]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)|[\x00-\x1f\x7f]"
_KEY_LEADS_OUT = re.compile(_LEADS_OUT)
_MEMBER_KINDS = (
    (tarfile.TarInfo.issym, "a symbolic link"),
    (tarfile.TarInfo.islnk, "a hard link"),
    (tarfile.TarInfo.isdev, "a device"),
    (tarfile.TarInfo.issparse, "a file with holes"),
)


def check_path(path: str, where: str) -> None:
    """Check the path of a data set's file, relative to the data set.

    Raises:
        ValueError: It is absolute, a URI, or leads out of its folder.
    """
    parts = path.split("/")
    if _NOT_IN_PATHS.search(path) or path[:1] == "~" or {"", ".", ".."} & set(parts):
        raise ValueError(
            f"{where}: the path {path!r} leads out of the data set, or might; files are named by "
            "plain paths relative to it"
        )


def check_key(key: str, where: str) -> None:
    """Check the key of a sample or the name of an archive's member.

    Raises:
        ValueError: It is absolute, has a part `..` or control characters.
    """
    if _KEY_LEADS_OUT.search(key):
        raise ValueError(_bad_key(key, where))


def check_keys(keys: pa.Array, where: str) -> None:
    """`check_key` of a whole column of strings."""
    bad = pc.index(pc.match_substring_regex(keys, _LEADS_OUT), True).as_py()
    if bad >= 0:
        raise ValueError(_bad_key(keys[bad].as_py(), where))


def check_member(member: tarfile.TarInfo, where: str) -> None:
    """Check a member of a tar file, whatever is done with it.

    Raises:
        ValueError: A name that leads out of the archive, a link, a device, or a size below zero.
    """
    check_key(member.name, where)
    for is_kind, kind in _MEMBER_KINDS:
        if is_kind(member):
            raise ValueError(
                f"{where}: the member {member.name!r} is {kind}; only plain files are read"
            )
    if member.size < 0:
        raise ValueError(f"{where}: the member {member.name!r} has a size below zero")


def _bad_key(key: str, where: str) -> str:
    return (
        f"{where}: the name {key!r} is an absolute path, has a part '..' or control characters; "
        "rename it"
    )
