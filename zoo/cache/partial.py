"""Partial: the file that a blob is downloaded into, and that an interrupted download leaves to the next.

Takes the blob's final path. Gives a file that this process alone writes. Next: `zoo.cache.download` fills it.

`<hex>.partial` is free for anyone. Whoever wants it renames it to `<hex>.<owner>.partial`, which one process can; it
renames it back when it gives up. What a dead process had is free as well. From a process that may still be alive (it is
stuck, or on another machine) chunks are copied, never the file taken: it may still write to it. What such a file
holds is trusted by the chunks' hashes only, so without those nothing is taken over.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from zoo.cache.blob import Blob, Span
from zoo.cache.lock import STALE_AFTER
from zoo.cache.owner import Owner

SUFFIX = ".partial"


class Partial:
    """Raises OSError."""

    def __init__(self, final: Path, blob: Blob, owner: Owner) -> None:
        self._final = final
        self._blob = blob
        self.path = final.with_name(f"{final.name}.{owner}{SUFFIX}")
        if blob.hashes:
            for found, other in partials(final):
                if other is None or other.is_dead():
                    with suppress(FileNotFoundError):
                        found.rename(self.path)
                        break
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(self.descriptor, blob.size)
        except OSError:
            os.close(self.descriptor)
            raise

    def whole_chunks(self, spans: list[Span], on_look: Callable[[], None]) -> set[int]:
        """The index of each of `spans` that is there and has the hash it should; copies what others have left.

        `on_look` is called after each chunk.
        """
        whole: set[int] = set()
        if not self._blob.hashes:
            return whole
        for span in _written(self.descriptor, spans):
            if self._is_whole(self.descriptor, span) is not None:
                whole.add(span.index)
            on_look()
        for path in self._stuck():
            with suppress(OSError), path.open("rb") as file:
                for span in _written(file.fileno(), [span for span in spans if span.index not in whole]):
                    if (data := self._is_whole(file.fileno(), span)) is not None:
                        write_at(self.descriptor, data, span.start)
                        whole.add(span.index)
                    on_look()
        return whole

    def become_final(self, *, durable: bool) -> None:
        """Under the blob's own name from here on; what is left of other downloads of it goes.

        `durable`: the bytes are on the disk before the name is.
        """
        if durable:
            os.fsync(self.descriptor)
        self.path.replace(self._final)
        os.close(self.descriptor)
        for path, other in partials(self._final):
            if other is None or other.is_dead():
                path.unlink(missing_ok=True)

    def leave(self) -> None:
        """To whoever wants it next."""
        with suppress(OSError):
            self.path.replace(self._final.with_name(self._final.name + SUFFIX))
        os.close(self.descriptor)

    def discard(self) -> None:
        with suppress(OSError):
            self.path.unlink()
        os.close(self.descriptor)

    def _is_whole(self, descriptor: int, span: Span) -> bytes | None:
        data = os.pread(descriptor, span.length, span.start)
        return data if hashlib.sha256(data).hexdigest() == self._blob.hashes[span.index] else None

    def _stuck(self) -> Iterator[Path]:
        for path, other in partials(self._final):
            with suppress(OSError):
                if path != self.path and other is not None and time.time() - path.stat().st_mtime > STALE_AFTER:
                    yield path


def partials(final: Path) -> list[tuple[Path, Owner | None]]:
    """Unfinished files of one blob, the one that holds most first; without an owner those that are free."""
    found = []
    for path in final.parent.glob(f"{final.name}*{SUFFIX}"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_blocks, path, owner_of(path)))
    return [(path, owner) for _, path, owner in sorted(found, key=lambda each: -each[0])]


def owner_of(path: Path) -> Owner | None:
    """Who writes the partial `path`; None when nobody does."""
    return Owner.parse(path.name.removesuffix(SUFFIX).partition(".")[2])


def write_at(descriptor: int, data: bytes, start: int) -> None:
    """All of `data`, whatever a single call takes. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, start)
        view, start = view[written:], start + written


def read_at(descriptor: int, length: int, start: int) -> bytes:
    """As pread, whose single call gives at most 2 GiB. Raises OSError."""
    data = os.pread(descriptor, length, start)
    if len(data) == length or not data:
        return data
    pieces, at = [data], start + len(data)
    while at < start + length and (data := os.pread(descriptor, start + length - at, at)):
        pieces.append(data)
        at += len(data)
    return b"".join(pieces)


def _written(descriptor: int, spans: list[Span]) -> Iterator[Span]:
    """Those of `spans` that aren't a hole of the file: a file of many GB of which little was fetched isn't read."""
    for span in spans:
        try:
            if os.lseek(descriptor, span.start, os.SEEK_DATA) < span.start + max(span.length, 1):
                yield span
        except OSError:  # ENXIO: only holes from here on; a file system without holes takes every place as data
            return
