"""Restore: a job's folder from the store, where another machine began the job or this one has lost its disk.

Takes `jobs/<id>/` of a store. Gives a folder from which the run goes on as if it had never been interrupted. Next:
`finetune.jobs.supervisor`. No TensorFlow.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.jobs.folder import CHECKPOINT_RECORD, JobFolder, NotAJobFolder, read_json, write_json
from finetune.jobs.mirror import MirrorState, sent_marks
from finetune.jobs.store_lease import job_prefix
from finetune.spec import TrainConfig
from finetune.training.best import Evaluated, decide, evaluation_steps
from finetune.training.evaluations import Evaluations
from zoo.atomic_file import make_directories
from zoo.store.keys import check_key
from zoo.store.object_store import ObjectStore

_STEP_FILE = re.compile(r"(checkpoints|evaluations)/([0-9]+)(?:/|\.json\Z)")
_OWN = ("owner.json", "claims/", "clock-", ".")  # the lease's, not the folder's; nothing that is mirrored has a dot
_NOT_RESTORED = ("error.json", "checkpoints/done.json")  # the new run's to say
_LOG_BEING_WRITTEN = "logs/supervisor.log"


@dataclass(frozen=True, kw_only=True)
class Restored:
    """`step`: the Checkpoint that the run goes on from, None for none. `dropped`: objects of steps after it that were
    not whole as a set, and are computed again."""

    files: int
    bytes: int
    step: int | None
    dropped: int


def restore_folder(store: ObjectStore, job_id: str, folder: JobFolder, *, claim: int) -> Restored:
    """Fetches the folder; what lay there is removed first, being older. The caller holds the job's StoreLease `claim`.

    Interrupted, it is done again from the start: the claim is noted last. Raises NotAJobFolder where the store has
    no such folder, DamagedJobFile, InvalidKey for a key that would lead out of the folder, the store's errors.
    """
    prefix = job_prefix(job_id)
    sizes = {
        name: info.size
        for info in store.list(prefix)
        if not (name := check_key(info.key).removeprefix(prefix)).startswith(_OWN) and name not in _NOT_RESTORED
    }
    if "spec.json" not in sizes:
        raise NotAJobFolder(f"{store.url} has no job folder {prefix}: its spec.json is not there", key=prefix)
    if "export/export.json" not in sizes:
        sizes = {name: size for name, size in sizes.items() if not name.startswith("export/")}
    _empty(folder.root)
    early = [name for name in sizes if name.startswith(("spec.json", "prepared/", "evaluations/"))]
    _fetch(store, prefix, folder.root, early)
    step = _resume_step(folder, _whole(sizes))
    late = {name for name in sizes if (match := _STEP_FILE.match(name)) and int(match[2]) > (step or 0)}
    late |= {name for name in sizes if name.startswith("checkpoints/") and not _STEP_FILE.match(name)}
    for name in sorted(late, key=lambda name: not name.endswith(CHECKPOINT_RECORD)):
        (folder.root / name).unlink(missing_ok=True)
        store.delete(prefix + name)  # else they would be taken for the new run's own
    kept = {name: size for name, size in sizes.items() if name not in late}
    _fetch(store, prefix, folder.root, sorted(kept.keys() - set(early)))
    state = MirrorState(claim=claim, sent=sent_marks(folder.root, kept))
    state.write(folder.root)
    return Restored(files=len(kept), bytes=sum(kept.values()), step=step, dropped=len(late))


def use_store(folder: JobFolder, store_url: str) -> None:
    """Lets spec.json name the store by the address it has here."""
    value = read_json(folder.spec_path)
    if value is not None and value.get("store_url") != store_url:
        write_json(folder.spec_path, value | {"store_url": store_url})


def resume_step(
    train: TrainConfig, whole: Collection[int], sequence: Sequence[Evaluated], *, evaluated: bool
) -> int | None:
    """The newest Checkpoint from which a run goes on exactly: up to it every evaluation is there or can still be made,
    and the best Checkpoint is there. `sequence` has the evaluations in order up to the first that is missing.

    A pass of the mirror that was cut short can leave a newer Checkpoint without the evaluations before it; since
    removals come last, what an earlier pass left is still there then.
    """
    if not evaluated:
        return max(whole, default=None)
    results = {entry.step for entry in sequence}
    for step in sorted(whole, reverse=True):
        needed = [due for due in evaluation_steps(train) if due <= step]
        best = decide([entry for entry in sequence if entry.step <= step], train.early_stop).best
        if all(due in results or due in whole for due in needed) and (best is None or best.step in whole):
            return step
    return None


def _resume_step(folder: JobFolder, whole: Collection[int]) -> int | None:
    prepared = read_json(folder.prepared_path)
    if prepared is None:
        return None  # it comes before the first Checkpoint
    train = folder.request().spec.train
    evaluated = bool(prepared["num_examples"].get("validation"))
    return resume_step(train, whole, Evaluations(folder, train).sequence(), evaluated=evaluated)


def _whole(sizes: Mapping[str, int]) -> set[int]:
    records = (name for name in sizes if name.endswith("/" + CHECKPOINT_RECORD))
    return {int(match[2]) for name in records if (match := _STEP_FILE.match(name))}


def _empty(root: Path) -> None:
    """All but the log that this very process may be writing to."""
    if not root.is_dir():
        return
    for path in sorted(root.iterdir(), key=lambda path: path.name != "spec.json"):  # without it, it is no job folder
        if path.is_dir() and path.name != "logs":
            shutil.rmtree(path)
        elif not path.is_dir():
            path.unlink()
    for log in (root / "logs").glob("*"):
        if log.name != Path(_LOG_BEING_WRITTEN).name:
            log.unlink()


def _fetch(store: ObjectStore, prefix: str, root: Path, names: Sequence[str]) -> None:
    for name in names:
        path = root / name
        make_directories(path.parent)
        if name == _LOG_BEING_WRITTEN and path.exists():
            path.write_bytes(store.read(prefix + name) + path.read_bytes())
            continue
        store.download(prefix + name, path)
