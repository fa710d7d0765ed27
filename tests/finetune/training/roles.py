"""Real chief and evaluator processes on a small store, for tests that end them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.jobs.folder import JobFolder
from finetune.spec import JobSpec
from tests.tiny import tiny_backbone_version
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.store import open_store

_ROOT = Path(__file__).parents[3]
_CODE = """
import sys
from pathlib import Path
from finetune.jobs.folder import JobFolder
from finetune.training import run
folder = JobFolder(Path(sys.argv[2]))
sys.exit(getattr(run, "run_" + sys.argv[1])(folder, folder.request().store_url))
"""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A store with the tiny backbone, and a cache of its own."""

    root: Path
    catalog: Catalog
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def make(cls, root: Path) -> Place:
        place = cls(root=root, catalog=Catalog(open_store((root / "store").as_uri()), BlobCache(root / "cache")))
        tiny_backbone_version(place.catalog)
        return place

    def job(self, name: str, **changes: Any) -> JobFolder:
        return JobFolder.create(
            self.root / "jobs" / name, job=name, spec=spec(**changes), store_url=(self.root / "store").as_uri()
        )

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": str(_ROOT),
            "MODELZOO_CACHE": str(self.root / "cache"),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }

    def start_following(self, root: Path) -> subprocess.Popen[bytes]:
        """`finetune evaluate --follow` as typed, into follow.out and follow.err; the folder needn't be there yet."""
        command = [sys.executable, "-m", "finetune.cli.main", "evaluate", "--job", str(root), "--follow"]
        with (self.root / "follow.out").open("wb") as out, (self.root / "follow.err").open("wb") as err:
            self.started.append(
                subprocess.Popen(
                    [*command, "--timeout", "240", "--format", "json"], stdout=out, stderr=err, env=self._environment()
                )
            )
        return self.started[-1]

    def start(self, role: str, folder: JobFolder) -> subprocess.Popen[bytes]:
        folder.logs.mkdir(parents=True, exist_ok=True)
        with folder.log_path(role).open("ab") as log:
            self.started.append(
                subprocess.Popen(
                    [sys.executable, "-c", _CODE, role, str(folder.root)],
                    stderr=log,
                    stdout=log,
                    env=self._environment(),
                )
            )
        return self.started[-1]

    def run(self, folder: JobFolder, *, seconds: float = 300) -> tuple[int, int]:
        """Both roles to their ends: (chief's exit code, evaluator's)."""
        both = [self.start("chief", folder), self.start("evaluator", folder)]
        try:
            chief = both[0].wait(timeout=seconds)
            if chief != 0:
                both[1].kill()
            return chief, both[1].wait(timeout=120)
        finally:
            kill(*both)


def spec(**changes: Any) -> JobSpec:
    """A run of a few seconds. Dropout and averages are on, so that forgetting their state would show."""
    train = {
        "steps": 400,  # a kill must find it in the middle
        "evaluate_every": 100,
        "keep_checkpoints": 2,
        "batch_size": 8,
        "deterministic": True,
        "optimizer": {"learning_rate": 0.005, "ema_decay": 0.99, "schedule": "cosine", "warmup_steps": 20},
    }
    arguments = {"units": 24, "embedding": 24, "min_count": 1, "embedding_dropout": 0.2, "word_dropout": 0.1}
    return JobSpec.parse(
        {
            "name": "child",
            "backbone": "tiny",
            "head": {"kind": "captioner", "arguments": arguments},
            "data": {"location": "scenes:count=40,size=32", "split": "source"},
            "train": train | changes.pop("train", {}),
            **changes,
        }
    )


def until(condition: Callable[[], bool], *processes: subprocess.Popen[bytes], seconds: float = 240.0) -> None:
    """Waits, but not past the end of any of the processes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert all(process.poll() is None for process in processes), "a process ended too early"
        time.sleep(0.005)


def kill(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()


def log(folder: JobFolder, role: str) -> str:
    return folder.log_path(role).read_text(errors="replace")
