from __future__ import annotations

import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from finetune.jobs import tables
from finetune.jobs.owner import Owner, start_ticks
from finetune.jobs.queue import JobQueue
from finetune.jobs.tables import UnknownSchema, default_queue_url, open_engine, run_migrations


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


def test_the_migrations_make_what_the_code_expects_and_go_back(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/jobs.sqlite")
    expected = sa.create_engine(f"sqlite:///{tmp_path}/expected.sqlite")
    tables.metadata.create_all(expected)
    assert shape(engine) == shape(expected)
    assert set(shape(engine)) == {"jobs", "events"}
    with engine.execution_options(writes=True).begin() as connection:
        run_migrations(connection, "downgrade", "base")
    assert shape(engine) == {}
    with engine.execution_options(writes=True).begin() as connection:
        run_migrations(connection, "upgrade", "head")
    assert shape(engine) == shape(expected)
    engine.dispose()
    expected.dispose()


def test_the_newest_migration_is_the_one_that_opening_looks_for(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/jobs.sqlite")
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    assert found == tables.HEAD_REVISION
    engine.dispose()


def test_a_failed_migration_leaves_nothing_behind(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    plain = sa.create_engine(url)
    with plain.begin() as connection:
        connection.execute(sa.text("CREATE TABLE events (mine TEXT)"))
    with pytest.raises(tables.QueueUnavailable, match="already exists"):
        open_engine(url)
    assert sa.inspect(plain).get_table_names() == ["events"]
    plain.dispose()


def test_a_queue_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    engine = open_engine(url)
    with engine.execution_options(writes=True).begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(UnknownSchema, match="9999"):
        open_engine(url)


def test_many_may_open_a_new_queue_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
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
