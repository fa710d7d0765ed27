"""DATA in a request means the server's: a name under one of its configured roots, or `scenes:`.

Takes DATA as a client wrote it. Gives DATA as `finetune.data` reads it here. Next: `finetune.spec`.
One place decides what a request may name on this machine's disk, or in a bucket with this machine's keys; nothing else
turns request text into a location. A root is a folder, or `s3://BUCKET/PREFIX`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from finetune.data.trees.archive import ARCHIVES
from zoo.errors import InvalidArgument, NotFound

_MADE_HERE = ("scenes",)  # kinds that read no files
_SPLIT_FILE = "file:"
_BUCKET = "s3://"
_PATTERN = "*?["

Roots = Mapping[str, str]  # name → absolute folder, or s3://BUCKET/PREFIX


class DataNotOnServer(InvalidArgument):
    """DATA that a server doesn't take: a path of the client's machine, or one that leads out of the roots."""


class UnknownData(NotFound):
    """No data root of the server has that name."""


def server_location(location: str, roots: Roots) -> str:
    """`kind:NAME` with NAME put under its root. Raises DataNotOnServer, UnknownData."""
    kind, colon, name = location.partition(":")
    if not colon:
        raise DataNotOnServer(f"data {location!r}: expected kind:name, e.g. scenes: or flickr:{_example(roots)}")
    if kind in _MADE_HERE:
        return location
    return f"{kind}:{_under_root(name, location, roots)}"


def server_split(split: str, roots: Roots) -> str:
    """A split rule; the path of a `file:` rule is put under its root too. Raises DataNotOnServer, UnknownData."""
    if not split.startswith(_SPLIT_FILE):
        return split
    return _SPLIT_FILE + _on_disk(split.removeprefix(_SPLIT_FILE), split, roots)


def server_file(name: str, shown: str, roots: Roots) -> str:
    """A file that a request names; it lies under a root on this machine's disk. Raises DataNotOnServer, UnknownData."""
    return _on_disk(name, shown, roots)


def known_file(path: str, shown: str, roots: Roots) -> str:
    """A file that a spec of this store names, where it lies under a root. Raises DataNotOnServer."""
    _require_inside(path, shown, roots)
    return path


def known_location(location: str, roots: Roots) -> str:
    """DATA that a manifest of this store names, and no client: as it is, where it lies under a root.

    Raises DataNotOnServer.
    """
    kind, _, place = location.partition(":")
    if kind not in _MADE_HERE:
        _require_inside(place, location, roots)
    return location


def known_split(split: str, roots: Roots) -> str:
    """The split rule of a manifest of this store, a file of which lies under a root. Raises DataNotOnServer."""
    if split.startswith(_SPLIT_FILE):
        _require_inside(split.removeprefix(_SPLIT_FILE), split, roots)
    return split


def _under_root(name: str, shown: str, roots: Roots) -> str:
    if name.startswith(_BUCKET):
        if not any(_in_bucket(name, root) for root in roots.values()):
            raise DataNotOnServer(
                f"data {shown!r} lies in no bucket that this server reads; its data roots are {_roots(roots)}",
                hint=f"name data of the server, e.g. --data flickr:{_example(roots)}",
            )
        return name
    pure = _checked(name, shown, roots)
    root = roots.get(pure.parts[0], "")
    if root.startswith(_BUCKET):
        return "/".join((root.rstrip("/"), *pure.parts[1:]))
    return _on_disk(name, shown, roots)


def _on_disk(name: str, shown: str, roots: Roots) -> str:
    pure = _checked(name, shown, roots)
    folders = {key: Path(root) for key, root in roots.items() if not root.startswith(_BUCKET)}
    candidates = [root / name for root in folders.values()]
    if pure.parts[0] in folders:
        candidates.insert(0, folders[pure.parts[0]].joinpath(*pure.parts[1:]))
    found = next((path for path in candidates if _exists(path)), None)
    if found is None:
        raise UnknownData(
            f"data {shown!r}: the server has no {name!r} under its data roots: {_roots(roots)}",
            hint=f"name what lies there, e.g. flickr:{_example(roots)}, or use scenes:",
        )
    resolved = found.resolve()
    if not any(resolved.is_relative_to(root.resolve()) for root in folders.values()):  # a link that leads out
        raise DataNotOnServer(f"data {shown!r} leads out of the server's data roots")
    return str(resolved)


def _checked(name: str, shown: str, roots: Roots) -> PurePosixPath:
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name or name.startswith(("~", ".")):
        raise DataNotOnServer(
            f"data {shown!r} is a local path; a server reads only what lies under its data roots: {_roots(roots)}",
            hint=f"copy the data there and name it, e.g. flickr:{_example(roots)}, or use scenes:",
        )
    return pure


def _exists(path: Path) -> bool:
    """Also a folder in an archive, and a pattern of files in a folder."""
    if path.exists():
        return True
    if any(letter in path.name for letter in _PATTERN):
        return path.parent.is_dir()
    return any(parent.suffix.lower() in ARCHIVES and parent.is_file() for parent in path.parents)


def _require_inside(place: str, shown: str, roots: Roots) -> None:
    if place.startswith(_BUCKET):
        inside = any(_in_bucket(place, root) for root in roots.values())
    else:
        folders = [Path(root).resolve() for root in roots.values() if not root.startswith(_BUCKET)]
        inside = bool(place) and any(Path(place).resolve().is_relative_to(folder) for folder in folders)
    if not inside:
        raise DataNotOnServer(
            f"data {shown!r}, which the version was trained on, does not lie under the server's data roots: "
            f"{_roots(roots)}",
            hint=f"name data of the server, e.g. --data flickr:{_example(roots)}",
        )


def _in_bucket(url: str, root: str) -> bool:
    """Whether `url` is the bucket's root or below it. Segments that a server might fold up are refused."""
    if not root.startswith(_BUCKET) or any(part in ("", ".", "..") for part in url.removeprefix(_BUCKET).split("/")):
        return False
    return url == root.rstrip("/") or url.startswith(root.rstrip("/") + "/")


def _roots(roots: Roots) -> str:
    return ", ".join(sorted(roots)) or "(none are configured)"


def _example(roots: Roots) -> str:
    return next(iter(sorted(roots)), "NAME")
