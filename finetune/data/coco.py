"""`coco:PATH`: COCO's annotation files: captions, and instances as several labels an image.

Takes a JSON file (`…/annotations/captions_val2017.json`), or a folder with one captions and/or one instances file in it
or in its `annotations/`, or several sets of photos at once: `…/annotations/captions_*2017.json`. The photos lie in the
folder that a file is named after (`val2017/`), or in `images/`, beside the file or one folder up. Gives Examples and
bytes. Next: `finetune.data.splits`.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.data.example_table import ExampleTable
from finetune.data.listed import caption_texts, image_name
from finetune.data.source import BadRecord, Example
from finetune.data.trees import open_beside, open_tree
from finetune.data.trees.tree import FileTree, MalformedData, NoData

_FILE = re.compile(r"(?P<what>captions|instances)(?:_(?P<split>[A-Za-z0-9]+))?\.json\Z")
# What is read of each object; a polygon of every instance would fill the memory.
_KEPT = {"images", "annotations", "categories", "id", "file_name", "image_id", "category_id", "caption", "name"}


@dataclass(frozen=True, kw_only=True)
class CocoSource:
    """An ExampleSource. Ids are the photos' `file_name`s; of several sets, each behind its set's name, `val2017/…`.
    With instances, every image has `labels`, which may be none: nothing of the categories is seen on it."""

    location: str
    tree: FileTree
    folders: Mapping[str, str]  # of each set's photos, in the tree; "" for the root
    examples: Sequence[Example]
    bad_records: Sequence[BadRecord]
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    image_ids: Mapping[str, int] = field(default_factory=dict)  # file_name → COCO's number, in result files

    @classmethod
    def open(cls, location: str) -> CocoSource:
        """Reads the annotations, opens no photo. Raises NoData, MalformedData."""
        tree, sets, shown = _sets(location)
        found: dict[str, _Photos] = {}
        folders: dict[str, str] = {}
        for name, files in sets.items():
            photos = found[name] = _Photos(prefix=f"{name}/" if name else "")
            for file in files:
                photos.add(tree, file)
            folders[name] = _folder(tree, files, photos)
        # (first, since it finds what is bad too)
        examples = ExampleTable(e for name, photos in found.items() for e in photos.examples(tree, folders[name]))
        return cls(
            location=f"coco:{shown}",
            tree=tree,
            folders=folders,
            examples=examples,
            bad_records=tuple(record for photos in found.values() for record in photos.bad),
            classes=tuple(sorted({name for photos in found.values() for name in photos.categories.values()})) or None,
            notes=tuple(note for photos in found.values() for note in photos.notes()),
            image_ids={p.prefix + name: number for p in found.values() for number, name in p.names.items()},
        )

    def read(self, index: int) -> bytes:
        name = self.examples[index].id
        if "" in self.folders:
            return self.tree.read(_below(self.folders[""], name))
        of, _, name = name.partition("/")
        return self.tree.read(_below(self.folders[of], name))


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _sets(location: str) -> tuple[FileTree, dict[str, list[str]], str]:
    """The tree, annotation files by set ("" where there is one set), and the location to show."""
    folder, slash, last = location.rpartition("/")
    if "*" not in last and "?" not in last:
        tree, files = _files(location)
        return tree, {"": files}, tree.url if len(files) > 1 else f"{tree.url}/{files[0]}"
    above, _, annotations = folder.rpartition("/")
    within = annotations == "annotations" and above not in ("", "s3:/", "s3://")
    tree = open_tree("coco", above if within else folder or ("/" if slash else "."))
    pattern = f"annotations/{last}" if within else last
    files = sorted(name for name in tree.walk("annotations" if within else "") if fnmatch.fnmatchcase(name, pattern))
    sets: dict[str, list[str]] = {}
    for file in files:
        match = _FILE.match(file.rpartition("/")[2])
        if match is None or match["split"] is None:
            raise NoData(f"coco:{location}: {file} isn't named captions_SET.json or instances_SET.json")
        sets.setdefault(match["split"], []).append(file)
    if not sets:
        raise NoData(f"coco:{location}: no file like {pattern} in {tree.url}")
    return tree, sets, f"{tree.url}/{pattern}"


def _files(location: str) -> tuple[FileTree, list[str]]:
    """The tree that holds both annotations and photos, and the annotation files in it, of one set."""
    if location.endswith(".json"):
        tree, name = open_beside("coco", location)
        parent = tree.url.rsplit("/", 1)[0]
        above = tree.url.rsplit("/", 1)[1]
        if above == "annotations" and parent not in ("", "s3:/", "s3://"):
            return open_tree("coco", parent), [f"{above}/{name}"]
        return tree, [name]
    tree = open_tree("coco", location)
    found: dict[str, list[str]] = {}
    for name in tree.walk():
        folder, _, file = name.rpartition("/")
        if folder in ("", "annotations") and (match := _FILE.match(file)):
            found.setdefault(match["what"], []).append(name)
    several = [names for names in found.values() if len(names) > 1]
    if several:
        raise NoData(
            f"coco:{tree.url} has several annotation files: {', '.join(sorted(several[0]))}; name one of them",
            hint=f"--data coco:{tree.url}/{sorted(several[0])[0]}, or with a * in it for all",
        )
    if not found:
        raise NoData(
            f"coco:{tree.url}: no annotations; looked for captions*.json, instances*.json, also in annotations/"
        )
    return tree, sorted(name for names in found.values() for name in names)


@dataclass
class _Photos:
    """What the files of one set say of its photos; `prefix` is before their ids."""

    prefix: str = ""
    names: dict[int, str] = field(default_factory=dict)  # image id → file_name
    captions: dict[int, list[str]] = field(default_factory=dict)
    labels: dict[int, set[int]] = field(default_factory=dict)  # image id → category ids
    categories: dict[int, str] = field(default_factory=dict)
    bad: list[BadRecord] = field(default_factory=list)
    left_out: int = 0

    def add(self, tree: FileTree, file: str) -> None:
        where = f"{tree.url}/{file}"
        try:
            value = json.loads(tree.read_index(file), object_pairs_hook=_slim)
        except (ValueError, RecursionError) as error:
            raise MalformedData(f"{where} is not JSON: {error}") from None
        if not isinstance(value, dict) or not all(isinstance(value.get(k), list) for k in ("images", "annotations")):
            raise MalformedData(f"{where}: expected an object with lists `images` and `annotations`")
        for image in value["images"]:
            self._image(image, file)
        for category in value.get("categories") or ():
            self._category(category, where)
        known = set(self.names)
        for number, annotation in enumerate(value["annotations"]):
            try:
                self._annotation(annotation, known)
            except ValueError as error:
                self.bad.append(BadRecord(id=f"{file}#{number}", reason=f"annotation {number}: {error}"))

    def _image(self, image: Any, file: str) -> None:
        try:
            number, name = _integer(image, "id"), image_name(image.get("file_name"))
        except ValueError as error:
            self.bad.append(BadRecord(id=file, reason=f"an image that can't be used: {error}"))
            return
        self.names[number] = name

    def _category(self, category: Any, where: str) -> None:
        try:
            number, name = _integer(category, "id"), category.get("name")
        except ValueError as error:
            raise MalformedData(f"{where}: a category that can't be used: {error}") from None
        if not isinstance(name, str) or not name or self.categories.setdefault(number, name) != name:
            raise MalformedData(f"{where}: category {number} is named {name!r} and {self.categories.get(number)!r}")

    def _annotation(self, annotation: Any, known: set[int]) -> None:
        image = _integer(annotation, "image_id")
        if image not in known:
            raise ValueError(f"it belongs to image {image}, which is not listed")
        if "caption" in annotation:
            text = annotation["caption"]
            texts = caption_texts(text.strip(" \t\n") if isinstance(text, str) else text)
            self.captions.setdefault(image, []).extend(texts)
        elif (category := _integer(annotation, "category_id")) in self.categories:
            self.labels.setdefault(image, set()).add(category)
        else:
            raise ValueError(f"category {category} is not listed")

    def examples(self, tree: FileTree, folder: str) -> Iterator[Example]:
        for number, name in self.names.items():
            if not tree.has(_below(folder, name)):
                self.bad.append(BadRecord(id=self.prefix + name, reason="the image is missing"))
            elif not self.categories and number not in self.captions:
                self.left_out += 1
            else:
                labels = sorted({self.categories[each] for each in self.labels.get(number, ())})
                yield Example(
                    id=self.prefix + name, captions=tuple(self.captions.get(number, ())), labels=tuple(labels)
                )

    def notes(self) -> Iterator[str]:
        if self.left_out:
            of = f" of {self.prefix}" if self.prefix else ""
            yield f"{self.left_out} images{of} without a caption left out"


def _slim(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if key in _KEPT}


def _integer(value: Any, key: str) -> int:
    number = value.get(key) if isinstance(value, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"{key} must be a whole number, got {number!r}")
    return number


def _folder(tree: FileTree, files: Sequence[str], photos: _Photos) -> str:
    """Where the photos lie. Raises NoData naming the places that were looked at."""
    match = _FILE.match(files[0].rpartition("/")[2])
    split = match["split"] if match else None
    places = [f"images/{split}", split] if split else []
    places += ["images", ""]
    some = list(photos.names.values())[:100]
    for place in places:
        if any(tree.has(_below(place, name)) for name in some):
            return place
    raise NoData(
        f"coco:{tree.url}: none of the photos of {', '.join(files)}, such as {some[0] if some else '(none)'}; "
        f"looked in {', '.join(f'{place}/' for place in places)}"
    )
