"""Code point order and start_after, from servers that list in S3's order and from those that walk folders."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from zoo.store.object_store import ObjectInfo
from zoo.store.s3 import ordering
from zoo.store.s3.ordering import ordered, start_before

Listed = Callable[[list[str], str, str], list[str]]
NAMES = ["a", "a!", "a-", "a-b", "a.b", "a0", "ab", "b", "-", " ", "a ", "~", "ä", "\U0001f600", "10", "9.json", "é-1"]


def as_s3(keys: list[str], prefix: str, start_after: str) -> list[str]:
    return sorted(key for key in keys if key.startswith(prefix) and key > start_after)


def by_folders(keys: list[str], prefix: str, start_after: str) -> list[str]:
    """As SeaweedFS 4.48: names within folders; a start that names a folder skips what is in it."""
    start = start_after.split("/")
    walked = sorted((key for key in keys if key.startswith(prefix)), key=lambda key: key.split("/"))
    skips = [] if start_after.endswith("/") else [start]
    return [key for key in walked if key.split("/") > start and key.split("/")[: len(start)] not in skips]


def listed(server: Listed, keys: list[str], prefix: str, start_after: str, asked: list[str]) -> list[str]:
    """As S3Store lists."""
    start = start_before(start_after)

    def items() -> Iterator[ObjectInfo]:
        for key in server(keys, prefix, start if start > prefix else ""):
            if key > start_after:
                yield ObjectInfo(key=key, size=0, modified=0.0)

    def goes_before(folder: str) -> bool:
        asked.append(folder)
        return any(key < folder + "/" for key in server(keys, folder, folder)[:1])

    return [info.key for info in ordered(items(), prefix, goes_before)]


def some_keys(chance: random.Random) -> list[str]:
    """No key is the folder of another: a server that walks folders takes no such pair."""
    keys: set[str] = set()
    for _ in range(chance.randrange(1, 40)):
        key = "/".join(chance.choice(NAMES) for _ in range(chance.randrange(1, 4)))
        if not any(key.startswith(other + "/") or other.startswith(key + "/") for other in keys):
            keys.add(key)
    return sorted(keys)


@pytest.mark.parametrize("server", [as_s3, by_folders], ids=["S3", "folders"])
@pytest.mark.parametrize("large", [1, 3, 1000])
def test_any_keys_from_any_start(server: Listed, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "LARGE", large)
    chance = random.Random(large)
    for _ in range(400):
        keys = some_keys(chance)
        prefix = chance.choice(["", "", *keys])
        prefix = prefix[: chance.randrange(len(prefix) + 1)]
        start = chance.choice(["", *keys, *keys, *NAMES])
        start = start[: chance.randrange(len(start) + 1)] + chance.choice(["", "", "/", "-", "z"])
        if start > prefix and not start.startswith(prefix):
            continue  # the store answers this itself
        start = start if start > prefix else ""
        assert listed(server, keys, prefix, start, []) == as_s3(keys, prefix, start), (keys, prefix, start)


def test_the_orders_differ() -> None:
    """Else the test above would show nothing."""
    keys = ["a-b", "a/c"]
    assert by_folders(keys, "", "") != as_s3(keys, "", "") == keys
    assert by_folders(["a/c"], "", "a") == []


def test_a_large_folder_is_not_held_in_memory() -> None:
    keys = [f"blobs/sha256/{number:05}" for number in range(5000)]
    taken = []

    def items() -> Iterator[ObjectInfo]:
        for key in keys:
            taken.append(key)
            yield ObjectInfo(key=key, size=0, modified=0.0)

    asked: list[str] = []
    going = ordered(items(), "", lambda folder: bool(asked.append(folder)))
    assert next(going).key == keys[0]
    assert len(taken) <= 1001
    assert asked == ["blobs", "blobs/sha256"]
    assert [info.key for info in going] == keys[1:]


@pytest.mark.parametrize(
    ("key", "start"),
    [
        ("models/m/log/00000000000000000005.json", "models/m/log/00000000000000000004"),
        ("models/m/log/00000000000000000010.json", "models/m/log/0000000000000000001."),
        ("models/inception-v3/log/1", "models/inceptiom"),
        ("a", "`"),
        ("", ""),
        ("!", ""),
    ],
)
def test_little_is_listed_too_much(key: str, start: str) -> None:
    assert start_before(key) == start
