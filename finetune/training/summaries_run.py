"""What TensorBoard shows of a run as a whole: the text of its spec, and its hyperparameters beside other runs'.

Takes a JobFolder and its spec. Gives event files in `events/train` (text) and `events` (HParams). Next:
`finetune tensorboard JOB`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import yaml
from tensorboard.plugins.hparams import api, api_pb2
from tensorboard.plugins.hparams import summary as hparams_summary

from finetune.jobs.folder import JobFolder
from finetune.spec import JobSpec
from finetune.training.summaries import Summaries


class RunSummary:
    """The HParams plugin calls a run a session; it finds its metrics in the folders below, `train` and `validation`."""

    def __init__(self, folder: JobFolder, spec: JobSpec) -> None:
        self._writer = tf.summary.create_file_writer(str(folder.events))
        metrics = dict.fromkeys(["loss", spec.train.early_stop.metric])
        values = hyperparameters(spec)
        with self._writer.as_default(step=0):
            api.hparams_config(
                hparams=[api.HParam(name) for name in values],
                metrics=[
                    api.Metric(name, group=group, display_name=f"{group} {name}")
                    for name in metrics
                    for group in ("train", "validation")
                ],
            )
            api.hparams(values, trial_id=folder.root.name)
        self._writer.flush()

    def close(self, *, succeeded: bool) -> None:
        status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
        with self._writer.as_default(step=0):
            tf.summary.experimental.write_raw_pb(hparams_summary.session_end_pb(status).SerializeToString())
        self._writer.close()


def write_spec(summaries: Summaries, spec: JobSpec) -> None:
    """The spec as YAML; lines that begin with four blanks are code to Markdown."""
    text = yaml.safe_dump(spec.to_json(), sort_keys=False, allow_unicode=True)
    summaries.text(0, "spec", "".join(f"    {line}\n" for line in text.splitlines()))


def hyperparameters(spec: JobSpec) -> dict[str, Any]:
    """Every value of the spec that decides the weights, by its path; lists as text, what is not set left out."""
    return {path: value for path, value in _flat(spec.without_debug().to_json(), "").items() if value is not None}


def _flat(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{path}.{name}".strip(".")).items()
        }
    return {path: value if isinstance(value, bool | int | float | str | None) else str(value)}
