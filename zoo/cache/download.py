"""Download: a blob's chunks, by parallel ranges, into a file.

Takes a store, a Blob and an open file. Gives the bytes at their places, each chunk verified, and the whole's digest.
Next: `zoo.cache.blob_cache` gives the file its name.

Each thread streams one chunk at a time: a piece (at most 1 MiB) is hashed and written at its place before the next one
is read, so memory doesn't grow with the blob. Chunks are taken in order, and the calling thread hashes the whole behind
them, from the pages that were just written: chunk hashes alone don't prove the digest, since a manifest may lie.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from zoo.cache.blob import Blob, CorruptBlob, Span
from zoo.cache.partial import write_at
from zoo.store.object_store import ObjectMissing, ObjectStore

THREADS = 8
_PIECE = 1 << 20  # bytes


class _Stopped(Exception):
    """Another thread has failed."""


class Download:
    """Of one blob into `descriptor`. `on_bytes` and `on_step` are called by one thread at a time.

    on_bytes: counts, each byte once. on_step: something went on, be it a byte received twice.
    """

    def __init__(
        self,
        store: ObjectStore,
        blob: Blob,
        descriptor: int,
        *,
        on_bytes: Callable[[int], None],
        on_step: Callable[[], None],
    ) -> None:
        self._store = store
        self._blob = blob
        self._descriptor = descriptor
        self._on_bytes = on_bytes
        self._on_step = on_step
        self._there: set[int] = set()
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._talk = threading.Lock()

    @property
    def where(self) -> str:
        return f"{self._store.url}/{self._blob.key}"

    @property
    def there(self) -> frozenset[int]:
        """Chunks that are in the file, each verified."""
        with self._changed:
            return frozenset(self._there)

    def fetch(self, spans: Iterable[Span], *, there: Iterable[int] = ()) -> None:
        """Fetches `spans`, less those of the index `there`. Raises CorruptBlob, and the errors of the store."""
        self._run(spans, there, lambda: None)

    def fetch_all(self, *, there: Iterable[int] = ()) -> None:
        """Fetches the blob, and proves its digest. Raises CorruptBlob, and the errors of the store."""
        spans = self._blob.spans()
        self._run(spans, there, lambda: self._prove(spans))

    def _run(self, spans: Iterable[Span], there: Iterable[int], meanwhile: Callable[[], None]) -> None:
        self._there = set(there)
        wanted = [span for span in spans if span.index not in self._there]
        queue = iter(wanted)
        count = max(1, min(THREADS, len(wanted)))
        with ThreadPoolExecutor(count, thread_name_prefix="download") as pool:
            try:
                for _ in range(count if wanted else 0):
                    pool.submit(self._work, queue)
                meanwhile()
            except BaseException as error:
                self._fail(error)
                raise
        if self._failure is not None:
            raise self._failure

    def _work(self, queue: Iterable[Span]) -> None:
        try:
            while True:
                with self._changed:
                    span = next(iter(queue), None)
                if span is None:
                    return
                self._fetch_chunk(span)
                with self._changed:
                    self._there.add(span.index)
                    self._changed.notify_all()
        except _Stopped:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _fetch_chunk(self, span: Span) -> None:
        found = self._receive(span, again=False)
        if not self._blob.hashes or found == self._blob.hashes[span.index]:
            return
        found = self._receive(span, again=True)  # it may have been spoilt on its way
        if found != self._blob.hashes[span.index]:
            raise self._blob.other_chunk(span, found, self.where)

    def _receive(self, span: Span, *, again: bool) -> str:
        at, end, state = span.start, span.start + span.length, hashlib.sha256()
        one_more = end == self._blob.size  # to notice an object that goes on
        try:
            for piece in self._store.stream(self._blob.key, start=at, length=span.length + one_more):
                if self._failure is not None:
                    raise _Stopped
                if at + len(piece) > end:
                    raise self._wrong_size(f"more than {self._blob.size}")
                state.update(piece)
                write_at(self._descriptor, piece, at)
                at += len(piece)
                with self._talk:
                    self._on_step()
                    if not again:
                        self._on_bytes(len(piece))
        except ObjectMissing:
            raise self._blob.missing(self._store.url) from None
        if at != end:
            raise self._wrong_size(None)
        return state.hexdigest()

    def _wrong_size(self, text: str | None) -> CorruptBlob:
        return self._blob.other_size(text or self._store.stat(self._blob.key).size, self.where)

    def _prove(self, spans: list[Span]) -> None:
        if len(spans) == 1 and self._blob.hashes:
            return  # the one chunk's hash is the digest
        state, piece = hashlib.sha256(), bytearray(_PIECE)
        for span in spans:
            with self._changed:
                while span.index not in self._there and self._failure is None:
                    self._changed.wait()
                if self._failure is not None:
                    return
            for start in range(span.start, span.start + span.length, _PIECE):
                view = memoryview(piece)[: min(_PIECE, span.start + span.length - start)]
                os.preadv(self._descriptor, [view], start)
                state.update(view)
            with self._talk:
                self._on_step()
        found = "sha256:" + state.hexdigest()
        if found != self._blob.digest:
            raise self._blob.other_bytes(found, self.where)
