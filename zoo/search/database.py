"""The index's file: SQLite in the cache, shared by any number of processes and threads.

Takes a path. Gives transactions. Next: `zoo.search.rows`, `zoo.search.sync`, `zoo.search.index`.

Everything in it can be built anew, so nothing here is worth an error to the user: a damaged file or one of another
schema is replaced by an empty one, and where the cache can't be written the index lives in memory. Either is logged.
A file is replaced by one of another name, never by one of the same: SQLite's side files (`-wal`, `-shm`) go by name,
and other processes may still have the old ones open.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from zoo.atomic_file import make_directories, replaced_file
from zoo.errors import Unavailable, ZooError
from zoo.search import schema

_log = logging.getLogger(__name__)
_BUSY = 20.0  # seconds to wait for another process's transaction
_DAMAGED = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT))
_UNWRITABLE = frozenset(
    (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
)


class IndexBusy(Unavailable):
    """Other processes kept the search index locked for too long."""


class IndexRenewed(Exception):
    """The index had to be replaced by an empty one while it was used: catch up, and ask again."""


class Database:
    """Safe to share between threads: one connection, one transaction at a time.

    `path`: of a small file that says which database file is the present one, beside it; None: in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._file: Path | None = None
        self._connection = self._opened()

    @property
    def in_memory(self) -> bool:
        return self._file is None

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent state. Raises IndexRenewed, IndexBusy."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises IndexRenewed, IndexBusy."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection.execute(begin)
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                finally:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
            except sqlite3.DatabaseError as error:
                self._recover(error)
                raise IndexRenewed from error

    def _recover(self, error: sqlite3.DatabaseError) -> None:
        """An empty index in the place of one that failed. Raises IndexBusy."""
        code = _primary_code(error)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise IndexBusy(f"the search index {self._file} is locked by another process: {error}") from error
        if self._file is None or not (_is_damage(error) or code in _UNWRITABLE):
            raise error  # in memory there is nothing to replace: a fault of ours
        with suppress(sqlite3.Error):
            self._connection.close()
        if code in _UNWRITABLE:
            self._connection = self._in_memory(str(error))
        else:
            _log.warning("the search index %s is damaged (%s): it is built anew", self._file, error)
            self._connection = self._opened(instead_of=self._file)

    def _opened(self, instead_of: Path | None = None) -> sqlite3.Connection:
        if self._path is None:
            return _new_connection(":memory:")
        try:
            make_directories(self._path.parent)
            return self._present(self._path, instead_of)
        except (OSError, ZooError) as error:
            return self._in_memory(str(error))
        except sqlite3.DatabaseError as error:
            if _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise IndexBusy(
                    f"the search index beside {self._path} is locked by another process: {error}"
                ) from error
            return self._in_memory(str(error))

    def _present(self, path: Path, instead_of: Path | None) -> sqlite3.Connection:
        """Opens the present file, or makes one where there is none that is sound."""
        present = _named_in(path)
        if present is not None and present != instead_of:
            try:
                connection = _connected(present)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                _log.warning("the search index %s is damaged (%s): it is built anew", present, error)
            else:
                if connection is not None:
                    self._file = present
                    return connection
                _log.info("the search index %s is of another version: it is built anew", present)
        self._file = path.with_name(f"{path.name}-{secrets.token_hex(6)}.sqlite")
        connection = _new_connection(str(self._file))
        with replaced_file(path) as file:
            file.write(self._file.name.encode())
        for old in path.parent.glob(f"{path.name}-*.sqlite*"):
            if not old.name.startswith(self._file.name):
                with suppress(OSError):  # somebody else may be removing it too
                    old.unlink()
        return connection

    def _in_memory(self, why: str) -> sqlite3.Connection:
        _log.warning(
            "the search index cannot be kept in %s (%s): it is built in memory, each time anew", self._path, why
        )
        self._file = None
        return _new_connection(":memory:")


def _named_in(path: Path) -> Path | None:
    """The database file that `path` names, if it is there."""
    try:
        name = path.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    if not (name.startswith(f"{path.name}-") and name.endswith(".sqlite") and name == os.path.basename(name)):  # noqa: PTH119
        return None
    found = path.with_name(name)
    return found if found.is_file() else None


def _connected(path: Path) -> sqlite3.Connection | None:
    """The database at `path`; None when it has another schema."""
    connection = _connection(str(path))
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'table'").fetchone()
        if version == schema.VERSION and tables == len(schema.NAMES):
            return connection
    except BaseException:
        connection.close()
        raise
    connection.close()
    return None


def _new_connection(path: str) -> sqlite3.Connection:
    connection = _connection(path)
    try:
        with closing(connection.cursor()) as cursor:
            cursor.executescript(f"BEGIN; {schema.TABLES} PRAGMA user_version = {schema.VERSION}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def _connection(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # no fsync a commit: the last ones may be lost, and are found
        connection.execute("PRAGMA cache_size = -32768")  # KiB
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def _primary_code(error: sqlite3.DatabaseError) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = _primary_code(error)
    return code in _DAMAGED or (code == sqlite3.SQLITE_ERROR and str(error).startswith("no such"))  # table, column
