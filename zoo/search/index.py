"""CatalogIndex: the door to search. Which versions match, in which order, a page at a time.

Takes a Catalog, filters and orders. Gives Pages of ModelVersions. Next: `zoo.cli.listing`, `server.catalog_servicer`,
`zoo.lineage`.

The logs are the truth; the index only says where to look. It lies in the cache, is made when it is first asked, brought
up to date by `zoo.search.sync`, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zoo.catalog import Catalog, ModelVersion
from zoo.errors import DataLoss, FailedPrecondition, InvalidArgument
from zoo.search.database import Database, IndexBusy, IndexRenewed
from zoo.search.fields import names_versions
from zoo.search.grammar import Expression, comparisons, parse, print_expression
from zoo.search.paging import Order, page_token, parse_order, print_order, read_page_token
from zoo.search.query import condition
from zoo.search.sync import FULL_EVERY, Background, Sync
from zoo.search.times import from_microseconds
from zoo.store_id import DamagedStoreId, store_id

if TYPE_CHECKING:
    import sqlite3

MAX_PAGE = 1000
PAGE = 100
_TRIES = 3
_Result = TypeVar("_Result")
_ROW = "v.name, v.version, v.digest, v.created, v.archived"
_ROW_COLUMNS = 5


class InvalidPageSize(InvalidArgument):
    """A page of no versions, or of more than there may be."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What keeps a model, a version or a key of the store out of the answers."""

    name: str  # of the model; empty for keys that belong to none
    version: int | None
    message: str


@dataclass(frozen=True, kw_only=True)
class Page:
    versions: tuple[ModelVersion, ...]
    next_page_token: str  # empty on the last page
    problems: tuple[Problem, ...]  # of the whole store, whatever the filter

    @property
    def references(self) -> tuple[str, ...]:
        return tuple(version.reference for version in self.versions)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A version as the index has it."""

    name: str
    number: int
    digest: str
    created: int  # microseconds since the epoch
    archived: bool
    aliases: tuple[str, ...]

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.number}"


class CatalogIndex:
    """Safe to share between threads; any number of processes may use one index."""

    def __init__(self, catalog: Catalog, database: Database) -> None:
        self._catalog = catalog
        self._database = database
        self._sync = Sync(catalog.store, catalog.logs, database)
        self._background: Background | None = None
        self._opening = threading.Lock()

    @classmethod
    def open(cls, catalog: Catalog) -> CatalogIndex:
        """The index of the catalogue's store, in its cache; nothing is read of the store but its id."""
        return cls(catalog, Database(_place(catalog)))

    def close(self) -> None:
        if self._background is not None:
            self._background.stop()
            self._background = None
        self._database.close()

    def __enter__(self) -> CatalogIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def in_memory(self) -> bool:
        return self._database.in_memory

    def catch_up(self) -> None:
        """Brings the index up to what is committed now. Raises the store's errors, IndexBusy."""
        self._again(self._sync.catch_up)

    def full_catch_up(self) -> None:
        """As `catch_up`, by looking at every log, so that what a lost hint didn't tell is found too."""
        self._again(self._sync.full)

    def rebuild(self) -> None:
        """Throws the index away and builds it from the logs and manifests."""
        self._again(self._sync.rebuild)

    def keep_listing(self, every: float = FULL_EVERY) -> None:
        """Looks at every log every so many seconds in a thread, until `close`; `catch_up` then leaves that to it.

        A store on this machine's disk needs no thread: there every catching up is complete.
        """
        with self._opening:
            if self._background is None and self._catalog.store.local_path("models") is None:
                self._sync.full_in_background = True
                self._background = Background(self.full_catch_up, every=every)

    def search(
        self,
        filter: str = "",
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
        *,
        all_versions: bool = False,
        catch_up: bool = True,
    ) -> Page:
        """A page of what matches.

        Without `all_versions`: of each model only the newest version that isn't archived; a filter that names a
        version (by version, digest, alias, latest or archived) looks at all of them.

        Args:
            filter: see `zoo.search.grammar` and `zoo.search.query`; empty: everything.
            order_by: `field [asc|desc], …`; default and tie-breaker: name, version.
            page_size: 0 means 100; at most 1,000.
            page_token: `next_page_token` of the page before, of the same query.
            catch_up: whether the first page catches up before; later pages don't.
        Raises InvalidFilter, InvalidOrder, InvalidPageToken, InvalidPageSize, the store's errors, IndexBusy.
        """
        asked = _Asked.of(filter, order_by, page_size, page_token, all_versions)
        if catch_up and not page_token:
            self.catch_up()

        def select() -> tuple[list[tuple[Row, list[Any]]], list[Problem]]:
            with self._complete() as connection:
                return _select(connection, asked), _problems(connection)

        found, problems = self._again(select)
        more = len(found) > asked.page_size
        found = found[: asked.page_size]
        versions, unreadable = self._load([row for row, _ in found])
        return Page(
            versions=tuple(versions),
            next_page_token=asked.token(found[-1][1]) if more else "",
            problems=(*problems, *unreadable),
        )

    def problems(self) -> tuple[Problem, ...]:
        """What could not be read when the index was last brought up to date."""

        def read() -> list[Problem]:
            with self._complete() as connection:
                return _problems(connection)

        return tuple(self._again(read))

    def children(self, reference: str) -> tuple[Row, ...]:
        """The versions, of any model, whose parent is `reference` (`name@version`), by name and version."""

        def read() -> list[Row]:
            with self._complete() as connection:
                found = connection.execute(
                    f"SELECT {_ROW} FROM versions v WHERE v.parent = ? ORDER BY v.name, v.version", (reference,)
                )
                return [_row(connection, values) for values in found.fetchall()]

        return tuple(self._again(read))

    def load(self, row: Row) -> ModelVersion:
        """Raises DamagedManifest, NewerManifest and the store's errors."""
        manifest = self._catalog.manifest(row.digest, row.reference)
        return ModelVersion(
            name=row.name,
            number=row.number,
            digest=row.digest,
            manifest=manifest,
            aliases=row.aliases,
            created=from_microseconds(row.created),
            archived=row.archived,
        )

    def _load(self, rows: list[Row]) -> tuple[list[ModelVersion], list[Problem]]:
        """One damaged manifest doesn't keep the others of the page away."""
        versions, problems = [], []
        for row in rows:
            try:
                versions.append(self.load(row))
            except (DataLoss, FailedPrecondition) as error:
                problems.append(Problem(name=row.name, version=row.number, message=error.message))
        return versions, problems

    @contextmanager
    def _complete(self) -> Iterator[sqlite3.Connection]:
        """One state of an index that has been filled to the end; another process may have begun it anew."""
        with self._database.reading() as connection:
            if connection.execute("SELECT 1 FROM meta WHERE key = 'complete'").fetchone() is None:
                raise IndexRenewed
            yield connection

    def _again(self, call: Callable[[], _Result]) -> _Result:
        """`call`, after catching up once more where the index was replaced meanwhile."""
        for _ in range(_TRIES):
            try:
                return call()
            except IndexRenewed:
                try:
                    self._sync.catch_up()
                except IndexRenewed:
                    continue
        raise IndexBusy("the search index was replaced again and again while it was used", hint="try again")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A query, checked as far as it can be without the index."""

    expression: Expression | None
    order: Order
    page_size: int
    last: list[Any] | None  # the sort keys of the last version of the page before
    every_version: bool
    text: str  # what a page token belongs to

    @classmethod
    def of(cls, filter: str, order_by: str, page_size: int, page_token: str, all_versions: bool) -> _Asked:
        if not 0 <= page_size <= MAX_PAGE:
            raise InvalidPageSize(f"page size {page_size}, expected 0 (meaning {PAGE}) to {MAX_PAGE}")
        expression = parse(filter)
        condition(expression, {}) if expression else None  # what it asks for is checked before the store is
        keys = parse_order(order_by)
        order = Order.of(keys)
        every = all_versions or any(names_versions(one.path) for one in comparisons(expression))
        text = f"{print_expression(expression) if expression else ''}\n{print_order(order.keys)}\n{every}"
        last = read_page_token(page_token, text, order) if page_token else None
        return cls(
            expression=expression,
            order=order,
            page_size=page_size or PAGE,
            last=last,
            every_version=every,
            text=text,
        )

    def token(self, last: list[Any]) -> str:
        return page_token(self.text, last)


def _select(connection: sqlite3.Connection, asked: _Asked) -> list[tuple[Row, list[Any]]]:
    """One version more than the page holds, to know whether there is a next page."""
    found = connection.execute("SELECT split, metric, id FROM metric_keys")
    keys = {(split, metric): number for split, metric, number in found}
    columns = asked.order.columns(keys)
    tests, parameters = ["1" if asked.every_version else "v.listed = 1"], [*columns.parameters]
    if asked.expression is not None:
        matches = condition(asked.expression, keys)
        tests.append(matches.sql)
        parameters += matches.parameters
    if asked.last is not None:
        after = asked.order.after(asked.last, keys)
        tests.append(after.sql)
        parameters += after.parameters
    sql = (
        f"SELECT {_ROW}, {columns.sql} FROM versions v WHERE {' AND '.join(tests)} "
        f"ORDER BY {asked.order.order_by(_ROW_COLUMNS + 1)} LIMIT {asked.page_size + 1}"
    )
    rows = connection.execute(sql, parameters).fetchall()
    return [(_row(connection, values[:_ROW_COLUMNS]), list(values[_ROW_COLUMNS:])) for values in rows]


def _row(connection: sqlite3.Connection, values: tuple[Any, ...]) -> Row:
    name, number, digest, created, archived = values
    found = connection.execute(
        "SELECT alias FROM aliases WHERE name = ? AND version = ? ORDER BY alias", (name, number)
    )
    aliases = tuple(alias for (alias,) in found)
    return Row(name=name, number=number, digest=digest, created=created, archived=bool(archived), aliases=aliases)


def _problems(connection: sqlite3.Connection) -> list[Problem]:
    found = connection.execute("SELECT name, version, message FROM problems ORDER BY name, version, rowid")
    return [Problem(name=name, version=version, message=message) for name, version, message in found]


def _place(catalog: Catalog) -> Path | None:
    """Where the index of a store lies: by its URL and its id, so that a store made again has another one."""
    url = catalog.store.url
    if url.startswith("memory://"):
        return None  # it ends with this process, and so does its index
    try:
        identity = store_id(catalog.store) or ""
    except DamagedStoreId:
        identity = ""  # reading goes on without; `zoo verify` names it
    key = hashlib.sha256(f"{url}\n{identity}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return catalog.cache.root / "index" / key
