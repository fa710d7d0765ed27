"""The ObjectStore seam: what the catalogue asks of a place that keeps bytes under keys.

Takes keys and bytes. Gives bytes back. Next: `zoo.catalog`, which rests on one promise only, the create-only write.

A key is 1 to 1,000 characters of `/`-separated segments; no segment is empty, `.` or `..`, is longer than 255 bytes
of UTF-8 or begins with `.tmp-`, and none holds a control character or a backslash (see `zoo.store.keys`). A key that is
also the folder of another may be refused. Promises, tested by the contract suite that each store inherits:

- `create` and `create_from_file`: exactly one of any number of racing writers of a key wins; the others get
  ObjectExists; no reader ever sees part of an object; after a crash the key holds the whole object or nothing.
- `list` right after a write shows it; keys come in code point order.
- `read` of a range past the end gives what there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zoo.errors import AlreadyExists, InvalidArgument, NotFound


class ObjectExists(AlreadyExists):
    """A create-only write found its key taken."""


class ObjectMissing(NotFound):
    """No object has that key."""


class InvalidKey(InvalidArgument):
    """A key that no store accepts."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    key: str
    size: int  # bytes
    modified: float  # seconds since the epoch, by the store's clock


class ObjectStore(Protocol):
    """See the module's docstring for the promises."""

    @property
    def url(self) -> str:
        """What `open_store` makes the same store from."""

    def create(self, key: str, data: bytes) -> None:
        """Writes a new object. Raises ObjectExists."""

    def create_from_file(self, key: str, path: Path) -> None:
        """Writes a new object from a file, streamed. Raises ObjectExists."""

    def put(self, key: str, data: bytes) -> None:
        """Writes or replaces an object atomically. The catalogue never uses it; job folders do."""

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or a range of them. Raises ObjectMissing."""

    def download(self, key: str, path: Path) -> None:
        """Streams an object into a new file at `path`. Raises ObjectMissing."""

    def stat(self, key: str) -> ObjectInfo:
        """Raises ObjectMissing."""

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key begins with `prefix` and sorts after `start_after`, in code point order."""

    def delete(self, key: str) -> None:
        """Removes an object; a key that isn't there is no error."""

    def local_path(self, key: str) -> Path | None:
        """Where the object (or the folder of that name) lies on this machine's disk, or None for a remote store."""
