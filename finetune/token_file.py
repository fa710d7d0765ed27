"""The token of a local server: a file that only its user can read. Whoever sends its contents is let in.

Takes a port. Gives the token. Next: `server.interceptor` asks for it, `finetune.client` sends it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from finetune.jobs.tables import data_home
from zoo.errors import DataLoss, PermissionDenied


class UnsafeTokenFile(PermissionDenied):
    """Others may read or write the token file, so its contents prove nothing."""


class DamagedTokenFile(DataLoss):
    """The token file holds no token."""


def token_path(port: int) -> Path:
    """Where the server that listens on `port` of this machine keeps its token, unless configured otherwise."""
    return data_home() / "tokens" / f"{port}.token"


def read_token(path: Path) -> str | None:
    """The token in a file, None where there is no file. Raises UnsafeTokenFile, DamagedTokenFile."""
    try:
        facts = path.stat()
        token = path.read_text().strip()
    except FileNotFoundError:
        return None
    if facts.st_mode & 0o077 or facts.st_uid != os.getuid():
        raise UnsafeTokenFile(
            f"token file {path} has mode {facts.st_mode & 0o777:o} and owner {facts.st_uid}; expected 600 and yourself",
            hint=f"chmod 600 {path}, or delete it and start the server again",
        )
    if not token:
        raise DamagedTokenFile(f"token file {path} is empty", hint="delete it and start the server again")
    return token


def ensure_token(path: Path) -> str:
    """The token of the file, which is made when it isn't there. A server started again keeps its token, and so its
    clients."""
    token = read_token(path)
    if token is not None:
        return token
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # of two servers that start at once, one wins and both use its token
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    token = read_token(path)
    assert token is not None
    return token
