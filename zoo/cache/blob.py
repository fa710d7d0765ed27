"""A blob as a manifest names it, and what is said of one whose bytes are others.

Takes a digest, a size and chunk hashes. Gives the spans of the chunks, and errors that name the first bad one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import DataLoss
from zoo.file_hash import CHUNK_BYTES


class CorruptBlob(DataLoss):
    """A blob is missing from the store, or its bytes are not those of its digest."""


def blob_key(digest: str) -> str:
    """Where the blob `sha256:<hex>` lies in a store."""
    text = digest.removeprefix("sha256:")
    return f"blobs/sha256/{text[:2]}/{text[2:4]}/{text}"


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Span:
    """The bytes of one chunk."""

    index: int
    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Blob:
    """`chunks` as in the manifest: empty where none are known. `what` names it in errors: `head of captioner@3`."""

    digest: str
    size: int  # bytes
    what: str
    chunks: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return blob_key(self.digest)

    @property
    def hashes(self) -> tuple[str, ...]:
        """The SHA-256 of each span, or nothing; a blob of one chunk has its own digest."""
        if self.size <= CHUNK_BYTES:
            return (self.digest.removeprefix("sha256:"),)
        return self.chunks if len(self.chunks) == len(self.spans()) else ()

    def spans(self) -> list[Span]:
        starts = range(0, max(self.size, 1), CHUNK_BYTES)
        return [Span(index=i, start=s, length=min(CHUNK_BYTES, self.size - s)) for i, s in enumerate(starts)]

    def missing(self, where: str) -> CorruptBlob:
        return CorruptBlob(
            f"{self.what}: its blob {self.digest} is not in {where}", hint="zoo verify", expected=self.digest
        )

    def other_size(self, size: int | str, where: str) -> CorruptBlob:
        return CorruptBlob(
            f"{self.what}: {where} has {size} bytes, its manifest says {self.size} ({self.digest})",
            hint="zoo verify",
            path=where,
            expected=self.digest,
        )

    def other_chunk(self, span: Span, found: str, where: str) -> CorruptBlob:
        """`found`: SHA-256 (hex) of the bytes that are there."""
        expected, count = self.hashes[span.index], len(self.hashes)
        return CorruptBlob(
            f"{self.what}: the bytes in {where} are not those that were published ({self.digest}, {self.size} bytes): "
            f"the chunk at byte {span.start} ({span.index + 1} of {count}, {span.length} bytes) has "
            f"the digest sha256:{found}, expected sha256:{expected}",
            hint="zoo verify",
            path=where,
            offset=str(span.start),
            blob=self.digest,
            expected=f"sha256:{expected}",
            found=f"sha256:{found}",
        )

    def other_bytes(self, found: str, where: str) -> CorruptBlob:
        """`found`: the digest of the bytes that are there, whose chunks don't tell where they are wrong."""
        why = "every chunk is as its manifest says" if self.hashes else "its manifest has no chunk hashes to tell where"
        return CorruptBlob(
            f"{self.what}: the bytes in {where} are not those that were published: expected {self.digest} "
            f"({self.size} bytes), found {found}; {why}",
            hint="zoo verify",
            path=where,
            expected=self.digest,
            found=found,
        )

    def fault_in(self, path: Path) -> CorruptBlob | None:
        """What is wrong with a file that was to have the blob's bytes. Raises OSError."""
        size = path.stat().st_size
        if size != self.size:
            return self.other_size(size, str(path))
        found = file_digest(path)
        if found == self.digest:
            return None
        return self.first_bad_chunk(path) or self.other_bytes(found, str(path))

    def first_bad_chunk(self, path: Path) -> CorruptBlob | None:
        """Where the chunks are known. Raises OSError."""
        if not self.hashes:
            return None
        with path.open("rb") as file:
            for span in self.spans():
                found = hashlib.sha256(file.read(span.length)).hexdigest()
                if found != self.hashes[span.index]:
                    return self.other_chunk(span, found, str(path))
        return None
