"""Transfer of blobs into a store.

Takes a Manifest and local files. Gives blobs under their digests, each hashed before it is sent. Next: `zoo.manifests`.

What has a key that names its bytes may be sent again by whoever doesn't know whether it arrived: that it is there
already is then as good as having written it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from zoo.byte_count import ByteCount, OnBytes, nobody_listens, one_at_a_time
from zoo.cache import blob_key
from zoo.errors import Aborted, FailedPrecondition, InvalidArgument
from zoo.file_hash import CHUNK_BYTES, FileHash, hash_file
from zoo.manifest import Asset, Component, Manifest
from zoo.pauses import Pauses
from zoo.store.object_store import NoAnswer, ObjectExists, ObjectMissing, ObjectStore, StoreBusy

_TRIES = 8  # of a small object's create, which no layer below repeats
_FIRST_PAUSE = 0.05  # seconds; doubled each time
_LONGEST_PAUSE = 2.0  # seconds
_FILE_TRIES = 2  # of a file's: a store below has tried more often
_THREADS = 4  # small files at once; a store sends the parts of a big one in parallel itself

Part = Component | Asset
R = TypeVar("R")


class WrongBytes(InvalidArgument):
    """A file, or a stored blob, hasn't the bytes or the size that the manifest says."""


class StrangeFile(InvalidArgument):
    """A file was given that the manifest doesn't name."""


class MissingBlob(FailedPrecondition):
    """A manifest names a blob that is neither in the store nor among the files given."""


class ChangedFile(Aborted):
    """A file was written to while it was being published."""


def create_same(store: ObjectStore, key: str, data: bytes) -> bool:
    """Writes an object whose key says what is in it, or that only has to be there.

    True when this call wrote it as far as is known, False when it was there. Raises StoreBusy and NoAnswer after 8
    tries, and what else the store raises.
    """
    pauses = Pauses(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
    silent = False
    while True:
        try:
            store.create(key, data)
            return True
        except ObjectExists:
            return silent  # after a lost answer it is most likely our own
        except (StoreBusy, NoAnswer) as error:
            silent = silent or isinstance(error, NoAnswer)
            if pauses.made + 1 >= _TRIES:
                raise
        pauses.wait()


class Sending:
    """The blobs of one version on their way into a store.

    `check` first, which writes nothing; then `send`, as often as there is reason to look again what is missing.
    """

    def __init__(
        self,
        store: ObjectStore,
        manifest: Manifest,
        files: Mapping[str, Path | FileHash],
        *,
        on_bytes: OnBytes = nobody_listens,
    ) -> None:
        """`files`: digest → file; a FileHash isn't hashed again while its file is unchanged. `on_bytes` is called with
        counts that add up to `bytes_of(manifest)` when everything is there. Raises StrangeFile."""
        parts: list[Part] = [*manifest.components, *manifest.assets]
        self._store = store
        self._parts = {part.digest: part for part in parts}
        self._files = files
        self._hashed: dict[str, FileHash] = {}
        told = one_at_a_time(on_bytes)
        self._counts = {part.digest: ByteCount(part.bytes, told) for part in self._parts.values()}
        strange = sorted(set(files) - set(self._parts))
        if strange:
            raise StrangeFile(f"files were given that the manifest does not name: {', '.join(strange)}")

    @property
    def store(self) -> ObjectStore:
        return self._store

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(self._parts)

    def check(self) -> None:
        """Looks what is missing, and hashes it. Raises MissingBlob, WrongBytes and the store's errors."""
        for part in self._missing():
            self._file(part)

    def send(self) -> int:
        """Writes what is missing; returns how many bytes were sent. Raises ChangedFile, and as `check`."""
        missing = self._missing()
        for digest in self._parts.keys() - {part.digest for part in missing}:
            self._counts[digest].complete()
        files = {part.digest: self._file(part) for part in missing}
        big = [part for part in missing if part.bytes > CHUNK_BYTES]
        small = [part for part in missing if part.bytes <= CHUNK_BYTES]
        sent = sum(_in_parallel(lambda part: self._send(part, files[part.digest]), small))
        return sent + sum(self._send(part, files[part.digest]) for part in big)

    def _missing(self) -> list[Part]:
        parts = list(self._parts.values())
        stored = list(_in_parallel(self._is_stored, parts))
        missing = [part for part, there in zip(parts, stored, strict=True) if not there]
        lacking = [f"{p.name} ({p.digest}, {p.bytes} bytes)" for p in missing if p.digest not in self._files]
        if lacking:
            raise MissingBlob(f"neither given nor in the store {self._store.url}: {', '.join(lacking)}")
        return missing

    def _is_stored(self, part: Part) -> bool:
        try:
            size = self._store.stat(blob_key(part.digest)).size
        except ObjectMissing:
            return False
        if size != part.bytes:
            raise WrongBytes(
                f"{part.name}: the blob {part.digest} in {self._store.url} has {size} bytes, "
                f"the manifest says {part.bytes}",
                hint="zoo verify",
            )
        return True

    def _file(self, part: Part) -> FileHash:
        """The file for a part, hashed once."""
        given = self._files[part.digest]
        known = self._hashed.get(part.digest)
        if known is None:
            known = given if isinstance(given, FileHash) and given.is_unchanged() else hash_file(_path(given))
        if known.digest != part.digest or known.bytes != part.bytes:
            raise WrongBytes(
                f"{part.name}: {known.path} is not what the manifest says: expected {part.digest} ({part.bytes} "
                f"bytes), found {known.digest} ({known.bytes} bytes)",
                expected=part.digest,
                found=known.digest,
            )
        if part.chunks and known.chunks != part.chunks:  # nobody could fetch a part of it
            raise WrongBytes(
                f"{part.name}: the manifest's chunk hashes are not those of {known.path} ({part.digest})",
                expected=part.digest,
                found=known.digest,
            )
        self._hashed[part.digest] = known
        return known

    def _send(self, part: Part, file: FileHash) -> int:
        key = blob_key(part.digest)
        self._create(part, key, file)
        self._counts[part.digest].complete()
        if not file.is_unchanged() and stored_digest(self._store, key) != part.digest:
            self._store.delete(key)  # wrong bytes under that digest help nobody
            raise ChangedFile(
                f"{part.name}: {file.path} was written to while it was being published", hint="publish it again"
            )
        return part.bytes

    def _create(self, part: Part, key: str, file: FileHash) -> None:
        """Whether this call or a rival's wrote it in the end can't always be told: a lost answer is followed by
        ObjectExists. It was missing, and its bytes were sent."""
        pauses = Pauses(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        while True:
            try:
                self._store.create_from_file(key, file.path, chunks=file.chunks, on_bytes=self._counts[part.digest].add)
                return
            except ObjectExists:
                self._is_stored(part)  # in its full length, that is
                return
            except (StoreBusy, NoAnswer) as error:
                if isinstance(error, NoAnswer) and self._is_stored(part):
                    return
                if pauses.made + 1 >= _FILE_TRIES:
                    raise
            pauses.wait()


def bytes_of(manifest: Manifest) -> int:
    """Of all its blobs, each once."""
    parts: list[Part] = [*manifest.components, *manifest.assets]
    return sum({part.digest: part.bytes for part in parts}.values())


def stored_digest(store: ObjectStore, key: str) -> str:
    """`sha256:<hex>` of an object's bytes, read piece by piece. Raises ObjectMissing."""
    state = hashlib.sha256()
    for piece in store.stream(key):
        state.update(piece)
    return "sha256:" + state.hexdigest()


def _path(given: Path | FileHash) -> Path:
    return given.path if isinstance(given, FileHash) else given


def _in_parallel(call: Callable[[Part], R], items: list[Part]) -> list[R]:
    if len(items) < 2:
        return [call(item) for item in items]
    with ThreadPoolExecutor(min(_THREADS, len(items)), thread_name_prefix="send") as pool:
        return list(pool.map(call, items))
