"""Rows: what the index keeps of one model, read from the store and written into the tables.

Takes a model's name and what the index has of it. Gives ModelRows, and applies them. Next: `zoo.search.sync`.

Reading touches no table and writing no store, so that many models are read at once and written in one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from zoo.errors import DataLoss, FailedPrecondition
from zoo.log import DamagedLog, ModelState, NewerLog, VersionEntry
from zoo.manifest import Manifest
from zoo.manifests import read_manifest
from zoo.model_logs import ModelLogs
from zoo.search.times import microseconds
from zoo.store.object_store import ObjectStore

Facts = tuple[str, str | None, str | None, str | None, str | None, int, int, int, int | None, int]
_FACTS = "architecture, head, license, parent, job, input_size, height, width, num_classes, bytes"
_INT64 = 2**63


@dataclass(frozen=True, kw_only=True)
class NewVersion:
    """A version that the index doesn't have yet."""

    entry: VersionEntry
    facts: Facts  # in the order of _FACTS
    metrics: Mapping[tuple[str, str], float]  # by (split, metric)


@dataclass(frozen=True, kw_only=True)
class ModelRows:
    name: str
    before: int  # the seq that the index had when the log was read; 0: none
    mark: int
    seq: int  # 0: there is no such model (any more)
    entries: tuple[VersionEntry, ...] = ()  # every version there is, in order
    new: tuple[NewVersion, ...] = ()
    aliases: Mapping[str, int]
    problems: tuple[tuple[int | None, str], ...] = ()  # version (None: the model), what is wrong


def read_rows(
    logs: ModelLogs, store: ObjectStore, name: str, *, before: int, mark: int, known: Mapping[int, str]
) -> ModelRows:
    """What the index must have of a model now. `known`: the digest of each version that it has.

    A damaged log or manifest is a problem of its own and keeps nothing else out; what is read of a log up to there
    counts. Raises the store's errors.
    """
    problems: list[tuple[int | None, str]] = []
    try:
        state = logs.state(name)
    except (DamagedLog, NewerLog) as error:
        problems.append((None, error.message))
        state = error.before or ModelState(name=name)
    entries = () if state.deleted else state.versions
    new = []
    for entry in entries:
        if known.get(entry.number) == entry.digest:
            continue
        try:
            new.append(_new_version(store, name, entry))
        except (DataLoss, FailedPrecondition) as error:
            problems.append((entry.number, error.message))
    return ModelRows(
        name=name,
        before=before,
        # A log that can't be read to its end is read again next time.
        mark=0 if problems else mark,
        seq=state.seq,
        entries=entries,
        new=tuple(new),
        aliases={} if state.deleted else dict(state.aliases),
        problems=tuple(problems),
    )


def gone(name: str, before: int) -> ModelRows:
    """A model whose log isn't in the store any more."""
    return ModelRows(name=name, before=before, mark=0, seq=0, aliases={})


def _new_version(store: ObjectStore, name: str, entry: VersionEntry) -> NewVersion:
    manifest = read_manifest(store, entry.digest, f"{name}@{entry.number}")
    size, lineage = manifest.input_spec, manifest.lineage
    facts: Facts = (
        manifest.architecture.name,
        manifest.head.kind if manifest.head else None,
        manifest.license,
        lineage.parent,
        lineage.job,
        max(size.height, size.width),
        size.height,
        size.width,
        len(manifest.classes) if manifest.classes is not None else None,
        min(sum(component.bytes for component in manifest.components), _INT64 - 1),
    )
    return NewVersion(entry=entry, facts=facts, metrics=dict(_metrics(manifest)))


def _metrics(manifest: Manifest) -> Iterator[tuple[tuple[str, str], float]]:
    """Those that are numbers; others (a list per class, say) can't be compared."""
    for split, values in manifest.metrics.items():
        for metric, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                try:
                    yield (split, metric), float(value)
                except OverflowError:  # an integer of hundreds of digits
                    continue


class RowWriter:
    """Writes ModelRows within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._keys: dict[tuple[str, str], int] = {}

    def write(self, rows: ModelRows) -> bool:
        """False when the index meanwhile knows a later state, which stays."""
        name = rows.name
        found = self._connection.execute("SELECT seq FROM models WHERE name = ?", (name,)).fetchone()
        seq = found[0] if found else 0
        if seq not in (rows.before, rows.seq) and seq > rows.seq:
            return False
        self._connection.execute("DELETE FROM problems WHERE name = ?", (name,))
        self._connection.executemany(
            "INSERT INTO problems (name, version, message) VALUES (?, ?, ?)",
            [(name, version, _storable(message)) for version, message in rows.problems],
        )
        self._drop_versions(rows)
        for version in rows.new:
            self._insert(name, version)
        self._mark_versions(rows)
        self._connection.execute("DELETE FROM aliases WHERE name = ?", (name,))
        self._connection.executemany(
            "INSERT INTO aliases (name, alias, version) VALUES (?, ?, ?)",
            [(name, alias, number) for alias, number in rows.aliases.items()],
        )
        if rows.seq or rows.problems:
            self._connection.execute(
                "INSERT OR REPLACE INTO models (name, seq, mark) VALUES (?, ?, ?)", (name, rows.seq, rows.mark)
            )
        else:
            self._connection.execute("DELETE FROM models WHERE name = ?", (name,))
        return True

    def _drop_versions(self, rows: ModelRows) -> None:
        """Those that aren't there any more, or are another one now."""
        there = {entry.number: entry.digest for entry in rows.entries}
        found = self._connection.execute("SELECT id, version, digest FROM versions WHERE name = ?", (rows.name,))
        new = {version.entry.number for version in rows.new}
        ids = [(id_,) for id_, number, digest in found if there.get(number) != digest or number in new]
        if ids:
            self._connection.executemany("DELETE FROM metrics WHERE version_id = ?", ids)
            self._connection.executemany("DELETE FROM versions WHERE id = ?", ids)

    def _insert(self, name: str, version: NewVersion) -> None:
        entry = version.entry
        namespace = name.rpartition("/")[0] or None
        cursor = self._connection.execute(
            f"INSERT INTO versions (name, version, namespace, digest, created, archived, latest, listed, {_FACTS}) "
            "VALUES (?, ?, ?, ?, ?, 0, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (name, entry.number, namespace, entry.digest, microseconds(entry.created), *version.facts),
        )
        self._connection.executemany(
            "INSERT INTO metrics (version_id, key_id, value) VALUES (?, ?, ?)",
            [(cursor.lastrowid, self._key(key), value) for key, value in version.metrics.items()],
        )

    def _mark_versions(self, rows: ModelRows) -> None:
        """Sets the flags that the log decides; only rows whose flags change are written."""
        latest = rows.entries[-1].number if rows.entries else 0
        listed = next((entry.number for entry in reversed(rows.entries) if not entry.archived), 0)
        archived = {entry.number for entry in rows.entries if entry.archived}
        flags = self._connection.execute(
            "SELECT id, version, archived, latest, listed FROM versions WHERE name = ?", (rows.name,)
        )
        changed = []
        for id_, number, *now in flags.fetchall():
            wanted = [int(number in archived), int(number == latest), int(number == listed)]
            if now != wanted:
                changed.append((*wanted, id_))
        self._connection.executemany("UPDATE versions SET archived = ?, latest = ?, listed = ? WHERE id = ?", changed)

    def _key(self, key: tuple[str, str]) -> int:
        if key not in self._keys:
            self._connection.execute("INSERT OR IGNORE INTO metric_keys (split, metric) VALUES (?, ?)", key)
            found = self._connection.execute("SELECT id FROM metric_keys WHERE split = ? AND metric = ?", key)
            self._keys[key] = found.fetchone()[0]
        return self._keys[key]


def _storable(message: str) -> str:
    return message.encode("utf-8", "replace").decode()
