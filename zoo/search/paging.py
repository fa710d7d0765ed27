"""Orders and page tokens: which versions come after the last one of a page, while others go on publishing.

Takes `created desc, name` and the token of the page before. Gives ORDER BY, the condition that begins the page, and
the token of the next. Next: `zoo.search.index`.

Keyset paging: a token holds the sort keys of the last version shown, so that no version comes twice or is left out for
what is published meanwhile. It also holds a hash of the query, and belongs to no other. Whatever the order, ties are
broken by (name, version); versions without the field come last.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.errors import InvalidArgument
from zoo.search.fields import FIELDS, Field, find_field
from zoo.search.grammar import InvalidFilter
from zoo.search.query import Condition, MetricKeys, Parameter

MAX_KEYS = 5
_MAX_TOKEN = 8_000  # characters
KeyValue = Parameter | None


class InvalidOrder(InvalidFilter):
    """An order that cannot be read, or asks for what isn't there."""


class InvalidPageToken(InvalidArgument):
    """A page token that no page of this query gave."""


@dataclass(frozen=True, kw_only=True)
class SortKey:
    field: Field
    descending: bool = False


_TIES = (SortKey(field=FIELDS["name"]), SortKey(field=FIELDS["version"]))


def parse_order(text: str) -> tuple[SortKey, ...]:
    """`field [asc|desc], …`, without the tie-breakers. Raises InvalidOrder."""
    if not text.strip():
        return ()
    keys = []
    for number, part in enumerate(text.split(","), start=1):
        field, _, direction = part.strip().partition(" ")
        where = f"order, key {number}"
        direction = direction.strip()
        if not field or direction not in ("", "asc", "desc"):
            raise InvalidOrder(f"{where}: found {part.strip()[:100]!r}, expected FIELD, FIELD asc or FIELD desc")
        found = find_field(tuple(field.split(".")), where, InvalidOrder)
        if not found.sortable:
            raise InvalidOrder(f"{where}: a version may have several aliases, or none: nothing to order by")
        keys.append(SortKey(field=found, descending=direction == "desc"))
    if len(keys) > MAX_KEYS:
        raise InvalidOrder(f"the order has {len(keys)} keys, at most {MAX_KEYS} are allowed")
    return tuple(keys)


def print_order(keys: Sequence[SortKey]) -> str:
    return ", ".join(f"{key.field.name} {'desc' if key.descending else 'asc'}" for key in keys)


@dataclass(frozen=True, kw_only=True)
class Order:
    """A whole order: the keys asked for, then the tie-breakers."""

    keys: tuple[SortKey, ...]

    @classmethod
    def of(cls, asked: Sequence[SortKey]) -> Order:
        names = {key.field.name for key in asked}
        return cls(keys=(*asked, *(tie for tie in _TIES if tie.field.name not in names)))

    def columns(self, keys: MetricKeys) -> Condition:
        """What a row must give so that a token can be made of it."""
        parameters = tuple(value for key in self.keys for value in _parameters(key, keys))
        return Condition(sql=", ".join(key.field.sql for key in self.keys), parameters=parameters)

    def order_by(self, first_column: int) -> str:
        """`first_column`: where `columns` begin in the SELECT, counted from 1."""
        terms = []
        for number, key in enumerate(self.keys, start=first_column):
            # A plain column is named, so that an index on it serves; a metric's value is computed once, by its number.
            sql = str(number) if key.field.metric else key.field.sql
            nulls = " NULLS LAST" if key.field.nullable else ""
            terms.append(f"{sql} {'DESC' if key.descending else 'ASC'}{nulls}")
        return ", ".join(terms)

    def after(self, last: Sequence[KeyValue], keys: MetricKeys) -> Condition:
        """Holds for what comes after a version whose columns are `last`."""
        if self.keys == _TIES:
            return Condition(sql="(v.name, v.version) > (?, ?)", parameters=tuple(v for v in last if v is not None))
        alternatives: list[str] = []
        parameters: list[Parameter] = []
        for index, (key, value) in enumerate(zip(self.keys, last, strict=True)):
            if value is None:
                continue  # nothing of this key comes after the absent ones
            terms = []
            for earlier, same in zip(self.keys[:index], last[:index], strict=True):
                terms.append(f"{earlier.field.sql} {'IS NULL' if same is None else '= ?'}")
                parameters += [*_parameters(earlier, keys), *(() if same is None else (same,))]
            beyond = f"{key.field.sql} {'<' if key.descending else '>'} ?"
            parameters += [*_parameters(key, keys), value]
            if key.field.nullable:
                beyond = f"({beyond} OR {key.field.sql} IS NULL)"
                parameters += _parameters(key, keys)
            alternatives.append(" AND ".join((*terms, beyond)))
        return Condition(sql=f"({' OR '.join(alternatives)})", parameters=tuple(parameters))


def _parameters(key: SortKey, keys: MetricKeys) -> tuple[Parameter, ...]:
    return () if key.field.metric is None else (keys.get(key.field.metric, -1),)


def page_token(query: str, last: Sequence[KeyValue]) -> str:
    """`query`: the text of everything that decides what is listed and in which order."""
    return base64.urlsafe_b64encode(json.dumps([_hash(query), *last]).encode()).decode().rstrip("=")


def read_page_token(token: str, query: str, order: Order) -> list[KeyValue]:
    """What `page_token` was given. Raises InvalidPageToken."""
    if len(token) > _MAX_TOKEN:
        raise InvalidPageToken(f"the page token has {len(token)} characters, at most {_MAX_TOKEN} are possible")
    try:
        value = json.loads(base64.urlsafe_b64decode(token.encode() + b"=" * (-len(token) % 4)))
    except (binascii.Error, UnicodeError, ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise InvalidPageToken(f"page token {token[:80]!r} is none that a page gave", hint="list the first page again")
    if value[0] != _hash(query):
        raise InvalidPageToken(
            "the page token belongs to another query: filter, order and versions listed must be those of the page "
            "that gave it",
            hint="list the first page again",
        )
    last = value[1:]
    right = len(last) == len(order.keys) and all(_is_key(one, key) for one, key in zip(last, order.keys, strict=True))
    if not right:
        raise InvalidPageToken(f"page token {token[:80]!r} is none that a page gave", hint="list the first page again")
    return last


def _is_key(value: object, key: SortKey) -> bool:
    if value is None:
        return key.field.nullable
    if isinstance(value, int):
        return not isinstance(value, bool) and -(2**63) <= value < 2**63
    return isinstance(value, float) or (isinstance(value, str) and not any(0xD800 <= ord(c) < 0xE000 for c in value))


def _hash(query: str) -> str:
    return hashlib.sha256(query.encode()).hexdigest()[:16]
