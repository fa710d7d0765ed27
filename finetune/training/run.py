"""Run: the entry of a role's process, from the job's folder to an exit code.

Takes a JobFolder. Gives 0 (done), 1 (failed: error.json says why), 75 (interrupted, resumable) or 76 (another process
of its cluster was lost). Next: `finetune.training.chief`, `finetune.training.peer`, `finetune.training.evaluator_role`.

TensorFlow is imported inside the functions, after the environment is set.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.jobs.cluster import Cluster, PeerLost
from finetune.jobs.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PEER_LOST
from finetune.jobs.folder import JobFolder, write_json
from finetune.training.stop import Interrupted, StopSignal
from finetune.training.waiting import SILENT_SECONDS
from zoo.atomic_file import NoSpace, storage_error
from zoo.errors import Internal, ResourceExhausted, ZooError

if TYPE_CHECKING:
    from finetune.training.evaluations import EvalResult


class OutOfMemory(ResourceExhausted):
    """The machine or the accelerator has no memory left."""


def run_chief(job: JobFolder, store_url: str) -> int:
    """Prepares, trains and exports. Restarted, it goes on from the newest Checkpoint."""

    def train(stop: StopSignal) -> None:
        from finetune.training.chief import lead

        lead(job, store_url, stop)

    return _guarded(job, train, clear_error=True)


def run_worker(job: JobFolder, store_url: str, *, role: str, cluster: Cluster) -> int:
    """An all-reduce worker beside the chief: trains as the chief says, and writes nothing."""

    def follow(stop: StopSignal) -> None:
        from finetune.training.peer import follow_chief

        follow_chief(job, store_url, stop, role, cluster)

    return _guarded(job, follow, clear_error=False)


def run_server(job: JobFolder, *, role: str, cluster: Cluster) -> int:
    """A worker or ps of a parameter-server job: waits for what the coordinator sends, until it is ended."""

    def serve(stop: StopSignal) -> None:
        from finetune.training.peer import serve_coordinator

        serve_coordinator(job, role, cluster)

    return _guarded(job, serve, clear_error=False)


def run_evaluator(
    job: JobFolder,
    store_url: str,
    *,
    timeout: float = SILENT_SECONDS,
    on_cpu: bool = True,
    on_result: Callable[[EvalResult], None] = lambda result: None,
) -> int:
    """Evaluates every Checkpoint of the job, waiting for new ones until the last. Started before anything is prepared
    it waits; after `timeout` seconds without a sign of life of the chief it gives up, naming the folder.

    `on_cpu`: accelerators are hidden, since the chief trains on them."""
    if on_cpu:
        hide_accelerators()

    def evaluate(stop: StopSignal) -> None:
        from finetune.training.evaluator_role import evaluate_checkpoints

        evaluate_checkpoints(job, store_url, timeout, on_result)

    return _guarded(job, evaluate, clear_error=False)


def hide_accelerators() -> None:
    """To be called before TensorFlow is imported, or at least before it looks for devices."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def _guarded(job: JobFolder, body: Callable[[StopSignal], None], *, clear_error: bool) -> int:
    """Every way in which a role can end, as an exit code and a file."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with StopSignal() as stop:
        try:
            if clear_error:
                job.error_path.unlink(missing_ok=True)
            body(stop)
        except Interrupted:
            return EXIT_INTERRUPTED
        except PeerLost as error:  # not this process' error, nor the job's: the group starts again
            print(error.message, file=sys.stderr, flush=True)
            return EXIT_PEER_LOST
        except Exception as error:  # noqa: BLE001 - the edge of the process: nothing may leave it unreported
            _report(job, error)
            return EXIT_FAILED
        return EXIT_DONE


def _report(job: JobFolder, error: Exception) -> None:
    """error.json for others, stderr for the log. The first error of a job is the cause; a later one doesn't hide it."""
    known = _as_zoo_error(error)
    if isinstance(known, Internal):
        traceback.print_exception(error, file=sys.stderr)
    print(f"error: {known.message}" + (f"\nhint: {known.hint}" if known.hint else ""), file=sys.stderr, flush=True)
    if job.read_error() is not None:
        return
    try:
        write_json(job.error_path, known.to_dict())
    except ZooError as unwritten:  # a full disk, most likely the cause itself
        print(f"error: {unwritten.message}", file=sys.stderr, flush=True)


def _as_zoo_error(error: Exception) -> ZooError:
    if isinstance(error, ZooError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return storage_error(error, "use", Path(error.filename or "a file"))
    if os.strerror(errno.ENOSPC) in str(error):  # TensorFlow says it in words only, e.g. when it writes summaries
        return NoSpace(f"the disk is full: {error}", hint="free some space, then run the same command: it resumes")
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return OutOfMemory(f"memory ran out: {error}", hint="lower train.batch_size")
    return Internal(f"{type(error).__name__}: {error}", hint="the traceback is in the role's log")
