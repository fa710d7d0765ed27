"""Verify: whether every byte that versions name is still what was published.

Takes a Catalog. Gives a VerifyReport. Next: `zoo verify` prints it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zoo.cache import blob_key
from zoo.catalog import Catalog, ModelVersion
from zoo.errors import DataLoss
from zoo.lookup import DeletedModel, UnknownModel
from zoo.manifests import read_manifest
from zoo.store.object_store import ObjectMissing
from zoo.transfer import Part, stored_digest


@dataclass(frozen=True, kw_only=True)
class Problem:
    reference: str
    part: str  # a component, an asset, `manifest` or `log`
    digest: str | None  # of the blob, where it is one
    found: str  # what is wrong


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """`blobs` and `bytes` count what was read; a blob that several versions share is read once."""

    versions: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]


def verify(catalog: Catalog, reference: str | None = None) -> VerifyReport:
    """Reads every byte of one version, or of every version of every model that isn't deleted.

    Damage to one part doesn't keep the others from being read. Raises what `Catalog.get` does for `reference`, but for
    DataLoss, which is what the report is about.
    """
    catalog = Catalog(catalog.store, catalog.cache)  # remembers no log that was read before
    problems: list[Problem] = []
    versions = list(_versions(catalog, _references(catalog, reference, problems), problems))
    faults: dict[tuple[str, int], str | None] = {}
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


def _references(catalog: Catalog, reference: str | None, problems: list[Problem]) -> list[str]:
    if reference is not None:
        return [reference]
    found: list[str] = []
    for name in catalog.names():
        try:
            found += catalog.references(name)
        except (UnknownModel, DeletedModel):
            continue  # a name without a version yet, or one that nobody can get
        except DataLoss as error:
            problems.append(Problem(reference=name, part="log", digest=None, found=error.message))
    return found


def _versions(catalog: Catalog, references: list[str], problems: list[Problem]) -> Iterator[ModelVersion]:
    for reference in references:
        try:
            version = catalog.get(reference)
            read_manifest(catalog.store, version.digest, reference)  # the stored one, not what a cache has of it
            yield version
        except DataLoss as error:
            problems.append(Problem(reference=reference, part="manifest", digest=None, found=error.message))


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
