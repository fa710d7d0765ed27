"""Download: a blob's chunks, by parallel ranges, into a file.

Takes a store, a Blob and an open file. Gives the bytes at their places, verified. Next: `zoo.cache.blob_cache` gives
the file its name.

Each thread streams one chunk at a time: a piece (at most 1 MiB) is written at its place before the next one is read, so
memory doesn't grow with the blob.

Every byte is hashed once. Of some chunks (`fetch`) each is, by the thread that receives it, and compared with the
manifest's. Of a whole blob (`fetch_all`) the digest is made instead, by the calling thread, which follows the chunks in
order through the pages that were just written; the chunks' hashes are asked only when it comes out wrong, to find what
to fetch again or to name. It can't be the other way round, chunks without the digest: they would bind the bytes to this
manifest, but the cache and the features made with a backbone are keyed by the digest, across stores, and a manifest
whose digest and chunks are of different files would hand its bytes to all of them. Both for each byte took a third
longer here than boto3's download without any.
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

# Twice the cores, since half of them wait for the network; more of them than that cost more than they hide.
THREADS = max(2, min(8, 2 * (os.cpu_count() or 4)))
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
        self._each = True  # whether chunks are verified as they come
        self._there: set[int] = set()
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._talk = threading.Lock()

    @property
    def where(self) -> str:
        return f"{self._store.url}/{self._blob.key}"

    @property
    def there(self) -> frozenset[int]:
        """Chunks that are in the file; by `fetch` each was verified."""
        with self._changed:
            return frozenset(self._there)

    def fetch(self, spans: Iterable[Span], *, there: Iterable[int] = ()) -> None:
        """Fetches `spans`, less those of the index `there`. Raises CorruptBlob, and the errors of the store."""
        self._run(spans, there, lambda: None)

    def fetch_all(self, *, there: Iterable[int] = ()) -> None:
        """Fetches the blob, and proves its digest. Raises CorruptBlob, and the errors of the store."""
        spans = self._blob.spans()
        self._each = len(spans) == 1 and bool(self._blob.hashes)  # the one chunk's hash is the digest
        self._run(spans, there, lambda: None if self._each else self._prove(spans))

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
        if not self._each:
            self._receive(span, None)
        elif self._received_hash(span) != self._blob.hashes[span.index]:
            self._fetch_again(span)

    def _fetch_again(self, span: Span) -> None:
        """A chunk that isn't as it should be: it may have been spoilt on its way."""
        found = self._received_hash(span, again=True)
        if found != self._blob.hashes[span.index]:
            raise self._blob.other_chunk(span, found, self.where)

    def _received_hash(self, span: Span, *, again: bool = False) -> str:
        state = hashlib.sha256()
        self._receive(span, state, again=again)
        return state.hexdigest()

    def _receive(self, span: Span, state: hashlib._Hash | None, *, again: bool = False) -> None:
        at, end = span.start, span.start + span.length
        one_more = end == self._blob.size  # to notice an object that goes on
        try:
            for piece in self._store.stream(self._blob.key, start=at, length=span.length + one_more):
                if self._failure is not None:
                    raise _Stopped
                if at + len(piece) > end:
                    raise self._wrong_size(f"more than {self._blob.size}")
                if state is not None:
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

    def _wrong_size(self, text: str | None) -> CorruptBlob:
        return self._blob.other_size(text or self._store.stat(self._blob.key).size, self.where)

    def _prove(self, spans: list[Span]) -> None:
        """Hashes the whole behind the threads that fetch it; what is spoilt is looked for only then."""
        found = self._digest(spans)
        if found is None or found == self._blob.digest:
            return
        if self._mended(spans):
            found = self._digest(spans)
        if found is not None and found != self._blob.digest:
            raise self._blob.other_bytes(found, self.where)

    def _digest(self, spans: list[Span]) -> str | None:
        """None when another thread has failed meanwhile."""
        state = hashlib.sha256()
        for span in spans:
            with self._changed:
                while span.index not in self._there and self._failure is None:
                    self._changed.wait()
                if self._failure is not None:
                    return None
            self._hash(span, state)
        return "sha256:" + state.hexdigest()

    def _mended(self, spans: list[Span]) -> bool:
        """Fetches once more the chunks that aren't as they should be; whether there were any. Raises CorruptBlob."""
        any_bad = False
        for span in spans if self._blob.hashes else ():
            state = hashlib.sha256()
            self._hash(span, state)
            if state.hexdigest() != self._blob.hashes[span.index]:
                any_bad = True
                self._fetch_again(span)
        return any_bad

    def _hash(self, span: Span, state: hashlib._Hash) -> None:
        piece, end = bytearray(_PIECE), span.start + span.length
        for start in range(span.start, end, _PIECE):
            view = memoryview(piece)[: min(_PIECE, end - start)]
            os.preadv(self._descriptor, [view], start)
            state.update(view)
        with self._talk:
            self._on_step()
