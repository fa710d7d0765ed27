"""Publish: the best Checkpoint's head becomes a ModelVersion. No TensorFlow.

Takes the head's weights and all that is known of the run. Gives `export/`, then a version in the catalogue, then
result.json. Next: `zoo.catalog`. The frozen backbone's blob is the parent's own: a child adds its head and some JSON.

Two halves, so that the second can be repeated by a process that knows nothing but the folder: `export_child` (the
chief, at its end) and `finish` (the supervisor).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from finetune.jobs.folder import JobFolder, JobRequest, read_json, write_json
from finetune.models.heads.head import Assets
from zoo.architectures import architecture_facts
from zoo.atomic_file import replaced_file
from zoo.catalog import Catalog, ModelVersion, Published
from zoo.diff import relative_norm
from zoo.errors import DataLoss, FailedPrecondition, NotFound
from zoo.file_hash import hash_file
from zoo.manifest import Asset, Component, Fate, Head, Lineage, Manifest, VocabularyFacts
from zoo.tensors import read_safetensors, tensor_infos, write_safetensors

_TOOLS = ("tensorflow", "keras", "numpy", "modelzoo")
_HEAD_FILE = "head.safetensors"
_BACKBONE_FILE = "backbone.safetensors"
_MANIFEST_FILE = "manifest.json"


class NotExported(FailedPrecondition):
    """The job has nothing to publish yet."""


class DamagedExport(DataLoss):
    """export/ isn't what its marker says."""


@dataclass(frozen=True, kw_only=True)
class Initial:
    """Where the head's first weights came from: `start` is a version's reference, or None for fresh ones.

    `digests` tells later which tensors training has changed; `report` is the RestoreReport of backbone and head.
    """

    start: str | None
    digests: Mapping[str, str]
    report: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the run came to."""

    steps: int
    best_step: int
    stopped_early: bool
    seconds: float  # preparing and training, over all sessions
    metrics: Mapping[str, Mapping[str, Any]]  # split → metric → value
    num_examples: Mapping[str, int]


def tensor_digests(weights: Mapping[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 of each tensor's dtype, shape and values."""
    return {
        name: hashlib.sha256(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
        for name, array in weights.items()
    }


def export_child(
    *,
    folder: JobFolder,
    request: JobRequest,
    catalog: Catalog,
    parent: ModelVersion,
    assets: Assets,
    head: Head,
    weights: Mapping[str, np.ndarray],
    initial: Initial,
    facts: RunFacts,
    backbone_weights: Mapping[str, np.ndarray] | None = None,
) -> Manifest:
    """Writes the head, the assets, the manifest and, last, the marker. Repeating it gives the same bytes.

    `backbone_weights`: those that were trained; the others are the parent's. Without any the child shares the parent's
    backbone.
    """
    folder.export_path.unlink(missing_ok=True)
    write_safetensors(folder.export / _HEAD_FILE, dict(weights))
    for name, data in assets.files.items():
        with replaced_file(folder.export / name) as file:
            file.write(data)
    backbone = parent.manifest.component("backbone")
    if backbone is None:
        raise NotFound(f"{parent.reference} has no backbone component")
    own: dict[str, str] = {}
    fates: dict[str, Fate]
    moved = _moved("head", _started_head(catalog, initial), weights)
    if backbone_weights:
        stored = dict(read_safetensors(catalog.open_component(parent, "backbone")))
        fates = _trained_backbone(stored, backbone_weights)
        moved |= _moved("backbone", stored, backbone_weights)
        write_safetensors(folder.export / _BACKBONE_FILE, stored | dict(backbone_weights))
        backbone = Component.of("backbone", hash_file(folder.export / _BACKBONE_FILE), num_tensors=len(stored))
        own = {backbone.digest: _BACKBONE_FILE}
    else:
        fates = dict.fromkeys(_backbone_names(catalog, parent), "frozen")
    shared = tuple(each for each in parent.manifest.assets if each.name in _backbone_assets(parent))
    head_part = Component.of("head", hash_file(folder.export / _HEAD_FILE), num_tensors=len(weights))
    manifest = Manifest(
        architecture=parent.manifest.architecture,
        input_spec=parent.manifest.input_spec,
        components=(backbone, head_part),
        head=head,
        classes=assets.classes,
        class_offset=assets.class_offset,
        vocabulary=_vocabulary(assets),
        assets=(*shared, *(_asset(folder.export / name) for name in sorted(assets.files))),
        license=parent.manifest.license,
        lineage=Lineage(
            parent=parent.reference,
            parent_digest=parent.digest,
            job=request.job,
            tensors={f"backbone/{name}": fate for name, fate in fates.items()} | _head_fates(weights, initial),
            moved=moved,
        ),
        metrics={split: dict(values) for split, values in facts.metrics.items()},
        spec=request.spec.without_debug().to_json(),
        tools=_tools(),
    )
    with replaced_file(folder.export / _MANIFEST_FILE) as file:
        file.write(manifest.canonical_bytes())
    marker = {
        "manifest_digest": manifest.digest(),
        "files": own
        | {head_part.digest: _HEAD_FILE}
        | {asset.digest: asset.name for asset in manifest.assets if asset not in shared},
        "steps": facts.steps,
        "best_step": facts.best_step,
        "stopped_early": facts.stopped_early,
        "seconds": facts.seconds,
        "num_examples": dict(facts.num_examples),
        "restore_report": dict(initial.report),
    }
    write_json(folder.export_path, marker)
    return manifest


def publish_export(catalog: Catalog, job: JobFolder, *, again: bool = False) -> Published:
    """Publishes `export/` under the spec's name. A job publishes at most once: a version that says it came from this
    job is returned as existing, whoever published it, and the commit itself looks again (`once_a_job`). Raises
    NotExported, DamagedExport, the catalogue's errors."""
    request = job.request()
    manifest = _exported_manifest(job)
    before = _published_before(catalog, request)
    if before is not None:
        return Published(version=before, existing=True, bytes_sent=0)
    marker = read_json(job.export_path) or {}
    files = {digest: job.export / name for digest, name in marker["files"].items()}
    return catalog.publish(request.spec.name, manifest, files, again=again, once_a_job=True)


def finish(catalog: Catalog, job: JobFolder, *, again: bool = False) -> dict[str, Any]:
    """Publishes the export and writes result.json: what `finetune run --format json` prints. Idempotent."""
    written = job.read_result()
    if written is not None:
        return written
    published = publish_export(catalog, job, again=again)
    request = job.request()
    marker = read_json(job.export_path) or {}
    version = published.version
    result = {
        "reference": version.reference,
        "digest": version.digest,
        "job": request.job,
        "steps": marker["steps"],
        "best_step": marker["best_step"],
        "stopped_early": marker["stopped_early"],
        "seconds": marker["seconds"],
        "num_examples": marker["num_examples"],
        "metrics": {split: dict(values) for split, values in version.manifest.metrics.items()},
        "restore_report": marker["restore_report"],
        "bytes_published": published.bytes_sent,
        "existing": published.existing,
    }
    write_json(job.result_path, result)
    return result


def _exported_manifest(job: JobFolder) -> Manifest:
    marker = read_json(job.export_path)
    if marker is None:
        raise NotExported(f"{job.root} has no export to publish: its training hasn't ended")
    path = job.export / _MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedExport(f"{path} cannot be read: {error}", hint="delete export/, then resume the job") from None
    if manifest.digest() != marker["manifest_digest"]:
        raise DamagedExport(f"{path} isn't the manifest that {job.export_path} names")
    return manifest


def _published_before(catalog: Catalog, request: JobRequest) -> ModelVersion | None:
    try:
        versions = catalog.versions(request.spec.name)
    except NotFound:
        return None
    return next((v for v in versions if v.manifest.lineage.job == request.job), None)


def _trained_backbone(stored: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> dict[str, Fate]:
    """A tensor that is to the bit what it was hasn't been trained, whatever side of the cut it lies on."""
    return {
        name: "trained" if name in weights and not np.array_equal(weights[name], value) else "frozen"
        for name, value in stored.items()
    }


def _moved(component: str, before: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> dict[str, float]:
    """See `Lineage.moved`; six digits say enough. Tensors that were zeros have no relative distance and are left out,
    as are those of another shape than before (another number of classes)."""
    return {
        f"{component}/{name}": float(f"{distance:.6g}")
        for name, value in now.items()
        if name in before and (distance := relative_norm(before[name], value))
    }


def _started_head(catalog: Catalog, initial: Initial) -> dict[str, np.ndarray]:
    """The head that training began with; empty where it was fresh."""
    if initial.start is None:
        return {}
    try:
        start = catalog.get(initial.start)
    except NotFound as error:  # deleted meanwhile: what was trained is published all the same
        print(f"warning: how far the head moved is not known: {error.message}", file=sys.stderr, flush=True)
        return {}
    return dict(read_safetensors(catalog.open_component(start, "head")))


def _head_fates(weights: Mapping[str, np.ndarray], initial: Initial) -> dict[str, Fate]:
    """A tensor that is to the bit what it was before step 1 hasn't been trained."""
    untouched: Fate = "fresh" if initial.start is None else "restored"
    return {
        f"head/{name}": untouched if digest == initial.digests.get(name) else "trained"
        for name, digest in tensor_digests(weights).items()
    }


def _backbone_assets(parent: ModelVersion) -> tuple[str, ...]:
    """Files that the frozen backbone is built from: they are the parent's own, as its component is."""
    return architecture_facts(parent.manifest.architecture.name).assets


def _backbone_names(catalog: Catalog, parent: ModelVersion) -> list[str]:
    return sorted(tensor_infos(catalog.open_component(parent, "backbone")))


def _vocabulary(assets: Assets) -> VocabularyFacts | None:
    if assets.vocabulary_size is None or assets.tokenizer is None:
        return None
    return VocabularyFacts(size=assets.vocabulary_size, tokenizer=assets.tokenizer)


def _asset(path: Path) -> Asset:
    return Asset.of(path.name, hash_file(path))


def _tools() -> dict[str, str]:
    """Without importing them; a checkout that isn't installed says so."""
    found = {}
    for name in _TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
