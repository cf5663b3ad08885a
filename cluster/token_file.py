"""The file that Ray keeps its token in."""

from __future__ import annotations

from pathlib import Path


def keep_token_private() -> None:
    """Let nobody but its owner read `~/.ray/auth_token`; Ray writes it for everybody to read."""
    try:
        path = Path.home() / ".ray" / "auth_token"
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except (OSError, RuntimeError):
        pass  # no file, or not ours; Ray may have its token from the environment
