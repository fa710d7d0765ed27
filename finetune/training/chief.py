"""The chief of a job: from its folder to an exported head, stage after stage.

Takes a JobFolder. Gives its export. Next: `finetune.training.prepare`, `finetune.training.initialise`,
`finetune.training.controller`, `finetune.training.publish`.

TensorFlow is imported inside the functions, after the environment is set.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.jobs.cluster import CHIEF, Cluster
from finetune.jobs.folder import JobFolder, JobRequest
from finetune.spec import JobSpec, TrainConfig
from finetune.training.progress import Progress
from finetune.training.stop import StopSignal
from zoo.errors import FailedPrecondition

if TYPE_CHECKING:
    from finetune.training.checkpoints import Checkpoints
    from finetune.training.controller import Outcome
    from finetune.training.group import Group
    from finetune.training.initialise import Start
    from finetune.training.prepare import Prepared
    from zoo.catalog import Catalog


class NoCluster(FailedPrecondition):
    """A distributed job whose processes don't know one another."""


def lead(job: JobFolder, store_url: str, stop: StopSignal) -> None:
    """Prepares, trains and exports; from the newest Checkpoint on where there is one. Raises Interrupted, and whatever
    is wrong with the job as an error of the tree."""
    request = job.request()
    spec = request.spec
    with Progress(job, steps=spec.train.steps) as progress:
        if job.export_path.exists():  # a restart between the export and its publication
            progress.update(phase="done", step=spec.train.steps)
            return
        progress.update(phase="preparing")
        from finetune.training.checkpoints import Checkpoints, spec_digest
        from finetune.training.configure import configure
        from finetune.training.group import Group
        from finetune.training.initialise import initialise
        from finetune.training.prepare import prepare
        from zoo.catalog import open_catalog

        configure(spec.train)
        group = Group.join(spec.strategy, CHIEF, _cluster(job, spec))
        catalog = open_catalog(store_url)
        prepared = prepare(
            job,
            spec,
            catalog,
            on_progress=lambda phase, done, total: progress.update(phase=phase, done=done, total=total),
        )
        _say_what_was_prepared(progress, prepared, spec.train)
        _warn_of_plan(progress, prepared, spec)
        _warn_of_precision(progress, spec.train)
        checkpoints = Checkpoints(job.checkpoints, digest=spec_digest(spec))
        checkpoints.clear_leftovers()
        start = initialise(
            folder=job, spec=spec, catalog=catalog, prepared=prepared, checkpoints=checkpoints, group=group
        )
        if start.step:
            progress.say(f"resumed at step {start.step} of {spec.train.steps}")
        if said := group.sentence:
            progress.say(said)
        outcome = _train(job, request, catalog, prepared, start, checkpoints, progress, stop, group)
        progress.update(phase="exporting", step=outcome.steps)
        _warn_of_outcome(progress, job, prepared, start, checkpoints, outcome)
        _export(job, request, catalog, prepared, start, checkpoints, outcome)
        progress.update(phase="done", eta_seconds=0.0)


def _train(
    job: JobFolder,
    request: JobRequest,
    catalog: Catalog,
    prepared: Prepared,
    start: Start,
    checkpoints: Checkpoints,
    progress: Progress,
    stop: StopSignal,
    group: Group,
) -> Outcome:
    """Stage after stage, up to the last step of all or the early stop."""
    from finetune.training.controller import Controller
    from finetune.training.initialise import next_stage
    from finetune.training.inputs import training_input
    from finetune.training.run_warnings import averages_warning
    from finetune.training.summaries import Summaries
    from finetune.training.watching import watched

    summaries = Summaries(job.events_train)
    seconds = start.seconds
    try:
        while True:
            if start.step < start.stage.last_step and (said := start.stage.sentence):
                progress.say(said)
            steps = start.stage.last_step - start.stage.first_step
            if warning := averages_warning(start.network.momentum, steps):
                progress.warn(warning)
            share = group.share(request.spec.train)
            batches = training_input(request.spec, prepared, catalog, start.stage, share=share)
            with watched(
                job, request.spec, trainer=start.trainer, network=start.network, batches=batches,
                summaries=summaries, say=progress.say,
            ) as trainer:  # fmt: skip
                start.trainer.begin()
                controller = Controller(
                    folder=job,
                    spec=request.spec,
                    trainer=trainer,
                    checkpoints=checkpoints,
                    batches=batches,
                    progress=progress,
                    summaries=summaries,
                    stop=stop,
                    evaluated="validation" in prepared.splits,
                    last_step=start.stage.last_step,
                    seconds_before=seconds,
                )
                controller.train()
                if controller.over:
                    outcome = controller.finish()
                    break
            seconds = controller.seconds
            start = next_stage(start, spec=request.spec, catalog=catalog, prepared=prepared, group=group)
        start.trainer.finish()
        return outcome
    finally:
        summaries.close()


def _export(
    job: JobFolder,
    request: JobRequest,
    catalog: Catalog,
    prepared: Prepared,
    start: Start,
    checkpoints: Checkpoints,
    outcome: Outcome,
) -> None:
    from finetune.training.evaluations import Evaluations
    from finetune.training.extremes import write_extremes
    from finetune.training.publish import RunFacts, export_child
    from zoo.manifest import Head

    result = Evaluations(job, request.spec.train).get(outcome.best_step) if "validation" in prepared.splits else None
    metrics: dict[str, dict[str, object]] = {"train": {"loss": checkpoints.record(outcome.best_step).train_loss}}
    if result is not None:
        metrics["validation"] = dict(result.metrics)
    # What was fitted to the best Checkpoint's predictions (a temperature, thresholds) is published with its weights.
    fitted = {} if result is None else dict(result.fitted)
    arguments = prepared.kind.resolved(prepared.arguments, prepared.assets) | fitted
    if result is not None and result.extremes:
        for text in write_extremes(job.root / "examples", result, prepared.splits["validation"], prepared.source):
            print(text, file=sys.stderr, flush=True)
    head = Head(kind=prepared.kind.kind, arguments=arguments)
    export_child(
        folder=job,
        request=request,
        catalog=catalog,
        parent=catalog.get(prepared.parent),
        assets=prepared.assets,
        head=head,
        weights=checkpoints.read_weights(outcome.best_step),
        backbone_weights=checkpoints.read_weights(outcome.best_step, "backbone"),
        initial=start.initial,
        facts=RunFacts(
            steps=outcome.steps,
            best_step=outcome.best_step,
            stopped_early=outcome.stopped_early,
            seconds=prepared.seconds + outcome.seconds,
            metrics=metrics,
            num_examples=prepared.num_examples,
        ),
    )


def _say_what_was_prepared(progress: Progress, prepared: Prepared, train: TrainConfig) -> None:
    rows = len(prepared.splits["train"].table.image_index)
    counts = ", ".join(f"{count} {part}" for part, count in prepared.num_examples.items())
    progress.say(f"examples: {counts}; {rows} training rows")
    vectors = prepared.vectors
    if prepared.splits["train"].features_NVD is None:
        progress.say("the backbone is trained too: every image is decoded and passed through it in every epoch")
    else:
        progress.say(
            f"features: {vectors.cached} from the cache, {vectors.fetched} from the store, {vectors.computed} computed"
        )
    if prepared.bad_records:
        progress.warn(f"{prepared.bad_records} bad records were skipped, see prepared/bad_records.json")
    if train.steps * train.update_size < rows:
        progress.warn(f"{train.steps} steps of {train.update_size} rows don't reach every one of {rows} training rows")
    if "validation" not in prepared.splits:
        progress.warn("there is no validation split: nothing is evaluated, and the last step is published")


def _warn_of_precision(progress: Progress, train: TrainConfig) -> None:
    import tensorflow as tf

    from finetune.models.precision import cpu_gains

    if tf.config.list_logical_devices("GPU") or cpu_gains(train.precision):
        return
    progress.warn(
        f"train.precision is {train.precision}, there is no GPU, and this CPU computes no faster in it "
        "(docs/training.md has figures)"
    )


def _warn_of_plan(progress: Progress, prepared: Prepared, spec: JobSpec) -> None:
    from finetune.models.heads.head import WarnsOfPlan

    for text in prepared.warnings:
        progress.warn(text)
    if isinstance(prepared.kind, WarnsOfPlan):
        for text in prepared.kind.plan_warnings(prepared.splits["train"].examples, prepared.arguments, spec):
            progress.warn(text)


def _warn_of_outcome(
    progress: Progress, job: JobFolder, prepared: Prepared, start: Start, checkpoints: Checkpoints, outcome: Outcome
) -> None:
    from finetune.training.evaluations import Evaluations
    from finetune.training.run_warnings import outcome_warnings

    spec = job.request().spec
    best = Evaluations(job, spec.train).get(outcome.best_step) if "validation" in prepared.splits else None
    if best is None:
        return
    for text in outcome_warnings(
        spec=spec, prepared=prepared, network=start.network, checkpoints=checkpoints, best=best
    ):
        progress.warn(text)


def _cluster(job: JobFolder, spec: JobSpec) -> Cluster | None:
    """What the supervisor wrote down. Raises NoCluster."""
    if not spec.strategy.has_peers:
        return None
    cluster = Cluster.read(job.root)
    if cluster is None:
        raise NoCluster(f"{spec.strategy.kind} needs a cluster, and {job.root} names none", hint="finetune run")
    return cluster
