"""JobFolder: where a job's processes leave everything for one another and for its watchers. No TensorFlow.

Takes the folder's path. Gives paths, and JSON files that are read whole or not at all. Next: `finetune.training.run`.

```
spec.json          the job's id, its JobSpec and the store's address; written once, before the first process starts
prepared/          split.json, bad_records.json, the head's assets, and prepared.json, written last
checkpoints/       <step>/, complete as soon as it has that name; done.json: the chief won't save another
evaluations/       <step>.json, one for every Checkpoint      best.json: the best so far, for people and other tools
events/train, events/validation     TensorBoard
logs/<role>.log    progress.json (the chief's, with its pulse)    evaluator.json (the evaluator's pulse)
locks/<role>.lock  .mirror.json: what of the folder the store has, where that isn't on this disk (finetune.jobs.mirror)
examples/          the worst and best predicted validation images as a contact sheet, of heads that have such
export/            head.safetensors, the assets, manifest.json, and export.json, written last
result.json        what `finetune run --format json` prints        error.json    why the job failed
```
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.spec import JobSpec
from zoo.atomic_file import replaced_file
from zoo.errors import DataLoss, FailedPrecondition, NotFound

CHECKPOINT_RECORD = "checkpoint.json"  # in each Checkpoint's folder, beside its tensors


class AnotherSpec(FailedPrecondition):
    """The folder belongs to a job with another spec; nothing in it may be continued."""


class AnotherJob(FailedPrecondition):
    """The folder belongs to another job."""


class DamagedJobFile(DataLoss):
    """A JSON file of the folder can't be read as what it should be."""


class NotAJobFolder(NotFound):
    """There is no spec.json."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What spec.json holds."""

    job: str
    spec: JobSpec
    store_url: str


@dataclass(frozen=True)
class JobFolder:
    """Paths of one job. Making the value touches no disk; `create` does."""

    root: Path

    @classmethod
    def create(cls, root: Path, *, job: str, spec: JobSpec, store_url: str) -> JobFolder:
        """Makes the folder and its spec.json, or takes the one that is there for the same job and spec.

        Raises AnotherSpec, showing the difference, and AnotherJob.
        """
        folder = cls(root)
        root.mkdir(parents=True, exist_ok=True)
        if folder.spec_path.exists():
            stored = folder.require_spec(spec)
            if stored.job != job:
                raise AnotherJob(
                    f"{root} belongs to job {stored.job}, and job {job} can't share it", hint="give each its own folder"
                )
            if stored.spec != spec:  # other ways to look at the same training
                write_json(folder.spec_path, {"job": job, "store_url": stored.store_url, "spec": spec.to_json()})
            return folder
        write_json(folder.spec_path, {"job": job, "store_url": store_url, "spec": spec.to_json()})
        return folder

    @property
    def spec_path(self) -> Path:
        return self.root / "spec.json"

    @property
    def prepared(self) -> Path:
        return self.root / "prepared"

    @property
    def prepared_path(self) -> Path:
        """Written when everything in `prepared/` is there: the evaluator may start."""
        return self.prepared / "prepared.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint_steps(self) -> list[int]:
        """The steps of all complete Checkpoints, rising."""
        return checkpoint_steps(self.checkpoints)

    @property
    def checkpoints_done_path(self) -> Path:
        return self.checkpoints / "done.json"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    def evaluation_path(self, step: int) -> Path:
        return self.evaluations / f"{step}.json"

    @property
    def best_path(self) -> Path:
        return self.root / "best.json"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def events_train(self) -> Path:
        return self.events / "train"

    @property
    def events_validation(self) -> Path:
        return self.events / "validation"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log_path(self, role: str) -> Path:
        return self.logs / f"{role}.log"

    def lock_path(self, role: str) -> Path:
        return self.root / "locks" / f"{role}.lock"

    @property
    def progress_path(self) -> Path:
        return self.root / "progress.json"

    @property
    def evaluator_path(self) -> Path:
        """The evaluator's pulse: which step it is at, and when it last wrote."""
        return self.root / "evaluator.json"

    @property
    def export(self) -> Path:
        return self.root / "export"

    @property
    def export_path(self) -> Path:
        """Written when everything in `export/` is there: the job may be published."""
        return self.export / "export.json"

    @property
    def result_path(self) -> Path:
        return self.root / "result.json"

    @property
    def error_path(self) -> Path:
        return self.root / "error.json"

    def request(self) -> JobRequest:
        """Raises NotAJobFolder, DamagedJobFile, InvalidSpec."""
        value = read_json(self.spec_path)
        if value is None:
            raise NotAJobFolder(f"{self.root} is no job folder: it has no spec.json")
        try:
            return JobRequest(job=value["job"], spec=JobSpec.parse(value["spec"]), store_url=value["store_url"])
        except (KeyError, TypeError) as error:
            raise DamagedJobFile(f"{self.spec_path} lacks {error}: it needs job, spec and store_url") from None

    def require_spec(self, spec: JobSpec) -> JobRequest:
        """What the folder was made for. Raises AnotherSpec unless that decides the same weights."""
        request = self.request()
        differences = spec_differences(request.spec, spec)
        if differences:
            raise AnotherSpec(
                f"job {request.job} in {self.root} was started with another spec: " + "; ".join(differences),
                hint="use the same settings to resume it, or another --name",
                job=request.job,
            )
        return request

    def read_progress(self) -> dict[str, Any] | None:
        """The newest progress, or None before the first."""
        return read_json(self.progress_path)

    def read_error(self) -> dict[str, Any] | None:
        """`ZooError.to_dict()` of what ended the job, or None."""
        return read_json(self.error_path)

    def read_result(self) -> dict[str, Any] | None:
        return read_json(self.result_path)


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """See `JobFolder.checkpoint_steps`: a folder that has a step's name is complete."""
    try:
        names = [path.name for path in checkpoints.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))


def spec_differences(old: JobSpec, new: JobSpec) -> list[str]:
    """`path: old → new` of every value that differs and has a say in the weights (`debug` has none), sorted by path."""
    before, after = _flat(old.without_debug().to_json()), _flat(new.without_debug().to_json())
    return [
        f"{path}: {_shown(before, path)} → {_shown(after, path)}"
        for path in sorted(before.keys() | after.keys())
        if _shown(before, path) != _shown(after, path)
    ]


def _shown(flat: Mapping[str, Any], path: str) -> str:
    return json.dumps(flat[path], ensure_ascii=False) if path in flat else "(unset)"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{path}.{name}".strip(".")).items()}


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file. Raises DamagedJobFile."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedJobFile(f"{path} cannot be read as JSON: {error}", hint="delete it, then resume the job") from None
    if not isinstance(value, dict):
        raise DamagedJobFile(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces a JSON file atomically. Infinities and NaN, which JSON doesn't have, become null.

    Raises the errors of `zoo.atomic_file` (NoSpace, NoAccess, …).
    """
    with replaced_file(path) as file:
        file.write(json.dumps(_finite(value), ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
