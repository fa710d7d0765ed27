"""Catalog: models, their immutable versions and aliases, with object storage as the only truth.

Takes Manifests and files. Gives ModelVersions and verified local files. Next: `zoo.tensors`, `finetune.models`.

Nothing is named before its bytes are there: first the blobs, then the manifest, then the event in the model's log
(`zoo.model_logs`), so that a crash anywhere leaves the old state, and perhaps some bytes without a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from zoo.cache import BlobCache, default_cache_root
from zoo.errors import InvalidArgument, NotFound
from zoo.log import AliasSet, Change, Created, Event, ModelState, VersionEntry, VersionPublished
from zoo.lookup import no_such_model, no_such_version, refuse_deleted
from zoo.manifest import Asset, Component, Manifest
from zoo.model_logs import ModelLogs
from zoo.names import Reference, check_alias, check_model_name
from zoo.store import default_store_url, open_store
from zoo.store.object_store import ObjectStore
from zoo.transfer import read_manifest, send_blobs, send_manifest


class ForeignVersion(InvalidArgument):
    """An alias of one model was to mean a version of another."""


class UnstorableManifest(InvalidArgument):
    """A manifest with a value that JSON doesn't have, such as a metric that is NaN."""


class UnknownComponent(NotFound):
    """A version without that component or asset."""


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One immutable version of a model, and what the log said of it at the moment it was read."""

    name: str
    number: int
    digest: str  # of the Manifest
    manifest: Manifest
    aliases: tuple[str, ...]  # those that users set, so without `latest`
    created: datetime  # UTC
    archived: bool

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.number}"


@dataclass(frozen=True, kw_only=True)
class Published:
    version: ModelVersion
    existing: bool  # it already was the newest version
    bytes_sent: int  # bytes of the blobs that this call wrote


Versions = list[ModelVersion]  # inside the class, `list` is the method
Names = list[str]
Events = list[Event]
States = list[ModelState]


def open_catalog(store_url: str | None = None) -> Catalog:
    """The catalogue at `store_url` (default: `MODELZOO_STORE`, else in the user's data home), with the default cache.

    Raises InvalidStoreUrl, StoreUnimplemented, NotADirectory.
    """
    return Catalog(open_store(store_url or default_store_url()), BlobCache(default_cache_root()))


class Catalog:
    """Safe to share between threads; any number of processes may use one store."""

    def __init__(self, store: ObjectStore, cache: BlobCache) -> None:
        self.store = store
        self.cache = cache
        self._logs = ModelLogs(store)

    def publish(self, name: str, manifest: Manifest, files: Mapping[str, Path], *, again: bool = False) -> Published:
        """Makes `manifest` the next version of `name`, unless it already is the newest one (and not `again`).

        `files`: digest → local path, for every component or asset whose blob may not be in the store yet.
        Raises InvalidName, UnstorableManifest, DeletedModel, StrangeFile, MissingBlob, WrongBytes, ChangedFile and the
        store's errors; whatever is raised, no name has changed its meaning (but for UnknownOutcome, which says that it
        may have).
        """
        check_model_name(name)
        try:
            digest = manifest.digest()
        except ValueError as error:  # from the encoder: NaN, infinity, or half of a surrogate pair
            raise UnstorableManifest(
                f"the manifest for {name!r} has a value that JSON does not have: {error}"
            ) from None

        def change(state: ModelState) -> Change | None:
            refuse_deleted(state)
            if not again and state.newest and state.newest.digest == digest:
                return None
            return VersionPublished(version=len(state.versions) + 1, digest=digest)

        sent = 0
        state: ModelState = self._logs.state(name)
        if change(state) is not None:
            sent = send_blobs(self.store, manifest, files)
            send_manifest(self.store, manifest)
        self._logs.commit(name, lambda state: None if state.seq else Created())
        state, event = self._logs.commit(name, change)
        version = _model_version(state, state.versions[-1], manifest)
        return Published(version=version, existing=event is None, bytes_sent=sent)

    def get(self, reference: str) -> ModelVersion:
        """The version that `reference` means now. Raises InvalidName, UnknownModel, UnknownVersion, DeletedModel."""
        meant = Reference.parse(reference)
        state = self._state(meant.name)
        return self._load(state, _entry(state, meant))

    def list(self) -> Versions:
        """The newest version of each model, by name; deleted models are left out."""
        return [self._load(state, state.versions[-1]) for state in self._states()]

    def names(self) -> Names:
        """Every name that has a log, so also of deleted models and of such whose first publish was cut short."""
        return self._logs.names()

    def references(self, name: str) -> Names:
        """`name@1`, `name@2`, … as the log has them; no manifest is read. Raises as `versions`."""
        return [f"{name}@{entry.number}" for entry in self._state(check_model_name(name)).versions]

    def versions(self, name: str) -> Versions:
        """Every version of a model, oldest first. Raises InvalidName, UnknownModel, DeletedModel."""
        state = self._state(check_model_name(name))
        return [self._load(state, entry) for entry in state.versions]

    def set_alias(self, name: str, alias: str, reference: str) -> ModelVersion:
        """Lets `alias` mean the version `reference` of the same model. Raises ForeignVersion, and as `get`."""
        check_model_name(name)
        check_alias(alias)
        meant = Reference.parse(reference)
        if meant.name != name:
            raise ForeignVersion(
                f"alias {alias!r} of model {name!r} cannot mean {reference!r}, a version of another model",
                hint=f"zoo alias {meant.name} {alias} {reference}",
            )
        number = _entry(self._state(name), meant).number

        def change(state: ModelState) -> Change | None:
            refuse_deleted(state)
            return None if state.aliases.get(alias) == number else AliasSet(alias=alias, version=number)

        state, _ = self._logs.commit(name, change)
        return self._load(state, state.versions[number - 1])

    def history(self, name: str) -> Events:
        """Everything that ever happened to a model, oldest first; also of a deleted one. Raises UnknownModel."""
        events = list(self._logs.events(check_model_name(name)))
        if not events:
            raise self._unknown(name)
        return events

    def children(self, reference: str) -> Versions:
        """Versions, of any model, whose lineage names this version as their parent. Raises as `get`."""
        parent = self.get(reference).reference
        versions = (self._load(state, entry) for state in self._states() for entry in state.versions)
        return [version for version in versions if version.manifest.lineage.parent == parent]

    def ancestors(self, reference: str) -> tuple[Versions, str | None]:
        """The parent, its parent and so on, nearest first; and the parent that is no longer there, if any.

        Raises as `get`, for `reference` itself only.
        """
        found: Versions = []
        version = self.get(reference)
        while version.manifest.lineage.parent:
            parent = version.manifest.lineage.parent
            try:
                version = self.get(parent)
            except NotFound:
                return found, parent
            if any(version.reference == other.reference for other in found):
                return found, parent  # only a manifest made by hand can name itself
            found.append(version)
        return found, None

    def open_component(self, version: ModelVersion, component: str) -> Path:
        """A verified local file with the component `backbone` or `head`; no other is fetched.

        Raises UnknownComponent, CorruptBlob.
        """
        known = [c.name for c in version.manifest.components]
        return self._open(version, "component", component, version.manifest.component(component), known)

    def open_asset(self, version: ModelVersion, name: str) -> Path:
        """A verified local file with an asset, e.g. `vocabulary.json`. Raises UnknownComponent, CorruptBlob."""
        known = [a.name for a in version.manifest.assets]
        return self._open(version, "asset", name, version.manifest.asset(name), known)

    def _open(
        self, version: ModelVersion, kind: str, name: str, found: Component | Asset | None, known: Sequence[str]
    ) -> Path:
        if found is None:
            raise UnknownComponent(
                f"{version.reference} has no {kind} {name!r}; it has: {', '.join(known) or 'none'}",
                hint=f"zoo show {version.reference}",
            )
        what = f"{kind} {name} of {version.reference}"
        return self.cache.open_blob(self.store, found.digest, size=found.bytes, chunks=found.chunks, what=what)

    def _state(self, name: str) -> ModelState:
        """The state of a model that has a version and isn't deleted."""
        state = self._logs.state(name)
        if not state.versions:
            raise self._unknown(name)
        refuse_deleted(state)
        return state

    def _states(self) -> States:
        return [state for state in self._logs.states() if state.versions and not state.deleted]

    def _unknown(self, name: str) -> NotFound:
        return no_such_model(name, [other for other in self._logs.names() if other != name], self.store.url)

    def _load(self, state: ModelState, entry: VersionEntry) -> ModelVersion:
        manifest = read_manifest(self.store, entry.digest, f"{state.name}@{entry.number}")
        return _model_version(state, entry, manifest)


def _entry(state: ModelState, reference: Reference) -> VersionEntry:
    number: int | None = len(state.versions)
    if reference.version is not None:
        number = reference.version
    elif reference.alias is not None:
        number = state.aliases.get(reference.alias)
    elif reference.digest is not None:
        number = next((v.number for v in reversed(state.versions) if v.digest == reference.digest), None)
    if number is None or number > len(state.versions):
        raise no_such_version(reference, state)
    return state.versions[number - 1]


def _model_version(state: ModelState, entry: VersionEntry, manifest: Manifest) -> ModelVersion:
    return ModelVersion(
        name=state.name,
        number=entry.number,
        digest=entry.digest,
        manifest=manifest,
        aliases=state.aliases_of(entry.number),
        created=entry.created,
        archived=entry.archived,
    )
