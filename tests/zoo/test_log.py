"""Events and their fold: pure functions, so these tests are tables."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.log import (
    AliasSet,
    Archived,
    CardUpdated,
    Change,
    Created,
    DamagedLog,
    Deleted,
    Event,
    ModelState,
    NewerLog,
    Unarchived,
    Undeleted,
    VersionPublished,
    decode_event,
    encode_event,
    fold,
)

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def events(*changes: Change, first: int = 1) -> list[Event]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Event(seq=seq, id=f"{seq:032x}", time=start + timedelta(seconds=seq), change=change)
        for seq, change in enumerate(changes, start=first)
    ]


FULL: list[Change] = [
    Created(),
    VersionPublished(version=1, digest=A),
    AliasSet(alias="prod", version=1),
    VersionPublished(version=2, digest=B),
    AliasSet(alias="best", version=1),
    AliasSet(alias="prod", version=2),
    Archived(version=1),
    CardUpdated(digest=A),
    Deleted(),
    Undeleted(),
    Archived(version=2),
    Unarchived(version=2),
    CardUpdated(digest=B),
]


def test_fold() -> None:
    state = fold(ModelState(name="m"), events(*FULL))
    assert (state.seq, state.head) == (13, f"{13:032x}")
    assert [(v.number, v.digest, v.archived) for v in state.versions] == [(1, A, True), (2, B, False)]
    assert state.versions[1].created == datetime(2026, 1, 1, 0, 0, 4, tzinfo=UTC)
    assert dict(state.aliases) == {"prod": 2, "best": 1}
    assert (state.aliases_of(1), state.aliases_of(2), state.newest) == (("best",), ("prod",), state.versions[1])
    assert state.deleted is None
    assert [(card.seq, card.digest, card.time.second) for card in state.cards] == [(8, A, 8), (13, B, 13)]
    assert state.card == state.cards[1]
    assert fold(ModelState(name="m"), events(*FULL[:9])).deleted == datetime(2026, 1, 1, 0, 0, 9, tzinfo=UTC)


@given(st.integers(0, len(FULL)))
def test_a_folded_state_can_stand_for_the_events_before_it(cut: int) -> None:
    log = events(*FULL)
    assert fold(fold(ModelState(name="m"), log[:cut]), log[cut:]) == fold(ModelState(name="m"), log)


def test_folding_leaves_the_old_state_alone() -> None:
    before = fold(ModelState(name="m"), events(*FULL[:3]))
    fold(before, events(*FULL[3:6], first=4))
    assert dict(before.aliases) == {"prod": 1}


@pytest.mark.parametrize("change", FULL, ids=lambda change: change.type)
def test_events_come_back_as_they_were(change: Change) -> None:
    (event,) = events(change)
    assert decode_event(encode_event(event), "key") == event


def test_stored_form() -> None:
    (event,) = events(VersionPublished(version=1, digest=A))
    assert encode_event(event) == (
        b'{"change":{"digest":"' + A.encode() + b'","type":"PUBLISHED","version":1},'
        b'"id":"00000000000000000000000000000001","schema_version":1,"seq":1,"time":"2026-01-01T00:00:01Z"}'
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([Created(), Created()], "created before"),
        ([Created(), VersionPublished(version=2, digest=A)], "version 2 follows 0"),
        ([VersionPublished(version=1, digest=A), VersionPublished(version=1, digest=A)], "version 1 follows 1"),
        ([Created(), AliasSet(alias="a", version=1)], "no version 1 yet"),
        ([Created(), Archived(version=1)], "no version 1 yet"),
        ([Created(), Unarchived(version=1)], "no version 1 yet"),
        ([Created(), Deleted(), Created()], "less than 30 days"),
    ],
)
def test_logs_that_cannot_be(changes: list[Change], message: str) -> None:
    with pytest.raises(DamagedLog, match=message):
        fold(ModelState(name="m"), events(*changes))


@pytest.mark.parametrize("order", [[0, 2], [1], [0, 0], [1, 0]])
def test_holes_and_doubles(order: list[int]) -> None:
    log = events(*FULL)
    with pytest.raises(DamagedLog, match="hole"):
        fold(ModelState(name="m"), [log[index] for index in order])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"seq":1}',
        encode_event(events(Created())[0])[:-1],
        encode_event(events(Created())[0]).replace(b'"seq":1', b'"seq":0'),
        encode_event(events(Created())[0]).replace(b'"seq":1', b'"seq":1,"more":2'),
        encode_event(events(VersionPublished(version=1, digest=A))[0]).replace(b"sha256:", b"sha512:"),
    ],
)
def test_events_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(DamagedLog, match=r"models/m/log/1\.json"):
        decode_event(data, "models/m/log/1.json")


def test_events_of_a_later_version() -> None:
    stored = encode_event(events(Created())[0])
    for newer in (stored.replace(b'"schema_version":1', b'"schema_version":2'), stored.replace(b"CREATED", b"RENAMED")):
        with pytest.raises(NewerLog, match="newer version") as caught:
            decode_event(newer, "models/m/log/1.json")
        assert caught.value.hint == "upgrade modelzoo"


class TestANameThatIsFreeAgain:
    def days_later(self, days: float) -> ModelState:
        log = events(*FULL[:9], Created(), VersionPublished(version=3, digest=A), Archived(version=3))
        late = [event.model_copy(update={"time": event.time + timedelta(days=days)}) for event in log[9:]]
        return fold(ModelState(name="m"), log[:9] + late)

    def test_after_thirty_days(self) -> None:
        state = self.days_later(30.1)
        assert (state.purged, state.last_number, state.deleted, state.card) == (2, 3, None, None)
        assert [(v.number, v.archived) for v in state.versions] == [(3, True)]
        assert (dict(state.aliases), state.version(2), state.version(4)) == ({}, None, None)
        assert state.version(3) == state.newest == state.versions[0]

    def test_not_before(self) -> None:
        with pytest.raises(DamagedLog, match="event 10 CREATED: the model was deleted less than 30 days before"):
            self.days_later(29.9)

    def test_numbers_that_are_gone_mean_nothing(self) -> None:
        for change in (AliasSet(alias="prod", version=2), Archived(version=1), VersionPublished(version=1, digest=A)):
            with pytest.raises(DamagedLog, match=r"is gone|version 1 follows 3"):
                fold(self.days_later(31), events(change, first=13))

    def test_when_an_undelete_is_too_late(self) -> None:
        state = fold(ModelState(name="m"), events(*FULL[:9]))
        assert state.deleted is not None
        assert not state.undelete_expired(state.deleted + timedelta(days=30))
        assert state.undelete_expired(state.deleted + timedelta(days=30, seconds=1))


@pytest.mark.parametrize("alias", ["latest", "../x", "Prod", "a\u0000b", "e\u0301"])
def test_an_alias_that_somebody_else_wrote(alias: str) -> None:
    stored = encode_event(events(AliasSet(alias="prod", version=1))[0])
    stored = stored.replace(b'"prod"', json.dumps(alias).encode())
    with pytest.raises(
        DamagedLog, match=r"models/m/log/1\.json is no readable event: change.ALIAS_SET.alias"
    ) as caught:
        decode_event(stored, "models/m/log/1.json")
    assert caught.value.details["field"] == "change.ALIAS_SET.alias"


def test_what_was_read_before_damage_is_told() -> None:
    log = events(*FULL)
    with pytest.raises(DamagedLog) as caught:
        fold(fold(ModelState(name="m"), log[:2]), [log[2], log[4]])
    assert caught.value.before == fold(ModelState(name="m"), log[:3])


def test_times_are_utc() -> None:
    stored = encode_event(events(Created())[0])
    local = decode_event(stored.replace(b"00:00:01Z", b"02:00:01+02:00"), "key")
    assert local == decode_event(stored, "key")
    with pytest.raises(DamagedLog, match="time"):
        decode_event(stored.replace(b"00:00:01Z", b"00:00:01"), "key")


def test_ids_are_random() -> None:
    assert len({Event.new(seq=1, change=Created()).id for _ in range(100)}) == 100
