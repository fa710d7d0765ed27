"""Verify: whether every byte that versions name is still what was published.

Takes ModelVersions. Gives a VerifyReport. Next: `zoo verify` prints it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zoo.cache import blob_key
from zoo.catalog import Catalog, ModelVersion
from zoo.store.object_store import ObjectMissing
from zoo.transfer import Part, stored_digest


@dataclass(frozen=True, kw_only=True)
class Problem:
    reference: str
    part: str  # a component or an asset
    digest: str
    found: str  # what is wrong


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """`blobs` and `bytes` count what was read; a blob that several versions share is read once."""

    versions: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]


def verify(catalog: Catalog, versions: Sequence[ModelVersion]) -> VerifyReport:
    """Hashes every blob in full, where the store has it. (Manifests and logs were checked when `versions` was read.)"""
    faults: dict[tuple[str, int], str | None] = {}
    problems: list[Problem] = []
    for version in versions:
        parts: list[Part] = [*version.manifest.components, *version.manifest.assets]
        for part in parts:
            key = (part.digest, part.bytes)
            if key not in faults:
                faults[key] = _fault(catalog, part)
            if found := faults[key]:
                problem = Problem(reference=version.reference, part=part.name, digest=part.digest, found=found)
                problems.append(problem)
    return VerifyReport(
        versions=len(versions),
        blobs=len(faults),
        bytes=sum(size for _, size in faults),
        problems=tuple(problems),
    )


def _fault(catalog: Catalog, part: Part) -> str | None:
    key = blob_key(part.digest)
    try:
        size = catalog.store.stat(key).size
        if size != part.bytes:
            return f"{size} bytes are stored, {part.bytes} were published"
        found = stored_digest(catalog.store, key)
    except ObjectMissing:
        return "the blob is missing"
    return None if found == part.digest else f"the stored bytes have the digest {found}"
