"""`tfrecord:PATH`: TFRecord shards as TF-Slim and im2txt write them.

Takes a folder, one file, or `FOLDER/train-*`. Gives Examples and bytes. Next: `finetune.data.splits`.

Read are tf.Example (`image/encoded`, `image/class/label`, `image/class/text`, `image/filename`) and SequenceExample
(`image/data`, `image/image_id`, `image/caption`), and a `labels.txt` beside the shards (`3:roses`). Ids begin with the
set that shards `train-00000-of-00256` are named after (`train/…`), so that `data.split=source` keeps the sets apart.
im2txt writes a record for each caption: records of one image are one Example here.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.data.image_header import UnreadableImage
from finetune.data.record_file import DamagedRecord, read_record
from finetune.data.record_index import RecordIndex, index_of
from finetune.data.record_parse import image_bytes
from finetune.data.source import BadRecord, Example
from finetune.data.trees import open_tree
from finetune.data.trees.byte_cache import ByteCache
from finetune.data.trees.ranges import Ranges
from finetune.data.trees.tree import FileTree, MalformedData, NoData, unreadable, utf8_lines
from zoo.errors import ZooError

_SHARD = re.compile(r"(?P<set>.+?)[-_](?P<number>\d{5})-of-(?P<of>\d{5})(?P<end>\.tfrecords?)?\Z")
# → the name that splits know; "all" is no part of a split
_SETS = {"val": "validation", "valid": "validation", "eval": "validation", "all": ""}
_LABEL_FILE = "labels.txt"
_LABEL_LINE = re.compile(r"(\d+)\s*:\s*(.+?)\s*\Z")


@dataclass(frozen=True, kw_only=True)
class TfrecordSource:
    """An ExampleSource. `far`: shards in a bucket, of which every record is a request and is kept on the disk."""

    location: str
    shards: Sequence[Ranges]
    index: RecordIndex
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    far: ByteCache | None = None

    @classmethod
    def open(cls, location: str) -> TfrecordSource:
        """Reads the index, or makes it by reading the shards whole.

        Raises NoData: no shards, or some of a set are missing; MalformedData: a labels.txt that can't be read.
        """
        tree, names, shown = _shards(location)
        shards = [tree.ranges(name) for name in names]
        index = index_of(names, [_set(name) for name in names], shards, _label_names(tree))
        classes = {e.label for e in index.examples if e.label is not None}
        classes |= {name for e in index.examples for name in e.labels}
        return cls(
            location=f"tfrecord:{shown}",
            shards=shards,
            index=index,
            classes=tuple(sorted(classes)) or None,
            notes=(f"{index.merged} records add a caption to an image of another",) if index.merged else (),
            far=ByteCache() if tree.url.startswith("s3://") else None,
        )

    @property
    def examples(self) -> Sequence[Example]:
        return self.index.examples

    @property
    def bad_records(self) -> Sequence[BadRecord]:
        return self.index.bad

    def read(self, index: int) -> bytes:
        shard = self.shards[int(self.index.shard[index])]
        offset, length = int(self.index.offset[index]), int(self.index.length[index])
        name = self.examples[index].id
        try:
            if self.far is None:
                data = read_record(shard, offset, length)
            else:
                key = f"{shard.url}\0{shard.changed}\0{offset}"
                data = self.far.get(key, lambda: read_record(shard, offset, length))
        except (DamagedRecord, OSError, ZooError) as error:
            raise unreadable(name, f"{shard.url}: {error}") from None
        image = image_bytes(data)
        if image is None:
            raise UnreadableImage(f"{shard.url} has changed: the record of {name!r} has no image", cause="unreadable")
        return image


def _shards(location: str) -> tuple[FileTree, list[str], str]:
    """The folder, the shards in it in order, and the location to show."""
    folder, slash, last = location.rpartition("/")
    pattern = last if "*" in last or "?" in last else None
    if pattern is None:
        try:
            tree, wanted = open_tree("tfrecord", location), None
        except NoData:
            if not last:
                raise
            tree = open_tree("tfrecord", folder or ("/" if slash else "."))
            wanted = last
    else:
        tree, wanted = open_tree("tfrecord", folder or ("/" if slash else ".")), None
    files = sorted(name for name in tree.walk() if "/" not in name)
    if wanted is not None:
        names = [name for name in files if name == wanted]
    elif pattern is not None:
        names = fnmatch.filter(files, pattern)
    else:
        names = [name for name in files if _SHARD.match(name) or name.endswith((".tfrecord", ".tfrecords"))]
    if not names:
        looked_for = wanted or pattern or "NAME-00000-of-00010 and *.tfrecord"
        there = ", ".join(files[:5]) or "no files"
        raise NoData(f"tfrecord:{location}: looked for {looked_for} in {tree.url}; it has {there}")
    _require_whole_sets(location, names if wanted is None else [])
    shown = tree.url if pattern is None and wanted is None else f"{tree.url}/{pattern or wanted}"
    return tree, names, shown


def _require_whole_sets(location: str, names: Sequence[str]) -> None:
    sets: dict[tuple[str, int, str], set[int]] = {}
    for name in names:
        if match := _SHARD.match(name):
            key = match["set"], int(match["of"]), match["end"] or ""
            sets.setdefault(key, set()).add(int(match["number"]))
    for (name, of, end), there in sorted(sets.items()):
        missing = sorted(set(range(of)) - there)
        if missing:
            first = f"{name}-{missing[0]:05d}-of-{of:05d}{end}"
            raise NoData(f"tfrecord:{location}: {len(missing)} of {of} shards of {name!r} are missing: {first}, …")


def _set(name: str) -> str:
    match = _SHARD.match(name)
    group = re.split(r"[-_]", match["set"])[-1] if match else ""  # flowers_train-00000-of-00005
    return _SETS.get(group, group)


def _label_names(tree: FileTree) -> dict[int, str]:
    if not tree.has(_LABEL_FILE):
        return {}
    where = f"{tree.url}/{_LABEL_FILE}"
    labels: dict[int, str] = {}
    for number, line in enumerate(utf8_lines(tree.read_index(_LABEL_FILE), where), start=1):
        match = _LABEL_LINE.match(line)
        if not line.strip():
            continue
        if match is None or int(match[1]) in labels or match[2] in labels.values():
            raise MalformedData(f"{where}, line {number}: expected NUMBER:NAME, each once, got {line[:80]!r}")
        labels[int(match[1])] = match[2]
    return labels
