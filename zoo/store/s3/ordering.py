"""Listings in code point order, from servers that give them in the order of a file system.

Takes objects as a server lists them. Gives the same ones in code point order. Next: `zoo.store.s3.store`.

S3's order is by the bytes of whole keys, so `a-b` comes before `a/c`. SeaweedFS walks folders: the names in each are
sorted, and all of `a/` comes before `a-b`; its StartAfter and its continuation go by that order too, and one that names
a folder skips it. Both orders agree on everything but the names that begin with a folder's name and go on with one of
the characters before the slash (space to full stop): these and the folder make a cluster, which is sorted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from zoo.store.object_store import ObjectInfo

LARGE = 1000  # objects; a cluster that grows beyond isn't held when the server has no name that goes before it


def ordered(items: Iterator[ObjectInfo], prefix: str, goes_before: Callable[[str], bool]) -> Iterator[ObjectInfo]:
    """`items` in code point order; their keys begin with `prefix`.

    `goes_before(folder)`: whether the server has a key that begins with `folder` and one of the characters before the
    slash. It is asked once for each folder of more than LARGE objects; while there is such a key, all of that folder
    is held in memory.
    """
    return _below(_Pushed(items), prefix[: prefix.rfind("/") + 1], goes_before)


def start_before(start_after: str) -> str:
    """A key before which neither order has any that sorts after `start_after`; empty when there is none such.

    So it is what to ask the server with; what it gives too much must be left out again.
    """
    at = 0  # where the segment begins
    *folders, last = start_after.split("/")
    for segment in folders:
        if (end := _ends(segment)) < len(segment):
            return start_after[:at] + _less(segment[:end])
        at += len(segment) + 1
    return start_after[:at] + _less(last[: _ends(last)])


class _Pushed:
    """An iterator that takes items back."""

    def __init__(self, items: Iterator[ObjectInfo]) -> None:
        self._items = items
        self._back: list[ObjectInfo] = []  # the next one last

    def peek(self) -> ObjectInfo | None:
        if not self._back:
            item = next(self._items, None)
            if item is None:
                return None
            self._back.append(item)
        return self._back[-1]

    def take(self) -> ObjectInfo:
        return self._back.pop()

    def push(self, items: list[ObjectInfo]) -> None:
        self._back.extend(reversed(items))


def _below(items: _Pushed, base: str, goes_before: Callable[[str], bool]) -> Iterator[ObjectInfo]:
    """Those that come next and lie in the folder `base`."""
    while (item := items.peek()) is not None and item.key.startswith(base):
        name, slash, _ = item.key[len(base) :].partition("/")
        if not slash:
            yield items.take()
            continue
        folder, cluster, asked = base + name, [], False
        while (item := items.peek()) is not None and _is_in_cluster(item.key, folder):
            cluster.append(items.take())
            if len(cluster) < LARGE or asked:
                continue
            asked = True  # once: a name written meanwhile must not make us ask for ever
            if not goes_before(folder):
                items.push(cluster)
                cluster = []
                yield from _below(items, folder + "/", goes_before)
        yield from sorted(cluster, key=lambda item: item.key)


def _is_in_cluster(key: str, folder: str) -> bool:
    return key.startswith(folder) and key[len(folder) : len(folder) + 1] <= "/"


def _ends(segment: str) -> int:
    """Where a folder's name would end that goes before `segment` in a walk and after it in code point order."""
    return next((at for at, letter in enumerate(segment) if at > 0 and letter < "/"), len(segment))


def _less(name: str) -> str:
    """A name that sorts before `name` and isn't the beginning of it; empty when there is none."""
    if not name or name[-1] <= "!":
        return ""
    letter = chr(ord(name[-1]) - 1)
    letter = {"/": ".", "\\": "[", "\udfff": "\ud7ff"}.get(letter, letter)
    return name[:-1] + ("~" if "\x7f" <= letter < "\xa0" else letter)
