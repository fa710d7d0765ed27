"""The tables of the job queue, and opening a database with them.

Takes a database URL. Gives a SQLAlchemy engine whose schema is the newest. Next: `finetune.jobs.queue`.
Times are seconds since the epoch (UTC) as floats, the same on SQLite and PostgreSQL; JSON is text.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import platformdirs
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from zoo.errors import FailedPrecondition, InvalidArgument, Unavailable
from zoo.store import open_store

HEAD_REVISION = "0002"  # the newest file in migrations/versions; a test holds them together
QUEUE_VARIABLE = "MODELZOO_QUEUE"  # a database URL; in the environment, since it may hold a password
_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_SECONDS = 30
_DRIVERS = ("sqlite", "postgresql", "postgresql+psycopg")
_MIGRATION_LOCK = 0x6D6F64656C7A6F6F  # any number that is ours alone in the database
_KEEPALIVE = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}

metadata = sa.MetaData()

JOBS = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Float),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Column("not_before", sa.Float),
    sa.Column("again", sa.Boolean, nullable=False),
    sa.Column("scheduled", sa.Boolean, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("result", sa.Text),
    sa.Column("progress", sa.Text),
    sa.Index("jobs_by_state", "state", "created"),
    sa.Index("jobs_by_name", "name", "created"),
)
_UNFINISHED = sa.text("state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED')")
# Two runs started in the same instant must not both make a job: the database lets one unfinished job a model be.
sa.Index("jobs_one_unfinished", JOBS.c.name, unique=True, sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED)

# Within a job the ids rise in the order of commits: an event is inserted after its job's row was locked by the update.
EVENTS = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("events_by_job", "job", "id"),
    sqlite_autoincrement=True,  # never gives a deleted row's id again, so a cursor stays right
)

# One row: the store whose jobs these are. Empty for a queue that lies in its store, which may be moved with it.
STORE = sa.Table(
    "store",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
)


class InvalidQueueUrl(InvalidArgument):
    """Not the address of a database that the queue can use."""


class QueueUnavailable(Unavailable):
    """The queue's database does not answer, or cannot be opened."""


class UnknownSchema(FailedPrecondition):
    """The database was written by a newer version of this program."""


def chosen_queue_url(store_url: str) -> str:
    """`MODELZOO_QUEUE`, else the store's default."""
    return os.environ.get(QUEUE_VARIABLE) or default_queue_url(store_url)


def default_queue_url(store_url: str) -> str:
    """Where the jobs of a store are kept unless somebody says otherwise.

    For a `file://` store `jobs/jobs.sqlite` inside it; for others, which SQLite can't lie in, a file in the data home
    (`MODELZOO_HOME`): each machine has its own, and learns of other machines' jobs from the store, see
    `finetune.jobs.adopt`. Raises InvalidStoreUrl.
    """
    store = open_store(store_url)
    path = store.local_path("jobs/jobs.sqlite")
    if path is not None:
        return f"sqlite:///{path.absolute()}"
    name = hashlib.sha256(store.url.encode()).hexdigest()[:32]
    return f"sqlite:///{data_home() / 'jobs' / (name + '.sqlite')}"


def shown_url(url: str) -> str:
    """Without the password."""
    return make_url(url).render_as_string()


def data_home() -> Path:
    """`MODELZOO_HOME`, else the user's data directory of this program."""
    return Path(os.environ.get("MODELZOO_HOME") or platformdirs.user_data_path("modelzoo"))


def open_engine(url: str) -> Engine:
    """One pooled engine whose schema is the newest. Raises InvalidQueueUrl, QueueUnavailable, UnknownSchema."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidQueueUrl(
            "the queue's URL cannot be read; expected e.g. sqlite:////var/lib/zoo/jobs.sqlite or "
            "postgresql://user@host/database"
        ) from None
    if parsed.drivername not in _DRIVERS:
        raise InvalidQueueUrl(
            f"queue URL {parsed.render_as_string()!r} begins with {parsed.drivername!r}; "
            f"expected one of {', '.join(_DRIVERS)}"
        )
    engine = _sqlite_engine(url, parsed.database) if _is_sqlite(parsed) else _postgresql_engine(parsed)
    try:
        _upgrade(engine)
    except BaseException as error:
        engine.dispose()
        if isinstance(error, OSError | DBAPIError):
            raise _unopened(parsed, error) from error
        raise
    return engine


def _unopened(url: URL, error: OSError | DBAPIError) -> QueueUnavailable:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return QueueUnavailable(f"the job queue {url.render_as_string()} cannot be opened: {cause}")


def _sqlite_engine(url: str, database: str | None) -> Engine:
    if not database or database == ":memory:":
        raise InvalidQueueUrl("the job queue needs a file: several processes share it")
    try:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unopened(make_url(url), error) from error
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS}, pool_size=5, max_overflow=10)
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves; the driver would say it late and deferred
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")  # a claim lost in a power cut would hand out its fence twice
    deadline = time.monotonic() + _BUSY_SECONDS
    while cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:  # the change needs the file for itself and does not wait for it, whatever busy_timeout says
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then writes can't wait for another writer (SQLITE_BUSY at once): writers take
    # the write lock when they begin.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _postgresql_engine(url: URL) -> Engine:
    """One that gives up on a server which is silent, and that a server gives up on: a process that was stopped in the
    middle of a transaction must not hold its rows for ever."""
    waits = f"-c lock_timeout={_BUSY_SECONDS}s -c idle_in_transaction_session_timeout={_BUSY_SECONDS}s"
    arguments = {"connect_timeout": 10, "application_name": "modelzoo", "options": waits, **_KEEPALIVE}
    try:
        return sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args=arguments,
            pool_pre_ping=True,  # a server that was restarted in between costs nobody an error
            pool_size=5,
            max_overflow=10,
        )
    except ModuleNotFoundError:
        raise InvalidQueueUrl(
            "a PostgreSQL queue needs the driver psycopg, which is not installed",
            hint="pip install 'modelzoo[postgresql]'",
        ) from None


def _upgrade(engine: Engine) -> None:
    if _revision(engine) == HEAD_REVISION:
        return
    with engine.execution_options(writes=True).begin() as connection:  # racing openers wait here, then find it done
        if not _is_sqlite(engine.url):
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        run_migrations(connection, "upgrade", "head")


def _revision(engine: Engine) -> str | None:
    """The schema's revision. Alembic itself is imported only when there is something to do: it takes 0.2 s."""
    with engine.connect() as connection:
        try:
            found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        except DBAPIError as error:
            if isinstance(error, OperationalError | sa.exc.ProgrammingError) and "alembic_version" in str(error):
                return None
            raise
    known = {path.stem.split("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py")}
    if found is not None and found not in known:
        raise UnknownSchema(
            f"the job queue {engine.url.render_as_string()} has schema {found!r}; "
            f"this version knows up to {HEAD_REVISION!r}",
            hint="upgrade modelzoo, or give another queue",
        )
    return found


def run_migrations(connection: Connection, direction: str, revision: str) -> None:
    """`upgrade` or `downgrade` to a revision, in the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    {"upgrade": command.upgrade, "downgrade": command.downgrade}[direction](config, revision)
