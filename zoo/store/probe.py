"""Whether a bucket keeps the promises that the catalogue rests on; asked before anything is published to it.

Takes an ObjectStore, a cache directory and the store's id. Gives a ProbeReport, or UnsoundStore with what is wrong.
Next: `zoo.catalog` asks `require_sound` before its first write to a bucket. What was found sound is remembered for
MAX_AGE under `probes/` in the cache, by URL, endpoint and store id; a failed probe isn't.

Everything is written under `probe/<random>/` and deleted again. It is about 80 requests: 0.1 to 2 seconds on SeaweedFS,
where the losers of a race of three or more may wait a second.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from zoo.atomic_file import replaced_file, storage_error
from zoo.errors import FailedPrecondition, PermissionDenied, ZooError
from zoo.pauses import Pauses
from zoo.store.object_store import NoAnswer, ObjectExists, ObjectMissing, ObjectStore, StoreBusy

MAX_AGE = 7 * 24 * 3600.0  # seconds
RACES = ((2, 4), (4, 2))  # (writers, rounds)
LISTED = ("a-b", "a/c", "a/c-d", "a/c/e", "a.b", "a0")  # names that a server which walks folders gives in another order
_TRIES = 5  # of a write that isn't the question
_FORMAT = 1  # of what is remembered; raised when the probe asks more


class UnsoundStore(FailedPrecondition):
    """A bucket that breaks a promise, so that versions could be lost or doubled there."""


class ReadOnlyStore(PermissionDenied):
    """The access keys may read the bucket, but not write to it."""


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    url: str
    faults: tuple[str, ...]  # what is wrong, in sentences; empty for a sound store
    races: int  # rounds that were raced
    seconds: float
    left_behind: int  # objects that could not be deleted again

    @property
    def is_sound(self) -> bool:
        return not self.faults


def probe(store: ObjectStore) -> ProbeReport:
    """Tries the promises out. Raises the store's errors where it can't be written to or read at all."""
    started = time.monotonic()
    run = _Probe(store, f"probe/{secrets.token_hex(8)}/")
    try:
        faults = tuple(run.faults())
    finally:
        left = run.clean_up()
    return ProbeReport(
        url=store.url, faults=faults, races=run.races, seconds=time.monotonic() - started, left_behind=left
    )


def require_sound(store: ObjectStore, cache_root: Path, store_id: str | None) -> None:
    """Returns when the store is sound, as remembered or as probed now.

    Raises UnsoundStore, ReadOnlyStore, and the store's errors.
    """
    endpoint = _endpoint(store)
    known = {"format": _FORMAT, "url": store.url, "endpoint": endpoint, "store_id": store_id}
    name = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_root / "probes" / f"{name}.json"
    if _is_remembered(path, known):
        return
    try:
        report = probe(store)
    except PermissionDenied as error:
        raise ReadOnlyStore(
            f"nothing can be published to {store.url}: these keys may not write there ({error.message})",
            hint="use keys with the right to put and delete objects; everything but writing works without it",
            url=store.url,
        ) from error
    if not report.is_sound:
        raise UnsoundStore(
            f"the store {store.url} at {endpoint or 'its place'} cannot hold a catalogue: {'; '.join(report.faults)}",
            hint="use a server that honours If-None-Match on PutObject, as AWS and SeaweedFS do",
            url=store.url,
        )
    with replaced_file(path) as file:
        file.write(json.dumps(known | {"time": time.time(), "seconds": round(report.seconds, 3)}).encode())


def _is_remembered(path: Path, known: dict[str, object]) -> bool:
    try:
        found = json.loads(path.read_bytes())
        age = time.time() - found["time"]
        return all(found.get(name) == value for name, value in known.items()) and 0 <= age < MAX_AGE
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, "read", path) from error
    except (ValueError, KeyError, TypeError, AttributeError):
        return False  # not what we wrote: so it says nothing, and is replaced


def _endpoint(store: ObjectStore) -> str:
    """Where a bucket is, below whatever wraps its store; empty for stores that have no endpoint."""
    inner: object = store
    while (below := getattr(inner, "store", None)) is not None:
        inner = below
    return str(getattr(getattr(inner, "place", None), "endpoint", ""))


class _Probe:
    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._keys: list[str] = []
        self.races = 0

    def faults(self) -> Iterator[str]:
        key = self._key("first")
        self._put(key, b"first")  # refused here if keys may not write
        yield from self._second_create(key)
        yield from self._reads(key)
        yield from self._ranges()
        yield from self._listing()
        for writers, rounds in RACES:
            for number in range(rounds):
                yield from self._race(writers, self._key(f"race-{writers}-{number}"))

    def clean_up(self) -> int:
        """Returns how many objects are left, since they could not be deleted."""
        left = 0
        for number, key in enumerate(self._keys):
            try:
                self._store.delete(key)
            except NoAnswer:
                return left + len(self._keys) - number  # nobody there: the next ones would wait in vain too
            except ZooError:
                left += 1
        return left

    def _key(self, name: str) -> str:
        key = self._prefix + name
        self._keys.append(key)
        return key

    def _second_create(self, key: str) -> Iterator[str]:
        pauses = Pauses(first=0.1, longest=2.0)
        while (outcome := _outcome(lambda: self._store.create(key, b"second"))) in ("busy", "unknown"):
            if pauses.made + 1 >= _TRIES:
                raise NoAnswer(f"{self._store.url} did not answer {_TRIES} writes of a key that is taken", key=key)
            pauses.wait()
        if outcome == "won":
            yield "create-only writes are ignored: a second create of an object was accepted (If-None-Match: *)"

    def _reads(self, key: str) -> Iterator[str]:
        # A put that had to be sent again may arrive a second time after the next one: once proves nothing.
        older = 0
        for number in range(6):
            data = b"%d" % number
            self._put(key, data)
            older += self._store.read(key) != data
            if number >= 2 and older == 0:
                break
        if older >= 2:
            yield "a read right after a write gives the older bytes"
        self._store.delete(key)
        try:
            self._store.read(key)
        except ObjectMissing:
            return
        yield "a deleted object can still be read"

    def _ranges(self) -> Iterator[str]:
        data = hashlib.shake_128(b"ranges").digest(70_000)
        key = self._key("ranges")
        self._create(key, data)
        for start, length in ((0, 10), (65_530, 12), (1, 1), (69_990, 100), (69_999, None), (70_000, 5)):
            expected = data[start:] if length is None else data[start : start + length]
            if self._store.read(key, start=start, length=length) != expected:
                yield f"reading {length} bytes at {start} of an object of 70000 gives other bytes"

    def _listing(self) -> Iterator[str]:
        keys: list[str] = []
        folder = self._prefix + "list/"
        for name in LISTED:
            try:
                self._create(self._key(f"list/{name}"), b"")
            except ZooError as error:
                if "/" not in name or isinstance(error, (NoAnswer, StoreBusy, PermissionDenied)):
                    raise
                self._keys.pop()  # below an object: a store may refuse that
                continue
            keys.append(f"{folder}{name}")
            if [info.key for info in self._store.list(folder)] != sorted(keys):
                yield f"a listing right after a write is not complete and in order (after {len(keys)} writes)"
                return
        after = sorted(keys)[2]
        if [info.key for info in self._store.list(folder, start_after=after)] != sorted(keys)[3:]:
            yield "a listing that starts after a key does not go on right behind it"

    def _put(self, key: str, data: bytes) -> None:
        """Replaces an object; a lost answer is settled by reading it."""
        pauses = Pauses(first=0.1, longest=2.0)
        while True:
            try:
                self._store.put(key, data)
                return
            except (StoreBusy, NoAnswer) as error:
                if isinstance(error, NoAnswer) and self._holds(key, data):
                    return
                if pauses.made + 1 >= _TRIES:
                    raise
            pauses.wait()

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self._store.read(key) == data
        except (ObjectMissing, NoAnswer, StoreBusy):
            return False

    def _create(self, key: str, data: bytes) -> None:
        """Writes a new key; over a network that loses answers, which says nothing about the store's promises."""
        pauses = Pauses(first=0.1, longest=2.0)
        while True:
            try:
                self._store.create(key, data)
                return
            except ObjectExists:  # nobody else knows the key: a layer below sent it twice
                return
            except (StoreBusy, NoAnswer):
                if pauses.made + 1 >= _TRIES:
                    raise
            pauses.wait()

    def _race(self, writers: int, key: str) -> Iterator[str]:
        barrier = threading.Barrier(writers)

        def write(writer: int) -> str:
            barrier.wait(timeout=60)
            return _outcome(lambda: self._store.create(key, b"%d" % writer))

        kept: bytes | None = None
        for _ in range(_TRIES):  # until somebody's write went through: those that had no answer may not have
            with ThreadPoolExecutor(writers, thread_name_prefix="probe") as pool:
                outcomes = list(pool.map(write, range(writers)))
            kept = self._kept(key)
            if kept is not None or "won" in outcomes or "lost" in outcomes:
                break
        self.races += 1
        if kept is None and not {"won", "lost"} & set(outcomes):
            raise NoAnswer(f"{self._store.url} did not answer {_TRIES} races for one key", key=key)
        won = [writer for writer, outcome in enumerate(outcomes) if outcome == "won"]
        if len(won) > 1:
            yield f"create-only writes are not honoured in a race: {len(won)} of {writers} writers of one key won"
            return
        if kept is None:
            yield f"of {writers} writers of one key {len(won)} won, and the object is not there"
            return
        # Where nobody was told that it won, the winner's answer was lost: it heard nothing, or, where a layer below
        # sent it again, that the key is taken. (With the tries before this one, any of them may have been it.)
        if kept not in [b"%d" % writer for writer in won or range(writers)]:
            yield f"the object is not what the winner of {writers} racing writers wrote"

    def _kept(self, key: str) -> bytes | None:
        try:
            return self._store.read(key)
        except ObjectMissing:
            return None


def _outcome(write: Callable[[], None]) -> str:
    try:
        write()
    except ObjectExists:
        return "lost"
    except StoreBusy:
        return "busy"
    except NoAnswer:
        return "unknown"
    return "won"
