"""Verify: whether every byte that versions name is still what was published, and every log whole.

Takes a Catalog. Gives a VerifyReport. Next: `zoo verify` prints it.

Blobs are read once each, some at a time, in pieces: memory doesn't grow with them. Whole and chunks are hashed in the
same pass, so that the first bad chunk is known, and chunk hashes that aren't those of a sound blob are found too.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from zoo.atomic_file import DiskFault, NoAccess
from zoo.cache import blob_key
from zoo.catalog import Catalog, ModelVersion
from zoo.errors import DataLoss
from zoo.file_hash import CHUNK_BYTES
from zoo.log import DamagedLog, NewerLog
from zoo.log_keys import MODELS, model_prefix
from zoo.lookup import DeletedModel, UnknownModel
from zoo.manifests import NewerManifest, read_manifest
from zoo.names import Reference
from zoo.store.object_store import ObjectMissing
from zoo.transfer import Part

T = TypeVar("T")
R = TypeVar("R")

_LOCAL_THREADS = os.cpu_count() or 2  # hashing is all that takes time
_REMOTE_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Problem:
    """`offset`, `expected_chunk` and `found_chunk` are of the first chunk of 8 MiB that isn't as its manifest says."""

    reference: str  # a version, a model (for its log and cards), or a key
    part: str  # a component, an asset, `manifest`, `card`, `log` or `key`
    digest: str | None  # of the blob, where it is one
    found: str  # what is wrong
    offset: int | None = None  # bytes
    expected_chunk: str | None = None  # sha256:<hex>
    found_chunk: str | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """`blobs` and `bytes` count what was read; a blob that several versions share is read once. `logs`: how many."""

    versions: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]
    logs: int = 0


class Watcher:
    """Told how far it has come; each method may be called by any thread, by one at a time."""

    def planned(self, blobs: int, size: int) -> None:
        """So many blobs, of `size` bytes in all, will be read."""

    def read(self, count: int) -> None:
        """So many bytes more."""

    def done(self, blobs: int) -> None:
        """So many blobs until now."""


def verify(catalog: Catalog, reference: str | None = None, *, watcher: Watcher | None = None) -> VerifyReport:
    """Reads every byte of one version and its model's log, or of every version of every model that isn't deleted and
    all logs.

    Damage to one part doesn't keep the others from being read. Raises what `Catalog.get` does for `reference`, but for
    DataLoss, which is what the report is about, and the errors of a store that doesn't answer.
    """
    catalog = Catalog(catalog.store, catalog.cache)  # remembers no log that was read before
    return _Verification(catalog, watcher or Watcher()).run(reference)


@dataclass(frozen=True, kw_only=True)
class _Blob:
    digest: str
    size: int | None  # as published; None where nothing says it
    chunks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Use:
    """Where a blob is named."""

    reference: str
    part: str
    blob: _Blob


@dataclass(frozen=True, kw_only=True)
class _Fault:
    found: str
    offset: int | None = None
    expected_chunk: str | None = None
    found_chunk: str | None = None


class _Stopped(Exception):
    """The verification ends early."""


class _Verification:
    def __init__(self, catalog: Catalog, watcher: Watcher) -> None:
        self._catalog = catalog
        self._store = catalog.store
        self._watcher = watcher
        self._threads = _REMOTE_THREADS if self._store.local_path("x") is None else _LOCAL_THREADS
        self._problems: list[Problem] = []
        self._lock = threading.Lock()
        self._stop = False
        self._bytes = 0
        self._done = 0

    def run(self, reference: str | None) -> VerifyReport:
        names = self._catalog.names() if reference is None else [Reference.parse(reference).name]
        for found in self._in_parallel(self._log_problems, names):
            self._problems += found
        if reference is None:
            self._problems += self._strange_keys(names)
            references = [each for found in self._in_parallel(self._references, names) for each in found]
        else:
            references = [reference]
        versions = [version for version in self._in_parallel(self._version, references) if version is not None]
        uses = [use for version in versions for use in _uses(version)]
        uses += [use for found in self._in_parallel(self._cards, names) for use in found]
        blobs = list(dict.fromkeys(use.blob for use in uses))
        self._watcher.planned(len(blobs), sum(blob.size or 0 for blob in blobs))
        faults = dict(zip(blobs, self._in_parallel(self._fault, blobs), strict=True))
        self._problems += [_problem(use, fault) for use in uses if (fault := faults[use.blob])]
        return VerifyReport(
            versions=len(versions),
            blobs=len(blobs),
            bytes=self._bytes,
            problems=tuple(self._problems),
            logs=len(names),
        )

    def _log_problems(self, name: str) -> list[Problem]:
        found = self._catalog.logs.check(name)
        return [Problem(reference=name, part="log", digest=None, found=text) for text in found]

    def _strange_keys(self, names: list[str]) -> list[Problem]:
        """Those below no model's folder: the others have been named with the logs."""
        folders = {model_prefix(name) for name in names}
        strange = [
            key
            for key in self._catalog.logs.strange_keys()
            if MODELS + key.removeprefix(MODELS).partition("/")[0] + "/" not in folders
        ]
        return [Problem(reference=key, part="key", digest=None, found="no key of a model's log") for key in strange]

    def _references(self, name: str) -> list[str]:
        try:
            return self._catalog.references(name)
        except (UnknownModel, DeletedModel):
            return []  # a name without a version yet, or one that nobody can get
        except (DataLoss, NewerLog) as error:  # what is wrong with it has been found by `_log_problems`
            before = getattr(error, "before", None)
            return [f"{name}@{entry.number}" for entry in before.versions] if before and not before.deleted else []

    def _version(self, reference: str) -> ModelVersion | None:
        try:
            version = self._catalog.get(reference)
            read_manifest(self._store, version.digest, reference)  # the stored one, not what a cache has of it
            return version
        except (DamagedLog, NewerLog):
            return None  # found by `_log_problems`
        except (DataLoss, NewerManifest) as error:
            problem = Problem(reference=reference, part="manifest", digest=None, found=error.message)
            with self._lock:
                self._problems.append(problem)
            return None

    def _cards(self, name: str) -> list[_Use]:
        try:
            state = self._catalog.logs.state(name)
        except (DataLoss, NewerLog):
            return []  # found by `_log_problems`
        cards = () if state.deleted else state.cards
        return [_Use(reference=name, part="card", blob=_Blob(digest=card.digest, size=None)) for card in cards]

    def _fault(self, blob: _Blob) -> _Fault | None:
        heard = 0
        try:
            size = self._store.stat(blob_key(blob.digest)).size
            if blob.size is not None and size != blob.size:
                return _Fault(found=f"{size} bytes are stored, {blob.size} were published")
            hashed = _Hashed(blob.chunks)
            for piece in self._store.stream(blob_key(blob.digest)):
                if self._stop:
                    raise _Stopped
                hashed.update(piece)
                heard += len(piece)
                self._heard(len(piece))
            return hashed.fault(blob.digest)
        except ObjectMissing:
            return _Fault(found="the blob is missing")
        except (DiskFault, NoAccess) as error:  # of this file; that a whole store doesn't answer is raised
            return _Fault(found=error.message)
        finally:
            with self._lock:
                self._done += 1
                self._watcher.read(max((blob.size or 0) - heard, 0))
                self._watcher.done(self._done)

    def _heard(self, count: int) -> None:
        with self._lock:
            self._bytes += count
            self._watcher.read(count)

    def _in_parallel(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """The results, in order; the first error ends all. Only `_threads` items are under way at a time."""
        results: dict[int, R] = {}
        waiting = iter(enumerate(items))

        def work() -> None:
            try:
                while not self._stop:
                    with self._lock:
                        item = next(waiting, None)
                    if item is None:
                        return
                    results[item[0]] = call(item[1])
            except BaseException:
                self._stop = True
                raise

        threads = min(self._threads, len(items))
        if threads < 2:
            return [call(item) for item in items]
        with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
            try:
                futures = [pool.submit(work) for _ in range(threads)]
                errors = [error for future in futures if (error := future.exception()) is not None]
            except BaseException:  # Ctrl-C
                self._stop = True
                raise
        for error in sorted(errors, key=lambda error: isinstance(error, _Stopped)):
            raise error
        return [results[index] for index in range(len(results))]


class _Hashed:
    """The hashes of a blob's bytes, as they come."""

    def __init__(self, chunks: tuple[str, ...]) -> None:
        self._chunks = chunks
        self._whole = hashlib.sha256()
        self._chunk = hashlib.sha256()
        self._at = 0
        self._bad: _Fault | None = None

    def update(self, piece: bytes) -> None:
        self._whole.update(piece)
        view = memoryview(piece)
        while self._chunks and len(view):
            part = view[: CHUNK_BYTES - self._at % CHUNK_BYTES]
            self._chunk.update(part)
            self._at += len(part)
            view = view[len(part) :]
            if self._at % CHUNK_BYTES == 0:
                self._end_chunk(self._at - CHUNK_BYTES)

    def fault(self, digest: str) -> _Fault | None:
        if rest := self._at % CHUNK_BYTES:
            self._end_chunk(self._at - rest)
        found, bad = "sha256:" + self._whole.hexdigest(), self._bad
        if found == digest and bad is None:
            return None
        whole = f"the stored bytes have the digest {found}"
        if found == digest:
            whole = "the stored bytes are those of the digest, the manifest's chunk hashes are not"
        if bad is None:
            return _Fault(found=whole)
        return _Fault(
            found=f"{whole}; {bad.found}",
            offset=bad.offset,
            expected_chunk=bad.expected_chunk,
            found_chunk=bad.found_chunk,
        )

    def _end_chunk(self, start: int) -> None:
        index, found = start // CHUNK_BYTES, self._chunk.hexdigest()
        self._chunk = hashlib.sha256()
        if self._bad is not None or index >= len(self._chunks) or found == self._chunks[index]:
            return
        expected, found = f"sha256:{self._chunks[index]}", f"sha256:{found}"
        self._bad = _Fault(
            found=f"the first bad chunk is at byte {start} ({index + 1} of {len(self._chunks)}): {found}, "
            f"expected {expected}",
            offset=start,
            expected_chunk=expected,
            found_chunk=found,
        )


def _uses(version: ModelVersion) -> Iterator[_Use]:
    parts: list[Part] = [*version.manifest.components, *version.manifest.assets]
    for part in parts:
        blob = _Blob(digest=part.digest, size=part.bytes, chunks=part.chunks)
        yield _Use(reference=version.reference, part=part.name, blob=blob)


def _problem(use: _Use, fault: _Fault) -> Problem:
    return Problem(
        reference=use.reference,
        part=use.part,
        digest=use.blob.digest,
        found=fault.found,
        offset=fault.offset,
        expected_chunk=fault.expected_chunk,
        found_chunk=fault.found_chunk,
    )
