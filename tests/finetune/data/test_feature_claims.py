"""Several who fill the cache at once: each vector is computed by one, and all read the same bits of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data import feature_fill
from finetune.data.feature_claims import Claims, claims_of
from finetune.data.feature_fill import FillStopped
from finetune.data.feature_shards import ShardFolder
from finetune.data.feature_store import FeatureStore
from finetune.data.features import FeatureArray, FeatureCache
from finetune.data.sources import open_source
from tests.finetune.data.test_features import DIM, LIMIT, SCENES, MeanBackbone, fill
from zoo.store.memory import MemoryStore

ROOT = Path(__file__).parents[3]
# A process whose last bits are its own: what a vector is then tells whose it is.
FILLER = """
    import hashlib, os, sys, time
    from pathlib import Path
    import numpy as np
    from finetune.data import feature_fill, feature_shards
    from finetune.data.scenes import SceneSource
    from tests.finetune.data.test_features import MeanBackbone, fill
    feature_shards._SECONDS = 0.05  # of passes of 0.05 s each
    feature_fill._PATIENCE = float(sys.argv[2])
    class Own(MeanBackbone):
        def feature_vector(self, image_BHWC):
            time.sleep(0.05)
            if len(self.passes) == int(sys.argv[3]):
                print("hangs", flush=True)
                sys.stdin.readline()
            return super().feature_vector(image_BHWC) * np.float32(1 + os.getpid() % 997 * 1e-6)
    source = SceneSource.open("count=160,size=32")
    print("ready", flush=True)
    sys.stdin.readline()
    made = fill(Path(sys.argv[1]), Own(), source)
    print(made.computed, hashlib.sha256(made.features.tobytes()).hexdigest(), int(made.valid.sum()))
"""


@contextmanager
def fillers(root: Path, *hang_at: int, patience: float = 300.0) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that wait for a line before they begin, and before pass `hang_at`, if there is one, for another."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", textwrap.dedent(FILLER), str(root), str(patience)]
    started = [subprocess.Popen([*command, str(number)], cwd=ROOT, **pipes) for number in hang_at]
    try:
        assert [line(process) for process in started] == ["ready"] * len(hang_at)
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, int]:
    """(computed, digest of the features, how many)."""
    said = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 0
    computed, digest, valid = said[-1].split()
    return int(computed), digest, int(valid)


def vectors(root: Path) -> int:
    return sum(entry.vectors for entry in FeatureCache(root).list())


def test_each_vector_is_computed_by_one_process_and_all_read_its_bits(tmp_path: Path) -> None:
    with fillers(tmp_path, -1, -1, -1) as processes:
        go(*processes)
        said = [ended(process) for process in processes]
    assert sum(computed for computed, _, _ in said) == 160
    assert max(computed for computed, _, _ in said) < 160
    assert len({digest for _, digest, _ in said}) == 1
    assert [valid for _, _, valid in said] == [160] * 3
    assert vectors(tmp_path) == 160


def test_what_a_killed_process_had_claimed_is_computed_by_who_waits_for_it(tmp_path: Path) -> None:
    with fillers(tmp_path, 3, -1) as (killed, other):
        go(killed)
        assert line(killed) == "hangs"  # with claims on what it has decoded
        written = vectors(tmp_path)
        assert 0 < written <= 12
        go(other)
        deadline = time.monotonic() + 120
        while vectors(tmp_path) < 100 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert other.poll() is None
        killed.send_signal(signal.SIGKILL)
        computed, _, valid = ended(other)
    assert computed == 160 - written
    assert (valid, vectors(tmp_path)) == (160, 160)


def test_a_process_that_hangs_is_waited_for_only_so_long_and_then_reads_what_the_others_wrote(tmp_path: Path) -> None:
    with fillers(tmp_path, 1, -1, patience=1.0) as (hanging, other):
        go(hanging)
        assert line(hanging) == "hangs"
        written = vectors(tmp_path)
        go(other)
        computed, digest, valid = ended(other)
        assert computed == 160 - written
        assert valid == vectors(tmp_path) == 160
        go(hanging)  # what it computes now comes too late
        assert ended(hanging)[1:] == (digest, 160)
        assert vectors(tmp_path) == 160


class Waiting(MeanBackbone):
    """Its passes wait until both threads have begun."""

    def __init__(self, both: threading.Barrier) -> None:
        super().__init__()
        self._both = both

    def feature_vector(self, image_BHWC: Any) -> np.ndarray:
        if not self.passes:
            self._both.wait(timeout=60)
        return super().feature_vector(image_BHWC)


def in_threads(*calls: Callable[[], FeatureArray]) -> list[FeatureArray]:
    made: list[FeatureArray] = []
    threads = [threading.Thread(target=lambda call=call: made.append(call())) for call in calls]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    return made


def test_threads_of_one_process_share_the_work_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # two images are decoded ahead, so that both have some
    source = open_source("scenes:count=160,size=32")
    both = threading.Barrier(2)
    first, second = in_threads(*[lambda: fill(tmp_path, Waiting(both), source)] * 2)
    assert first.computed + second.computed == 160
    assert min(first.computed, second.computed) > 0
    assert first.features.tobytes() == second.features.tobytes()


def test_where_nothing_can_be_locked_it_is_still_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Claims, "take", lambda self, digest: True)
    source = open_source("scenes:count=20,size=32")
    both = threading.Barrier(2)
    first, second = in_threads(*[lambda: fill(tmp_path, Waiting(both), source)] * 2)
    assert first.computed + second.computed == 40
    assert first.features.tobytes() == second.features.tobytes()
    assert vectors(tmp_path) == 20


def test_a_fill_that_waits_for_others_can_be_stopped(tmp_path: Path) -> None:
    fill(tmp_path, MeanBackbone(), SCENES, indices=range(4))
    (folder,) = tmp_path.glob("[!.]*")
    hanging = claims_of(folder)
    digests = [digest for digest in taken_digests() if hanging.take(digest)]
    began = time.monotonic()
    with pytest.raises(FillStopped, match="stopped after 4 of 11 images"):
        fill(tmp_path, MeanBackbone(), SCENES, stop=lambda: time.monotonic() - began > 1.0)
    hanging.give_back(digests)
    assert fill(tmp_path, MeanBackbone(), SCENES).computed == 7


def taken_digests() -> list[bytes]:
    from hashlib import sha256

    return [sha256(SCENES.read(index)).digest() for index in range(11)]


def test_broken_bytes_under_two_names_are_two_bad_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_fill, "_PATIENCE", 3600.0)  # neither waits for the other
    folder = tmp_path / "data/a"
    folder.mkdir(parents=True)
    for name in ("1.png", "2.png", "3.png"):
        (folder / name).write_bytes(SCENES.read(0)[:150])
    (folder / "4.png").write_bytes(SCENES.read(1))
    made = fill(tmp_path / "cache", MeanBackbone(), open_source(f"folder:{tmp_path / 'data'}"))
    assert [record.id for record in made.bad] == ["a/1.png", "a/2.png", "a/3.png"]
    assert made.valid.tolist() == [False, False, False, True]


def a_folder(path: Path) -> ShardFolder:
    return ShardFolder(path, dim=DIM, key={"backbone": "b", "view": 0, "dtype": "float32"})


def test_of_two_files_with_a_vector_the_one_that_came_first_counts(tmp_path: Path) -> None:
    digest = b"d" * 32
    for number in range(6):  # whatever their names are
        one, other = a_folder(tmp_path / f"{number}" / "one"), a_folder(tmp_path / f"{number}" / "other")
        for folder, value in ((one, 0.0), (other, number + 1.0)):
            folder.add(digest, np.full(DIM, value, np.float32))
            folder.write()
        (late,) = other.path.glob("*.npy")
        copy = one.path / ".tmp-copy"
        copy.write_bytes(late.read_bytes())
        os.utime(copy, (0, 0))
        one.take_in(copy, late.name)
        read = np.empty((1, DIM), np.float32)
        one.reload()
        a_folder(one.path).gather([digest], read)
        assert len(list(one.path.glob("*.npy"))) == 2
        assert read.tolist() == [[0.0] * DIM]
        one.gather([digest], read)
        assert read.tolist() == [[0.0] * DIM]


class Own(MeanBackbone):
    def feature_vector(self, image_BHWC: Any) -> np.ndarray:
        return super().feature_vector(image_BHWC) * np.float32(1.000001)


def test_what_comes_from_the_store_changes_nothing_that_is_here(tmp_path: Path) -> None:
    """A run that is interrupted goes on with the same bits, whatever other machines have sent meanwhile."""
    before = fill(tmp_path / "here", MeanBackbone(), SCENES, indices=range(6))
    store = MemoryStore()
    options: dict[str, Any] = {"source": SCENES, "max_pixels": LIMIT, "batch_size": 4}
    FeatureCache(tmp_path / "there", shared=FeatureStore(store)).open_or_fill(
        backbone=Own(), indices=range(11), **options
    )
    after = FeatureCache(tmp_path / "here", shared=FeatureStore(store)).open_or_fill(
        backbone=MeanBackbone(), indices=range(11), **options
    )
    assert (after.computed, after.fetched) == (0, 5)
    assert after.features[:6].tobytes() == before.features.tobytes()
