"""DATA in a request means the server's: a name under one of its configured roots, or `scenes:`.

Takes DATA as a client wrote it. Gives DATA as `finetune.data` reads it here. Next: `finetune.spec`.
One place decides what a request may name on this machine's disk; nothing else turns request text into a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from zoo.errors import InvalidArgument, NotFound

_MADE_HERE = ("scenes",)  # kinds that read no files
_SPLIT_FILE = "file:"


class DataNotOnServer(InvalidArgument):
    """DATA that a server doesn't take: a path of the client's machine, or one that leads out of the roots."""


class UnknownData(NotFound):
    """No data root of the server has that name."""


def server_location(location: str, roots: Mapping[str, Path]) -> str:
    """`kind:NAME` with NAME put under its root. Raises DataNotOnServer, UnknownData."""
    kind, colon, name = location.partition(":")
    if not colon:
        raise DataNotOnServer(f"data {location!r}: expected kind:name, e.g. scenes: or flickr:{_example(roots)}")
    if kind in _MADE_HERE:
        return location
    return f"{kind}:{_path(name, location, roots)}"


def server_split(split: str, roots: Mapping[str, Path]) -> str:
    """A split rule; the path of a `file:` rule is put under its root too. Raises DataNotOnServer, UnknownData."""
    if not split.startswith(_SPLIT_FILE):
        return split
    return _SPLIT_FILE + str(_path(split.removeprefix(_SPLIT_FILE), split, roots))


def known_location(location: str, roots: Mapping[str, Path]) -> str:
    """DATA that a manifest of this store names, and no client: as it is, where it lies under a root.

    Raises DataNotOnServer.
    """
    kind, _, path = location.partition(":")
    if kind not in _MADE_HERE:
        _require_inside(path, location, roots)
    return location


def known_split(split: str, roots: Mapping[str, Path]) -> str:
    """The split rule of a manifest of this store, a file of which lies under a root. Raises DataNotOnServer."""
    if split.startswith(_SPLIT_FILE):
        _require_inside(split.removeprefix(_SPLIT_FILE), split, roots)
    return split


def _require_inside(path: str, shown: str, roots: Mapping[str, Path]) -> None:
    if not path or not any(Path(path).resolve().is_relative_to(root.resolve()) for root in roots.values()):
        raise DataNotOnServer(
            f"data {shown!r}, which the version was trained on, does not lie under the server's data roots: "
            f"{_roots(roots)}",
            hint=f"name data of the server, e.g. --data flickr:{_example(roots)}",
        )


def _path(name: str, shown: str, roots: Mapping[str, Path]) -> Path:
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name or name.startswith(("~", ".")):
        raise DataNotOnServer(
            f"data {shown!r} is a local path; a server reads only what lies under its data roots: {_roots(roots)}",
            hint=f"copy the data there and name it, e.g. flickr:{_example(roots)}, or use scenes:",
        )
    candidates = [root / name for root in roots.values()]
    if pure.parts[0] in roots:
        candidates.insert(0, roots[pure.parts[0]].joinpath(*pure.parts[1:]))
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise UnknownData(
            f"data {shown!r}: the server has no {name!r} under its data roots: {_roots(roots)}",
            hint=f"name what lies there, e.g. flickr:{_example(roots)}, or use scenes:",
        )
    resolved = found.resolve()
    if not any(resolved.is_relative_to(root.resolve()) for root in roots.values()):  # a link that leads out
        raise DataNotOnServer(f"data {shown!r} leads out of the server's data roots")
    return resolved


def _roots(roots: Mapping[str, Path]) -> str:
    return ", ".join(sorted(roots)) or "(none are configured)"


def _example(roots: Mapping[str, Path]) -> str:
    return next(iter(sorted(roots)), "NAME")
