"""Prepare: everything that is decided before step 1, written down so that it is decided once.

Takes a JobSpec. Gives Prepared and `prepared/` (prepared.json last). Next: `finetune.training.initialise`.

Order: open and split the data, look at every image's header, compute features (which decodes every image and so finds
the rest of the bad ones), drop the bad, learn the vocabulary from what is left of the training split, make the targets.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.data.feature_store import shared_features
from finetune.data.features import FeatureArray, FeatureBackbone, FeatureCache
from finetune.data.per_class import per_class
from finetune.data.scan import scan
from finetune.data.source import BadRecord, Example, ExampleSource
from finetune.data.sources import open_source
from finetune.data.splits import Split, split_examples
from finetune.jobs.folder import DamagedJobFile, JobFolder, read_json, write_json
from finetune.models.backbone import Backbone
from finetune.models.feature_row import FeatureRow, as_rows, build_head, row_of
from finetune.models.heads import head_arguments, head_kind
from finetune.models.heads.class_rows import continued_assets
from finetune.models.heads.head import Assets, HeadKind, HeadLayer, LearnsFromExamples
from finetune.models.task_model import stored_assets
from finetune.spec import JobSpec
from finetune.training.bad_records import require_few, without
from finetune.training.checkpoints import spec_digest
from finetune.training.data_warnings import data_findings
from finetune.training.split_data import SplitData
from finetune.training.stages import require_stages, uses_features
from zoo.architectures import architecture_facts
from zoo.atomic_file import replaced_file
from zoo.catalog import Catalog, ModelVersion
from zoo.errors import FailedPrecondition, InvalidArgument
from zoo.store.object_store import ObjectStore


class EmptySplit(InvalidArgument):
    """A split without examples where some are needed."""


class DataChanged(FailedPrecondition):
    """The data are not what they were when the job was prepared."""


class UnfitStart(InvalidArgument):
    """`--from` names a version whose head can't be the start of this run."""


@dataclass(frozen=True, kw_only=True)
class FeatureCounts:
    """Where the feature vectors came from."""

    cached: int
    fetched: int  # from the store
    computed: int

    @classmethod
    def of(cls, arrays: Iterable[FeatureArray]) -> FeatureCounts:
        found = list(arrays)
        computed, fetched = sum(a.computed for a in found), sum(a.fetched for a in found)
        vectors = sum(int(a.valid.sum()) * a.features.shape[1] for a in found)
        return cls(cached=max(0, vectors - computed - fetched), fetched=fetched, computed=computed)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run needs of the past.

    `parent` and `start_from` are exact references: what an alias meant when the job was prepared.
    """

    parent: str
    start_from: str | None
    kind: HeadKind
    arguments: Any  # the kind's Arguments
    assets: Assets
    row: FeatureRow  # what the head reads
    backbone_names: tuple[str, ...]  # of its tensors
    num_examples: dict[str, int]  # by split, without the bad records
    bad_records: int
    split: Split  # of the source's examples
    # Those that were asked for (by default train and validation) and aren't empty; with features if a stage uses any.
    splits: Mapping[str, SplitData]
    seconds: float
    vectors: FeatureCounts  # of this session
    source: ExampleSource
    warnings: tuple[str, ...] = ()  # of the data, see finetune.training.data_warnings

    def build_head(self, *, seed: int) -> HeadLayer:
        head = build_head(self.kind, arguments=self.arguments, row=self.row, assets=self.assets, seed=seed)
        if isinstance(head, LearnsFromExamples) and "train" in self.splits:  # an evaluator doesn't train
            head.learn_from(self.splits["train"].examples)
        return head


def prepare(
    folder: JobFolder, spec: JobSpec, catalog: Catalog, *, on_progress: Callable[[str, int, int], None]
) -> Prepared:
    """Prepares the job, or loads what was prepared before for the same spec.

    `on_progress(phase, done, total)` is called while images are read.

    Raises TooManyBadRecords, EmptySplit, UnfitStart, InvalidSpec, DataChanged; what sources, splits, heads, feature
    cache and catalogue raise.
    """
    if folder.prepared_path.exists():
        return load_prepared(folder, spec, catalog, on_progress=on_progress)
    began = time.monotonic()
    kind, arguments = head_kind(spec.head.kind), head_arguments(spec.head)
    parent = catalog.get(spec.backbone)
    require_stages(spec, architecture_facts(parent.manifest.architecture.name))
    start = None if spec.start_from is None else catalog.get(spec.start_from)
    if start is not None:
        _require_fit(start, parent, spec)
    source = open_source(spec.data.location, language=spec.data.language)
    planned = split_examples(source.examples, spec.data.split, seed=spec.train.seed, read=source.read)
    total = len(source.examples) + len(source.bad_records)
    chosen = [*planned.train, *planned.validation, *planned.test]
    on_progress("scanning", 0, len(chosen))
    bad = [*source.bad_records, *scan(source, chosen, spec.data.max_pixels)]
    _write_bad(folder, spec, bad, total=total)  # before minutes are spent on features
    split = without(planned, bad, source.examples)
    _require_examples(spec, planned, split)
    split = _few(split, source, spec)
    backbone = Backbone.from_version(catalog, parent)
    shape = backbone.feature_map_shape
    row = row_of(kind, arguments, feature_dim=backbone.feature_dim, feature_map_shape=shape)
    if not uses_features(spec):
        # Training passes over what can't be decoded; what is evaluated must all be there.
        features: dict[str, FeatureArray] = {}
        evaluated = [*split.validation, *split.test]
        bad += scan(source, evaluated, spec.data.max_pixels, decode_for=backbone.input_spec)
    else:
        features = _features(as_rows(backbone, row), source, split, spec, on_progress, store=catalog.store)
        bad += [record for part in features.values() for record in part.bad]
    _write_bad(folder, spec, bad, total=total)
    split = without(split, bad, source.examples)
    _require_examples(spec, planned, split)
    learnt_from = [source.examples[index] for index in split.train]
    if start is None:
        assets = kind.learn_assets(learnt_from, arguments)
    else:
        assets = continued_assets(kind, stored_assets(catalog, start), learnt_from, arguments)
    for name, data in {**assets.files, **assets.initial}.items():
        with replaced_file(folder.prepared / name) as file:
            file.write(data)
    write_json(folder.prepared / "split.json", split.to_json(source.examples))
    found = data_findings(
        features=_vectors(features, row),
        split=split,
        source=source,
        backbone=backbone,
        max_pixels=spec.data.max_pixels,
        on_progress=on_progress,
    )
    record = {
        "spec_digest": spec_digest(spec),
        "parent": parent.reference,
        "start_from": start.reference if start is not None else None,
        "backbone_digest": backbone.digest,
        "backbone_tensors": sorted(backbone.report.restored),
        "feature_dim": row.vector_size,
        "feature_map_shape": row.map_shape,
        "examples_digest": _examples_digest(source.examples),
        "num_examples": {part: len(getattr(split, part)) for part in ("train", "validation", "test")},
        "bad_records": len(bad),
        "near_duplicates": found.near_duplicates,
        "label_suspects": found.label_suspects,
        "warnings": found.warnings,
        "files": sorted(assets.files),
        "initial_files": sorted(assets.initial),
        "classes": assets.classes,
        "class_offset": assets.class_offset,
        "vocabulary_size": assets.vocabulary_size,
        "tokenizer": assets.tokenizer,
        "seconds": time.monotonic() - began,
    }
    prepared = _joined(record, spec, assets, source, split, features)
    write_json(folder.prepared_path, record)
    return prepared


def load_prepared(
    folder: JobFolder,
    spec: JobSpec,
    catalog: Catalog,
    *,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    parts: Sequence[str] = ("train", "validation"),
) -> Prepared:
    """What `prepare` left, checked against the spec and the data. The backbone is built only if features are gone.

    Raises DamagedJobFile, DataChanged.
    """
    record = read_json(folder.prepared_path)
    split_json = read_json(folder.prepared / "split.json")
    if record is None or split_json is None:
        raise DamagedJobFile(f"{folder.prepared} has no {'prepared' if record is None else 'split'}.json")
    if record["spec_digest"] != spec_digest(spec):
        raise DamagedJobFile(f"{folder.prepared_path} was prepared for another spec than {folder.spec_path} has")
    source = open_source(spec.data.location, language=spec.data.language)
    if _examples_digest(source.examples) != record["examples_digest"]:
        raise DataChanged(
            f"the examples of {spec.data.location} (ids, labels or captions) are not what they were when this job "
            f"began: it had {sum(record['num_examples'].values())} usable examples",
            hint="restore the data, or start another run with another --name",
        )
    assets = Assets(
        files={name: (folder.prepared / name).read_bytes() for name in record["files"]},
        classes=None if record["classes"] is None else tuple(record["classes"]),
        class_offset=record.get("class_offset", 0),
        vocabulary_size=record["vocabulary_size"],
        tokenizer=record["tokenizer"],
        initial={name: (folder.prepared / name).read_bytes() for name in record.get("initial_files", ())},
    )
    split = Split.from_json(split_json, source.examples, origin=str(folder.prepared / "split.json"))
    if not uses_features(spec):
        return _joined(record, spec, assets, source, split, {}, parts=parts)
    backbone = _LateBackbone(catalog.get(record["parent"]), catalog, record)
    features = _features(backbone, source, split, spec, on_progress, store=catalog.store, parts=parts)
    bad = [one.id for part in features.values() for one in part.bad]
    if bad:
        raise DataChanged(f"{len(bad)} images can't be read any more, among them {bad[0]}", hint="restore the data")
    return _joined(record, spec, assets, source, split, features, parts=parts)


class _LateBackbone:
    """Says what the feature cache keys by, and builds the network only when it is really needed."""

    def __init__(self, version: ModelVersion, catalog: Catalog, record: dict[str, Any]) -> None:
        self._version = version
        self._catalog = catalog
        self._built: FeatureBackbone | None = None
        self.digest: str = record["backbone_digest"]
        self.input_spec = version.manifest.input_spec
        self.architecture = version.manifest.architecture
        self._row = _row(record)
        self.feature_dim: int = self._row.size

    def feature_vector(self, image_BHWC: Any) -> Any:
        if self._built is None:
            self._built = as_rows(Backbone.from_version(self._catalog, self._version), self._row)
        return self._built.feature_vector(image_BHWC)


def _row(record: dict[str, Any]) -> FeatureRow:
    shape = record.get("feature_map_shape")
    return FeatureRow(vector_size=record["feature_dim"], map_shape=None if shape is None else tuple(shape))


def _vectors(features: Mapping[str, FeatureArray], row: FeatureRow) -> dict[str, FeatureArray]:
    """The feature vectors alone."""
    return {part: replace(array, features=array.features[..., : row.vector_size]) for part, array in features.items()}


def _features(
    backbone: FeatureBackbone,
    source: ExampleSource,
    split: Split,
    spec: JobSpec,
    on_progress: Callable[[str, int, int], None],
    *,
    store: ObjectStore,
    parts: Sequence[str] = ("train", "validation", "test"),
) -> dict[str, FeatureArray]:
    """A FeatureArray for each part that has examples; augmented views for the training split only."""
    cache = FeatureCache(shared=shared_features(store), dtype=spec.data.features)

    def fill(part: str) -> FeatureArray:
        return cache.open_or_fill(
            backbone=backbone,
            source=source,
            indices=getattr(split, part),
            views=spec.data.views if part == "train" else 1,
            max_pixels=spec.data.max_pixels,
            on_progress=lambda done, total: on_progress(f"features of {part}", done, total),
        )

    return {part: fill(part) for part in parts if getattr(split, part)}


def _joined(
    record: dict[str, Any],
    spec: JobSpec,
    assets: Assets,
    source: ExampleSource,
    split: Split,
    features: dict[str, FeatureArray],
    *,
    parts: Sequence[str] = ("train", "validation"),
) -> Prepared:
    kind, arguments = head_kind(spec.head.kind), head_arguments(spec.head)

    def joined(name: str) -> SplitData:
        indices = getattr(split, name)
        examples = tuple(source.examples[index] for index in indices)
        found = features.get(name)
        return SplitData.join(
            name=name,
            examples=examples,
            source_index=indices,
            features_NVD=None if found is None else found.features,
            row_of=None if found is None else found.rows_of(indices),
            table=kind.targets(examples, arguments, assets),
        )

    return Prepared(
        parent=record["parent"],
        start_from=record["start_from"],
        kind=kind,
        arguments=arguments,
        assets=assets,
        row=_row(record),
        backbone_names=tuple(record["backbone_tensors"]),
        num_examples=record["num_examples"],
        bad_records=record["bad_records"],
        split=split,
        splits={
            name: joined(name)
            for name in parts
            if getattr(split, name) and (name in features or not uses_features(spec))
        },
        seconds=record["seconds"],
        vectors=FeatureCounts.of(features.values()),
        source=source,
        warnings=tuple(record.get("warnings", ())),
    )


def _require_fit(start: ModelVersion, parent: ModelVersion, spec: JobSpec) -> None:
    """Raises UnfitStart unless the version has a head of this kind that learnt on this very backbone."""
    head, stored = start.manifest.head, start.manifest.component("backbone")
    if head is None:
        raise UnfitStart(f"{start.reference} is a backbone only: there is no head to start from")
    if head.kind != spec.head.kind:
        raise UnfitStart(f"{start.reference} has a {head.kind} head, the spec asks for a {spec.head.kind}")
    wanted = parent.manifest.component("backbone")
    if stored is None or wanted is None or stored.digest != wanted.digest:
        raise UnfitStart(
            f"{start.reference}'s head learnt on another backbone than {parent.reference}'s",
            hint=f"use --backbone {start.reference}",
        )


def _few(split: Split, source: ExampleSource, spec: JobSpec) -> Split:
    """With data.per_class a part of the training split, chosen among what can be used. Raises NoClasses."""
    count = spec.data.per_class
    if count is None:
        return split
    chosen = per_class(source.examples, split.train, count, seed=spec.train.seed)
    said = f"data.per_class={count}: {len(chosen)} of {len(split.train)} training images are used"
    print(said, file=sys.stderr, flush=True)
    return replace(split, train=chosen)


def _require_examples(spec: JobSpec, planned: Split, split: Split) -> None:
    for part in ("train", "validation", "test"):
        had, has = len(getattr(planned, part)), len(getattr(split, part))
        if not has and (had or part == "train"):
            raise EmptySplit(
                f"the {part} split is empty: its {had} examples by {spec.data.split!r} are all bad records"
            )
    if not split.validation and spec.train.early_stop.patience is not None:
        raise EmptySplit(
            f"the split rule {spec.data.split!r} gives no validation examples, which early stopping needs",
            hint="--set train.early_stop.patience=null, or another data.split",
        )


def _write_bad(folder: JobFolder, spec: JobSpec, bad: Sequence[BadRecord], *, total: int) -> None:
    """Writes bad_records.json; raises TooManyBadRecords."""
    path = folder.prepared / "bad_records.json"
    write_json(
        path,
        {
            "count": len(bad),
            "total": total,
            "max_bad_share": spec.data.max_bad_share,
            "records": [{"id": one.id, "reason": one.reason} for one in bad],
        },
    )
    require_few(bad, total=total, data=spec.data, listed_in=str(path))


def _examples_digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        facts = [example.id, list(example.captions), example.label]
        if example.labels:  # else as before there were labels, so that jobs of then resume
            facts.append(list(example.labels))
        line = json.dumps(facts, ensure_ascii=False)
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
