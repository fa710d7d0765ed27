"""Folders of files, wherever they lie: `PATH`, `PATH.zip`, `PATH.tar`, a folder in one of them (`PATH.zip/photos`),
`s3://BUCKET/PREFIX`, and archives there."""

from __future__ import annotations

from pathlib import Path

from finetune.data.trees.archive import ARCHIVES, open_archive
from finetune.data.trees.bucket import BucketTree
from finetune.data.trees.byte_cache import ByteCache
from finetune.data.trees.local import LocalTree
from finetune.data.trees.ranges import FileRanges, ObjectRanges
from finetune.data.trees.tree import FileTree, NoData
from zoo.store import open_store
from zoo.store.object_store import ObjectMissing


def open_tree(kind: str, location: str) -> FileTree:
    """The folder at `location`. Raises NoData saying what was looked for, MalformedData, the store's errors.

    `kind` is the source's, for the messages.
    """
    if not location:
        raise NoData(f"{kind}: needs a folder, as in {kind}:PATH")
    if location.startswith("s3://"):
        return _in_bucket(kind, location)
    path, below = _split_archive(Path(location).expanduser().absolute())
    if below is not None:
        return open_archive(FileRanges(path), below)
    root = path.resolve()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise NoData(f"{kind}:{location}: looked for a folder at {root}; it {what}")
    return LocalTree(root)


def open_beside(kind: str, location: str) -> tuple[FileTree, str]:
    """The folder that a file lies in, and the file's name. Raises NoData, MalformedData, the store's errors."""
    folder, slash, name = location.rstrip("/").rpartition("/")
    if not name:
        raise NoData(f"{kind}: needs a file, as in {kind}:PATH")
    tree = open_tree(kind, folder or ("/" if slash else "."))
    if not tree.has(name):
        raise NoData(f"{kind}:{location}: looked for a file {name} in {tree.url}; there is none")
    return tree, name


def _split_archive(path: Path) -> tuple[Path, str | None]:
    """An archive on the way to `path` and the folder in it, or the path itself and None."""
    for archive in (path, *path.parents):
        if archive.suffix.lower() in ARCHIVES and archive.is_file():
            return archive, path.relative_to(archive).as_posix().removeprefix(".")
    return path, None


def _in_bucket(kind: str, location: str) -> FileTree:
    parts = location.rstrip("/").split("/")
    for place in range(3, len(parts)):
        if parts[place].lower().endswith(ARCHIVES):
            store = open_store("/".join(parts[:place]))
            try:
                return open_archive(ObjectRanges(store, parts[place]), "/".join(parts[place + 1 :]))
            except ObjectMissing:
                break  # a folder of such a name
    tree = BucketTree(open_store(location), ByteCache())
    if next(iter(tree.walk()), None) is None:
        raise NoData(f"{kind}:{location}: looked for objects below {location.rstrip('/')}/; there are none")
    return tree
