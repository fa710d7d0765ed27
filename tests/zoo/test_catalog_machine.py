"""The catalogue against a plain model of it: any sequence of commands, from several processes, on a store that fails,
with a crash at any call of it, a gc or a rival in the midst of a publish, and days that pass.

What is acknowledged is there; what isn't is either done or not done; no reader ever sees anything else.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.zoo.plain_catalog import (
    Plain,
    Step,
    WatchedStore,
    aliasing,
    archiving,
    carding,
    deletion,
    publication,
    taken_anew,
    undeletion,
)
from tests.zoo.samples import new_catalog, no_pauses, version
from zoo import gc as gc_module
from zoo import intents, lifecycle, live_digests, transfer
from zoo.cache import blob_key
from zoo.catalog import Catalog
from zoo.errors import ZooError
from zoo.gc import gc
from zoo.log import Event, encode_event
from zoo.log_keys import event_key
from zoo.manifest import Manifest
from zoo.manifests import manifest_key
from zoo.model_logs import ModelLogs, UnknownOutcome
from zoo.store.faulty import Crash, CrashAt, FaultPlan, FaultyStore
from zoo.store.object_store import NoAnswer, ObjectExists, ObjectStore, StoreBusy
from zoo.store.retrying import RetryingStore, RetryPolicy
from zoo.sweep_marker import MARKERS
from zoo.verify import verify

FORGOTTEN = 31.0  # days
NAMES = ("m", "team/n")
CARDS = (b"# one", b"# two")


CRASHES = st.none() | st.builds(CrashAt, call=st.integers(1, 45), when=st.sampled_from(["before", "after"]))
SEEDS = st.integers(0, 1_000)
NUMBERS = st.integers(1, 4)


class CatalogMachine(RuleBasedStateMachine):
    samples: list[tuple[Manifest, dict[str, Path]]]
    counts: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.patch = pytest.MonkeyPatch()
        no_pauses(self.patch)
        for module in (transfer, gc_module, live_digests):  # so that the same seed is the same day
            self.patch.setattr(module, "_THREADS", 1)
        self.patch.setattr(intents, "_POLL", 0.001)
        self.store = WatchedStore()
        self.plain = {name: Plain() for name in NAMES}
        self.living: list[Catalog] = []

    def teardown(self) -> None:
        try:
            self.at_the_end()
        finally:
            self.patch.undo()
            shutil.rmtree(self.folder)

    def at_the_end(self) -> None:
        """Two quiet days later gc leaves what is named, and nothing else."""
        self.days_pass(2.5)
        report = gc(self.process())
        assert report.problems == ()
        named = set()
        for plain in self.plain.values():
            if plain.deleted is None or plain.deleted <= FORGOTTEN:
                named |= self.keys_of(plain)
        kept = {info.key for prefix in ("blobs/", "manifests/") for info in self.store.list(prefix)}
        assert kept == named
        assert [info.key for prefix in ("intents/", MARKERS) for info in self.store.list(prefix)] == []
        assert not gc(self.process()).removed

    # Commands

    @initialize(which=st.integers(0, 4))
    def begin(self, which: int) -> None:
        self.living = [self.process(), self.process()]
        self.publish(NAMES[0], which, False, 0, 0, None, False)

    @rule(
        name=st.sampled_from(NAMES),
        which=st.integers(0, 4),
        again=st.booleans(),
        by=st.integers(0, 2),
        seed=SEEDS,
        crash=CRASHES,
        repeat=st.booleans(),
    )
    def publish(
        self, name: str, which: int, again: bool, by: int, seed: int, crash: CrashAt | None, repeat: bool
    ) -> None:
        manifest, files = self.samples[which]
        step = publication(manifest.digest(), again)

        def run(catalog: Catalog) -> None:
            missing = self.missing_bytes(manifest)
            before = self.plain[name]
            published = catalog.publish(name, manifest, files, again=again)
            assert published.version.digest == manifest.digest()
            assert published.bytes_sent in (missing, 0)
            if published.bytes_sent == 0:
                assert missing == 0 or published.existing
            wanted = step(before)
            assert isinstance(wanted, Plain)
            assert published.version.number == wanted.numbers[-1]
            assert published.existing == (wanted == taken_anew(before))

        self.command(name, step, run, by, seed, crash, repeat)

    @rule(
        name=st.sampled_from(NAMES),
        alias=st.sampled_from("ab"),
        number=NUMBERS,
        by=st.integers(0, 2),
        seed=SEEDS,
        crash=CRASHES,
    )
    def set_alias(self, name: str, alias: str, number: int, by: int, seed: int, crash: CrashAt | None) -> None:
        def run(catalog: Catalog) -> None:
            assert catalog.set_alias(name, alias, f"{name}@{number}").number == number

        self.command(name, aliasing(alias, number), run, by, seed, crash)

    @rule(
        name=st.sampled_from(NAMES), number=NUMBERS, undo=st.booleans(), by=st.integers(0, 2), seed=SEEDS, crash=CRASHES
    )
    def archive(self, name: str, number: int, undo: bool, by: int, seed: int, crash: CrashAt | None) -> None:
        def run(catalog: Catalog) -> None:
            assert catalog.archive(f"{name}@{number}", undo=undo).archived is not undo

        self.command(name, archiving(number, undo), run, by, seed, crash)

    @rule(name=st.sampled_from(NAMES), text=st.sampled_from(CARDS), by=st.integers(0, 2), seed=SEEDS, crash=CRASHES)
    def set_card(self, name: str, text: bytes, by: int, seed: int, crash: CrashAt | None) -> None:
        self.command(name, carding(text), lambda catalog: catalog.set_card(name, text), by, seed, crash)

    @rule(name=st.sampled_from(NAMES), by=st.integers(0, 2), seed=SEEDS, crash=CRASHES)
    def delete(self, name: str, by: int, seed: int, crash: CrashAt | None) -> None:
        self.command(name, deletion, lambda catalog: catalog.delete(name), by, seed, crash)

    @rule(name=st.sampled_from(NAMES), by=st.integers(0, 2), seed=SEEDS, crash=CRASHES)
    def undelete(self, name: str, by: int, seed: int, crash: CrashAt | None) -> None:
        self.command(name, undeletion, lambda catalog: catalog.undelete(name), by, seed, crash)

    @rule(name=st.sampled_from(NAMES), days=st.sampled_from([29.7, 30.4, 33.3]), back=st.booleans())
    def delete_for_long(self, name: str, days: float, back: bool) -> None:
        self.delete(name, 0, 0, None)
        self.days_pass(days)
        if back:
            self.undelete(name, 2, 0, None)

    @rule(seed=SEEDS, crash=CRASHES)
    def collect(self, seed: int, crash: CrashAt | None) -> None:
        try:
            assert gc(self.process(seed, crash)).problems == ()
            self.count("gc")
        except (Crash, NoAnswer, StoreBusy):
            self.count("gc cut short")
            if list(self.store.list(MARKERS)):
                self.days_pass(0.02)  # a publish would wait until its marker has expired

    @rule(days=st.sampled_from([0.43, 1.71, 13.37, 32.13]))
    def days_pass(self, days: float) -> None:
        self.store.age(days)
        for name, plain in self.plain.items():
            if plain.deleted is not None:
                self.plain[name] = replace(plain, deleted=plain.deleted + days)
        self.living = [self.process(), self.process()]

    @rule(
        name=st.sampled_from(NAMES),
        which=st.integers(0, 4),
        other=st.integers(0, 4),
        at=st.integers(1, 12),
        sweeps=st.booleans(),
        by=st.integers(0, 2),
        seed=SEEDS,
    )
    def publish_beside(self, name: str, which: int, other: int, at: int, sweeps: bool, by: int, seed: int) -> None:
        """After the `at`-th change that a publish makes to the store, another process comes, and goes to its end."""
        manifest, files = self.samples[which]
        rival_manifest, rival_files = self.samples[other]
        before, countdown = self.plain[name], iter(range(1, 10_000))
        first, second = publication(manifest.digest(), True), publication(rival_manifest.digest(), True)
        came = False

        def interrupt() -> None:
            nonlocal came
            if next(countdown) != at:
                return
            came, self.store.on_change = True, lambda: None
            if sweeps:
                assert gc(self.process()).problems == ()
            else:
                self.process().publish(name, rival_manifest, rival_files, again=True)

        self.store.on_change = interrupt
        try:
            self.process_of(by, seed, None).publish(name, manifest, files, again=True)
            refused = None
        except ZooError as error:
            refused = error.reason
        finally:
            self.store.on_change = lambda: None
        if refused:
            assert refused == first(before)
            assert not came
            return
        orders = [(first, second), (second, first)] if came and not sweeps else [(first,)]
        ends = []
        for order in orders:
            plain: Plain | str = before
            for step in order:
                assert isinstance(plain, Plain)
                plain = step(plain)
            ends.append(plain)
        seen = self.observed(name)
        self.plain[name] = next(end for end in ends if isinstance(end, Plain) and end.seen == seen)
        self.count("beside gc" if sweeps and came else "beside a rival" if came else "alone")

    # What has to hold at any time

    @invariant()
    def every_model_is_as_it_should_be(self) -> None:
        for name, plain in self.plain.items():
            assert self.observed(name) == plain.seen, name
            if plain.deleted is None or plain.deleted <= FORGOTTEN:
                for key in self.keys_of(plain):
                    self.store.stat(key)  # raises when it isn't there

    @invariant()
    def readers_find_it(self) -> None:
        catalog = self.process()
        living = {name: plain for name, plain in self.plain.items() if plain.versions and plain.deleted is None}
        assert [found.name for found in catalog.list()] == sorted(living)
        for name, plain in living.items():
            assert [(v.number, v.digest) for v in catalog.versions(name)] == list(
                zip(plain.numbers, plain.versions, strict=True)
            )
            assert catalog.get(name).digest == plain.versions[-1]
            for alias, number in plain.aliases:
                assert catalog.get(f"{name}@{alias}").number == number
            assert [event.seq for event in catalog.history(name)] == list(range(1, catalog.logs.state(name).seq + 1))
            assert catalog.logs.check(name) == []
        report = verify(catalog)
        assert report.problems == ()
        assert report.versions == sum(len(plain.versions) for plain in living.values())

    # How

    def command(
        self,
        name: str,
        step: Step,
        run: Callable[[Catalog], Any],
        by: int,
        seed: int,
        crash: CrashAt | None,
        repeat: bool = True,
    ) -> None:
        """Runs a command and follows it in the model; one whose end isn't known has been done or not."""
        before = self.plain[name]
        after = step(before)
        end = before if isinstance(after, str) else after
        allowed = {before.seen, taken_anew(before).seen, end.seen}
        sights: list[Plain] = []
        self.store.on_change = lambda: sights.append(self.observed(name))
        unsure, refused = False, None
        try:
            run(self.process_of(by, seed, crash))
        except (Crash, UnknownOutcome, NoAnswer, StoreBusy) as error:
            unsure, refused = True, type(error).__name__
        except ZooError as error:
            refused = error.reason
        finally:
            self.store.on_change = lambda: None
        self.count(refused or "done")
        assert set(sights) <= allowed
        if not unsure:
            assert refused == (after if isinstance(after, str) else None)
            self.plain[name] = end
            return
        seen = self.observed(name)
        self.plain[name] = next(plain for plain in (before, taken_anew(before), end) if plain.seen == seen)
        if repeat:
            self.command(name, step, run, 2, 0, None)

    def process(self, seed: int = 0, crash: CrashAt | None = None) -> Catalog:
        """A process that has just started; `seed` 0: on a store that doesn't fail."""
        store: ObjectStore = self.store
        if seed or crash:
            plan = replace(FaultPlan.mixed(0.25, seed=seed) if seed % 2 else FaultPlan.none(), crash=crash)
            patient = RetryPolicy(attempts=20, first_pause=0.0, longest_pause=0.0)
            store = RetryingStore(FaultyStore(store, plan), patient)
        return new_catalog(store, self.folder)

    def process_of(self, by: int, seed: int, crash: CrashAt | None) -> Catalog:
        """One of two that live on and remember, as long as nothing crashes; or a new one."""
        return self.living[by] if crash is None and by < 2 else self.process(seed, crash)

    def observed(self, name: str) -> Plain:
        watch, self.store.on_change = self.store.on_change, lambda: None
        state = ModelLogs(self.store).state(name)
        cards = tuple(self.store.read(blob_key(card.digest)) for card in state.cards) if not state.deleted else ()
        self.store.on_change = watch
        return Plain(
            versions=tuple(entry.digest for entry in state.versions),
            purged=state.purged,
            archived=frozenset(entry.number for entry in state.versions if entry.archived),
            aliases=frozenset(state.aliases.items()),
            cards=cards if not state.deleted else self.plain[name].cards,
            deleted=0.0 if state.deleted else None,
        )

    def keys_of(self, plain: Plain) -> set[str]:
        manifests = {manifest.digest(): manifest for manifest, _ in self.samples}
        keys = {blob_key(self.card_digest(card)) for card in plain.cards}
        for digest in plain.versions:
            parts = (*manifests[digest].components, *manifests[digest].assets)
            keys |= {manifest_key(digest), *(blob_key(part.digest) for part in parts)}
        return keys

    def card_digest(self, text: bytes) -> str:
        return "sha256:" + hashlib.sha256(text).hexdigest()

    def missing_bytes(self, manifest: Manifest) -> int:
        stored = {info.key for info in self.store.list("blobs/")}
        parts = (*manifest.components, *manifest.assets)
        return sum(part.bytes for part in parts if blob_key(part.digest) not in stored)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


@pytest.fixture
def machine(tmp_path: Path) -> type[CatalogMachine]:
    heads = [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
    published = [version(tmp_path, head=head, backbone=backbone) for head, backbone in heads]
    return type("Machine", (CatalogMachine,), {"samples": published, "counts": {}})


def run(machine: type[CatalogMachine], examples: int, steps: int, **more: Any) -> None:
    given = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        **more,
    )
    run_state_machine_as_test(machine, settings=given)


def test_the_catalogue_is_what_the_model_says(machine: type[CatalogMachine]) -> None:
    run(machine, examples=60, steps=15)
    assert {"done", "Crash", "beside gc", "beside a rival", "gc", "UndeleteExpired"} <= set(machine.counts)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_catalogue_is_what_the_model_says_for_long(machine: type[CatalogMachine]) -> None:
    run(machine, examples=1_500, steps=40)
    print(machine.counts)


def names_before_it_sends(patch: pytest.MonkeyPatch) -> None:
    """The event goes first, the bytes after it."""
    publish = Catalog.publish

    def wrong(self: Catalog, name: str, manifest: Manifest, files: Any, *, again: bool = False) -> Any:
        self.logs.commit(name, lifecycle.creation)
        self.logs.commit(name, lifecycle.publication(manifest.digest(), again=again))
        return publish(self, name, manifest, files)

    patch.setattr(Catalog, "publish", wrong)


def no_answer_is_a_no(patch: pytest.MonkeyPatch) -> None:
    """An event whose answer was lost is made anew, with another id."""

    def wrong(self: ModelLogs, name: str, event: Event) -> bool:
        try:
            self._store.create(event_key(name, event.seq), encode_event(event))
        except (ObjectExists, NoAnswer, StoreBusy):
            return False
        return True

    patch.setattr(ModelLogs, "_create", wrong)


def gc_knows_no_intents(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(live_digests.LiveDigests, "read_intents", lambda self, now: None)


def gc_forgets_the_deleted(patch: pytest.MonkeyPatch) -> None:
    """From the first day on."""
    patch.setattr(live_digests, "_is_forgotten", lambda state, modified, now: state.deleted is not None)


def what_is_remembered_is_the_newest(patch: pytest.MonkeyPatch) -> None:
    """A process that has once read a log doesn't look at it again."""
    patch.setattr(ModelLogs, "_caught_up", lambda self, known: known)


WRONG = [
    names_before_it_sends,
    no_answer_is_a_no,
    gc_knows_no_intents,
    gc_forgets_the_deleted,
    what_is_remembered_is_the_newest,
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_catalogue_is_found_out(
    wrong: Callable[[pytest.MonkeyPatch], None], machine: type[CatalogMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(monkeypatch)
    with pytest.raises((AssertionError, ZooError, StopIteration, ExceptionGroup)):
        run(machine, examples=2_000, steps=25, phases=[Phase.generate], database=None, derandomize=True)
