"""Diff: what two versions have in common, tensor by tensor and fact by fact.

Takes two ModelVersions, of one model or of two. Gives a VersionDiff. Next: `zoo diff` prints it.

Components of the same digest are equal, and not a byte of them is read. Of the others, one tensor of each side is in
memory at a time, and what is computed from it is made in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.catalog import Catalog, ModelVersion
from zoo.manifest import Component
from zoo.tensors import TensorInfo, read_safetensors, tensor_infos

_BLOCK = 1 << 20  # elements that are turned into float64 at once


@dataclass(frozen=True, kw_only=True)
class ChangedTensor:
    """One name, other bytes. `shape` and `dtype` are a's.

    `relative_norm` is ‖b - a‖ / ‖a‖ (Frobenius), None where it isn't a number: a is all zeros, a value isn't finite,
    or the shapes differ. `max_abs` is the largest |b - a| among pairs of finite values, None where there are none.
    `non_finite`: elements that are NaN or infinite in a or in b.
    """

    name: str
    relative_norm: float | None
    max_abs: float | None
    non_finite: int
    shape: tuple[int, ...]
    dtype: str
    shape_b: tuple[int, ...]
    dtype_b: str


@dataclass(frozen=True, kw_only=True)
class ComponentDiff:
    """`equal` counts tensors with the same type, shape and bytes; `changed` is sorted by name."""

    name: str
    digest_a: str | None  # None: a has no such component
    digest_b: str | None
    equal: int
    changed: tuple[ChangedTensor, ...]
    added: tuple[str, ...]  # only in b
    removed: tuple[str, ...]  # only in a


@dataclass(frozen=True, kw_only=True)
class VersionDiff:
    """`same`: both have one manifest, so everything is equal. `manifest`: field → (a's value, b's), where they differ;
    of `tensors` (the fate of each, by `component/name`) only those that differ."""

    a: str
    b: str
    same: bool
    components: tuple[ComponentDiff, ...]
    manifest: Mapping[str, tuple[Any, Any]]

    def to_dict(self) -> dict[str, Any]:
        """As `zoo diff --format json` prints it."""
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "components": {
                part.name: {
                    "digest": [part.digest_a, part.digest_b],
                    "equal": part.equal,
                    "changed": [_tensor_dict(tensor) for tensor in part.changed],
                    "added": list(part.added),
                    "removed": list(part.removed),
                }
                for part in self.components
            },
            "manifest": {field: list(values) for field, values in self.manifest.items()},
        }


def relative_norm(before: np.ndarray, now: np.ndarray) -> float | None:
    """‖now − before‖ / ‖before‖ (Frobenius) of two arrays of one shape; None where `ChangedTensor` has None."""
    return _distance(before.reshape(-1), now.reshape(-1))[0] if before.shape == now.shape else None


def diff(
    catalog: Catalog,
    a: ModelVersion,
    b: ModelVersion,
    *,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> VersionDiff:
    """Compares two versions of one catalogue; either order, any two models.

    `on_bytes` is called with the bytes (of a's and b's tensors) that were compared. Raises CorruptBlob, DamagedTensors
    and the store's errors.
    """
    names = {c.name: None for c in (*a.manifest.components, *b.manifest.components)}
    return VersionDiff(
        a=a.reference,
        b=b.reference,
        same=a.digest == b.digest,
        components=tuple(_component_diff(catalog, a, b, name, on_bytes) for name in names),
        manifest=_manifest_diff(a, b),
    )


def bytes_to_compare(a: ModelVersion, b: ModelVersion) -> int:
    """How much `diff` will report to `on_bytes`, about: the bytes of components that are in both and differ."""
    sizes = 0
    for part in a.manifest.components:
        other = b.manifest.component(part.name)
        if other is not None and other.digest != part.digest:
            sizes += part.bytes + other.bytes
    return sizes


def _component_diff(
    catalog: Catalog, a: ModelVersion, b: ModelVersion, name: str, on_bytes: Callable[[int], None]
) -> ComponentDiff:
    one, two = a.manifest.component(name), b.manifest.component(name)
    digests = {"digest_a": one.digest if one else None, "digest_b": two.digest if two else None}
    if one and two and one.digest == two.digest:
        return ComponentDiff(name=name, **digests, equal=one.num_tensors, changed=(), added=(), removed=())
    path_a, in_a = _opened(catalog, a, one)
    path_b, in_b = _opened(catalog, b, two)
    equal, changed = 0, []
    for tensor in in_a.keys() & in_b.keys():
        change = _compare(path_a, in_a[tensor], path_b, in_b[tensor])
        on_bytes(in_a[tensor].bytes + in_b[tensor].bytes)
        if change is None:
            equal += 1
        else:
            changed.append(change)
    return ComponentDiff(
        name=name,
        **digests,
        equal=equal,
        changed=tuple(sorted(changed, key=lambda tensor: tensor.name)),
        added=tuple(sorted(in_b.keys() - in_a.keys())),
        removed=tuple(sorted(in_a.keys() - in_b.keys())),
    )


def _opened(
    catalog: Catalog, version: ModelVersion, component: Component | None
) -> tuple[Path, Mapping[str, TensorInfo]]:
    if component is None:
        return Path(), {}
    path = catalog.open_component(version, component.name)
    return path, tensor_infos(path)


def _compare(path_a: Path, info_a: TensorInfo, path_b: Path, info_b: TensorInfo) -> ChangedTensor | None:
    """None when both are the same to the bit."""
    name = info_a.name
    relative, largest, non_finite = None, None, 0
    if info_a.shape == info_b.shape:
        flat_a = read_safetensors(path_a, [name])[name].reshape(-1)
        flat_b = read_safetensors(path_b, [name])[name].reshape(-1)
        if flat_a.dtype == flat_b.dtype and np.array_equal(flat_a.view(np.uint8), flat_b.view(np.uint8)):
            return None
        relative, largest, non_finite = _distance(flat_a, flat_b)
    return ChangedTensor(
        name=name,
        relative_norm=relative,
        max_abs=largest,
        non_finite=non_finite,
        shape=info_a.shape,
        dtype=info_a.dtype,
        shape_b=info_b.shape,
        dtype_b=info_b.dtype,
    )


def _distance(flat_a: np.ndarray, flat_b: np.ndarray) -> tuple[float | None, float | None, int]:
    """Of two arrays [N]: ‖b - a‖ / ‖a‖, max |b - a|, and how many elements are not finite on either side."""
    norm_a = norm_change = 0.0
    largest: float | None = None
    non_finite = 0
    for start in range(0, flat_a.size, _BLOCK):
        block_a = flat_a[start : start + _BLOCK].astype(np.float64)
        block_b = flat_b[start : start + _BLOCK].astype(np.float64)
        finite = np.isfinite(block_a) & np.isfinite(block_b)
        non_finite += int(finite.size - np.count_nonzero(finite))
        with np.errstate(over="ignore"):  # of two huge float64: the difference is infinite, and no JSON number
            change = np.abs(block_b[finite] - block_a[finite])
        if change.size:
            largest = max(largest or 0.0, float(change.max()))
        norm_a = math.hypot(norm_a, _norm(block_a[finite]))
        norm_change = math.hypot(norm_change, _norm(change))
    usable = non_finite == 0 and norm_a > 0
    return _number(norm_change / norm_a if usable else math.inf), _number(largest), non_finite


def _norm(values: np.ndarray) -> float:
    """Scaled by its largest element, so that squares neither overflow nor vanish."""
    scale = float(np.abs(values).max(initial=0.0))
    if scale == 0 or not math.isfinite(scale):
        return scale
    return scale * float(np.linalg.norm(values / scale))


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _tensor_dict(tensor: ChangedTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "relative_norm": tensor.relative_norm,
        "max_abs": tensor.max_abs,
        "non_finite": tensor.non_finite,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "shape_b": list(tensor.shape_b),
        "dtype_b": tensor.dtype_b,
    }


def _manifest_diff(a: ModelVersion, b: ModelVersion) -> dict[str, tuple[Any, Any]]:
    one, two = _facts(a), _facts(b)
    differing = {field: (one[field], two[field]) for field in one if one[field] != two[field]}
    if "tensors" in differing:
        fates_a, fates_b = differing["tensors"]
        names = sorted(name for name in fates_a.keys() | fates_b.keys() if fates_a.get(name) != fates_b.get(name))
        differing["tensors"] = (
            {name: fates_a.get(name) for name in names},
            {name: fates_b.get(name) for name in names},
        )
    return differing


def _facts(version: ModelVersion) -> dict[str, Any]:
    """Everything in the manifest but its components, whose tensors are compared one by one."""
    value = version.manifest.model_dump(mode="json", exclude={"components"})
    lineage = value.pop("lineage")
    value["assets"] = {asset.name: asset.digest for asset in version.manifest.assets}
    return value | {key: lineage[key] for key in ("parent", "parent_digest", "job", "source", "tensors")}
