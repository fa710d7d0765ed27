"""Watching: everything by which people look at a training, put around its Trainer.

Takes what a run begins with. Gives a trainer for the Controller, and what TensorBoard shows of the run as a whole.
Next: `finetune.training.controller`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetune.jobs.folder import JobFolder
from finetune.models.network import Network
from finetune.spec import JobSpec
from finetune.training.debugging import debug_looks
from finetune.training.histograms import Histograms
from finetune.training.observed import Batch, Every, Look, ObservedTrainer, again
from finetune.training.overfit import overfit
from finetune.training.probe import Probe
from finetune.training.summaries import Summaries
from finetune.training.summaries_run import RunSummary, write_spec
from finetune.training.trainer import Trainer


@contextmanager
def watched(
    folder: JobFolder,
    spec: JobSpec,
    *,
    trainer: Trainer,
    network: Network,
    batches: Callable[[int], Any],
    summaries: Summaries,
    say: Callable[[str], None],
) -> Iterator[Trainer | ObservedTrainer]:
    """`batches`: as the Controller takes it. Leaving the context ends what is being recorded.

    Of a run on several machines only charts of numbers are made: what a single replica sees of a step is not the step.
    Raises BatchNotLearnt, UnknownTensor.
    """
    run = RunSummary(folder, spec)
    succeeded = False
    try:
        step = int(trainer.global_step.numpy())
        if step == 0:
            write_spec(summaries, spec)
        if spec.strategy.has_peers:
            yield trainer
        else:
            if spec.debug.overfit_batch and step == 0:
                _overfit(spec, trainer, network, batches, say)
            looks = _looks(folder, spec, trainer, network, summaries, say)
            observed = ObservedTrainer(trainer, looks, often=spec.debug.check_numerics)
            try:
                yield observed
            finally:
                observed.close()
        succeeded = True
    finally:
        run.close(succeeded=succeeded)


def _looks(
    folder: JobFolder,
    spec: JobSpec,
    trainer: Trainer,
    network: Network,
    summaries: Summaries,
    say: Callable[[str], None],
) -> list[Look]:
    probe = Probe(network, pieces=spec.train.optimizer.accumulate)
    every, sparing_until = spec.train.histogram_every, None
    if every is None:
        every, sparing_until = spec.train.evaluate_every, spec.train.steps
    looks: list[Look] = [_Graph(trainer, summaries, often=spec.debug.check_numerics)]
    if every:
        looks.append(Histograms(network, probe, summaries, every=every, sparing_until=sparing_until))
    looks += debug_looks(
        spec.debug, trainer=trainer, network=network, probe=probe,
        logs=folder.logs, profile_to=folder.events_train, say=say,
    )  # fmt: skip
    return looks


def _overfit(
    spec: JobSpec, trainer: Trainer, network: Network, batches: Callable[[int], Any], say: Callable[[str], None]
) -> None:
    with batches(0) as iterator:
        batch = next(iterator)
    verdict = overfit(network, spec.train, batch, steps=spec.debug.overfit_steps, strategy=trainer.strategy)
    say(str(verdict))
    verdict.require()


class _Graph(Every):
    """A Look at step 1, when there is a graph to show."""

    def __init__(self, trainer: Trainer, summaries: Summaries, *, often: bool) -> None:
        super().__init__(0, first=1)
        self._often = often
        self._trainer = trainer
        self._summaries = summaries

    def after(self, step: int, batch: Batch) -> None:
        self._summaries.graph(self._trainer.graph(again(batch, often=self._often)))
