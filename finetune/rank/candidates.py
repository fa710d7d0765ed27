"""The backbones that are compared: newest versions of the catalogue, equal ones once.

Takes a Catalog, or references. Gives Candidates. Next: `finetune.rank.ranking`.

Two versions have the same backbone where everything that decides its features is the same: weights, architecture,
arguments, InputSpec and the files that it is built from. A version and what was made of it with a frozen backbone are
one candidate, named after the one without a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zoo.architectures import architecture_facts
from zoo.catalog import Catalog, ModelVersion
from zoo.errors import FailedPrecondition, InvalidArgument
from zoo.manifest import canonical_json
from zoo.search.index import MAX_PAGE, CatalogIndex


class NoBackbones(FailedPrecondition):
    """A catalogue without anything to start from."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """`also`: references of versions with the same backbone."""

    version: ModelVersion
    also: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        return self.version.reference


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A backbone without a place in the ranking, and why."""

    reference: str
    reason: str


def candidates(catalog: Catalog, references: Sequence[str] = ()) -> tuple[list[Candidate], list[Skipped]]:
    """Of `references`, in that order; else of the newest version of each model that isn't archived, by name.

    Raises NotFound for a reference that doesn't exist, NoBackbones.
    """
    skipped: list[Skipped] = []
    if references:
        versions = [catalog.get(reference) for reference in references]
    else:
        versions, skipped = _newest(catalog)
    grouped: dict[bytes, list[ModelVersion]] = {}
    for version in versions:
        if version.manifest.component("backbone") is None:
            skipped.append(Skipped(reference=version.reference, reason="it has no backbone component"))
            continue
        try:
            key = _identity(version)
        except InvalidArgument as error:  # an architecture of a later release, arguments that it doesn't take
            skipped.append(Skipped(reference=version.reference, reason=error.message))
            continue
        of_key = grouped.setdefault(key, [])
        if version.reference not in [known.reference for known in of_key]:
            of_key.append(version)
    if not grouped:
        reasons = "; ".join(f"{one.reference}: {one.reason}" for one in skipped[:5])
        raise NoBackbones(
            f"no version with a backbone to rank in {catalog.store.url}" + (f" ({reasons})" if reasons else ""),
            hint="zoo import KIND SOURCE NAME",
        )
    return [_candidate(group) for group in grouped.values()], skipped


def _newest(catalog: Catalog) -> tuple[list[ModelVersion], list[Skipped]]:
    found: list[ModelVersion] = []
    with CatalogIndex.open(catalog) as index:
        page = index.search(page_size=MAX_PAGE)
        found += page.versions
        while page.next_page_token:
            page = index.search(page_size=MAX_PAGE, page_token=page.next_page_token)
            found += page.versions
        problems = [
            Skipped(reference=each.name + (f"@{each.version}" if each.version else ""), reason=each.message)
            for each in page.problems
        ]
    return found, problems


def _identity(version: ModelVersion) -> bytes:
    manifest = version.manifest
    facts = architecture_facts(manifest.architecture.name)
    component = manifest.component("backbone")
    identity = {
        "weights": component.digest if component else None,
        "name": facts.name,
        "arguments": facts.resolved(manifest.architecture.arguments),
        "input_spec": manifest.input_spec.model_dump(mode="json"),
        "assets": {asset.name: asset.digest for asset in manifest.assets if asset.name in facts.assets},
    }
    return canonical_json(identity)


def _candidate(group: Sequence[ModelVersion]) -> Candidate:
    first = next((version for version in group if version.manifest.head is None), group[0])
    return Candidate(
        version=first, also=tuple(version.reference for version in group if version.reference != first.reference)
    )
