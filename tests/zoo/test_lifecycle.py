"""Archiving, deleting, bringing back, and cards."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.zoo.samples import contents, faulty_store, new_catalog, no_pauses, version
from zoo.cache import CorruptBlob, blob_key
from zoo.catalog import Catalog
from zoo.lifecycle import UndeleteExpired
from zoo.log import Deleted, Event, encode_event
from zoo.lookup import DeletedModel, UnknownModel, UnknownVersion
from zoo.store.local import LocalStore
from zoo.store.memory import MemoryStore


@pytest.fixture(params=["local", "memory", "faulty"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    store = LocalStore(tmp_path / "store") if request.param == "local" else MemoryStore()
    if request.param == "faulty":
        no_pauses(monkeypatch)
        store = faulty_store(store, seed=1)  # type: ignore[assignment]
    catalog = new_catalog(store, tmp_path)
    for head in (1, 2):
        catalog.publish("m", *version(tmp_path, head=head))
    return catalog


def deleted_days_ago(catalog: Catalog, days: float) -> None:
    """As a deletion of that time would have been written."""
    time = datetime.now(UTC) - timedelta(days=days)
    seq = len(catalog.history("m")) + 1
    event = Event.new(seq=seq, change=Deleted()).model_copy(update={"time": time})
    catalog.store.put(f"models/m/log/{seq:020}.json", encode_event(event))


class TestArchiving:
    def test_there_and_back(self, catalog: Catalog) -> None:
        assert catalog.archive("m@1").archived
        assert [v.archived for v in catalog.versions("m")] == [True, False]
        events = len(catalog.history("m"))
        assert catalog.archive("m@1").archived
        assert len(catalog.history("m")) == events  # nothing changed, so nothing happened
        assert not catalog.archive("m@1", undo=True).archived
        assert [v.archived for v in catalog.versions("m")] == [False, False]
        assert [event.change.type for event in catalog.history("m")][-2:] == ["ARCHIVED", "UNARCHIVED"]

    def test_by_alias_and_unknown(self, catalog: Catalog) -> None:
        catalog.set_alias("m", "prod", "m@1")
        assert catalog.archive("m@prod").number == 1
        with pytest.raises(UnknownVersion):
            catalog.archive("m@3")
        with pytest.raises(UnknownModel):
            catalog.archive("n")


class TestDeleting:
    def test_there_and_back(self, catalog: Catalog, tmp_path: Path) -> None:
        catalog.set_alias("m", "prod", "m@1")
        before = catalog.versions("m")
        state = catalog.delete("m")
        assert state.deleted is not None
        assert abs(datetime.now(UTC) - state.deleted) < timedelta(minutes=1)
        assert catalog.delete("m") == state
        for call in (
            lambda: catalog.get("m@1"),
            lambda: catalog.set_card("m", b"text"),
            lambda: catalog.archive("m@1"),
            lambda: catalog.set_alias("m", "prod", "m@2"),
            lambda: catalog.publish("m", *version(tmp_path, head=3)),
        ):
            with pytest.raises(DeletedModel, match="was deleted on 20") as caught:
                call()
            assert caught.value.hint == "zoo undelete m"
        assert catalog.list() == []
        assert catalog.undelete("m").deleted is None
        assert catalog.versions("m") == before
        events = len(catalog.history("m"))
        catalog.undelete("m")
        assert len(catalog.history("m")) == events

    def test_what_is_not_there(self, catalog: Catalog) -> None:
        for call in (catalog.delete, catalog.undelete):
            with pytest.raises(UnknownModel):
                call("n")

    def test_thirty_days(self, catalog: Catalog, tmp_path: Path) -> None:
        deleted_days_ago(catalog, 29.9)
        with pytest.raises(DeletedModel) as recent:
            catalog.publish("m", *version(tmp_path, head=3))
        assert recent.value.hint == "zoo undelete m"
        assert catalog.undelete("m").last_number == 2
        deleted_days_ago(catalog, 30.1)
        with pytest.raises(DeletedModel, match="more than 30 days ago") as expired:
            catalog.get("m")
        assert "undelete" not in (expired.value.hint or "")
        with pytest.raises(UndeleteExpired, match="more than 30 days ago"):
            catalog.undelete("m")

    def test_a_name_taken_anew(self, catalog: Catalog, tmp_path: Path) -> None:
        catalog.set_alias("m", "prod", "m@1")
        deleted_days_ago(catalog, 31)
        published = catalog.publish("m", *version(tmp_path, head=1))
        assert published.version.reference == "m@3"
        assert [v.reference for v in catalog.versions("m")] == ["m@3"]
        assert catalog.references("m") == ["m@3"]
        for reference in ("m@1", "m@2", "m@prod"):
            with pytest.raises(UnknownVersion, match=r"has version 3 and no alias; those up to 2 were deleted with"):
                catalog.get(reference)
        assert catalog.get("m").number == 3
        assert catalog.publish("m", *version(tmp_path, head=1)).existing


class TestCards:
    def test_texts_are_versioned(self, catalog: Catalog) -> None:
        assert catalog.logs.state("m").card is None
        for text in (b"# one", "# zwei ä".encode(), b"# one"):
            event = catalog.set_card("m", text)
            assert event is not None
            assert catalog.set_card("m", text) is None
        cards = catalog.logs.state("m").cards
        assert [catalog.read_blob(card.digest) for card in cards] == [b"# one", "# zwei ä".encode(), b"# one"]
        assert [card.seq for card in cards] == [4, 5, 6]
        assert len(contents(catalog.store, "blobs/")) == 5 + 2  # a backbone, two heads, two vocabularies

    def test_a_model_without_a_version(self, catalog: Catalog) -> None:
        with pytest.raises(UnknownModel):
            catalog.set_card("n", b"text")

    def test_damaged_and_missing_texts(self, catalog: Catalog) -> None:
        event = catalog.set_card("m", b"text")
        assert event is not None
        card = catalog.logs.state("m").card
        assert card is not None
        catalog.store.put(blob_key(card.digest), b"tex7")
        with pytest.raises(CorruptBlob) as caught:
            catalog.read_blob(card.digest)
        assert caught.value.details["expected"] == card.digest
        catalog.store.delete(blob_key(card.digest))
        with pytest.raises(CorruptBlob, match="is not in"):
            catalog.read_blob(card.digest)
