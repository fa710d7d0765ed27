"""Recipe: a whole training plan as dotted paths of a spec, each value with its reason.

Takes nothing. Gives the values that Choice and Recipe are. Next: `finetune.recipes`, the table of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value of a recipe and why an expert would choose it."""

    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`choices`: dotted path in the spec → Choice."""

    name: str
    head: str
    summary: str
    choices: Mapping[str, Choice]

    def values(self) -> dict[str, Any]:
        """The choices as a nested mapping, the shape of a spec."""
        nested: dict[str, Any] = {}
        for path, choice in self.choices.items():
            *parents, last = path.split(".")
            place = nested
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = choice.value
        return nested
