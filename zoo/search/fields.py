"""What can be asked of a version: the fields of a filter and of an order, each with its column in the index.

Takes a field's names as typed. Gives a Field, or says which there are. Next: `zoo.search.query`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import Enum

from zoo.search.grammar import InvalidFilter


class Kind(Enum):
    TEXT = "a text"
    NUMBER = "a number"
    FLAG = "true or false"
    TIME = "a date (2026-01-31) or an RFC 3339 time (2026-01-31T12:00:00Z)"
    ALIAS = "an alias"
    METRIC = "a metric's number"


@dataclass(frozen=True, kw_only=True)
class Field:
    """`sql`: its value for the version `v`; for a metric with a parameter, the number of its key."""

    name: str
    kind: Kind
    sql: str
    nullable: bool = False
    metric: tuple[str, str] | None = None  # split, metric

    @property
    def sortable(self) -> bool:
        return self.kind is not Kind.ALIAS


def _field(name: str, kind: Kind, column: str | None = None, *, nullable: bool = False) -> tuple[str, Field]:
    return name, Field(name=name, kind=kind, sql=f"v.{column or name}", nullable=nullable)


FIELDS: dict[str, Field] = dict(
    (
        _field("name", Kind.TEXT),
        _field("namespace", Kind.TEXT, nullable=True),  # `team` of `team/inception`; absent where there is no `/`
        _field("version", Kind.NUMBER),
        _field("digest", Kind.TEXT),  # of the manifest
        _field("architecture", Kind.TEXT),
        _field("head", Kind.TEXT, nullable=True),  # its kind
        _field("license", Kind.TEXT, nullable=True),
        _field("parent", Kind.TEXT, nullable=True),  # name@version
        _field("job", Kind.TEXT, nullable=True),
        _field("created", Kind.TIME),
        _field("archived", Kind.FLAG),
        _field("latest", Kind.FLAG),  # what `name@latest` means
        _field("newest", Kind.FLAG, "latest"),
        _field("alias", Kind.ALIAS),
        _field("input_size", Kind.NUMBER),  # pixels, of the longer side
        _field("height", Kind.NUMBER),  # pixels
        _field("width", Kind.NUMBER),  # pixels
        _field("num_classes", Kind.NUMBER, nullable=True),
        _field("bytes", Kind.NUMBER),  # of all components
    )
)
METRICS = "metrics"
_METRIC_SQL = "(SELECT m.value FROM metrics m WHERE m.version_id = v.id AND m.key_id = ?)"
_VERSION_FIELDS = frozenset(("version", "digest", "alias", "latest", "newest", "archived"))


def find_field(path: tuple[str, ...], where: str, error: type[InvalidFilter] = InvalidFilter) -> Field:
    """The field of that path. `where` begins the message, e.g. `filter, column 3`. Raises `error`."""
    if path[0] == METRICS:
        if len(path) != 3:
            raise error(
                f"{where}: found {'.'.join(path)!r}, expected metrics.<split>.<metric>, e.g. metrics.test.accuracy"
            )
        return Field(name=".".join(path), kind=Kind.METRIC, sql=_METRIC_SQL, nullable=True, metric=(path[1], path[2]))
    if len(path) == 1 and path[0] in FIELDS:
        return FIELDS[path[0]]
    typed = ".".join(path)
    near = difflib.get_close_matches(typed.lower(), FIELDS, n=3)
    raise error(
        f"{where}: no field {typed[:100]!r}; there are {', '.join(FIELDS)} and metrics.<split>.<metric>",
        hint=f"did you mean {' or '.join(near)}?" if near else None,
        field=typed[:100],
    )


def names_versions(path: tuple[str, ...]) -> bool:
    """Whether a filter with this field looks at every version, not only at the newest of each model."""
    return path[0] in _VERSION_FIELDS
