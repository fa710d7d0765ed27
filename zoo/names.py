"""Names of models, versions and aliases, and the references that users type.

A reference is `name` (= `name@latest`), `name@3`, `name@alias` or `name@sha256:<64 hex>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from zoo.errors import InvalidArgument

MAX_NAME = 200
MAX_SEGMENTS = 20  # `/` is stored as `%2F`: 200 + 2 × 19 still fits the 255 bytes of a file name
_SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_])?\Z")
_ALIAS = re.compile(r"[a-z](?:[a-z0-9_-]{0,62})\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
LATEST = "latest"


class InvalidName(InvalidArgument):
    """A model name, alias or reference that cannot be one."""


def check_model_name(name: str) -> str:
    """Returns `name` when it is a model's name; raises InvalidName otherwise.

    Allowed: one or more segments joined by `/`, each 1 to 64 of `A-Z a-z 0-9 . _ -` beginning with a letter or digit
    and not ending in `.` or `-`; at most 20 segments and 200 characters in all.
    """
    segments = name.split("/")
    if len(name) <= MAX_NAME and len(segments) <= MAX_SEGMENTS and all(_SEGMENT.match(part) for part in segments):
        return name
    raise InvalidName(
        f"model name {name!r} cannot be one: allowed are segments of 1 to 64 letters, digits, '.', '_' and '-' "
        f"(beginning with a letter or digit, not ending in '.' or '-'), joined by '/', at most {MAX_SEGMENTS} segments "
        f"and {MAX_NAME} characters",
        hint="try a name like 'captioner' or 'team/captioner'",
        name=name[:300],
    )


def key_segment(name: str) -> str:
    """A model's name as one segment of an object's key: `team/m` is `team%2Fm`, and no name has a `%` of its own."""
    return name.replace("/", "%2F")


def check_alias(alias: str) -> str:
    """Returns `alias` when users may set it; raises InvalidName otherwise (`latest` is kept by the catalogue)."""
    if _ALIAS.match(alias) and alias != LATEST:
        return alias
    raise InvalidName(
        f"alias {alias!r} cannot be one: allowed are 1 to 64 of 'a-z 0-9 _ -' beginning with a letter, "
        f"and not {LATEST!r}, which always is the newest version",
        alias=alias[:300],
    )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Which version of a model is meant; at most one of the three selectors is set, none means `latest`."""

    name: str
    version: int | None = None
    alias: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Reads a reference as users type it; raises InvalidName."""
        name, at, selector = text.partition("@")
        check_model_name(name)
        if not at or selector == LATEST:
            return cls(name=name)
        if re.fullmatch(r"[0-9]{1,18}", selector) and int(selector) >= 1:
            return cls(name=name, version=int(selector))
        if _DIGEST.match(selector):
            return cls(name=name, digest=selector)
        if _ALIAS.match(selector):
            return cls(name=name, alias=selector)
        raise InvalidName(
            f"reference {text!r}: {selector!r} after '@' is neither a version (1, 2, …), an alias, "
            "'latest' nor 'sha256:' and 64 hexadecimal digits",
            reference=text[:300],
        )

    def __str__(self) -> str:
        selector = self.version if self.version is not None else self.alias or self.digest
        return self.name if selector is None else f"{self.name}@{selector}"
