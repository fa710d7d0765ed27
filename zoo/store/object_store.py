"""The ObjectStore seam: what the catalogue asks of a place that keeps bytes under keys.

Takes keys and bytes. Gives bytes back. Next: `zoo.catalog`, which rests on one promise only, the create-only write.

A key is 1 to 1,000 characters of `/`-separated segments; no segment is empty, `.` or `..`, is longer than 255 bytes
of UTF-8 or begins with `.tmp-`, and none holds a control character or a backslash; a key is in Unicode's normal form C
(see `zoo.store.keys`). A key that is also the folder of another may be refused. Promises, tested by the contract suite
that each store inherits:

- `create`: exactly one of any number of racing writers of a key wins; the others get ObjectExists; no reader ever sees
  part of an object; after a crash the key holds the whole object or nothing.
- `create_from_file`: the same, but of racing writers more than one may be told that it won, and the last of them is
  kept: S3 servers don't honour conditions on multipart uploads reliably (on SeaweedFS 4.48 both racers won 20 of 50).
  So it is for keys that name their bytes, where all writers bring the same.
- `list` and `folders` right after a write show it; keys come in code point order.
- `read` of a range past the end gives what there is.

A write has one of four ends: it returns (written); ObjectExists (somebody's object has the key: perhaps this call's own
first try, where a layer below sends again); StoreBusy (told "conflict" or "try again": this call wrote nothing);
NoAnswer (it may or may not have been written, which only reading the key can tell). Anything else is a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zoo.byte_count import OnBytes, nobody_listens
from zoo.errors import Aborted, AlreadyExists, InvalidArgument, NotFound, Unavailable


class ObjectExists(AlreadyExists):
    """A create-only write found its key taken."""


class ObjectMissing(NotFound):
    """No object has that key."""


class InvalidKey(InvalidArgument):
    """A key that no store accepts."""


class StoreBusy(Aborted):
    """The store said "conflict" or "try again later": this call wrote nothing, and the same call may go through."""


class NoAnswer(Unavailable):
    """The store did not answer, or not to the end: what was to be written may or may not have been."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    key: str
    size: int  # bytes
    modified: float  # seconds since the epoch, by the store's clock


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """What an interrupted write left behind: an open multipart upload, or a temporary file."""

    key: str  # the object that it was to become, or the folder it lies in
    id: str  # the store's own name for it
    size: int | None  # bytes, where the store says
    modified: float  # seconds since the epoch, by the store's clock


class ObjectStore(Protocol):
    """See the module's docstring for the promises."""

    @property
    def url(self) -> str:
        """What `open_store` makes the same store from."""

    def create(self, key: str, data: bytes) -> None:
        """Writes a new object. Raises ObjectExists."""

    def create_from_file(
        self, key: str, path: Path, *, chunks: Sequence[str] = (), on_bytes: OnBytes = nobody_listens
    ) -> None:
        """Writes a new object from a file, streamed, under a key that names its bytes. Raises ObjectExists.

        `chunks`: the SHA-256 (hex) of each `zoo.file_hash.CHUNK_BYTES` of the file where they are known, so that a
        store which sends checksums of parts needn't hash again. `on_bytes` is called with counts of bytes as they are
        written, by one thread at a time; a write that had to be begun again counts again.
        """

    def put(self, key: str, data: bytes) -> None:
        """Writes or replaces an object atomically. The catalogue never uses it; job folders do."""

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or a range of them. Raises ObjectMissing."""

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """As `read`, in pieces of at most 1 MiB; errors come with the piece that they keep away."""

    def download(self, key: str, path: Path) -> None:
        """Streams an object into a new file at `path`. Raises ObjectMissing."""

    def stat(self, key: str) -> ObjectInfo:
        """Raises ObjectMissing."""

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key begins with `prefix` and sorts after `start_after`, in code point order."""

    def folders(self, prefix: str) -> Iterator[str]:
        """The next segment, each once, of the keys below `prefix` that go on after it, in code point order.

        `prefix` is empty or ends in `/`. A local disk may also give the name of a folder that holds no object.
        """

    def delete(self, key: str) -> None:
        """Removes an object; a key that isn't there is no error."""

    def local_path(self, key: str) -> Path | None:
        """Where the object (or the folder of that name) lies on this machine's disk, or None for a remote store."""

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        """What interrupted writes of keys that begin with `prefix` left behind; running writes show too."""

    def remove_leftover(self, leftover: Leftover) -> None:
        """Removes one of `leftovers`; one that isn't there any more is no error."""
