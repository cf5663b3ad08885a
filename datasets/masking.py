"""Secrets in addresses and texts: found, masked, refused where they would be written down.

Credentials belong into the environment or into fsspec's and the clouds' own credential files, never
into a URI: a URI is written into `config.toml`, shown in reports, logged by Ray, sent to MLflow.
Whatever prints or stores an address that a person gave (of a run, a data set, a tracking server, a
database) shows `masked_uri(address)`; free text, such as an error message, `masked_text(text)`.
Configurations that hold secrets are refused as a whole (`refuse_secrets`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

MASK = "***"

_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*://"
_END = r"\s'\"<>`"
# user:password@; a colon and digits before the path are a port.
_PASSWORD = re.compile(rf"({_SCHEME}[^/:@?#{_END}]*):(?!\d*(?:[/?#{_END}]|$))[^{_END}]*@")
# A token alone, as in https://TOKEN@host.
_LONE = re.compile(rf"({_SCHEME})([^/:@?#{_END}]+)@")
# Where the part before the @ names no secret: a container (Azure), a repository, an account.
_NAMES_BEFORE_AT = {"abfs", "abfss", "adl", "az", "ftp", "git", "hdfs", "hf", "memory", "sftp"}
_NAMES_BEFORE_AT |= {"smb", "ssh", "wasb", "wasbs", "webhdfs"}
_NOT_PASSWORDS = frozenset({"git", "github"})  # github://owner:repository@revision/path
_SECRET_NAME = (
    r"[\w.\-]*(?:access[_\-]?key|account[_\-]?key|api[_\-]?key|secret|token|passw|pwd|signature|"
    r"credential|authorization)[\w.\-]*|key|sig|auth|pass|jwt|sas"
)
_PARAMETER = re.compile(rf"([?&#;](?:{_SECRET_NAME})=)([^&#;{_END}]+)", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
# Shorter values are words that any text may have.
_SHORTEST_SECRET = 8


def masked_uri(uri: str) -> str:
    """A URI whose password, token or secret parameters are `***`; others come back as they are.

    For run directories, logs, reports, status and tracking: also for the URIs of MLflow servers and
    of their databases (`postgresql://user:password@host/db`). Chained URIs
    (`simplecache::s3://...`) are masked in all their parts.

    Example:
        >>> masked_uri("s3://key:secret@bucket/digits?versionId=3&X-Amz-Signature=0ab1")
        's3://***@bucket/digits?versionId=3&X-Amz-Signature=***'
        >>> masked_uri("https://mlflow:8080/a@b")
        'https://mlflow:8080/a@b'
    """
    out = _PASSWORD.sub(_masked_password, str(uri))
    out = _LONE.sub(_masked_lone, out)
    return _PARAMETER.sub(rf"\g<1>{MASK}", out)


def masked_text(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """A message for people or logs: the URIs in it masked, and the values of environment variables
    that are named like secrets (`RAY_AUTH_TOKEN`, `AWS_SECRET_ACCESS_KEY`, ...)."""
    out = masked_uri(text)
    for value in sorted(_secrets_of(environ), key=len, reverse=True):
        out = out.replace(value, MASK)
    return out


def refuse_secrets(value: Any, what: str) -> None:
    """Check a URI, or all texts of a nested configuration, before it is written anywhere.

    Args:
        what: How the user calls it, for example `--out`; "" for a configuration, whose keys then
            name the place.

    Raises:
        ValueError: There is a secret in it; the message shows it masked.
    """
    for key, text in _texts(value, what):
        masked = masked_uri(text)
        if masked != text:
            raise ValueError(
                f"{key} = {masked!r} has credentials in it, which would be written into run "
                "directories and logs; give them by environment variables (AWS_ACCESS_KEY_ID, "
                "FSSPEC_<PROTOCOL>_<OPTION> ...) or credential files instead"
            )


def _masked_password(match: re.Match[str]) -> str:
    scheme = match[1].partition("://")[0]
    # The user goes, too: of a pair of S3 keys it is one.
    return match[0] if scheme.lower() in _NOT_PASSWORDS else f"{scheme}://{MASK}@"


def _masked_lone(match: re.Match[str]) -> str:
    scheme = match[1].removesuffix("://").lower()
    return match[0] if scheme in _NAMES_BEFORE_AT else f"{match[1]}{MASK}@"


def _secrets_of(environ: Mapping[str, str]) -> set[str]:
    return {
        value
        for name, value in environ.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_SECRET and value[0] != "/"
    }


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _texts(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part, key)
