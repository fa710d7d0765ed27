"""`jsonl:PATH`: one JSON object a line: "image" (a path beside the file), and "label", "caption" or "captions".

Takes a .jsonl file. Gives Examples and bytes. Next: `finetune.data.splits`.
"captions" is a list of texts, or an object of language → text or list; `data.language` then chooses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from finetune.data.example_table import ExampleTable
from finetune.data.source import BadRecord, Example
from finetune.data.trees import open_beside
from finetune.data.trees.tree import FileTree, utf8_lines
from finetune.text.tokenizer import tokenize
from zoo.errors import InvalidArgument

_KEYS = {"image", "label", "caption", "captions"}


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
        records, bad = _read(tree, name)
        languages = tuple(sorted({code for record in records.values() for code in record.by_language}))
        if language is not None and language not in languages:
            known = ", ".join(languages) or "none: the captions name no language"
            raise InvalidArgument(f"jsonl:{where}: no captions in language {language!r}; there are {known}")
        chosen = languages[0] if language is None and len(languages) == 1 else language
        examples, notes = _examples(records, chosen, languages)
        labels = {example.label for example in examples if example.label is not None}
        return cls(
            location=f"jsonl:{where}",
            tree=tree,
            examples=ExampleTable(examples),
            bad_records=tuple(bad),
            classes=tuple(sorted(labels)) or None,
            languages=languages,
            notes=tuple(notes),
        )

    def read(self, index: int) -> bytes:
        return self.tree.read(self.examples[index].id)


@dataclass(kw_only=True)
class _Record:
    label: str | None
    captions: list[str] = field(default_factory=list)
    by_language: dict[str, list[str]] = field(default_factory=dict)


def _read(tree: FileTree, file: str) -> tuple[dict[str, _Record], list[BadRecord]]:
    records: dict[str, _Record] = {}
    bad: list[BadRecord] = []
    for number, line in enumerate(utf8_lines(tree.read_index(file), f"{tree.url}/{file}"), start=1):
        if not line.strip():
            continue
        identity = f"{file}:{number}"
        try:
            value = json.loads(line)
            image = _image(value)
            identity = image
            record = _record(value)
            if not tree.has(image):
                raise ValueError("the image is missing")
            _merge(records, image, record)
        except (ValueError, RecursionError) as error:
            bad.append(BadRecord(id=identity, reason=f"line {number}: {error}"))
    return records, bad


def _image(value: Any) -> str:
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    image = value.get("image")
    if not isinstance(image, str) or not image:
        raise ValueError(f'"image" must be a path, got {image!r}')
    pure = PurePosixPath(image)
    if pure.is_absolute() or ".." in pure.parts or "\0" in image:
        raise ValueError(f'"image" must lie below the file\'s folder, got {image!r}')
    return str(pure)


def _record(value: dict[str, Any]) -> _Record:
    unknown = sorted(set(value) - _KEYS)
    if unknown:
        raise ValueError(f"unknown keys {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}")
    label = value.get("label")
    if label is not None and (not isinstance(label, str) or not label):
        raise ValueError(f'"label" must be a text, got {label!r}')
    captions = value.get("captions", value.get("caption"))
    record = _Record(label=label)
    if isinstance(captions, dict):
        record.by_language = {code: _texts(texts) for code, texts in captions.items()}
    elif captions is not None:
        record.captions = _texts(captions)
    elif label is None:
        raise ValueError("neither a label nor captions")
    return record


def _texts(value: Any) -> list[str]:
    """A list of captions; a text stands for a list of one (taken as a list, it would fall into letters)."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"captions must be a text or a list of texts, got {value!r:.80}")
    if not texts or not all(tokenize(text) for text in texts):
        raise ValueError("a caption is empty or has no word")
    return texts


def _merge(records: dict[str, _Record], image: str, record: _Record) -> None:
    known = records.setdefault(image, record)
    if known is record:
        return
    if known.label != record.label:
        raise ValueError(f"label {record.label!r}, but an earlier line has {known.label!r}")
    known.captions += record.captions
    for code, texts in record.by_language.items():
        known.by_language.setdefault(code, []).extend(texts)


def _examples(
    records: dict[str, _Record], language: str | None, languages: tuple[str, ...]
) -> tuple[list[Example], list[str]]:
    examples, notes = [], []
    without = 0
    for image, record in records.items():
        captions = record.captions + (record.by_language.get(language, []) if language is not None else [])
        if language is not None and not captions:
            without += 1
            continue
        examples.append(Example(id=image, captions=tuple(captions), label=record.label))
    if without:
        notes.append(f"{without} of {len(records)} images have no caption in {language!r} and are left out")
    if language is None and languages:
        notes.append(f"captions in {len(languages)} languages left out; choose data.language: {', '.join(languages)}")
    return examples, notes
