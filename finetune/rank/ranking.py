"""Rank: every backbone asked about the same images in the same folds.

Takes a Catalog, DATA and a RankRequest. Gives a Ranking. Next: `finetune.rank.table`, `finetune.rank.chart`.

Features come from the cache (`finetune.data.features`), so that a second ranking, and the run that follows, compute
none anew. The features of all backbones are held in memory until all are there (2,000 images of 2,048 values are 16 MB
each), because an image counts only where every backbone could take it.
"""

from __future__ import annotations

import functools
import gc
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.feature_store import shared_features
from finetune.data.features import FeatureCache
from finetune.data.source import BadRecord, Example, ExampleSource
from finetune.data.splits import PARTS, split_examples
from finetune.models.backbone import Backbone
from finetune.rank.candidates import Candidate, Skipped, candidates
from finetune.rank.cost import Cost, measured_cost
from finetune.rank.logme import log_evidence
from finetune.rank.measures import Estimate, corrected_error
from finetune.rank.probe import FoldScores, cross_validated, probe_kind
from finetune.rank.sample import fold_of, stratified_sample
from finetune.rank.targets import By, NothingToTell, Targets, class_targets, final_targets, kind_of, usable
from finetune.spec import DataConfig
from finetune.training.bad_records import require_few
from zoo.atomic_file import NoAccess, NoSpace
from zoo.catalog import Catalog
from zoo.errors import Cancelled, FailedPrecondition, InvalidArgument, ZooError

OnProgress = Callable[[str, int, int], None]
NOT_COVERED = (
    "folds share training images, so the true error is larger than this standard error",
    "the head is fitted to a sample here; on all training images it usually does better",
    "hidden layers, augmentation and thawing the backbone can gain more, for one backbone more than for another",
    "images unlike these: other cameras, other shares of the classes; near-copies in two folds make it too good",
    "the best of many backbones looks a little better than it is",
)
_DIGITS = 6  # the last bits of a sum depend on the number of threads
_TIED = 2.0  # standard errors


class NothingRanked(FailedPrecondition):
    """Every backbone was skipped."""


@dataclass(frozen=True, kw_only=True)
class RankRequest:
    """`part`: train, validation, test or all; by default what training sees, so that the rest stays unseen."""

    data: DataConfig
    backbones: tuple[str, ...] = ()
    by: By | None = None
    sample: int = 2000
    folds: int = 5
    part: str = "train"
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """`behind`: how far the linear probe is behind the best one's, fold by fold; `tied` where that is within two
    standard errors of nothing."""

    candidate: Candidate
    feature_dim: int
    scores: FoldScores
    log_evidence: float
    cost: Cost
    behind: float
    behind_error: float

    @property
    def tied(self) -> bool:
        return self.behind <= _TIED * self.behind_error

    def to_json(self, measure: str) -> dict[str, Any]:
        manifest = self.candidate.version.manifest
        return {
            "reference": self.candidate.reference,
            "also": list(self.candidate.also),
            "architecture": manifest.architecture.name,
            "input_size": [manifest.input_spec.height, manifest.input_spec.width],
            "feature_dim": self.feature_dim,
            "linear_probe": _estimate(self.scores.probe),
            "nearest_neighbours": _estimate(self.scores.neighbours) | {"k": list(self.scores.k)},
            "logme": round(self.log_evidence, _DIGITS),
            "milliseconds": round(self.cost.milliseconds, 3),
            "bytes": self.cost.bytes,
            "flops": self.cost.flops,
            "behind_best": {
                "mean": round(self.behind, _DIGITS),
                "standard_error": round(self.behind_error, _DIGITS),
                "tied": self.tied,
            },
            "expected": {"metric": measure} | _estimate(self.scores.probe),
        }


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """`ranked`: best linear probe first. `classes`: how many classes or words were asked for; `baseline`: the measure
    of an answer that knows only how common each is."""

    location: str
    part: str
    by: By
    measure: str
    probe: str
    images: int
    available: int
    classes: int
    baseline: float
    folds: int
    seed: int
    ranked: tuple[Ranked, ...]
    skipped: tuple[Skipped, ...]
    bad: tuple[BadRecord, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "data": self.location,
            "split": self.part,
            "by": self.by,
            "metric": self.measure,
            "probe": self.probe,
            "num_examples": self.images,
            "available": self.available,
            "classes": self.classes,
            "baseline": round(self.baseline, _DIGITS),
            "folds": self.folds,
            "seed": self.seed,
            "backbones": [each.to_json(self.measure) for each in self.ranked],
            "skipped": [{"reference": each.reference, "reason": each.reason} for each in self.skipped],
            "bad_records": [{"id": one.id, "reason": one.reason} for one in self.bad],
            "notes": list(self.notes),
            "not_covered": list(NOT_COVERED),
        }


def rank(catalog: Catalog, source: ExampleSource, request: RankRequest, *, on_progress: OnProgress) -> Ranking:
    """Ranks the catalogue's backbones, or those asked for.

    `on_progress(phase, done, of how many)`.

    Raises NothingToTell, NoBackbones, NothingRanked, NotFound (a reference), InvalidSplit, TooManyBadRecords; NoSpace
    and NoAccess of the feature cache. What fails for one backbone alone is in `skipped`.
    """
    found, skipped = candidates(catalog, request.backbones)
    by, chosen, available, notes = _chosen(source, request)
    early, _ = final_targets([source.examples[int(index)] for index in chosen], by, folds=request.folds)
    _folds(early, request)  # what can't be asked is said before minutes are spent on features
    prepared, bad = _prepared(catalog, source, request, chosen, found, skipped, on_progress)
    valid_N = np.logical_and.reduce([each.valid for each in prepared])
    copies = _copies(source, chosen, prepared, np.flatnonzero(valid_N))
    if copies:
        valid_N[copies] = False
        notes.append(f"left out: {len(copies)} images whose bytes another image of the sample has, too")
    require_few(bad, total=len(chosen) + len(source.bad_records), data=request.data)
    examples = [source.examples[int(index)] for index in chosen[valid_N]]
    targets, rows = final_targets(examples, by, folds=request.folds)
    fold_N = _folds(targets, request)
    ranked = []
    for number, each in enumerate(prepared, 1):
        phase = f"scoring {each.candidate.reference} ({number} of {len(prepared)})"
        feature_ND = each.feature_ND[valid_N][rows]
        scores = cross_validated(
            feature_ND,
            targets,
            fold_N,
            seed=request.seed,
            on_fold=functools.partial(on_progress, phase),
        )
        ranked.append((each, scores, log_evidence(feature_ND, targets.truth)))
    return Ranking(
        location=source.location,
        part=request.part,
        by=by,
        measure=targets.measure_name,
        probe=probe_kind(targets),
        images=len(targets),
        available=available,
        classes=len(targets.names),
        baseline=_baseline(targets),
        folds=request.folds,
        seed=request.seed,
        ranked=_sorted(ranked),
        skipped=tuple(skipped),
        bad=(*source.bad_records, *bad),
        notes=(*notes, *targets.notes),
    )


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    candidate: Candidate
    feature_ND: np.ndarray
    valid: np.ndarray
    cost: Cost


def _chosen(source: ExampleSource, request: RankRequest) -> tuple[By, np.ndarray, int, list[str]]:
    """What is asked for, the images (int64 [N], ascending), of how many, and what to say about it."""
    if request.part == "all":
        indices = np.arange(len(source.examples))
    elif request.part in PARTS:
        split = split_examples(source.examples, request.data.split, seed=request.seed, read=source.read)
        indices = np.array(list(getattr(split, request.part)), np.int64)
    else:
        raise InvalidArgument(f"split {request.part!r}: expected one of {', '.join(PARTS)}, all")
    examples: Sequence[Example] = [source.examples[int(index)] for index in indices]
    by = kind_of(examples, request.by, source.location)
    able = usable(examples, by)
    notes = []
    if len(able) < len(indices):
        notes.append(f"left out: {len(indices) - len(able)} of {len(indices)} images, which have no {by}")
    strata = class_targets([examples[int(row)] for row in able], by).strata
    rows = stratified_sample(strata, request.sample, floor=request.folds, seed=request.seed)
    return by, indices[able][rows], len(able), notes


def _prepared(
    catalog: Catalog,
    source: ExampleSource,
    request: RankRequest,
    chosen: np.ndarray,
    found: Sequence[Candidate],
    skipped: list[Skipped],
    on_progress: OnProgress,
) -> tuple[list[_Prepared], list[BadRecord]]:
    """Features and costs, a backbone at a time in memory. Adds to `skipped`. Raises NothingRanked."""
    cache = FeatureCache(shared=shared_features(catalog.store))
    prepared: list[_Prepared] = []
    bad: dict[str, BadRecord] = {}
    for number, candidate in enumerate(found, 1):
        phase = f"features of {candidate.reference} ({number} of {len(found)})"
        on_progress(phase, 0, len(chosen))
        try:
            backbone = Backbone.from_version(catalog, candidate.version)
            array = cache.open_or_fill(
                backbone=backbone,
                source=source,
                indices=chosen.tolist(),
                max_pixels=request.data.max_pixels,
                on_progress=functools.partial(on_progress, phase),
            )
            cost = measured_cost(backbone, candidate.version)
            del backbone  # its weights go before the next ones come
        except (Cancelled, NoSpace, NoAccess):
            raise  # no other backbone would fare better
        except (ZooError, tf.errors.OpError, MemoryError, ValueError) as error:
            reason = error.message if isinstance(error, ZooError | tf.errors.OpError) else str(error)
            skipped.append(Skipped(reference=candidate.reference, reason=reason or type(error).__name__))
            continue
        gc.collect()
        bad |= {record.id: record for record in array.bad}
        prepared.append(_Prepared(candidate=candidate, feature_ND=array.features[:, 0], valid=array.valid, cost=cost))
    if not prepared:
        reasons = "; ".join(f"{one.reference}: {one.reason}" for one in skipped)
        raise NothingRanked(f"none of {len(found)} backbones could be ranked: {reasons}", hint="zoo verify REF")
    return prepared, list(bad.values())


def _copies(source: ExampleSource, chosen: np.ndarray, prepared: Sequence[_Prepared], rows: np.ndarray) -> list[int]:
    """The rows with the same bytes as an earlier one: in two folds, a copy would answer for the other.

    Only images that no backbone can tell apart are read again.
    """
    alike: dict[bytes, list[int]] = {}
    for row in rows.tolist():
        told = hashlib.sha256(b"".join(each.feature_ND[row].tobytes() for each in prepared)).digest()
        alike.setdefault(told, []).append(row)
    copies = []
    for group in alike.values():
        seen: set[bytes] = set()
        for row in group if len(group) > 1 else ():
            digest = hashlib.sha256(source.read(int(chosen[row]))).digest()
            if digest in seen:
                copies.append(row)
            seen.add(digest)
    return copies


def _folds(targets: Targets, request: RankRequest) -> np.ndarray:
    if len(targets) < 2 * request.folds:
        raise NothingToTell(
            f"{len(targets)} usable images are too few for {request.folds} folds: at least {2 * request.folds} are "
            "needed",
            hint="give more images, or a smaller --folds",
        )
    fold_N = fold_of(targets.strata, request.folds, seed=request.seed)
    empty = [fold for fold in range(request.folds) if not targets.truth[fold_N == fold].any()]
    if empty:
        raise NothingToTell(
            f"{len(empty)} of {request.folds} folds have no image with a class: too few images have one",
            hint="give more images, or a smaller --folds",
        )
    return fold_N


def _sorted(found: Sequence[tuple[_Prepared, FoldScores, float]]) -> tuple[Ranked, ...]:
    """By the linear probe, then the evidence, then the name."""

    def key(one: tuple[_Prepared, FoldScores, float]) -> tuple[float, float, str]:
        each, scores, evidence = one
        return -round(scores.probe.mean, _DIGITS), -round(evidence, _DIGITS), each.candidate.reference

    ordered = sorted(found, key=key)
    best = ordered[0][1].probe
    result = []
    for each, scores, evidence in ordered:
        behind = best.minus(scores.probe)
        result.append(
            Ranked(
                candidate=each.candidate,
                feature_dim=each.feature_ND.shape[1],
                scores=scores,
                log_evidence=evidence,
                cost=each.cost,
                behind=behind.mean,
                behind_error=corrected_error(behind),
            )
        )
    return tuple(result)


def _baseline(targets: Targets) -> float:
    """Accuracy of always saying the commonest class; mean average precision of one score for every image, which is
    each column's share of images."""
    share_C = targets.truth.mean(axis=0)
    return float(share_C.max() if targets.by == "label" else share_C.mean())


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "mean": round(estimate.mean, _DIGITS),
        "standard_error": round(estimate.standard_error, _DIGITS),
        "folds": [round(fold, _DIGITS) for fold in estimate.folds],
    }
