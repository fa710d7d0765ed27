"""Evaluate: every example of a split once, with the mean loss and the head's own metrics.

Takes a head and SplitData (or a published version and DATA). Gives numbers.
Next: `finetune.training.evaluator`, the CLI.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.feature_store import shared_features
from finetune.data.features import FeatureBackbone, FeatureCache
from finetune.data.queue import evaluation_batches
from finetune.data.scan import scan
from finetune.data.source import BadRecord, ExampleSource
from finetune.data.sources import data_defaults, open_source
from finetune.data.splits import split_examples
from finetune.metrics.captions import known_captions, novel_share
from finetune.metrics.results_file import result_ids, write_results
from finetune.metrics.variety import KnownCaptions
from finetune.models.backbone import Backbone
from finetune.models.feature_row import as_rows, row_of_layer
from finetune.models.heads import head_kind
from finetune.models.heads.head import FittedHead, HeadLayer, Shown, ShowsPredictions
from finetune.models.task_model import NoHead, load_head, stored_assets
from finetune.spec import InvalidSpec, JobSpec, with_settings
from finetune.training.bad_records import require_few
from finetune.training.evaluation_report import write_report
from finetune.training.extremes import extremes
from finetune.training.split_data import SplitData
from zoo.catalog import Catalog, ModelVersion
from zoo.errors import Internal, InvalidArgument

EVALUATED_PARTS = ("train", "validation", "test", "all")
_BATCH = 64  # rows; the metrics don't depend on it but for the last bits


class NothingToEvaluate(InvalidArgument):
    """The split has no example that can be used."""


class NoCaptionsToWrite(InvalidArgument):
    """A results file was asked of a head that doesn't caption."""


class SplitEvaluation:
    """A compiled evaluation of splits with one head; call it as often as the head's weights change.

    `training_captions`: those of the training split, asked for once, to see how many captions a head made up itself.
    `captions`: what the head said of the examples of the last split, None of a head that doesn't caption.
    """

    def __init__(
        self, head: HeadLayer, *, batch_size: int, training_captions: Callable[[], Iterable[str]] | None = None
    ) -> None:
        self._head = head
        self._batch_size = batch_size
        self._training_captions = training_captions
        self._known: KnownCaptions | None = None
        self.captions: list[str] | None = None
        self._warned: set[str] = set()
        self.warnings: tuple[str, ...] = ()
        self._step = tf.function(self._terms)

    def __call__(self, split: SplitData) -> dict[str, Any]:
        """`loss` (mean over weights), means of the loss terms' other metrics, and the head's metrics of predictions,
        of a split with features.

        What the head warns of is in `warnings` until the next call, and goes to stderr, once each.
        """
        metrics: dict[str, Any] = dict(self.means(split))
        metrics |= self._head.evaluate(split.first_view(), split.examples)
        self.captions = metrics.pop("captions", None)
        if self.captions is not None and self._training_captions is not None:
            self._known = self._known or known_captions(self._training_captions())
            metrics["novel_captions"] = novel_share(self.captions, self._known)
        metrics.pop("num_examples", None)  # every result says it beside its metrics
        self.warnings = tuple(metrics.pop("warnings", ()))
        for warning in self.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                print(f"warning: {split.name}: {warning}", file=sys.stderr, flush=True)
        return {name: _plain(value) for name, value in metrics.items()}

    def fit(self, split: SplitData) -> dict[str, Any]:
        """What the head fits to its predictions of a validation split, and uses from now on."""
        if not isinstance(self._head, FittedHead):
            return {}
        found: dict[str, Any] = _plain(self._head.fit_after(split.first_view(), split.examples))
        return found

    def shown(self, split: SplitData) -> list[Shown] | None:
        """What the head says of each example; None for a head that doesn't show it."""
        return (
            self._head.shown(split.first_view(), split.examples) if isinstance(self._head, ShowsPredictions) else None
        )

    def extremes(self, split: SplitData) -> dict[str, Any]:
        """The worst and best predicted examples of a split (`finetune.training.extremes`)."""
        shown = self.shown(split)
        return {} if shown is None else extremes(split.examples, shown)

    def means(self, split: SplitData) -> dict[str, float]:
        """`loss` and the loss terms' other metrics, over the split's target rows."""
        totals: dict[str, np.ndarray] = {}
        if split.features_NVD is None:
            raise Internal(f"the {split.name} split has no features to evaluate")
        batches = evaluation_batches(table=split.table, features=split.features_NVD, batch_size=self._batch_size)
        for features, targets in batches:
            for name, pair in self._step(features, targets).items():
                totals[name] = totals.get(name, np.zeros(2)) + pair.numpy().astype(np.float64)
        return {name: float(total / weight) if weight else float("nan") for name, (total, weight) in totals.items()}

    def _terms(self, features: Mapping[str, tf.Tensor], targets: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        terms = self._head.loss(features, targets, training=False)
        pairs = {"loss": (terms.loss_sum, terms.weight_sum), **terms.metrics}
        return {name: tf.stack([tf.cast(x, tf.float32) for x in pair]) for name, pair in pairs.items()}


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return value


def evaluate_version(
    catalog: Catalog,
    reference: str,
    *,
    location: str | None = None,
    split: str = "test",
    settings: Sequence[str] = (),
    seed: int | None = None,
    results: Path | None = None,
    report: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Metrics of a published version on a split of DATA, each usable example once: what `finetune evaluate` prints.

    Args:
        location: `kind:location`; None: what the version was trained on.
        split: one of EVALUATED_PARTS.
        settings: `data.KEY=VALUE`, over the options of the version's run.
        seed: of the split; None: the run's.
        results: a file for a captioner's captions, in COCO's result format.
        report: a folder for the files of `finetune.training.evaluation_report`.
        on_progress: called while features are computed, with images done and their number.
    Returns:
        reference, split, num_examples, metrics, bad_records.
    Raises:
        NoHead; NoCaptionsToWrite; InvalidSpec; NothingToEvaluate; TooManyBadRecords; what source, split, head and
        catalogue raise.
    """
    if split not in EVALUATED_PARTS:
        raise InvalidArgument(f"split {split!r}: expected one of {', '.join(EVALUATED_PARTS)}")
    version = catalog.get(reference)
    if version.manifest.head is None:
        raise NoHead(f"{version.reference} is a backbone only: it has no head to evaluate")
    if results is not None and version.manifest.head.kind != "captioner":
        raise NoCaptionsToWrite(f"{version.reference} has a {version.manifest.head.kind} head: it writes no captions")
    spec = _data_spec(version, location, settings, seed)
    backbone = Backbone.from_version(catalog, version)
    source = open_source(spec.data.location, language=spec.data.language)
    planned = None
    if split != "all":
        planned = split_examples(source.examples, spec.data.split, seed=spec.train.seed, read=source.read)
    indices = range(len(source.examples)) if planned is None else getattr(planned, split)
    head = load_head(catalog, version, backbone.feature_dim, feature_map_shape=backbone.feature_map_shape)
    rows = as_rows(backbone, row_of_layer(head, backbone))
    data, bad = _split_data(catalog, version, rows, spec, split, source, indices, on_progress)
    training = None
    if planned is not None and _learnt_from(version, spec):
        training = captions_of(source, planned.train)
    evaluation = SplitEvaluation(head, batch_size=_BATCH, training_captions=training)
    metrics = evaluation(data)
    if results is not None:
        ids = result_ids(source)
        write_results(results, [ids[example.id] for example in data.examples], evaluation.captions or [])
    result = {
        "reference": version.reference,
        "split": split,
        "num_examples": len(data.examples),
        "metrics": metrics,
        "bad_records": [{"id": one.id, "reason": one.reason} for one in bad],
    }
    if report is not None:
        title = f"{version.reference}: worst and best of {len(data.examples)} ({split})"
        shown = evaluation.shown(data)
        write_report(report, title=title, result=result, split=data, shown=shown, source=source)
    return result


def _split_data(
    catalog: Catalog,
    version: ModelVersion,
    backbone: FeatureBackbone,
    spec: JobSpec,
    split: str,
    source: ExampleSource,
    indices: Sequence[int],
    on_progress: Callable[[int, int], None],
) -> tuple[SplitData, list[BadRecord]]:
    """The usable examples of a split with the version's own vocabulary or classes, and the records that are bad."""
    bad = [*source.bad_records, *scan(source, indices, spec.data.max_pixels)]
    seen_bad = {one.id for one in bad}
    features = FeatureCache(shared=shared_features(catalog.store)).open_or_fill(
        backbone=backbone,
        source=source,
        indices=[index for index in indices if source.examples[index].id not in seen_bad],
        max_pixels=spec.data.max_pixels,
        on_progress=on_progress,
    )
    bad += features.bad
    require_few(bad, total=len(source.examples) + len(source.bad_records), data=spec.data)
    usable = [index for index, valid in zip(features.indices, features.valid, strict=True) if valid]
    if not usable:
        raise NothingToEvaluate(f"the {split} split of {spec.data.location} by {spec.data.split!r} has no examples")
    examples = tuple(source.examples[index] for index in usable)
    record = version.manifest.head
    kind = head_kind(record.kind if record else "")
    arguments = kind.Arguments.model_validate(record.arguments if record else {})
    joined = SplitData.join(
        name=split,
        examples=examples,
        source_index=usable,
        features_NVD=features.features,
        row_of=features.rows_of(usable),
        table=kind.targets(examples, arguments, stored_assets(catalog, version)),
    )
    return joined, bad


def captions_of(source: ExampleSource, indices: Sequence[int]) -> Callable[[], Iterator[str]]:
    """The captions of these examples, for whoever asks."""
    return lambda: (caption for index in indices for caption in source.examples[index].captions)


def _learnt_from(version: ModelVersion, spec: JobSpec) -> bool:
    """Whether the training split by `spec` is what the version learnt from."""
    if not version.manifest.spec:
        return False
    own = _data_spec(version, None, (), None)
    return own.data == spec.data and own.train.seed == spec.train.seed


def _data_spec(version: ModelVersion, location: str | None, settings: Sequence[str], seed: int | None) -> JobSpec:
    """The spec of the version's run with other data, or for an imported version one that says no more than it must."""
    strange = [setting for setting in settings if not setting.startswith("data.")]
    if strange:
        raise InvalidSpec(f"--set {strange[0]!r}: evaluating takes settings of the data only, e.g. data.split=…")
    value: dict[str, Any] = dict(version.manifest.spec or {})
    if not value:
        if location is None:
            raise InvalidArgument(
                f"{version.reference} wasn't trained here, so there are no data to evaluate it on by default",
                hint=f"finetune evaluate {version.reference} --data DATA",
            )
        head = version.manifest.head
        value = {
            "name": version.name,
            "backbone": version.reference,
            "head": {"kind": head.kind if head else "classifier"},
            "data": {"location": location, **data_defaults(location)},
        }
    elif location is not None:
        value = with_settings(value, [])
        value["data"]["location"] = location
    value = with_settings(value, list(settings))
    if seed is not None:
        value = with_settings(value, [f"train.seed={seed}"])
    return JobSpec.parse(value)
