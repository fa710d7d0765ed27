"""Stores by URL. Takes `file:///dir`, `s3://bucket/prefix` or `memory://name`. Gives an ObjectStore.

Next: `zoo.catalog`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from zoo.errors import InvalidArgument
from zoo.store.object_store import ObjectStore


class InvalidStoreUrl(InvalidArgument):
    """A text that names no store."""


def default_store_url() -> str:
    """`MODELZOO_STORE`, else `store` in the data home (`MODELZOO_HOME`, else the user's data directory)."""
    from platformdirs import user_data_path

    if chosen := os.environ.get("MODELZOO_STORE"):
        return chosen
    home = Path(os.environ.get("MODELZOO_HOME") or user_data_path("modelzoo"))
    return (home.expanduser().absolute() / "store").as_uri()


def open_store(url: str) -> ObjectStore:
    """The store at `url`; nothing is written yet.

    In a `file:` URL `%20` and the like are decoded, spaces may also stand as they are, a relative path starts at the
    working directory and `~` is the user's home. Raises InvalidStoreUrl, NotADirectory, and for a bucket
    BadSettings.
    """
    kind, separator, location = url.partition("://")
    opener = _OPENERS.get(kind) if separator else None
    if opener is None:
        looks_local = not separator and kind.startswith((".", "/", "~"))
        raise InvalidStoreUrl(
            f"store {url[:300]!r} has none of the known kinds: file:///DIR, s3://BUCKET/PREFIX, memory://NAME",
            hint=f"--store file://{Path(url).absolute()}" if looks_local else "--store file:///DIR",
            url=url[:300],
        )
    return opener(location)


def _open_file(location: str) -> ObjectStore:
    from zoo.store.local import LocalStore

    if location.startswith("localhost/"):  # the one host that RFC 8089 lets mean this machine
        location = location.removeprefix("localhost")
    path = unquote(location, errors="surrogateescape")
    if not path or "\0" in path:
        raise InvalidStoreUrl(f"store 'file://{location[:300]}' names no directory", hint="--store file:///DIR")
    return LocalStore(Path(path).expanduser())


def _open_memory(location: str) -> ObjectStore:
    from zoo.store.memory import MemoryStore

    return MemoryStore.named(location)


def _open_s3(location: str) -> ObjectStore:
    from zoo.store.retrying import RetryingStore
    from zoo.store.s3 import open_s3

    return RetryingStore(open_s3(location))


_OPENERS: dict[str, Callable[[str], ObjectStore]] = {"file": _open_file, "memory": _open_memory, "s3": _open_s3}
