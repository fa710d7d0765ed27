"""Sync: brings the index up to what the store's logs say.

Takes a Catalog's logs and a Database. Gives the index what happened since. Next: `zoo.search.index`.

Three ways to find the models that changed, the cheapest that is complete being taken:
- on this machine's disk: the time at which each log's folder was last written to, against the one that the index
  remembers. Always complete: 10,000 models take some 50 ms. A time that is younger than a few seconds isn't remembered,
  for a second event may come within the same tick of the file system's clock;
- in a bucket, from the feed: the hints since the last time, less an hour for clocks that differ. Quick, but a hint may
  have been lost;
- in a bucket, by listing every log. Complete; taken at first, when the feed doesn't go back far enough, in the
  background of long-lived processes, and otherwise when the last one is 10 minutes old, or was so quick that it may as
  well be made each time.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from zoo.atomic_file import storage_error
from zoo.feed import FEED, KEPT_DAYS, hints, hour_of
from zoo.log_keys import MODELS, event_key, log_prefix, name_of_folder, parse_log_key
from zoo.model_logs import ModelLogs
from zoo.search.database import Database
from zoo.search.rows import ModelRows, RowWriter, gone, read_rows
from zoo.store.object_store import ObjectStore

FULL_EVERY = 600.0  # seconds between full listings
_QUICK = 0.2  # seconds: a full listing that takes no longer is made every time
_OVERLAP = timedelta(hours=1)
_FEED_REACH = timedelta(days=KEPT_DAYS) - timedelta(hours=12)
_SETTLED = 3_000_000_000  # nanoseconds
_BATCH = 200  # models a transaction
_READERS = 16  # models read at once from a bucket
_SHOWN_STRANGE = 20

_log = logging.getLogger(__name__)
_Item = TypeVar("_Item")


class _Known(NamedTuple):
    """What the index has of a model. (A tuple: with 10,000 of them a dataclass shows.)"""

    seq: int
    mark: int


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A model to read again."""

    name: str
    before: int
    mark: int = 0


class Sync:
    """Safe to share between threads."""

    def __init__(self, store: ObjectStore, logs: ModelLogs, database: Database) -> None:
        self._store = store
        self._logs = logs
        self._database = database
        self._lock = threading.Lock()
        self._last_start = float("-inf")  # when the last catching up that was finished began
        # What runs in the background needn't be waited for.
        self.full_in_background = False

    def is_complete(self) -> bool:
        """Whether the index has ever been filled to the end."""
        with self._database.reading() as connection:
            return _meta(connection, "complete") is not None

    def catch_up(self) -> None:
        """Everything that was committed before the call is in the index afterwards, but for lost hints.

        Raises the store's errors, IndexBusy, IndexRenewed.
        """
        asked = time.monotonic()
        with self._lock:
            if self._last_start >= asked:
                return  # somebody else's catching up began after we asked
            start = time.monotonic()
            self._catch_up()
            self._last_start = start

    def full(self) -> None:
        """As `catch_up`, by looking at every log. Runs beside it."""
        if (root := self._store.local_path(MODELS.rstrip("/"))) is not None:
            self._from_disk(root)
        else:
            self._from_listing()

    def rebuild(self) -> None:
        """Forgets everything and reads everything again."""
        with self._lock:
            with self._database.writing() as connection:
                for table in ("meta", "models", "versions", "aliases", "metric_keys", "metrics", "problems", "hints"):
                    connection.execute(f"DELETE FROM {table}")
            self.full()

    def _catch_up(self) -> None:
        if (root := self._store.local_path(MODELS.rstrip("/"))) is not None:
            self._from_disk(root)
            return
        with self._database.reading() as connection:
            complete = _meta(connection, "complete")
            cursor, full_at, took = (float(_meta(connection, key) or 0) for key in ("cursor", "full_at", "full_took"))
        now = time.time()
        reaches = now - cursor < _FEED_REACH.total_seconds() and cursor <= now
        overdue = now - full_at > FULL_EVERY and not self.full_in_background
        if complete is None or not reaches or took <= _QUICK or overdue:
            self._from_listing()
        else:
            self._from_feed(datetime.fromtimestamp(cursor, UTC) - _OVERLAP)

    # -- finding what changed

    def _from_disk(self, root: Path) -> None:
        known = self._known()
        names = {name.replace("/", "%2F"): name for name in known}  # 10,000 needn't be checked again each time
        wanted, marks, strange, there = [], [], [], set()
        for folder in _folders(root):
            name = names.get(folder) or name_of_folder(folder)
            if name is None:
                strange.append(f"{MODELS}{folder}/ belongs to no model: a model cannot have that name")
                continue
            mark = _mark(f"{root}/{folder}/log")
            if mark is None:
                continue  # no log (yet)
            there.add(name)
            has = known.get(name)
            if has is not None and has.mark == mark:
                continue
            remembered = mark if 0 <= time.time_ns() - mark >= _SETTLED else 0
            if has is not None and has.mark == 0 and self._is_last(name, has.seq):
                marks.append((remembered, name, has.seq))
            else:
                wanted.append(_Wanted(name=name, before=has.seq if has else 0, mark=remembered))
        lost = [gone(name, has.seq) for name, has in known.items() if name not in there]
        self._apply(wanted, lost)
        self._finish(strange, marks=marks)

    def _is_last(self, name: str, seq: int) -> bool:
        """Whether a log that may have been written to has no event after `seq`, and nothing to try again."""
        if next(iter(self._store.list(log_prefix(name), start_after=event_key(name, seq) if seq else "")), None):
            return False
        with self._database.reading() as connection:
            return connection.execute("SELECT 1 FROM problems WHERE name = ?", (name,)).fetchone() is None

    def _from_listing(self) -> None:
        started, clock = time.time(), time.monotonic()
        known = self._known()
        since = datetime.fromtimestamp(started, UTC) - _OVERLAP
        fed = list(self._fed(since))  # before the logs: what these hints tell of is in the listing
        newest: dict[str, int] = {}
        strange = []
        for info in self._store.list(MODELS):
            key = parse_log_key(info.key)
            if key is None:
                strange.append(f"{info.key} belongs to no model's log")
            elif key.kind == "log":
                newest[key.name] = max(key.seq, newest.get(key.name, 0))
        took = time.monotonic() - clock
        with self._database.reading() as connection:
            again = {name for (name,) in connection.execute("SELECT DISTINCT name FROM problems")}
        wanted = [
            _Wanted(name=name, before=known[name].seq if name in known else 0)
            for name, seq in newest.items()
            if name not in known or known[name].seq != seq or name in again
        ]
        self._apply(wanted, [gone(name, has.seq) for name, has in known.items() if name not in newest])
        self._finish(strange, cursor=started, full_at=started, full_took=took, fed=fed, since=since)

    def _from_feed(self, since: datetime) -> None:
        started = time.time()
        known = self._known()
        with self._database.reading() as connection:
            seen = {event_id for (event_id,) in connection.execute("SELECT event_id FROM hints")}
        newest: dict[str, int] = {}
        fed = []
        for hint in hints(self._store, since, seen=seen):
            newest[hint.name] = max(hint.seq, newest.get(hint.name, 0))
            fed.append((hint.event_id, hint.hour))
        wanted = [
            _Wanted(name=name, before=known[name].seq if name in known else 0)
            for name, seq in newest.items()
            if name not in known or known[name].seq < seq
        ]
        self._apply(wanted, [])
        with self._database.writing() as connection:
            _set_meta(connection, cursor=started)
            _remember_hints(connection, fed, since)

    def _fed(self, since: datetime) -> Iterator[tuple[str, str]]:
        for hour in self._store.folders(FEED):
            if hour >= hour_of(since):
                for info in self._store.list(f"{FEED}{hour}/"):
                    yield info.key.rpartition("/")[2].removesuffix(".json"), hour

    # -- reading and writing it

    def _apply(self, wanted: Iterable[_Wanted], rows: Iterable[ModelRows]) -> None:
        for batch in _batches(self._read(wanted)):
            self._write(batch)
        for batch in _batches(rows):
            self._write(batch)

    def _read(self, wanted: Iterable[_Wanted]) -> Iterator[ModelRows]:
        if self._store.local_path(MODELS.rstrip("/")) is not None:
            # One after the other: a disk answers at once, and what then takes the time holds the interpreter's lock.
            yield from map(self._read_model, wanted)
            return
        with ThreadPoolExecutor(_READERS, thread_name_prefix="index") as threads:
            for batch in _batches(wanted):  # so that not everything that was read waits in memory
                yield from threads.map(self._read_model, batch)

    def _read_model(self, wanted: _Wanted) -> ModelRows:
        has: Mapping[int, str] = {}
        if wanted.before:
            with self._database.reading() as connection:
                found = connection.execute("SELECT version, digest FROM versions WHERE name = ?", (wanted.name,))
                has = dict(found.fetchall())
        return read_rows(self._logs, self._store, wanted.name, before=wanted.before, mark=wanted.mark, known=has)

    def _write(self, batch: Iterable[ModelRows]) -> None:
        with self._database.writing() as connection:
            writer = RowWriter(connection)
            for rows in batch:
                writer.write(rows)

    def _finish(
        self,
        strange: list[str],
        *,
        marks: Iterable[tuple[int, str, int]] = (),
        fed: Iterable[tuple[str, str]] = (),
        since: datetime | None = None,
        **meta: float,
    ) -> None:
        """Writes what a whole look at the store found besides the models; nothing where that is known."""
        shown = strange[:_SHOWN_STRANGE]
        if len(strange) > len(shown):
            shown.append(f"and {len(strange) - len(shown)} more keys under {MODELS} that belong to no model")
        changed = [mark for mark in marks if mark[0]]
        with self._database.reading() as connection:
            found = connection.execute("SELECT message FROM problems WHERE name = '' ORDER BY rowid")
            same = [message for (message,) in found] == shown and _meta(connection, "complete") is not None
        if same and not changed and not meta:
            return
        with self._database.writing() as connection:
            connection.execute("DELETE FROM problems WHERE name = ''")
            connection.executemany("INSERT INTO problems (name, message) VALUES ('', ?)", [(text,) for text in shown])
            connection.executemany("UPDATE models SET mark = ? WHERE name = ? AND seq = ?", changed)
            if since is not None:
                _remember_hints(connection, fed, since)
            _set_meta(connection, complete=1, **meta)

    def _known(self) -> dict[str, _Known]:
        with self._database.reading() as connection:
            found = connection.execute("SELECT name, seq, mark FROM models")
            return {name: _Known(seq, mark) for name, seq, mark in found}


class Background:
    """A thread that looks at every log every so often, for processes that live long."""

    def __init__(self, look: Callable[[], None], *, every: float = FULL_EVERY) -> None:
        self._look = look
        self._every = every  # seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="index-listing", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self._look()
            except Exception:  # noqa: BLE001 - a thread of its own: what isn't caught here ends it, unseen
                _log.exception("looking at every log for the search index failed; it is tried again")


def _folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []  # nobody has written to the store
    except OSError as error:
        raise storage_error(error, "list", root) from error


def _mark(folder: str) -> int | None:
    """When something was last put into a folder or taken out, in nanoseconds; None when it isn't there."""
    try:
        return os.stat(folder).st_mtime_ns  # noqa: PTH116 - of 10,000 Paths the making alone shows
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise storage_error(error, "look at", Path(folder)) from error


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    left = iter(items)
    while batch := list(islice(left, _BATCH)):
        yield batch


def _meta(connection: sqlite3.Connection, key: str) -> float | None:
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return found[0] if found else None


def _set_meta(connection: sqlite3.Connection, **values: float) -> None:
    connection.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", values.items())


def _remember_hints(connection: sqlite3.Connection, fed: Iterable[tuple[str, str]], since: datetime) -> None:
    """So that no hint is read twice; those that are too old to be asked for are forgotten."""
    connection.executemany("INSERT OR IGNORE INTO hints (event_id, hour) VALUES (?, ?)", fed)
    connection.execute("DELETE FROM hints WHERE hour < ?", (hour_of(since),))
