"""Class names of a classifier, as a file lists them.

Takes a JSON list or a text file with a name a line. Gives names in the order of the outputs. Next: `zoo.importer`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import InvalidArgument, NotFound

_BACKGROUND = frozenset({"background", "dummy", "unused background"})  # as published lists of 1001 classes call it


class InvalidClassNames(InvalidArgument):
    """A file that isn't a list of class names, or one that doesn't fit the classifier."""


class MissingClassNames(NotFound):
    """The file is not there."""


def read_class_names(path: Path) -> tuple[str, ...]:
    """Reads `["cat", "dog"]` or `cat\\ndog\\n` (UTF-8). Raises InvalidClassNames, MissingClassNames."""
    if not path.is_file():
        raise MissingClassNames(f"there is no file of class names at {path}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidClassNames(f"{path} is not UTF-8 text: {error}") from None
    if text.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidClassNames(f"{path} begins like JSON but isn't: {error}") from None
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise InvalidClassNames(f"{path}: class names in JSON are a list of strings, got a {type(value).__name__}")
        names = [str(name) for name in value]
    else:
        # Not splitlines(), which also splits at U+2028, a character that a name may hold.
        names = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    _check(path, names)
    return tuple(names)


def check_class_names(names: Sequence[str], outputs: int | None, where: str) -> int:
    """The number of outputs before the first named class: 0, or 1 where a background class comes first.

    Raises InvalidClassNames when the counts don't fit; `outputs` is None for a checkpoint without a classifier.
    """
    if outputs is None:
        raise InvalidClassNames(f"{where} names {len(names)} classes, but the checkpoint has no classifier")
    if outputs - len(names) in (0, 1):
        return outputs - len(names)
    extra = len(names) == outputs + 1 and names[0].strip().lower() in _BACKGROUND
    raise InvalidClassNames(
        f"{where} names {len(names)} classes, the classifier has {outputs} outputs; allowed are {outputs} names, "
        f"or {outputs - 1} where the first output is the background",
        hint=f"these weights have no background class: leave out the first entry, {names[0]!r}" if extra else None,
    )


def _check(path: Path, names: Sequence[str]) -> None:
    if not names:
        raise InvalidClassNames(f"{path} names no classes")
    blank = [place for place, name in enumerate(names, start=1) if not name.strip()]
    if blank:
        raise InvalidClassNames(f"{path}: entry {blank[0]} of {len(names)} is blank")
    first: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if name in first:
            raise InvalidClassNames(f"{path}: {name!r} is named twice, in entries {first[name]} and {place}")
        first[name] = place
