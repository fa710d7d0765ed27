"""What the catalogue's commands mean, as simply as it can be said, and a store whose days can pass.

`tests.zoo.test_catalog_machine` holds the catalogue against it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from zoo.manifest import canonical_json
from zoo.store.memory import MemoryStore

DAY = 86_400.0  # seconds
UNDELETE = 30.0  # days


@dataclass(frozen=True, kw_only=True)
class Plain:
    """What a model is, as simply as it can be said."""

    versions: tuple[str, ...] = ()  # digests
    purged: int = 0
    archived: frozenset[int] = frozenset()
    aliases: frozenset[tuple[str, int]] = frozenset()
    cards: tuple[bytes, ...] = ()
    deleted: float | None = None  # for how many days

    @property
    def numbers(self) -> range:
        return range(self.purged + 1, self.purged + len(self.versions) + 1)

    @property
    def is_expired(self) -> bool:
        return self.deleted is not None and self.deleted > UNDELETE

    @property
    def seen(self) -> Plain:
        """As a reader sees it, who needn't know for how long."""
        return replace(self, deleted=None if self.deleted is None else 0.0)


Step = Callable[[Plain], Plain | str]  # what a command makes of a model, or how it is refused


def publication(digest: str, again: bool) -> Step:
    def step(plain: Plain) -> Plain | str:
        if plain.is_expired:
            plain = taken_anew(plain)
        if plain.deleted is not None:
            return "DeletedModel"
        if plain.versions[-1:] == (digest,) and not again:
            return plain
        return replace(plain, versions=(*plain.versions, digest))

    return step


def taken_anew(plain: Plain) -> Plain:
    return Plain(purged=plain.purged + len(plain.versions)) if plain.is_expired else plain


def on_living(change: Callable[[Plain], Plain | str]) -> Step:
    def step(plain: Plain) -> Plain | str:
        if not plain.versions:
            return "UnknownModel"
        return "DeletedModel" if plain.deleted is not None else change(plain)

    return step


def on_version(number: int, change: Callable[[Plain], Plain]) -> Step:
    return on_living(lambda plain: change(plain) if number in plain.numbers else "UnknownVersion")


def aliasing(alias: str, number: int) -> Step:
    def change(plain: Plain) -> Plain:
        others = {pair for pair in plain.aliases if pair[0] != alias}
        return replace(plain, aliases=frozenset(others | {(alias, number)}))

    return on_version(number, change)


def archiving(number: int, undo: bool) -> Step:
    return on_version(
        number,
        lambda plain: replace(plain, archived=plain.archived - {number} if undo else plain.archived | {number}),
    )


def carding(text: bytes) -> Step:
    return on_living(lambda plain: plain if plain.cards[-1:] == (text,) else replace(plain, cards=(*plain.cards, text)))


def deletion(plain: Plain) -> Plain | str:
    if not plain.versions:
        return "UnknownModel"
    return replace(plain, deleted=0.0) if plain.deleted is None else plain


def undeletion(plain: Plain) -> Plain | str:
    if not plain.versions:
        return "UnknownModel"
    return "UndeleteExpired" if plain.is_expired else replace(plain, deleted=None)


class WatchedStore(MemoryStore):
    """Tells of each change, so that a reader can look in between."""

    def __init__(self) -> None:
        super().__init__()
        self.on_change: Callable[[], None] = lambda: None

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        self.on_change()

    def delete(self, key: str) -> None:
        super().delete(key)
        self.on_change()

    def age(self, days: float) -> None:
        """Everything in it was done that much earlier. Snapshots go, which are nothing but what the logs say."""
        for key, (data, modified) in list(self._objects.items()):
            if "/log/" in key:
                event = json.loads(data)
                event["time"] = (datetime.fromisoformat(event["time"]) - timedelta(days=days)).isoformat()
                data = canonical_json(event)
            self._objects[key] = (data, modified - days * DAY)
            if "/snapshot/" in key:
                del self._objects[key]
