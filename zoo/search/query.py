"""Queries: what a filter and an order mean in SQL. Values only ever travel as bound parameters.

Takes an expression, an order, a page token. Gives the SELECT of one page. Next: `zoo.search.index`.

A comparison with a field that a version doesn't have is false, `!=` too; so `NOT license = "MIT"` holds for a version
without a license, `license != "MIT"` doesn't.

- text: `=` and `!=` compare whole texts, case and all, with `*` for any text; `:` looks for the text anywhere, whatever
  the case of ASCII letters; `<` and the like go by code points.
- numbers, times: a date means its whole day (`created = 2026-01-31`, `created > 2026-01-31`: after that day);
  `:` is `=`.
- flags: `=`, `!=`, `:` with true or false.
- alias: `alias:prod` and `alias = prod`: the version has that alias; `!=`: it hasn't; `*` as in texts.
- `field:*`: the version has that field. `metrics:test`: it has a metric of that split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from zoo.search.fields import METRICS, Field, Kind, find_field
from zoo.search.grammar import And, Comparison, Expression, InvalidFilter, Not, Or, Value
from zoo.search.times import read_time

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?\Z")
_FLAGS = {"true": 1, "false": 0}
_INT64 = 2**63
Parameter = str | int | float


@dataclass(frozen=True, kw_only=True)
class Condition:
    sql: str
    parameters: tuple[Parameter, ...] = ()


MetricKeys = Mapping[tuple[str, str], int]  # (split, metric) → the index's number for it


def condition(expression: Expression, keys: MetricKeys) -> Condition:
    """The WHERE clause of an expression. Raises InvalidFilter."""
    if isinstance(expression, Not):
        inner = condition(expression.term, keys)
        return Condition(sql=f"NOT {inner.sql}", parameters=inner.parameters)
    if isinstance(expression, And | Or):
        word = " AND " if isinstance(expression, And) else " OR "
        inner_ones = [condition(term, keys) for term in expression.terms]
        return Condition(
            sql=f"({word.join(one.sql for one in inner_ones)})",
            parameters=tuple(value for one in inner_ones for value in one.parameters),
        )
    return _comparison(expression, keys)


def _comparison(asked: Comparison, keys: MetricKeys) -> Condition:
    if asked.path[0] == METRICS and len(asked.path) < 3 and asked.operator == ":":
        return _metric_of_split(asked)
    field = find_field(asked.path, f"filter, column {asked.column}")
    if field.kind is Kind.ALIAS:
        return _alias(asked, field)
    if field.metric is not None:
        return _metric(asked, field, keys.get(field.metric, -1))  # no version has the metric of number -1
    if asked.value.is_any and asked.operator in (":", "=", "!="):
        return Condition(sql=f"({field.sql} IS {'' if asked.operator == '!=' else 'NOT '}NULL)")
    compared = _BY_KIND[field.kind](asked, field)
    # Two-valued, so that NOT means what it says: a comparison with NULL would be neither true nor false.
    guard = f"{field.sql} IS NOT NULL AND " if field.nullable else ""
    return Condition(sql=f"({guard}{compared.sql.replace('{}', field.sql)})", parameters=compared.parameters)


def _metric(asked: Comparison, field: Field, key: int) -> Condition:
    has = "EXISTS (SELECT 1 FROM metrics m WHERE m.version_id = v.id AND m.key_id = ?"
    if asked.value.is_any and asked.operator in (":", "=", "!="):
        return Condition(sql=f"{'NOT ' if asked.operator == '!=' else ''}{has})", parameters=(key,))
    compared = _number(asked, field)
    return Condition(sql=f"{has} AND {compared.sql.replace('{}', 'm.value')})", parameters=(key, *compared.parameters))


def _metric_of_split(asked: Comparison) -> Condition:
    """`metrics:test`, `metrics.test:accuracy`, `metrics.test:*`, `metrics:*`."""
    wanted = (*asked.path[1:], _glob(asked.value))
    tests = " AND ".join(f"k.{column} GLOB ?" for column in ("split", "metric")[: len(wanted)])
    found = f"SELECT 1 FROM metrics m JOIN metric_keys k ON k.id = m.key_id WHERE m.version_id = v.id AND {tests}"
    return Condition(
        sql=f"EXISTS ({found})",
        parameters=(*map(_escaped, wanted[:-1]), wanted[-1]),
    )


def _alias(asked: Comparison, field: Field) -> Condition:
    if asked.operator not in ("=", "!=", ":"):
        raise _wrong_operator(asked, field, "=, != and :")
    test = "a.alias = ?" if asked.value.text is not None else "a.alias GLOB ?"
    value = asked.value.text if asked.value.text is not None else _glob(asked.value)
    sql = f"EXISTS (SELECT 1 FROM aliases a WHERE a.name = v.name AND a.version = v.version AND {test})"
    return Condition(sql=f"NOT {sql}" if asked.operator == "!=" else sql, parameters=(value,))


def _text(asked: Comparison, field: Field) -> Condition:
    operator, value = asked.operator, asked.value
    if operator == ":":
        return Condition(sql="lower({}) GLOB ?", parameters=(f"*{_glob(value, lower=True)}*",))
    if value.text is not None:
        return Condition(sql=f"{{}} {operator} ?", parameters=(value.text,))
    if operator not in ("=", "!="):
        raise InvalidFilter(
            f"filter, column {value.column}: '*' stands for any text only after =, != and :, not after {operator}",
            hint="write \\* in quotes for the character itself",
            column=str(value.column),
        )
    return Condition(sql=f"{{}} {'' if operator == '=' else 'NOT '}GLOB ?", parameters=(_glob(value),))


def _number(asked: Comparison, field: Field) -> Condition:
    text = asked.value.text
    if text is None or not _NUMBER.match(text):
        raise _wrong_value(asked, field)
    number: Parameter = int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)
    return Condition(sql=f"{{}} {_equals(asked.operator)} ?", parameters=(number,))


def _flag(asked: Comparison, field: Field) -> Condition:
    if asked.operator not in ("=", "!=", ":"):
        raise _wrong_operator(asked, field, "=, != and :")
    wanted = _FLAGS.get((asked.value.text or "").lower())
    if wanted is None:
        raise _wrong_value(asked, field)
    return Condition(sql=f"{{}} {_equals(asked.operator)} ?", parameters=(wanted,))


def _time(asked: Comparison, field: Field) -> Condition:
    span = read_time(asked.value.text or "")
    if span is None:
        raise _wrong_value(asked, field)
    start, end = span
    operator = _equals(asked.operator)
    if operator == "=":
        return Condition(sql="{} >= ? AND {} < ?", parameters=(start, end))
    if operator == "!=":
        return Condition(sql="({} < ? OR {} >= ?)", parameters=(start, end))
    # A date is its whole day: `>` is from its end on, `<=` until its end.
    bound = {"<": "< ?", "<=": "< ?", ">": ">= ?", ">=": ">= ?"}[operator]
    return Condition(sql=f"{{}} {bound}", parameters=(end if operator in (">", "<=") else start,))


_BY_KIND = {Kind.TEXT: _text, Kind.NUMBER: _number, Kind.FLAG: _flag, Kind.TIME: _time}


def _equals(operator: str) -> str:
    return "=" if operator == ":" else operator


def _glob(value: Value, *, lower: bool = False) -> str:
    pattern = "*".join(map(_escaped, value.parts))
    return _ascii_lower(pattern) if lower else pattern


def _escaped(text: str) -> str:
    """As a GLOB pattern that matches only itself."""
    return re.sub(r"[*?\[]", r"[\g<0>]", text)


def _ascii_lower(text: str) -> str:
    """As SQLite's `lower`: other letters keep their case."""
    return "".join(c.lower() if c.isascii() else c for c in text)


def _shown(value: Value) -> str:
    return repr("*".join(value.parts)[:60])


def _wrong_value(asked: Comparison, field: Field) -> InvalidFilter:
    column = asked.value.column
    return InvalidFilter(
        f"filter, column {column}: found {_shown(asked.value)}, expected {field.kind.value} for {field.name}",
        column=str(column),
        field=field.name,
    )


def _wrong_operator(asked: Comparison, field: Field, allowed: str) -> InvalidFilter:
    return InvalidFilter(
        f"filter, column {asked.column}: {field.name} {asked.operator} …: {field.name} is {field.kind.value}, "
        f"for which there are {allowed}",
        column=str(asked.column),
        field=field.name,
    )
