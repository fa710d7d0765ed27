"""The supervisor in a process of its own: `python -m finetune.jobs.supervise --store URL --job ID`.

Takes a job's id. Gives an exit code: 0 the job has ended (whichever way), 75 it is queued again, 3 somebody else runs
it. `MODELZOO_QUEUE` says which queue. Next: `finetune.jobs.supervisor`. Servers start it detached, so that a job
outlives the server that started it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from types import FrameType

from finetune.jobs.job import JobEnded, JobEvent, JobHeld, StaleFence, StateChanged
from finetune.jobs.queue import JobQueue
from finetune.jobs.supervisor import EXIT_INTERRUPTED, run_job
from zoo.errors import ZooError

EXIT_NOT_MINE = 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="finetune.jobs.supervise")
    parser.add_argument("--store", required=True)
    parser.add_argument("--job", required=True)
    options = parser.parse_args(arguments)
    stop = threading.Event()

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    try:
        job = run_job(JobQueue.of_store(options.store), options.job, store_url=options.store, on_event=_log, stop=stop)
    except (JobHeld, JobEnded, StaleFence, StateChanged) as error:
        print(error.message, file=sys.stderr)
        return EXIT_NOT_MINE
    except ZooError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return 1
    return 0 if job.ended else EXIT_INTERRUPTED


def _log(event: JobEvent) -> None:
    if event.kind != "progress":
        print(f"{event.time:%Y-%m-%dT%H:%M:%SZ} {event.message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
