"""Initialise: the ladder of first weights, in one place.

Takes what was prepared. Gives a Trainer at the step to go on from. Next: `finetune.training.controller`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from finetune.jobs.folder import DamagedJobFile, JobFolder, read_json, write_json
from finetune.models.backbone import backbone_assets
from finetune.models.heads.class_rows import carried_rows, class_changes
from finetune.models.heads.head import HeadLayer
from finetune.models.network import HeadNetwork, Network, ThawedNetwork
from finetune.models.restore import restore
from finetune.models.task_model import stored_assets
from finetune.spec import JobSpec
from finetune.training.checkpoints import Checkpoints
from finetune.training.footing import footing_of
from finetune.training.group import Group
from finetune.training.prepare import Prepared
from finetune.training.publish import Initial, tensor_digests
from finetune.training.stages import Stage, stage_at, stages_of
from finetune.training.trainer import Trainer
from finetune.training.weights import as_arrays
from zoo.architectures import architecture_facts
from zoo.catalog import Catalog
from zoo.restore_report import RestoreReport
from zoo.tensors import read_safetensors


@dataclass(frozen=True, kw_only=True)
class Start:
    """`seconds`: training time that earlier sessions have spent up to the Checkpoint. `network` and `trainer` are the
    `stage`'s."""

    stage: Stage
    network: Network
    trainer: Trainer
    step: int
    seconds: float
    initial: Initial


def initialise(
    *,
    folder: JobFolder,
    spec: JobSpec,
    catalog: Catalog,
    prepared: Prepared,
    checkpoints: Checkpoints,
    group: Group,
    leads: bool = True,
) -> Start:
    """Resume this job's newest Checkpoint; else start from a ModelVersion's weights; else fresh.

    `leads`: whether this process writes what the job keeps; the other workers of a group only read.

    Raises AnotherCheckpoint, DamagedCheckpoint, IncompleteRestore (the version's head and the spec's don't fit).
    """
    saved = checkpoints.steps()
    stage = stage_at(stages_of(spec), saved[-1] if saved else 0)
    network, trainer = _built(stage, spec, catalog, prepared, group)
    weights = network.groups["head"]
    path = folder.prepared / "initial.json"

    # 1. Resume: every variable, the moving averages and the random generators included.
    if saved:
        record = checkpoints.restore(trainer.variables, step=saved[-1])
        value = read_json(path)
        if value is None:
            raise DamagedJobFile(f"{folder.checkpoints} has Checkpoints, but {path} is not there")
        return Start(
            stage=stage,
            network=network,
            trainer=trainer,
            step=record.step,
            seconds=record.seconds,
            initial=Initial(**value),
        )

    # 2. Start from a version: weights only, at step 0. Its vocabulary came with it in `prepare`; where the data have
    # other classes than it, the rows of those that stay are its own.
    if spec.start_from is not None:
        version = catalog.get(prepared.start_from or spec.start_from)
        before = stored_assets(catalog, version)
        stored = dict(read_safetensors(catalog.open_component(version, "head")))
        fresh = as_arrays(dict(weights))
        tensors = carried_rows(prepared.kind, stored, fresh, before=before, now=prepared.assets)
        report = replace(restore(weights, tensors), classes=class_changes(before, prepared.assets))
        report.require_complete(f"{version.reference}'s head in a {spec.head.kind} head of this spec")
        trainer.start_averages()
        start: str | None = version.reference

    # 3. Fresh: what `build` made of the seed.
    else:
        start, report = None, RestoreReport(fresh=tuple(sorted(weights)))

    initial = Initial(
        start=start,
        digests=tensor_digests(as_arrays(dict(weights))),
        report=_whole_report(prepared.backbone_names, report),
    )
    if leads:
        write_json(path, asdict(initial))
    return Start(stage=stage, network=network, trainer=trainer, step=0, seconds=0.0, initial=initial)


def next_stage(before: Start, *, spec: JobSpec, catalog: Catalog, prepared: Prepared, group: Group) -> Start:
    """The stage after one whose last step is done: see `Trainer.carry_on` for what it takes over."""
    stage = stages_of(spec)[before.stage.number]
    network, trainer = _built(stage, spec, catalog, prepared, group, head=before.network.head)
    trainer.carry_on(before.trainer)
    return replace(before, stage=stage, network=network, trainer=trainer, step=stage.first_step)


def _built(
    stage: Stage,
    spec: JobSpec,
    catalog: Catalog,
    prepared: Prepared,
    group: Group,
    *,
    head: HeadLayer | None = None,
) -> tuple[Network, Trainer]:
    facts = architecture_facts(catalog.get(prepared.parent).manifest.architecture.name)
    with group.scope():
        network = build_network(spec, catalog, prepared, stage, head=head, precision=stage.train.precision)
        footing = footing_of(stage, stages_of(spec), network, facts)
        trainer = group.make_trainer(network=network, config=stage.train, strategy=group.strategy, footing=footing)
    return network, trainer


def build_network(
    spec: JobSpec,
    catalog: Catalog,
    prepared: Prepared,
    stage: Stage,
    *,
    head: HeadLayer | None = None,
    precision: str = "float32",
) -> Network:
    """A head (None: a fresh one), alone on features or on the parent's backbone where that is trained too.

    `precision`: in which the backbone computes; evaluation is in float32, as what is published will be served.
    """
    if head is None:
        head = prepared.build_head(seed=spec.train.seed)
    if not stage.thaws:
        return HeadNetwork(head)
    parent = catalog.get(prepared.parent)
    network = ThawedNetwork(
        head=head,
        architecture=parent.manifest.architecture,
        input_spec=parent.manifest.input_spec,
        train_from=stage.train_from,
        batch_norm=spec.model.batch_norm,
        precision=precision,
        assets=backbone_assets(catalog, parent),
    )
    report = network.restore_backbone(read_safetensors(catalog.open_component(parent, "backbone")))
    report.require_complete(f"backbone of {parent.reference}")
    return network


def _whole_report(backbone: tuple[str, ...], head: RestoreReport) -> dict[str, object]:
    """One report by `component/tensor`."""
    whole = RestoreReport(
        restored=tuple(f"backbone/{name}" for name in backbone) + tuple(f"head/{name}" for name in head.restored),
        fresh=tuple(f"head/{name}" for name in head.fresh),
        classes=head.classes,
    )
    return whole.to_dict()
