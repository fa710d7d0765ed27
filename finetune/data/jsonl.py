"""`jsonl:PATH`: one JSON object a line: "image" (a path beside the file), and "label", "labels", "caption" or
"captions".

Takes a .jsonl file. Gives Examples and bytes. Next: `finetune.data.splits`.
"captions" is a list of texts, or an object of language → text or list; `data.language` then chooses. "labels" is a
list of class names, which may be empty: an image may show several classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.example_table import ExampleTable
from finetune.data.listed import Facts, ListedImages, caption_texts, image_name, label_names
from finetune.data.source import BadRecord, Example
from finetune.data.trees import open_beside
from finetune.data.trees.tree import FileTree, utf8_lines
from zoo.errors import InvalidArgument

_KEYS = {"image", "label", "labels", "caption", "captions"}


@dataclass(frozen=True, kw_only=True)
class JsonlSource:
    """An ExampleSource. Ids are the "image" paths; `notes` says what was left aside without being a bad record."""

    location: str
    tree: FileTree
    examples: Sequence[Example]
    bad_records: Sequence[BadRecord]
    classes: tuple[str, ...] | None
    languages: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, location: str, *, language: str | None = None) -> JsonlSource:
        """Reads the file, opens no image.

        Without `language`, captions in a single language are taken; where there are several, none is (only labels),
        and `notes` says so. Raises NoData, MalformedData (not UTF-8), InvalidArgument: a language nobody wrote in.
        """
        tree, name = open_beside("jsonl", location)
        where = f"{tree.url}/{name}"
        listed, bad = _read(tree, name)
        languages = listed.languages
        if language is not None and language not in languages:
            known = ", ".join(languages) or "none: the captions name no language"
            raise InvalidArgument(f"jsonl:{where}: no captions in language {language!r}; there are {known}")
        chosen = languages[0] if language is None and len(languages) == 1 else language
        notes: list[str] = []
        examples = ExampleTable(listed.examples(chosen, notes))
        if chosen is None and languages:
            known = ", ".join(languages)
            notes.append(f"captions in {len(languages)} languages left out; choose data.language: {known}")
        return cls(
            location=f"jsonl:{where}",
            tree=tree,
            examples=examples,
            bad_records=tuple(bad),
            classes=listed.classes,
            languages=languages,
            notes=tuple(notes),
        )

    def read(self, index: int) -> bytes:
        return self.tree.read(self.examples[index].id)


def _read(tree: FileTree, file: str) -> tuple[ListedImages, list[BadRecord]]:
    listed = ListedImages()
    bad: list[BadRecord] = []
    for number, line in enumerate(utf8_lines(tree.read_index(file), f"{tree.url}/{file}"), start=1):
        if not line.strip():
            continue
        identity = f"{file}:{number}"
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError(f"expected a JSON object, got {type(value).__name__}")
            identity = image = image_name(value.get("image"))
            facts = _facts(value)
            if not tree.has(image):
                raise ValueError("the image is missing")
            listed.add(image, facts)
        except (ValueError, RecursionError) as error:
            bad.append(BadRecord(id=identity, reason=f"line {number}: {error}"))
    return listed, bad


def _facts(value: dict[str, Any]) -> Facts:
    unknown = sorted(set(value) - _KEYS)
    if unknown:
        raise ValueError(f"unknown keys {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}")
    label = value.get("label")
    if label is not None and (not isinstance(label, str) or not label):
        raise ValueError(f'"label" must be a text, got {label!r}')
    facts = Facts(label=label, labels=label_names(value["labels"]) if "labels" in value else None)
    captions = value.get("captions", value.get("caption"))
    if isinstance(captions, dict):
        facts.by_language = {code: caption_texts(texts) for code, texts in captions.items()}
    elif captions is not None:
        facts.captions = caption_texts(captions)
    elif facts.says_nothing:
        raise ValueError("neither a label nor captions")
    return facts
