"""Job folders in a store elsewhere: what a reader of the bucket may rely on, wherever a pass was cut short."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.jobs.folder import CHECKPOINT_RECORD, JobFolder, NotAJobFolder, write_json
from finetune.jobs.mirror import _SOME_SIZE, STREAMED_BYTES, JobMirror
from finetune.jobs.restore import restore_folder, resume_step
from finetune.training.best import Evaluated, rotation
from finetune.training.evaluations import EvalResult, Evaluations
from tests.finetune.jobs.conftest import make_spec
from zoo.errors import Unavailable
from zoo.store.faulty import Crash, CrashAt, Fate, FaultPlan, FaultyStore
from zoo.store.memory import MemoryStore
from zoo.store.object_store import ObjectStore
from zoo.store.retrying import RetryingStore, RetryPolicy

SPEC = make_spec(steps=60, evaluate_every=10, keep_checkpoints=1)
LOSSES = {10: 5.0, 20: 3.0, 30: 4.0, 40: 2.0, 50: 2.5, 60: 2.6}
ID = "20250101-000000-abcd"
PREFIX = f"jobs/{ID}/"


class Run:
    """What a chief and an evaluator do to the folder, step by step, without training anything."""

    def __init__(self, root: Path) -> None:
        self.folder = JobFolder.create(root, job=ID, spec=SPEC, store_url="memory://x")

    def prepare(self) -> None:
        (self.folder.prepared / "x").mkdir(parents=True)
        (self.folder.prepared / "x" / "vocabulary.json").write_bytes(b"[]")
        write_json(self.folder.prepared_path, {"num_examples": {"train": 5, "validation": 2}})

    def save(self, step: int) -> None:
        temporary = self.folder.checkpoints / ".saving-x"
        temporary.mkdir(parents=True)
        for part in ("data-00000-of-00001", "index"):
            (temporary / f"checkpoint.{part}").write_bytes(f"{part} at {step}".encode() * 100)
        write_json(temporary / CHECKPOINT_RECORD, {"step": step})
        temporary.rename(self.folder.checkpoints / str(step))

    def evaluate(self, step: int) -> None:
        result = EvalResult(step=step, split="validation", num_examples=2, metrics={"loss": LOSSES[step]})
        Evaluations(self.folder, SPEC.train).write(result)

    def rotate(self) -> None:
        saved = self.saved()
        evaluations = Evaluations(self.folder, SPEC.train)
        best = evaluations.verdict().best
        done = [step for step in saved if evaluations.get(step)]
        for step in rotation(saved, keep=1, evaluated=done, best=best.step if best else None, train=SPEC.train):
            shutil.rmtree(self.folder.checkpoints / str(step))

    def saved(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.checkpoints.glob("[0-9]*"))

    def moments(self) -> list[Callable[[], None]]:
        """Everything that happens, in order."""
        acts: list[Callable[[], None]] = [self.prepare]
        for step in LOSSES:
            acts += [lambda step=step: self.save(step), lambda step=step: self.evaluate(step), self.rotate]  # type: ignore[misc]
        return acts


def whole_in(store: ObjectStore) -> list[int]:
    """The Checkpoints that a reader takes for complete; asserts that they are."""
    keys = {info.key for info in store.list(PREFIX)}
    steps = sorted(int(key.split("/")[3]) for key in keys if key.endswith(CHECKPOINT_RECORD))
    for step in steps:
        for part in ("data-00000-of-00001", "index"):
            assert store.read(f"{PREFIX}checkpoints/{step}/checkpoint.{part}") == f"{part} at {step}".encode() * 100
    return steps


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def mirrored(store: ObjectStore) -> dict[str, bytes]:
    return {info.key.removeprefix(PREFIX): store.read(info.key) for info in store.list(PREFIX)}


def test_the_store_has_what_the_folder_has_and_what_was_rotated_away_is_gone(tmp_path: Path) -> None:
    store, run = MemoryStore(), Run(tmp_path / "job")
    for act in run.moments():
        act()
        JobMirror(store, run.folder, ID).sync()
        assert mirrored(store) == contents(run.folder.root)
    assert whole_in(store) == [40, 60]
    for left_out in ("locks/chief.lock", "evaluator.json", ".secret"):
        path = run.folder.root / left_out
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    before = mirrored(store)
    assert JobMirror(store, run.folder, ID).sync(final=True).files == 0
    assert mirrored(store) == before


@pytest.mark.slow
def test_wherever_a_pass_is_cut_short_the_run_goes_on_exactly(tmp_path: Path) -> None:
    """A mirror that looks only now and then, and dies at each of its calls in turn."""
    starts = 0
    for every in (1, 4, 8):
        for call in range(1, 400):
            root = tmp_path / f"{every}-{call}"
            inner, run = MemoryStore(), Run(root)
            store = FaultyStore(inner, FaultPlan(crash=CrashAt(call=call, when=("before", "after")[call % 2])))  # type: ignore[arg-type]
            mirror = JobMirror(store, run.folder, ID)
            try:
                for number, act in enumerate(run.moments()):
                    act()
                    if number % every == 0:
                        mirror.sync()
                break  # more calls than there are
            except Crash:
                pass
            whole_in(inner)
            shutil.rmtree(root)
            if not any(inner.list(f"{PREFIX}spec.json")):
                continue
            restored = restore_folder(inner, ID, run.folder, claim=2)
            starts += restored.step is not None
            assert max(run.saved(), default=None) == restored.step
            goes_on_as_if_nothing_had_happened(run, restored.step or 0)
            shutil.rmtree(root)
    assert starts > 50


def goes_on_as_if_nothing_had_happened(run: Run, step: int) -> None:
    evaluations = Evaluations(run.folder, SPEC.train)
    for due in LOSSES:
        if due <= step and evaluations.get(due) is None:
            assert due in run.saved(), f"the evaluator would find no Checkpoint of step {due}"
            run.evaluate(due)
        if due > step:
            assert evaluations.get(due) is None
            run.save(due)
            run.evaluate(due)
            run.rotate()
    verdict = Evaluations(run.folder, SPEC.train).verdict()
    assert verdict.best == Evaluated(step=40, metric=2.0)
    assert 40 in run.saved()


def test_a_checkpoint_that_rotates_away_while_it_is_sent_is_never_half_there(tmp_path: Path) -> None:
    run = Run(tmp_path / "job")
    run.prepare()
    run.save(10)
    run.evaluate(10)
    run.save(20)

    class Rotating(MemoryStore):
        def create_from_file(self, key: str, path: Path, *, chunks: Any = ()) -> None:
            if "checkpoints/10/checkpoint.index" in key:  # its data file has been sent by then
                run.evaluate(20)
                run.rotate()
            super().create_from_file(key, path, chunks=chunks)

    store = Rotating()
    assert JobMirror(store, run.folder, ID).sync().complete
    assert whole_in(store) == [20]
    assert mirrored(store) == contents(run.folder.root)


def test_another_checkpoint_of_the_same_step_replaces_the_one_there(tmp_path: Path) -> None:
    store, run = MemoryStore(), Run(tmp_path / "job")
    run.prepare()
    run.save(10)
    index = run.folder.checkpoints / "10" / "checkpoint.index"
    for other in (b"of another run", None):  # first there are other bytes in the store than here
        data = index.read_bytes()
        if other:
            index.write_bytes(other)
        JobMirror(store, run.folder, ID).sync()
        assert mirrored(store) == contents(run.folder.root)
        index.write_bytes(data)
        (run.folder.root / ".mirror.json").unlink()  # nothing is known of what was sent
    assert mirrored(store) == contents(run.folder.root)


@pytest.mark.parametrize("seed", range(3))
def test_faults_of_the_store_are_outlasted(tmp_path: Path, seed: int) -> None:
    inner, run = MemoryStore(), Run(tmp_path / "job")
    faulty = FaultyStore(inner, FaultPlan.mixed(0.25, seed=seed))
    store = RetryingStore(faulty, RetryPolicy(first_pause=0.0001, longest_pause=0.001))
    mirror = JobMirror(store, run.folder, ID)
    for act in run.moments():
        act()
        mirror.sync()
    assert sum(count for fate, count in faulty.injected.items() if fate is not Fate.DELAYED) > 3
    assert mirrored(inner) == contents(run.folder.root)


def test_a_failed_pass_is_gone_on_with_and_nothing_is_sent_twice(tmp_path: Path) -> None:
    inner, run = MemoryStore(), Run(tmp_path / "job")
    run.prepare()
    run.save(10)
    store = FaultyStore(inner, FaultPlan(at=((4, Fate.UNAVAILABLE),)))
    mirror = JobMirror(store, run.folder, ID)
    with pytest.raises(Unavailable):
        mirror.sync()
    first = len(mirrored(inner))
    assert first > 0
    done = mirror.sync()
    assert first + done.files == len(contents(run.folder.root))
    assert mirrored(inner) == contents(run.folder.root)


def test_an_emptied_bucket_is_filled_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "job")
    run.prepare()
    JobMirror(MemoryStore(), run.folder, ID).sync()
    other = MemoryStore()
    JobMirror(other, run.folder, ID).sync()
    assert mirrored(other) == contents(run.folder.root)


def test_a_folder_that_was_removed_under_a_run_empties_no_bucket(tmp_path: Path) -> None:
    store, run = MemoryStore(), Run(tmp_path / "job")
    run.prepare()
    run.save(10)
    mirror = JobMirror(store, run.folder, ID)
    mirror.sync()
    before = mirrored(store)
    for path in list(run.folder.root.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(NotAJobFolder):
        mirror.sync()
    assert mirrored(store) == before


def test_what_grows_is_sent_in_shares_and_whole_at_the_end(tmp_path: Path) -> None:
    store, run = MemoryStore(), Run(tmp_path / "job")
    mirror = JobMirror(store, run.folder, ID)
    log = run.folder.log_path("chief")
    log.parent.mkdir()
    sent = 0
    for _ in range(400):
        with log.open("ab") as file:
            file.write(b"x" * 4000)
        sent += mirror.sync().bytes
    assert sent < 9 * log.stat().st_size + 40 * _SOME_SIZE
    assert store.stat(f"{PREFIX}logs/chief.log").size >= log.stat().st_size * 7 / 8
    mirror.sync(final=True)
    assert store.read(f"{PREFIX}logs/chief.log") == log.read_bytes()


def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    run = Run(tmp_path / "job")
    puts: list[int] = []

    class Watching(MemoryStore):
        def put(self, key: str, data: bytes) -> None:
            puts.append(len(data))
            super().put(key, data)

    store = Watching()
    log = run.folder.log_path("chief")
    log.parent.mkdir()
    for size in (STREAMED_BYTES + 1, STREAMED_BYTES + 2):
        with log.open("wb") as file:
            file.truncate(size)
        JobMirror(store, run.folder, ID).sync(final=True)
        assert store.stat(f"{PREFIX}logs/chief.log").size == size
    assert max(puts) < 10_000


@pytest.mark.parametrize(
    ("whole", "evaluated", "step"),
    [
        ([], [], None),
        ([10], [], 10),
        ([10, 20], [10], 20),
        ([20, 40], [10, 20, 30, 40], 40),
        ([20, 50], [10, 20, 30], 20),  # 40 was rotated away before its evaluation was sent
        ([10, 30], [10, 20, 30], 10),  # 20 is the best so far, and not there
        ([33], [10, 20, 30], None),  # saved on Ctrl-C; the best is not there
        ([20, 33], [10, 20, 30], 33),
        ([30], [], None),
    ],
)
def test_the_step_to_resume_at(whole: list[int], evaluated: list[int], step: int | None) -> None:
    sequence = [Evaluated(step=step, metric=LOSSES[step]) for step in evaluated]
    assert resume_step(SPEC.train, set(whole), sequence, evaluated=True) == step
    assert resume_step(SPEC.train, set(whole), [], evaluated=False) == max(whole, default=None)


def test_nothing_of_an_unfinished_export_comes_back(tmp_path: Path) -> None:
    store, run = MemoryStore(), Run(tmp_path / "job")
    run.prepare()
    run.folder.export.mkdir()
    (run.folder.export / "head.safetensors").write_bytes(b"half")
    write_json(run.folder.error_path, {"message": "of yesterday"})
    JobMirror(store, run.folder, ID).sync()
    restore_folder(store, ID, run.folder, claim=2)
    assert not run.folder.export.exists()
    assert run.folder.read_error() is None
    assert json.loads((run.folder.root / ".mirror.json").read_text())["claim"] == 2
    with pytest.raises(NotAJobFolder):
        restore_folder(store, "20250101-000000-none", run.folder, claim=2)
