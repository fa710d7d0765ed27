from __future__ import annotations

import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from finetune.jobs import tables
from finetune.jobs.job import JobState
from finetune.jobs.owner import Owner, start_ticks
from finetune.jobs.queue import JobQueue, QueueOfAnotherStore
from finetune.jobs.rows import new_row
from finetune.jobs.tables import (
    QueueUnavailable,
    UnknownSchema,
    default_queue_url,
    open_engine,
    run_migrations,
)
from tests.finetune.jobs.conftest import make_spec
from tests.postgres import Postgres, PostgresMissing, running_postgres


def shape(engine: sa.Engine) -> dict[str, object]:
    inspector = sa.inspect(engine)
    return {
        table: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)],
            sorted((str(i["name"]), tuple(i["column_names"]), bool(i["unique"])) for i in inspector.get_indexes(table)),
        )
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def test_the_migrations_make_what_the_code_expects_and_go_back(
    queue_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    engine = open_engine(queue_url)
    if queue_url.startswith("sqlite"):
        expected = sa.create_engine(f"sqlite:///{tmp_path}/expected.sqlite")
    else:
        other = request.getfixturevalue("postgres").new_database()
        expected = sa.create_engine(other.replace("postgresql://", "postgresql+psycopg://"))
    tables.metadata.create_all(expected)
    assert shape(engine) == shape(expected)
    assert set(shape(engine)) == {"jobs", "events", "store"}
    with engine.execution_options(writes=True).begin() as connection:
        run_migrations(connection, "downgrade", "base")
    assert shape(engine) == {}
    with engine.execution_options(writes=True).begin() as connection:
        run_migrations(connection, "upgrade", "head")
    assert shape(engine) == shape(expected)
    engine.dispose()
    expected.dispose()


def test_the_newest_migration_is_the_one_that_opening_looks_for(queue_url: str) -> None:
    engine = open_engine(queue_url)
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    assert found == tables.HEAD_REVISION
    engine.dispose()


def test_a_failed_migration_leaves_nothing_behind(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    plain = sa.create_engine(url)
    with plain.begin() as connection:
        connection.execute(sa.text("CREATE TABLE events (mine TEXT)"))
    with pytest.raises(QueueUnavailable, match="already exists"):
        open_engine(url)
    assert sa.inspect(plain).get_table_names() == ["events"]
    plain.dispose()


def test_a_queue_of_a_newer_version_is_left_alone(queue_url: str) -> None:
    url = queue_url
    engine = open_engine(url)
    with engine.execution_options(writes=True).begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(UnknownSchema, match="9999"):
        open_engine(url)


def test_many_may_open_a_new_queue_at_once(queue_url: str) -> None:
    url = queue_url
    gate = threading.Barrier(6)
    opened: list[JobQueue] = []

    def work() -> None:
        gate.wait()
        opened.append(JobQueue(url))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [list(queue.list()) for queue in opened] == [[]] * 6
    for queue in opened:
        queue.close()


def test_the_queue_lies_beside_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_queue_url(f"file://{tmp_path}/a%20b") == f"sqlite:///{tmp_path}/a b/jobs/jobs.sqlite"
    monkeypatch.setenv("MODELZOO_HOME", str(tmp_path / "home"))
    first, second = default_queue_url("memory://one"), default_queue_url("memory://two")
    assert first != second
    assert first.startswith(f"sqlite:///{tmp_path}/home/jobs/")
    JobQueue(first)
    assert stat.S_ISREG(Path(first.removeprefix("sqlite:///")).stat().st_mode)


def test_an_owner_is_known_to_be_dead_only_when_it_is() -> None:
    me = Owner.of_this_process()
    assert Owner.decode(me.encode()) == me
    assert not me.is_dead()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner(user="u", host=me.host, pid=child.pid, place=me.place, started=start_ticks(child.pid))
    elsewhere = Owner(user="u", host="other", pid=child.pid, place="other", started=owner.started)
    assert not owner.is_dead()
    child.kill()
    assert child.stdin is not None
    child.stdin.close()
    while start_ticks(child.pid) != -1:  # a zombie is dead too
        pass
    assert owner.is_dead()
    assert not elsewhere.is_dead()
    child.wait()
    assert owner.is_dead()


def test_a_password_is_not_shown(postgres: Postgres) -> None:
    name = make_url(postgres.new_database()).database
    with pytest.raises(QueueUnavailable, match="does not exist") as error:
        open_engine(f"postgresql://zoo:secret@/not_{name}?host={postgres.folder}")
    assert "secret" not in error.value.message


def test_a_postgresql_that_is_gone_and_comes_back() -> None:
    """Killed in mid-work: said so, nothing lost, and the same queue works again without being opened anew."""
    try:
        with running_postgres() as server:
            queue = JobQueue(server.new_database())
            job = queue.claim(queue.create(make_spec()).id, Owner.of_this_process())
            server.kill()
            with pytest.raises(QueueUnavailable, match="does not answer"):
                queue.heartbeat(job)
            with pytest.raises(QueueUnavailable):
                queue.get(job.id)
            server.start()
            assert queue.get(job.id) == job
            assert queue.heartbeat(job).fence == 1
            assert queue.move(job, JobState.RUNNING).state is JobState.RUNNING
            queue.close()
    except PostgresMissing as error:
        pytest.skip(str(error))


def test_a_queue_is_of_one_store(queue_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another store's jobs would be run in this one."""
    mine, other = f"file://{tmp_path}/mine", f"file://{tmp_path}/other"
    monkeypatch.setenv(tables.QUEUE_VARIABLE, queue_url)
    for store in (mine, f"{mine}/"):
        with closing(JobQueue.of_store(store)) as queue:
            assert queue.url == queue_url
    with pytest.raises(QueueOfAnotherStore, match=rf"holds the jobs of {mine}, not of {other}"):
        JobQueue.of_store(other)
    monkeypatch.delenv(tables.QUEUE_VARIABLE)
    with pytest.raises(QueueOfAnotherStore):
        JobQueue.of_store(other, url=queue_url)
    with closing(JobQueue.of_store(other)) as queue:
        assert queue.url == f"sqlite:///{tmp_path}/other/jobs/jobs.sqlite"


def test_the_first_schema_is_brought_up_to_date_with_its_jobs(queue_url: str) -> None:
    engine = open_engine(queue_url)
    with engine.execution_options(writes=True).begin() as connection:
        run_migrations(connection, "downgrade", "0001")
    assert "store" not in shape(engine)
    job_id = "20260101-000000-00000000"
    with engine.execution_options(writes=True).begin() as connection:
        row = new_row(job_id, make_spec(), created=1.0, again=False, scheduled=True)
        connection.execute(sa.insert(tables.JOBS).values(**row, state="QUEUED", updated=1.0))
    engine.dispose()
    with closing(JobQueue(queue_url)) as queue:
        assert queue.get(job_id).spec == make_spec()
