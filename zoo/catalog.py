"""Catalog: models, their immutable versions and aliases, with object storage as the only truth.

Takes Manifests and files. Gives ModelVersions and verified local files. Next: `zoo.tensors`, `finetune.models`.

Nothing is named before its bytes are there: first an intent (`zoo.intents`), then the blobs, then the manifest, then
the event in the model's log (`zoo.model_logs`), so that a crash anywhere leaves the old state, and perhaps some bytes
without a name, which `zoo gc` finds. Reading writes nothing, so it works on a store that can't be written to.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from zoo import lifecycle
from zoo.byte_count import OnBytes, nobody_listens
from zoo.cache import BlobCache, CorruptBlob, blob_key, default_cache_root
from zoo.errors import InvalidArgument, NotFound, ZooError
from zoo.file_hash import FileHash
from zoo.intents import HeldIntent, held_intent
from zoo.lifecycle import Decision
from zoo.log import DamagedLog, Event, ModelState, NewerLog, VersionEntry
from zoo.lookup import meant_entry, no_such_model, refuse_deleted
from zoo.manifest import Component, Manifest
from zoo.manifests import DamagedManifest, Manifests, NewerManifest, send_manifest
from zoo.model_logs import ModelLogs
from zoo.names import Reference, check_alias, check_model_name
from zoo.store import default_store_url, open_store
from zoo.store.object_store import ObjectMissing, ObjectStore
from zoo.store_id import made_store_id
from zoo.transfer import Sending, bytes_of, create_same
from zoo.version_of_job import VersionOfJob


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
    bytes_sent: int  # bytes of the blobs that the store lacked


Versions = list[ModelVersion]  # inside the class, `list` is the method
Names = list[str]
Events = list[Event]
States = list[ModelState]
OnProblem = Callable[[str, ZooError], None]


def _warn(name: str, error: ZooError) -> None:
    logging.getLogger(__name__).warning("model %s is left out: %s", name, error)


def open_catalog(store_url: str | None = None) -> Catalog:
    """The catalogue at `store_url` (default: `MODELZOO_STORE`, else in the user's data home), with the default cache.

    Raises InvalidStoreUrl, NotADirectory, and for a bucket NoKeys and the like.
    """
    return Catalog(open_store(store_url or default_store_url()), BlobCache(default_cache_root()))


class Catalog:
    """Safe to share between threads; any number of processes may use one store."""

    def __init__(self, store: ObjectStore, cache: BlobCache) -> None:
        self.store = store
        self.cache = cache
        self.logs = ModelLogs(store)
        self._manifests = Manifests(store, cache.root)
        self._may_write = False  # once this process has looked

    def publish(
        self,
        name: str,
        manifest: Manifest,
        files: Mapping[str, Path | FileHash],
        *,
        again: bool = False,
        once_a_job: bool = False,
        on_bytes: OnBytes = nobody_listens,
    ) -> Published:
        """Makes `manifest` the next version of `name`, unless it already is the newest one (and not `again`).

        `files`: digest → local file, for every component or asset whose blob may not be in the store yet; a FileHash
        isn't hashed again while its file is unchanged. `on_bytes` is called with counts of bytes that were sent, or
        needn't be, which add up to `bytes_of(manifest)`. `once_a_job`: a version of this name whose lineage has the
        manifest's job is returned as existing, whatever came after it, also when two publish that job at once.
        Raises InvalidName, UnstorableManifest, DeletedModel, StrangeFile, MissingBlob, WrongBytes, ChangedFile,
        UnsoundStore, SweepUnderway and the store's errors; whatever is raised, no name has changed its meaning (but for
        UnknownOutcome, which says that it may have).
        """
        check_model_name(name)
        try:
            digest = manifest.digest()
        except ValueError as error:  # from the encoder: NaN, infinity, or half of a surrogate pair
            raise UnstorableManifest(
                f"the manifest for {name!r} has a value that JSON does not have: {error}"
            ) from None
        of_job = VersionOfJob(self.manifest, manifest.lineage.job if once_a_job else None)
        decide = lifecycle.publication(digest, again=again, is_published=of_job.is_in)
        state = self.logs.state(name)
        if lifecycle.creation(state) is None and decide(state) is None:
            on_bytes(bytes_of(manifest))
            return self._published(state, of_job.entry, manifest, existing=True, sent=0)
        sending = Sending(self.store, manifest, files, on_bytes=on_bytes)
        sending.check()
        self._before_writing()
        with held_intent(self.store, sending.digests | {digest}) as intent:
            sent = _send_all(intent, sending, manifest)
            self.logs.commit(name, lifecycle.creation)
            state, event = self.logs.commit(name, decide)
        return self._published(state, of_job.entry, manifest, existing=event is None, sent=sent)

    def get(self, reference: str) -> ModelVersion:
        """The version that `reference` means now.

        Raises InvalidName, UnknownModel, UnknownVersion, DeletedModel, DamagedManifest, NewerManifest, DamagedLog and
        NewerLog. Of a model whose log can't be read to its end, the versions before that place can be had by their
        number or digest, which no later event gives another meaning.
        """
        meant = Reference.parse(reference)
        try:
            state = self._state(meant.name)
        except (DamagedLog, NewerLog) as error:
            state = _readable_part(error, meant)
        return self.load(state, meant_entry(state, meant))

    def load(self, state: ModelState, entry: VersionEntry) -> ModelVersion:
        """The version that `entry` of `state` is. Raises DamagedManifest, NewerManifest."""
        manifest = self.manifest(entry.digest, f"{state.name}@{entry.number}")
        return _model_version(state, entry, manifest)

    def manifest(self, digest: str, what: str) -> Manifest:
        """A verified manifest; `what` names the version in errors. Raises DamagedManifest, NewerManifest."""
        return self._manifests.read(digest, what)

    def list(self, on_problem: OnProblem = _warn) -> Versions:
        """The newest version of each model, by name; deleted models are left out.

        on_problem: called with the name and the error for each model that can't be read; by default a warning is
            logged. One of them doesn't keep the others from being listed.
        """
        return [
            version
            for state in self._states(on_problem)
            if (version := self._readable(state, state.versions[-1], on_problem))
        ]

    def names(self) -> Names:
        """Every name that has a log, so also of deleted models and of such whose first publish was cut short."""
        return self.logs.names()

    def references(self, name: str) -> Names:
        """`name@1`, `name@2`, … as the log has them; no manifest is read. Raises as `versions`."""
        return [f"{name}@{entry.number}" for entry in self._state(check_model_name(name)).versions]

    def versions(self, name: str) -> Versions:
        """Every version of a model, oldest first. Raises InvalidName, UnknownModel, DeletedModel."""
        state = self._state(check_model_name(name))
        return [self.load(state, entry) for entry in state.versions]

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
        return self._change_version(meant, lambda number: lifecycle.alias(alias, number))

    def archive(self, reference: str, *, undo: bool = False) -> ModelVersion:
        """Marks a version as no longer meant for new work, or takes the mark away; it stays as it is otherwise.

        Raises as `get`.
        """
        meant = Reference.parse(reference)
        return self._change_version(meant, lambda number: lifecycle.archiving(number, undo=undo))

    def delete(self, name: str) -> ModelState:
        """Hides a model with all its versions. For 30 days `undelete` brings it back; then its name is free, and
        `zoo gc` may remove what only it used. Deleting a deleted model changes nothing. Raises UnknownModel."""
        return self._change_model(name, lifecycle.deletion)

    def undelete(self, name: str) -> ModelState:
        """Brings a deleted model back as it was. Raises UnknownModel, UndeleteExpired."""
        return self._change_model(name, lifecycle.undeletion)

    def set_card(self, name: str, text: bytes) -> Event | None:
        """Gives a model a card with this text; None when it has that one. Raises UnknownModel, DeletedModel."""
        state = self._state(check_model_name(name))
        digest = "sha256:" + hashlib.sha256(text).hexdigest()
        decide = lifecycle.card(digest)
        if decide(state) is None:
            return None
        self._before_writing()
        with held_intent(self.store, frozenset({digest})) as intent:
            intent.wait_for_sweeps()
            create_same(self.store, blob_key(digest), text)
            return self.logs.commit(name, decide)[1]

    def read_blob(self, digest: str) -> bytes:
        """The verified bytes of a small blob, such as a card's text. Raises CorruptBlob."""
        try:
            data = self.store.read(blob_key(digest))
        except ObjectMissing:
            raise CorruptBlob(
                f"the blob {digest} is not in {self.store.url}", hint="zoo verify", expected=digest
            ) from None
        found = "sha256:" + hashlib.sha256(data).hexdigest()
        if found != digest:
            raise CorruptBlob(
                f"the blob {digest} in {self.store.url} has the bytes of {found}",
                hint="zoo verify",
                expected=digest,
                found=found,
            )
        return data

    def history(self, name: str) -> Events:
        """Everything that ever happened to a model, oldest first; also of a deleted one. Raises UnknownModel."""
        events = list(self.logs.events(check_model_name(name)))
        if not events:
            raise self._unknown(name)
        return events

    def open_component(self, version: ModelVersion, component: str, *, on_bytes: OnBytes = nobody_listens) -> Path:
        """A verified local file with the component `backbone` or `head`; no other is fetched.

        `on_bytes` is called with counts that add up to its size. Raises UnknownComponent, CorruptBlob.
        """
        part, what = component_of(version, component), f"component {component} of {version.reference}"
        return self.cache.open_blob(
            self.store, part.digest, size=part.bytes, chunks=part.chunks, what=what, on_bytes=on_bytes
        )

    def read_component(
        self, version: ModelVersion, component: str, start: int, length: int, *, on_bytes: OnBytes = nobody_listens
    ) -> bytes:
        """Some bytes of a component, verified; of a remote store only the chunks that hold them are fetched.

        `on_bytes` is called with counts that add up to the size of those chunks. Raises UnknownComponent, CorruptBlob,
        and InvalidArgument for a range that isn't inside the component.
        """
        part, what = component_of(version, component), f"component {component} of {version.reference}"
        return self.cache.read_range(
            self.store,
            part.digest,
            size=part.bytes,
            start=start,
            length=length,
            chunks=part.chunks,
            what=what,
            on_bytes=on_bytes,
        )

    def open_asset(self, version: ModelVersion, name: str, *, on_bytes: OnBytes = nobody_listens) -> Path:
        """A verified local file with an asset, e.g. `vocabulary.json`; otherwise as `open_component`."""
        asset = version.manifest.asset(name)
        if asset is None:
            raise _unknown_part(version, "asset", name, [asset.name for asset in version.manifest.assets])
        what = f"asset {name} of {version.reference}"
        return self.cache.open_blob(
            self.store, asset.digest, size=asset.bytes, chunks=asset.chunks, what=what, on_bytes=on_bytes
        )

    def _published(
        self, state: ModelState, earlier: VersionEntry | None, manifest: Manifest, *, existing: bool, sent: int
    ) -> Published:
        """`earlier`: the version that the job has published before, whose manifest may be another."""
        version = self.load(state, earlier) if earlier else _model_version(state, state.versions[-1], manifest)
        return Published(version=version, existing=existing, bytes_sent=sent)

    def _before_writing(self) -> None:
        """Makes the store's id, and refuses a bucket whose promises don't hold."""
        if self._may_write:
            return
        identity = made_store_id(self.store)
        if self.store.url.startswith("s3://"):
            from zoo.store.probe import require_sound

            require_sound(self.store, self.cache.root, identity)
        self._may_write = True

    def _change_version(self, meant: Reference, decide: Callable[[int], Decision]) -> ModelVersion:
        number = meant_entry(self._state(meant.name), meant).number
        self._before_writing()
        state, _ = self.logs.commit(meant.name, decide(number))
        return self.load(state, meant_entry(state, Reference(name=meant.name, version=number)))

    def _change_model(self, name: str, decide: Decision) -> ModelState:
        state = self.logs.state(check_model_name(name))
        if not state.versions:
            raise self._unknown(name)
        if decide(state) is None:
            return state
        self._before_writing()
        return self.logs.commit(name, decide)[0]

    def _state(self, name: str) -> ModelState:
        """The state of a model that has a version and isn't deleted."""
        state = self.logs.state(name)
        if not state.versions:
            raise self._unknown(name)
        refuse_deleted(state)
        return state

    def _states(self, on_problem: OnProblem) -> States:
        return [state for state in self.logs.states(on_problem) if state.versions and not state.deleted]

    def _readable(self, state: ModelState, entry: VersionEntry, on_problem: OnProblem) -> ModelVersion | None:
        try:
            return self.load(state, entry)
        except (DamagedManifest, NewerManifest) as error:
            on_problem(state.name, error)
            return None

    def _unknown(self, name: str) -> NotFound:
        return no_such_model(name, [other for other in self.logs.names() if other != name], self.store.url)


def _send_all(intent: HeldIntent, sending: Sending, manifest: Manifest) -> int:
    """Steps 2 to 4 of a publish (see `zoo.intents`); returns the bytes that were sent."""
    sent = 0
    while True:
        intent.wait_for_sweeps()
        sent += sending.send()
        send_manifest(sending.store, manifest)
        if not intent.is_past_half():
            return sent
        intent.renew()


def _readable_part(error: DamagedLog | NewerLog, meant: Reference) -> ModelState:
    """The state before what can't be read, for a reference that nothing after it can change; else raises."""
    before = error.before
    if before is None or before.deleted or not before.versions:
        raise error
    if meant.version is None and meant.digest is None:
        first, last = before.purged + 1, before.last_number
        error.message += f"; until then it has the versions {first} to {last}, which can be had by their number"
        error.args = (error.message,)
        error.hint = f"{error.hint}; or {meant.name}@{last}" if error.hint else f"{meant.name}@{last}"
        raise error
    return before


def component_of(version: ModelVersion, name: str) -> Component:
    """Raises UnknownComponent."""
    part = version.manifest.component(name)
    if part is None:
        raise _unknown_part(version, "component", name, [part.name for part in version.manifest.components])
    return part


def _unknown_part(version: ModelVersion, kind: str, name: str, known: Sequence[str]) -> UnknownComponent:
    return UnknownComponent(
        f"{version.reference} has no {kind} {name!r}; it has: {', '.join(known) or 'none'}",
        hint=f"zoo show {version.reference}",
    )


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
