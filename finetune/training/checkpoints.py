"""Checkpoints: what a run needs to go on exactly where it was. What gets published is a ModelVersion, not a Checkpoint.

Takes a Trainer's variables. Gives folders `checkpoints/<step>/`, complete as soon as they have that name.
Next: `finetune.training.evaluator` reads them, `finetune.training.publish` exports the best.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.jobs.folder import CHECKPOINT_RECORD, checkpoint_steps, read_json, write_json
from finetune.spec import JobSpec
from finetune.training.weights import averaged_name
from zoo.atomic_file import NoSpace, fsync_directory, storage_error
from zoo.errors import DataLoss, FailedPrecondition, NotFound

_PREFIX = "checkpoint"
_TEMPORARY = ".saving-"
_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class AnotherCheckpoint(FailedPrecondition):
    """A Checkpoint of another spec or of other variables."""


class CheckpointGone(NotFound):
    """A Checkpoint was rotated away, before or while it was read: go on with the next."""


class DamagedCheckpoint(DataLoss):
    """A Checkpoint that is there can't be read."""


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What a Checkpoint says of itself, besides its tensors. The input position is a function of the step."""

    step: int
    spec_digest: str
    variables: dict[str, str]  # group/name → dtype[shape]
    train_loss: float | None  # mean since the last evaluation step before
    seconds: float  # wall time of training up to here, over all sessions
    # What that mean is made of, where the step is no evaluation step: a resumed run goes on with it.
    loss_sum: float | None = None
    weight_sum: float | None = None


def spec_digest(spec: JobSpec) -> str:
    return hashlib.sha256(json.dumps(spec.without_debug().to_json(), sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The Checkpoints in one folder. Any number of readers; one writer, the chief."""

    def __init__(self, root: Path, *, digest: str) -> None:
        self.root = root
        self._digest = digest

    def steps(self) -> list[int]:
        """The steps of all complete Checkpoints, rising."""
        return checkpoint_steps(self.root)

    def save(
        self,
        variables: Mapping[str, Mapping[str, Any]],
        *,
        step: int,
        train_loss: float | None,
        seconds: float,
        loss_sum: float | None = None,
        weight_sum: float | None = None,
    ) -> None:
        """Writes one Checkpoint. Raises NoSpace and the like; whatever happens, the ones before it stay as they were.

        The rename is the commit: a folder with a step's name is complete, and lasts through a power cut.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.root))
        try:
            tf.train.Checkpoint(**_groups(variables)).write(str(temporary / _PREFIX))
            record = CheckpointRecord(
                step=step,
                spec_digest=self._digest,
                variables=_signature(variables),
                train_loss=train_loss,
                seconds=seconds,
                loss_sum=loss_sum,
                weight_sum=weight_sum,
            )
            write_json(temporary / CHECKPOINT_RECORD, record.__dict__)
            _sync_files(temporary)
            temporary.rename(self.root / str(step))
            fsync_directory(self.root)
        except (OSError, tf.errors.OpError) as error:
            raise disk_error(error, self.root) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def record(self, step: int) -> CheckpointRecord:
        """Raises CheckpointGone, DamagedCheckpoint, AnotherCheckpoint (of another spec)."""
        path = self.root / str(step) / CHECKPOINT_RECORD
        value = read_json(path)
        if value is None:
            if path.parent.exists():
                raise DamagedCheckpoint(f"Checkpoint {path.parent} has no {CHECKPOINT_RECORD}")
            raise CheckpointGone(f"Checkpoint {path.parent} is not there (any more)")
        try:
            record = CheckpointRecord(**value)
        except TypeError as error:
            raise DamagedCheckpoint(f"{path}: {error}") from None
        if record.spec_digest != self._digest:
            raise AnotherCheckpoint(
                f"Checkpoint {path.parent} was saved by a job with another spec: its digest is "
                f"{record.spec_digest[:12]}, this job's {self._digest[:12]}",
                hint="use another --name, or remove the job's folder",
            )
        return record

    def restore(self, variables: Mapping[str, Mapping[str, Any]], *, step: int) -> CheckpointRecord:
        """Sets every variable. Raises CheckpointGone, DamagedCheckpoint, AnotherCheckpoint naming what differs."""
        record = self.record(step)
        wanted = _signature(variables)
        if wanted != record.variables:
            raise AnotherCheckpoint(
                f"Checkpoint {self.root / str(step)} is of another model: " + "; ".join(_differences(record, wanted))
            )
        try:
            status = tf.train.Checkpoint(**_groups(variables)).read(str(self.root / str(step) / _PREFIX))
            status.assert_consumed()
        except (OSError, tf.errors.OpError, AssertionError, ValueError) as error:
            raise self._unreadable(step, error) from error
        return record

    def read_weights(self, step: int, component: str = "head") -> dict[str, np.ndarray]:
        """A component's weights by name, with the moving averages in place where there are some: what is evaluated,
        exported and best. Empty for one that isn't trained. Needs no model. Raises CheckpointGone, DamagedCheckpoint,
        AnotherCheckpoint."""
        record = self.record(step)
        variables = _variables_like(record.variables, groups=(component, "ema"))
        try:
            status = tf.train.Checkpoint(**_groups(variables)).read(str(self.root / str(step) / _PREFIX))
            status.assert_existing_objects_matched().expect_partial()
        except (OSError, tf.errors.OpError, AssertionError, ValueError) as error:
            raise self._unreadable(step, error) from error
        averages = variables.get("ema", {})
        return {
            name: averages.get(averaged_name(component, name), variable).numpy()
            for name, variable in variables.get(component, {}).items()
        }

    def remove(self, step: int) -> None:
        """Renamed first, so that no reader takes a half-removed Checkpoint for a complete one."""
        temporary = self.root / f"{_TEMPORARY}removed-{step}-{os.getpid()}"
        try:
            (self.root / str(step)).rename(temporary)
        except FileNotFoundError:
            return
        shutil.rmtree(temporary, ignore_errors=True)

    def clear_leftovers(self) -> None:
        """Removes what a killed chief left half saved or half removed. Only the chief calls it, at its start."""
        for path in self.root.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _unreadable(self, step: int, error: Exception) -> Exception:
        folder = self.root / str(step)
        if not folder.exists():
            return CheckpointGone(f"Checkpoint {folder} was rotated away while it was read")
        return DamagedCheckpoint(
            f"Checkpoint {folder} cannot be read: {error}", hint="remove it: the run resumes from the one before"
        )


def disk_error(error: OSError | tf.errors.OpError, folder: Path) -> Exception:
    """The error of our tree where the disk is at fault; TensorFlow says so in words only."""
    if isinstance(error, OSError):
        return storage_error(error, "write", folder)
    if any(words in str(error) for words in _FULL):
        return NoSpace(
            f"cannot write {folder}: the disk (or the quota) is full; the Checkpoints before are kept",
            hint="free some space, then run the same command: it resumes",
            path=str(folder),
        )
    return error


def _groups(variables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One trackable a group; empty groups are left out."""
    return {
        group: tf.train.Checkpoint(**{_escaped(name): _tf_variable(variable) for name, variable in members.items()})
        for group, members in variables.items()
        if members
    }


def _escaped(name: str) -> str:
    """As an attribute's name that tf.train.Checkpoint doesn't use itself (`save_counter`, `root`)."""
    return "v_" + name


def _tf_variable(variable: Any) -> tf.Variable:
    return variable if isinstance(variable, tf.Variable) else variable.value


def _signature(variables: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {
        f"{group}/{name}": f"{tf.as_dtype(variable.dtype).name}{[int(side) for side in variable.shape]}"
        for group, members in variables.items()
        for name, variable in members.items()
    }


def _variables_like(signature: Mapping[str, str], *, groups: tuple[str, ...]) -> dict[str, dict[str, tf.Variable]]:
    result: dict[str, dict[str, tf.Variable]] = {}
    for path, kind in signature.items():
        group, _, name = path.partition("/")
        if group in groups:
            dtype, _, sides = kind.partition("[")
            shape = [int(side) for side in sides.rstrip("]").split(",") if side.strip()]
            result.setdefault(group, {})[name] = tf.Variable(tf.zeros(shape, dtype))
    return result


def _differences(record: CheckpointRecord, wanted: Mapping[str, str]) -> list[str]:
    names = sorted(record.variables.keys() | wanted.keys())
    pairs = [(name, record.variables.get(name), wanted.get(name)) for name in names]
    different = [f"{name} is {has or 'absent'}, wanted {wants or 'none'}" for name, has, wants in pairs if has != wants]
    return different[:8] + ([f"and {len(different) - 8} more"] if len(different) > 8 else [])


def _sync_files(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    fsync_directory(folder)
