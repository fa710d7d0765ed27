"""JobMirror: a job's folder in a store that isn't on this disk. No TensorFlow, which can't write there itself.

Takes a JobFolder. Gives the same files under `jobs/<id>/` in the store. Next: `finetune.jobs.restore` reads them.

What a reader of the bucket may rely on: an object is whole; a Checkpoint is there when its `checkpoint.json` is, and
`prepared/` and `export/` when theirs are; the best Checkpoint of the evaluations that are there is there. So the order
of a pass is: what is pointed to, what points to it, and what goes last of all; see also `restore.resume_step`, which
finds the newest state to go on from wherever a pass was cut short.

Not mirrored: locks, pulses (`evaluator.json`) and whatever begins with a dot.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune.jobs.folder import CHECKPOINT_RECORD, JobFolder, NotAJobFolder
from finetune.jobs.store_lease import job_prefix
from zoo.atomic_file import replaced_file, storage_error
from zoo.errors import DataLoss
from zoo.store.object_store import ObjectExists, ObjectStore

STATE_FILE = ".mirror.json"
STREAMED_BYTES = 64 << 20  # larger files are sent from the disk: an atomic put holds the whole in memory
_GROWN = 8  # a file of some size that grows (logs, events) is sent again when it has grown by an eighth …
_SOME_SIZE = 256 << 10  # … so that what is sent in all stays below 9 times what it comes to
_LEFT_OUT = frozenset({"locks", "evaluator.json", "owner.json", "claims"})
_GOES = ("checkpoints/", "export/", "error.json")  # nothing else of a job is ever removed
_TRIES = 4  # of a pass, while Checkpoints are rotated away under it
_CHECKPOINT = re.compile(r"checkpoints/[0-9]+/")
_LAST_OF_ITS_KIND = ("prepared/prepared.json", "export/export.json", "checkpoints/done.json")
_ORDER = ("spec.json", "prepared/", "logs/", "events/", "checkpoints/", "evaluations/", "export/", "", "result.json")


@dataclass(frozen=True)
class Mark:
    """By which a change of a file shows."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class MirrorPass:
    """What one pass did. `complete`: removals too; they wait while Checkpoints rotate faster than they are sent."""

    files: int
    bytes: int
    removed: int
    complete: bool


@dataclass
class MirrorState:
    """What the store has of this folder, kept in the folder. `claim`: the last that this folder was trained under
    (finetune.jobs.store_lease); where the store has a higher one, the folder is out of date."""

    claim: int = 0
    sent: dict[str, Mark] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> MirrorState:
        """A file that is missing or damaged says nothing: then the store is asked, and compared."""
        try:
            value = json.loads((folder / STATE_FILE).read_bytes())
            sent = {name: Mark(*mark) for name, mark in value["sent"].items()}
            return cls(claim=int(value["claim"]), sent=sent)
        except (OSError, ValueError, TypeError, LookupError):
            return cls()

    def write(self, folder: Path) -> None:
        sent = {name: [mark.size, mark.mtime_ns] for name, mark in sorted(self.sent.items())}
        with replaced_file(folder / STATE_FILE) as file:
            file.write(json.dumps({"claim": self.claim, "sent": sent}).encode())


class MirrorBroken(DataLoss):
    """The store holds other bytes than were sent."""


class _Vanished(Exception):
    """A Checkpoint was rotated away while it was being sent."""


class JobMirror:
    """Used by one thread at a time; no other process mirrors the same job, which its StoreLease takes care of."""

    def __init__(self, store: ObjectStore, folder: JobFolder, job_id: str) -> None:
        self._store = store
        self._folder = folder
        self._prefix = job_prefix(job_id)
        self._state = MirrorState.read(folder.root)
        self._there: set[str] | None = None  # names of the objects in the store, once it was asked

    def sync(self, *, final: bool = False) -> MirrorPass:
        """One pass; `final` also sends what has grown a little only. Raises the store's errors: the next pass goes on.

        Raises NotAJobFolder, and touches nothing, when the folder has gone.
        """
        before, there = dict(self._state.sent), self._ask()
        files, count = 0, 0
        try:
            for _ in range(_TRIES):
                found = self._scan()
                try:
                    for name, mark in found.items():
                        if self._due(name, mark, final=final):
                            self._send(name, mark)
                            files, count = files + 1, count + mark.size
                except _Vanished:
                    continue
                removed = self._remove([name for name in there if name.startswith(_GOES) and name not in found])
                return MirrorPass(files=files, bytes=count, removed=removed, complete=True)
            return MirrorPass(files=files, bytes=count, removed=0, complete=False)
        finally:
            if self._state.sent != before:
                self._state.write(self._folder.root)

    def _ask(self) -> set[str]:
        """What the store has; what it hasn't any more was never sent."""
        if self._there is None:
            sizes = {
                name: info.size
                for info in self._store.list(self._prefix)
                if (name := info.key.removeprefix(self._prefix)).partition("/")[0] not in _LEFT_OUT
            }
            sent = self._state.sent
            self._state.sent = {name: mark for name, mark in sent.items() if sizes.get(name) == mark.size}
            self._there = set(sizes)
        return self._there

    def _scan(self) -> dict[str, Mark]:
        """The files in the order in which they are to be sent.

        Evaluations are listed first: the Checkpoint of each that is found was there by then, so that one which is
        missing below has been rotated away.
        """
        root = self._folder.root
        found = dict(_files(root, self._folder.evaluations))
        found |= {name: mark for name, mark in _files(root, root) if not name.startswith("evaluations/")}
        if "spec.json" not in found:
            raise NotAJobFolder(f"{root} has no spec.json: it was removed while its job runs", path=str(root))
        whole = {match[0] for name in found if (match := _CHECKPOINT.match(name)) and name.endswith(CHECKPOINT_RECORD)}
        torn = [name for name in found if (match := _CHECKPOINT.match(name)) and match[0] not in whole]
        return {name: found[name] for name in sorted(found.keys() - set(torn), key=_place)}

    def _due(self, name: str, mark: Mark, *, final: bool) -> bool:
        sent = self._state.sent.get(name)
        if sent is None or sent == mark:
            return sent is None
        grows = name.startswith(("logs/", "events/")) and mark.size >= _SOME_SIZE
        return final or not grows or not sent.size <= mark.size < sent.size + sent.size // _GROWN

    def _send(self, name: str, mark: Mark) -> None:
        path, key = self._folder.root / name, self._prefix + name
        checkpoint = _CHECKPOINT.match(name)
        if checkpoint and not name.endswith(CHECKPOINT_RECORD):
            self._unsay(checkpoint[0] + CHECKPOINT_RECORD)
        try:
            if checkpoint or mark.size > STREAMED_BYTES:
                self._send_streamed(key, path)
            else:
                self._store.put(key, path.read_bytes())
        except Exception as error:
            if not path.exists():  # whatever the store made of that
                if checkpoint:
                    raise _Vanished from None
                return
            if isinstance(error, OSError):
                raise storage_error(error, "read", path) from error
            raise
        self._state.sent[name] = mark
        if self._there is not None:
            self._there.add(name)

    def _unsay(self, record: str) -> None:
        """A Checkpoint of that step which the store has is another one: it isn't whole while its files are replaced."""
        if self._there is not None and record in self._there:
            self._store.delete(self._prefix + record)
            self._there.discard(record)
            self._state.sent.pop(record, None)

    def _send_streamed(self, key: str, path: Path) -> None:
        try:
            self._store.create_from_file(key, path)
        except ObjectExists:
            if self._same(key, path):  # sent before, and the answer or our note of it was lost
                return
            self._store.delete(key)
            self._store.create_from_file(key, path)
            if not self._same(key, path):
                raise MirrorBroken(f"{key} in {self._store.url} is not what {path} is", key=key) from None

    def _same(self, key: str, path: Path) -> bool:
        if self._store.stat(key).size != path.stat().st_size:
            return False
        stored = hashlib.sha256()
        for piece in self._store.stream(key):
            stored.update(piece)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == stored.digest()

    def _remove(self, names: list[str]) -> int:
        """Records first: what they name goes only when nobody is told of it any more."""
        for name in sorted(names, key=lambda name: (not name.endswith(".json"), name)):
            self._store.delete(self._prefix + name)
            self._state.sent.pop(name, None)
            if self._there is not None:
                self._there.discard(name)
        return len(names)


def _place(name: str) -> tuple[int, int, int, str]:
    """What is pointed to comes before what points to it, and old Checkpoints before newer ones."""
    kind = max((part for part in _ORDER if name.startswith(part)), key=len)
    step = int(name.split("/")[1]) if _CHECKPOINT.match(name) else 1 << 62
    last = name in _LAST_OF_ITS_KIND or name.endswith("/" + CHECKPOINT_RECORD)
    return _ORDER.index(kind), step, int(last), name


def _files(root: Path, below: Path) -> Iterator[tuple[str, Mark]]:
    """Names from `root`, and marks; what goes away meanwhile is left out."""
    try:
        entries = sorted(os.scandir(below), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith(".") or (below == root and entry.name in _LEFT_OUT):
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(root, path)
            elif entry.is_file(follow_symlinks=False):
                status = path.stat()
                yield path.relative_to(root).as_posix(), Mark(status.st_size, status.st_mtime_ns)
        except FileNotFoundError:
            continue


def sent_marks(folder: Path, names: Mapping[str, int]) -> dict[str, Mark]:
    """The marks of files that have just come from the store: they needn't be sent."""
    marks = {name: (folder / name).stat() for name in names}
    return {name: Mark(status.st_size, status.st_mtime_ns) for name, status in marks.items()}
