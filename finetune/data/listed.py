"""Images that lines of a file name, one or several lines an image: what jsonl: and csv: have in common.

Takes what each line says of its image. Gives Examples. Next: `finetune.data.jsonl`, `finetune.data.csv_file`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from finetune.data.source import Example
from finetune.text.tokenizer import tokenize


@dataclass(kw_only=True)
class Facts:
    """What is known of one image; lines are merged into it. `labels` is None where no line has such a list."""

    label: str | None = None
    labels: list[str] | None = None
    captions: list[str] = field(default_factory=list)
    by_language: dict[str, list[str]] = field(default_factory=dict)

    @property
    def says_nothing(self) -> bool:
        return self.label is None and self.labels is None and not self.captions and not self.by_language


class ListedImages:
    """Faults are ValueErrors with a reason; whoever reads the lines knows where they stand."""

    def __init__(self) -> None:
        self._facts: dict[str, Facts] = {}

    def __len__(self) -> int:
        return len(self._facts)

    def add(self, image: str, facts: Facts) -> None:
        """Merges; raises ValueError where `image` has another label by an earlier line."""
        if facts.says_nothing:
            raise ValueError("neither a label nor captions")
        known = self._facts.setdefault(image, facts)
        if known is facts:
            return
        if known.label != facts.label:
            raise ValueError(f"label {facts.label!r}, but an earlier line has {known.label!r}")
        if facts.labels is not None:
            known.labels = list(dict.fromkeys([*(known.labels or []), *facts.labels]))
        known.captions += facts.captions
        for code, texts in facts.by_language.items():
            known.by_language.setdefault(code, []).extend(texts)

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(sorted({code for facts in self._facts.values() for code in facts.by_language}))

    @property
    def classes(self) -> tuple[str, ...] | None:
        names = {facts.label for facts in self._facts.values() if facts.label is not None}
        names |= {name for facts in self._facts.values() for name in facts.labels or ()}
        return tuple(sorted(names)) or None

    def examples(self, language: str | None, notes: list[str]) -> Iterator[Example]:
        """`language`: whose captions are taken besides those of no language; images without one are left out."""
        without = 0
        for image, facts in self._facts.items():
            captions = facts.captions + (facts.by_language.get(language, []) if language is not None else [])
            if language is not None and not captions:
                without += 1
                continue
            yield Example(id=image, captions=tuple(captions), label=facts.label, labels=tuple(facts.labels or ()))
        if without:
            notes.append(f"{without} of {len(self)} images have no caption in {language!r} and are left out")


def image_name(value: Any) -> str:
    """A name below the file's folder. Raises ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError(f'"image" must be a path, got {value!r}')
    pure = PurePosixPath(value)
    if pure.is_absolute() or ".." in pure.parts or "\0" in value:
        raise ValueError(f'"image" must lie below the file\'s folder, got {value!r}')
    return str(pure)


def caption_texts(value: Any) -> list[str]:
    """A list of captions; a text stands for a list of one (taken as a list, it would fall into letters)."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"captions must be a text or a list of texts, got {value!r:.80}")
    if not texts or not all(tokenize(text) for text in texts):
        raise ValueError("a caption is empty or has no word")
    return texts


def label_names(value: Any) -> list[str]:
    """A list of class names, which may be empty: an image that shows none of the classes."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f'"labels" must be a list of texts, got {value!r:.80}')
    if not all(isinstance(name, str) and name.strip() for name in value):
        raise ValueError(f'"labels" must hold texts that aren\'t blank, got {value!r:.80}')
    return list(dict.fromkeys(value))
