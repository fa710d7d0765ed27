"""What became of every tensor when weights were imported or restored. Nothing is skipped in silence."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from zoo.errors import InvalidArgument


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A tensor whose stored shape isn't the wanted one."""

    name: str
    stored: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RestoreReport:
    """Names by fate. `renamed`, `transposed`, `dequantised` and `widened` say more about names in `restored`."""

    restored: tuple[str, ...] = ()  # wanted names that got their stored value
    renamed: dict[str, str] = field(default_factory=dict)  # stored name → wanted name, where they differ
    transposed: tuple[str, ...] = ()
    dequantised: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()  # half precision or double on disk, float32 here
    fresh: tuple[str, ...] = ()  # wanted, not stored, initialised anew on purpose
    unused: dict[str, str] = field(default_factory=dict)  # stored name → the reason why nothing wants it
    unexplained: tuple[str, ...] = ()  # stored, and no rule says why nothing wants it
    missing: tuple[str, ...] = ()  # wanted, not stored, and nobody allowed it to be fresh
    mismatched: tuple[Mismatch, ...] = ()
    # Of a head that starts from one with other classes: `kept` rows by name, `added` (fresh) and `removed` classes.
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    guess: str | None = None  # the likely cause of mismatches, for the error message

    @property
    def complete(self) -> bool:
        return bool(self.restored) and not (self.unexplained or self.missing or self.mismatched)

    def joined(self, other: RestoreReport) -> RestoreReport:
        """Both in one: of two parts of a checkpoint."""
        both = {each.name: (getattr(self, each.name), getattr(other, each.name)) for each in fields(self)}
        guess = both.pop("guess")
        joined = {name: mine | its if isinstance(mine, dict) else mine + its for name, (mine, its) in both.items()}
        return RestoreReport(**joined, guess=guess[0] or guess[1])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"complete": self.complete}

    def require_complete(self, what: str) -> None:
        """Raises IncompleteRestore naming everything that went wrong at once."""
        if self.complete:
            return
        parts = []
        if not self.restored:
            parts.append("no tensor matched")
        for label, names in (("missing", self.missing), ("left over", self.unexplained)):
            if names:
                parts.append(f"{len(names)} {label}: {_some(names)}")
        if self.mismatched:
            shapes = [f"{m.name} stored {m.stored}, wanted {m.wanted}" for m in self.mismatched]
            parts.append(f"{len(shapes)} of another shape: {_some(shapes)}")
        guess = f" ({self.guess})" if self.guess else ""
        raise IncompleteRestore(f"{what}: " + "; ".join(parts) + guess)


class IncompleteRestore(InvalidArgument):
    """Weights and network do not fit together entirely."""


def guess_cause(mismatched: tuple[Mismatch, ...]) -> str | None:
    """The likely common cause of shapes that don't fit, for the error message; None where nothing stands out."""
    if not mismatched:
        return None
    if all(len(m.stored) > 1 and m.stored != m.wanted and sorted(m.stored) == sorted(m.wanted) for m in mismatched):
        return "the same sides in another order: this looks like another framework's layout of axes"
    if all(m.name.rpartition("head/")[2].startswith("logits/") for m in mismatched):
        return "only the output layer differs: this looks like another number of classes"
    ratios = [
        stored / wanted
        for m in mismatched
        if len(m.stored) == len(m.wanted)
        for stored, wanted in zip(m.stored, m.wanted, strict=True)
        if stored != wanted and wanted
    ]
    if len(mismatched) > 2 and ratios and all(abs(ratio / ratios[0] - 1) < 0.35 for ratio in ratios):
        middle = sorted(ratios)[len(ratios) // 2]
        return f"sides differ by about the same factor: this looks like the network at {middle:.2g} times the width"
    return None


def _some(names: tuple[str, ...] | list[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
