"""The supervisor of one job: claims it, starts its roles, and brings it to an end, whatever happens to them.

Takes a queue and a job's id. Gives the job as it ended, or QUEUED again when interrupted. Next: the catalogue.
The same code runs inside `finetune run` and, in a process of its own, for a server (`finetune.jobs.supervise`).

Who may write what: the supervisor writes the job's row, every write under its fence; the roles write the job's folder
and never the database. A lost lease therefore means: end the roles at once and touch nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.jobs.cluster import CHIEF, EVALUATOR, Cluster
from finetune.jobs.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PEER_LOST
from finetune.jobs.folder import JobFolder
from finetune.jobs.job import Job, JobEvent, JobHeld, JobState, StaleFence, StateChanged
from finetune.jobs.launcher import Launch, RoleProcess, launch, stop_all
from finetune.jobs.lease import Lease
from finetune.jobs.mirroring import FolderCare, LocalFolder, Mirroring, MirrorPace
from finetune.jobs.owner import Owner
from finetune.jobs.peers import Peers, in_order
from finetune.jobs.placed import PlacedNews
from finetune.jobs.queue import HEARTBEAT_SECONDS, JobQueue, QueueUnavailable
from finetune.jobs.store_lease import ClaimedElsewhere
from finetune.jobs.tables import data_home
from zoo.catalog import Catalog, open_catalog
from zoo.errors import Internal, ZooError

_PROGRESS_SECONDS = 1.0  # between progress events of one phase
LONGEST_PAUSE = 60.0  # seconds of BACKOFF; what is longer comes from a clock that was set back
_HELD_SECONDS = 30.0  # after which a job that another machine runs is looked at again


class RoleCrashed(Internal):
    """A process of the job ended without saying why, too often."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long and how often; tests are less patient."""

    backoff_seconds: tuple[float, ...] = (1.0, 5.0, 15.0)  # before restart 1, 2, …; one crash more fails the job
    evaluator_restarts: int = 3
    stop_grace: float = 15.0
    peer_grace: float = 5.0  # for those that train beside the chief, once it has ended
    evaluator_end_grace: float = 20.0  # after the chief has exported
    poll: float = 0.2
    heartbeat: float = HEARTBEAT_SECONDS
    mirror: MirrorPace = field(default_factory=MirrorPace)


def job_folder_path(catalog: Catalog, job_id: str) -> Path:
    """`jobs/<id>` under the store; for a store that is not on this disk, in the data home."""
    return catalog.store.local_path(f"jobs/{job_id}") or data_home() / "jobs" / job_id


def run_job(
    queue: JobQueue,
    job_id: str,
    *,
    store_url: str,
    on_event: Callable[[JobEvent], None] | None = None,
    stop: threading.Event | None = None,
    inline: bool = False,
    patience: Patience | None = None,
    launch: Launch = launch,
    placed: Cluster | None = None,
) -> Job:
    """Runs a job until it has ended, was interrupted, or another supervisor took it.

    Must be called from a thread that outlives the call (the roles' parent-death signal is tied to it).

    Args:
        on_event: called with each event of the job, those from before this run too.
        stop: when set, the roles save and end, and the job is QUEUED again.
        inline: the chief's stderr is shown on ours.
        launch: how a role becomes a process.
        placed: the cluster of a job whose workers are started by hand; this machine has the chief and the evaluator.
    Returns:
        the job: SUCCEEDED with `result`, FAILED with `error`, CANCELLED, or QUEUED when interrupted.
    Raises:
        UnknownJob, JobHeld, JobEnded: it can't be claimed.
        StaleFence: the lease was lost, here or in the store; the roles have been ended.
        KeyboardInterrupt: after the roles have saved and the job is QUEUED again.
    """
    stop = stop or threading.Event()
    while True:
        job = queue.claim(job_id, Owner.of_this_process())
        job = _Run(queue, job, store_url, on_event, stop, inline, patience or Patience(), launch, placed).to_its_end()
        if job.state is not JobState.BACKOFF:
            return job
        _wait_for_restart(queue, job, stop)
        if stop.is_set():
            try:
                return queue.move(job, JobState.QUEUED, message="interrupted")
            except (StateChanged, StaleFence):  # cancelled, or claimed by somebody else, while it waited
                return queue.get(job_id)


def _wait_for_restart(queue: JobQueue, job: Job, stop: threading.Event) -> None:
    """As long as there is to wait now, by a clock that doesn't jump; more than any pause of ours is such a jump."""
    if job.not_before is not None:
        seconds = (job.not_before - queue.now()).total_seconds()
        stop.wait(min(max(seconds, 0.0), LONGEST_PAUSE))


class _Run:
    """One claim of one job."""

    def __init__(
        self,
        queue: JobQueue,
        job: Job,
        store_url: str,
        on_event: Callable[[JobEvent], None] | None,
        stop: threading.Event,
        inline: bool,
        patience: Patience,
        launch: Launch,
        placed: Cluster | None,
    ) -> None:
        self.queue = queue
        self.job = job
        self.store_url = store_url
        self.stop = stop
        self.inline = inline
        self.patience = patience
        self.launch = launch
        self.processes: dict[str, RoleProcess] = {}
        self._peers = Peers(job.spec.strategy, placed)
        self.evaluator_crashes = 0
        self._began_at = -1  # the step of the newest Checkpoint
        self._folder: JobFolder | None = None  # once it is made
        self._placed: PlacedNews | None = None
        self.shown: Mapping[str, Any] = job.progress or {}
        self._mirrored = 0.0
        self._silent = False
        self._told: dict[int, int] = {}  # the chief's process → how many of its news
        self._on_event = on_event
        self._cursor = 0
        self._lease = Lease(queue, job, patience.heartbeat)
        self._care: FolderCare = LocalFolder()

    def to_its_end(self) -> Job:
        self._lease.start()
        try:
            return self._supervised()
        except StateChanged:
            return self._cancelled()
        finally:
            self._stop(grace=0)
            self._care.close()
            self._lease.stop()
            self._tell()

    def _supervised(self) -> Job:
        """Every way out of `_supervise` leaves the job in a state that says what comes next."""
        try:
            return self._supervise()
        except (JobHeld, ClaimedElsewhere) as error:  # told by the store, while the lease here is ours
            self._stop(grace=0)
            self._move(JobState.BACKOFF, not_before=self.queue.now().timestamp() + _HELD_SECONDS, message=error.message)
            raise
        except (StateChanged, StaleFence):
            raise
        except KeyboardInterrupt:
            self._interrupt("Ctrl-C", self._folder)
            raise
        except ZooError as error:
            return self._failed(error.to_dict())
        except Exception as error:  # noqa: BLE001 – a fault of ours must not leave the job RUNNING until its lease ends
            return self._failed(Internal(f"the supervisor failed: {error!r}").to_dict())

    def _supervise(self) -> Job:
        catalog = open_catalog(self.store_url)
        root = job_folder_path(catalog, self.job.id)
        self._take_care_of(catalog, root)
        folder = JobFolder.create(root, job=self.job.id, spec=self.job.spec, store_url=self.store_url)
        self._folder = folder
        self._placed = PlacedNews(folder)
        self._care.follow(folder)
        if not folder.export_path.exists():  # else an earlier run was ended while publishing
            ended = self._train(folder)
            if ended is not None:
                return ended
        return self._publish(catalog, folder)

    def _take_care_of(self, catalog: Catalog, root: Path) -> None:
        """For a store that isn't on this disk: claims the job there too, and fetches what others did of it."""
        if catalog.store.local_path(f"jobs/{self.job.id}") is not None:
            return
        care = Mirroring(catalog.store, self.job, root, store_url=self.store_url, pace=self.patience.mirror)
        self._care = care
        if fetched := care.begin():
            self.job = self.queue.note(self.job, fetched)

    # -- training

    def _train(self, folder: JobFolder) -> Job | None:
        """None when the chief has exported; otherwise the job as it is now."""
        folder.error_path.unlink(missing_ok=True)
        self._began_at = self._newest_step()
        for role in (CHIEF, *self._peers.gather(folder)):
            self._launch(role, folder)
        self._move(JobState.RUNNING)
        while (code := self.processes[CHIEF].poll()) is None:
            if self.stop.is_set():
                return self._interrupt("stopped", folder)
            self._look(folder)
            ended = self._watch_evaluator(folder) or self._watch_peers(folder)
            if ended is not None:
                return ended
            self.stop.wait(self.patience.poll)
        self._look(folder)
        return self._chief_ended(folder, code)

    def _launch(self, role: str, folder: JobFolder) -> None:
        process = self.launch(role, folder, inline=self.inline)
        self.processes[role] = process
        self.job = self.queue.note(
            self.job, f"{role} started", role=role, pid=process.process.pid, log=str(folder.log_path(role))
        )

    def _look(self, folder: JobFolder) -> None:
        """Mirrors progress, notices a lost lease and a wish to cancel (StateChanged, from any write)."""
        self._lease.check()
        self._care.check()
        try:
            self._mirror(folder.read_progress())
            for text in self._care.news():
                self.job = self.queue.note(self.job, text)
            for text, facts in self._placed.read() if self._placed is not None else ():
                self.job = self.queue.note(self.job, text, **facts)
            self._tell()
        except QueueUnavailable as error:  # the roles go on without it; the lease decides how long
            if not self._silent:
                print(f"warning: {error.message}", file=sys.stderr)
            self._silent = True
        else:
            self._silent = False

    def _mirror(self, progress: dict[str, Any] | None, *, due: bool = False) -> None:
        self._tell_news(progress or {})
        new = {key: value for key, value in (progress or {}).items() if key not in ("time", "pid", "news")}
        due = (
            due or time.monotonic() - self._mirrored >= _PROGRESS_SECONDS or new.get("phase") != self.shown.get("phase")
        )
        if new and new != self.shown and due:
            self.job = self.queue.progress(self.job, new)
            self.shown, self._mirrored = new, time.monotonic()
        elif self.queue.get(self.job.id).state is not self.job.state:
            raise StateChanged(f"job {self.job.id} was changed by someone else")

    def _tell_news(self, progress: Mapping[str, Any]) -> None:
        """What the chief of this claim has to tell becomes events, each once."""
        chief = self.processes.get(CHIEF)
        if chief is None or progress.get("pid") != chief.process.pid:
            return
        for text in progress.get("news", [])[self._told.get(chief.process.pid, 0) :]:
            self.job = self.queue.note(self.job, text, role=CHIEF)
            self._told[chief.process.pid] = self._told.get(chief.process.pid, 0) + 1

    def _watch_evaluator(self, folder: JobFolder) -> Job | None:
        """Starts the evaluator when there is something to evaluate, and again when it crashed."""
        evaluator = self.processes.get(EVALUATOR)
        if evaluator is None:
            if folder.prepared_path.exists():
                self._launch(EVALUATOR, folder)
            return None
        code = evaluator.poll()
        if code is None or code == EXIT_DONE:
            return None
        error = folder.read_error()
        if code == EXIT_FAILED and error is not None:
            return self._failed(error)
        self.evaluator_crashes += 1
        if self.evaluator_crashes > self.patience.evaluator_restarts:
            return self._failed(_crash(EVALUATOR, code, folder).to_dict())
        self.job = self.queue.note(self.job, f"evaluator {_ended(code)}; started again", role=EVALUATOR, code=code)
        self._launch(EVALUATOR, folder)
        return None

    def _watch_peers(self, folder: JobFolder) -> Job | None:
        """A worker of a parameter server is started again; the end of any other ends the group, which starts again."""
        while (ended := self._peers.ended(self.processes)) is not None:
            error = folder.read_error()
            if ended.code == EXIT_FAILED and error is not None and not self._peers.may_pass(error):
                return self._failed(error)
            if not ended.again:
                self.job = self.queue.note(
                    self.job, f"{ended.role} {_ended(ended.code)}", role=ended.role, code=ended.code
                )
                crash = _crash(ended.role, ended.code, folder)
                self._stop(grace=0)  # without it they have nothing to save
                return self._crashed(crash)
            self.job = self.queue.note(
                self.job, f"{ended.role} {_ended(ended.code)}; started again", role=ended.role, code=ended.code
            )
            self._launch(ended.role, folder)
        return None

    def _chief_ended(self, folder: JobFolder, code: int) -> Job | None:
        self.job = self.queue.note(self.job, f"chief {_ended(code)}", role=CHIEF, code=code)
        if code == EXIT_DONE and folder.export_path.exists():
            self._wait_for_evaluator()
            return None
        cause = self._peers.cause(self.processes) if code == EXIT_PEER_LOST else None
        self._stop(grace=self.patience.stop_grace)  # before others may claim the job
        if code == EXIT_INTERRUPTED:
            return self._end(JobState.QUEUED, message="the chief was interrupted")
        error = folder.read_error()
        if code == EXIT_FAILED and error is not None and not self._peers.may_pass(error):
            return self._failed(error)
        return self._crashed(_crash(*(cause or (CHIEF, code)), folder))

    def _wait_for_evaluator(self) -> None:
        """It ends by itself once every Checkpoint is evaluated, which the chief has waited for."""
        evaluator = self.processes.get(EVALUATOR)
        deadline = time.monotonic() + self.patience.evaluator_end_grace
        while evaluator is not None and evaluator.poll() is None and time.monotonic() < deadline:
            self._lease.check()
            time.sleep(0.05)
        if evaluator is not None and (code := evaluator.poll()) is not None:
            self.job = self.queue.note(self.job, f"evaluator {_ended(code)}", role=EVALUATOR, code=code)
        self._stop(grace=self.patience.stop_grace)

    def _stop(self, *, grace: float) -> None:
        """Ends the roles, the chief before those that train beside it."""
        first, peers = in_order(self.processes)
        stop_all(first, grace=grace)
        stop_all(peers, grace=min(grace, self.patience.peer_grace))

    # -- ends

    def _publish(self, catalog: Catalog, folder: JobFolder) -> Job:
        from finetune.training.publish import finish

        self._move(JobState.PUBLISHING)
        self._tell()
        # By the job's id in the lineage, publishing is done once however often it is begun.
        self._care.confirm()
        result = finish(catalog, folder, again=self.job.again)
        return self._end(JobState.SUCCEEDED, result=dict(result), message=str(result.get("reference")))

    def _crashed(self, crash: RoleCrashed) -> Job:
        """Again after a pause, or failed: what counts are crashes in a row without a new Checkpoint between them."""
        delays = self.patience.backoff_seconds
        failures = 0 if self._newest_step() > self._began_at else self.job.failures
        if failures >= len(delays):
            return self._failed(crash.to_dict())
        not_before = self.queue.now().timestamp() + delays[failures]
        return self._move(JobState.BACKOFF, failures=failures + 1, not_before=not_before, message=crash.message)

    def _newest_step(self) -> int:
        """Of the job's Checkpoints; -1 without one."""
        return max(self._folder.checkpoint_steps(), default=-1) if self._folder is not None else -1

    def _failed(self, error: Mapping[str, Any]) -> Job:
        self._stop(grace=self.patience.stop_grace)
        return self._end(JobState.FAILED, error=dict(error), message=str(error.get("message")))

    def _interrupt(self, why: str, folder: JobFolder | None) -> Job:
        """The roles save and end. The job may be claimed only after that, so the lease is held until then."""
        self._stop(grace=self.patience.stop_grace)
        if folder is not None:
            self._mirror(folder.read_progress(), due=True)  # the step at which it goes on
        return self._end(JobState.QUEUED, message=f"interrupted: {why}")

    def _cancelled(self) -> Job:
        """A write met another state: the only one that others may set while we hold the lease is CANCELLING."""
        current = self.queue.get(self.job.id)
        if current.fence != self.job.fence or current.state is not JobState.CANCELLING:
            raise StaleFence(f"job {self.job.id} was taken from this supervisor; it is {current.state} now")
        self._stop(grace=self.patience.stop_grace)
        self.job = current
        return self._end(JobState.CANCELLED)

    def _end(self, state: JobState, *, message: str | None = None, **changes: Any) -> Job:
        """The store has all of the job's folder before its row says how it ended; if not, the row says that."""
        lacking = self._care.settle(state, error=changes.get("error"), result=changes.get("result"))
        if lacking:
            print(f"warning: {lacking}", file=sys.stderr, flush=True)
        return self._move(state, message="; ".join(filter(None, [message, lacking])) or None, **changes)

    def _move(self, state: JobState, **changes: Any) -> Job:
        self.job = self.queue.move(self.job, state, **changes)
        self._care.tell(state)
        return self.job

    def _tell(self) -> None:
        if self._on_event is None:
            return
        for event in self.queue.events(self.job.id, after=self._cursor):
            self._cursor = event.cursor
            self._on_event(event)


def _ended(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with {code}"


def _crash(role: str, code: int, folder: JobFolder) -> RoleCrashed:
    log = folder.log_path(role)
    lines = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
    return RoleCrashed(
        f"the {role} {_ended(code)} without a result; its log ends: {' | '.join(lines) or '(nothing)'}",
        hint=f"see {log}",
        log=str(log),
    )
