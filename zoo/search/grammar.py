"""The filter language: a subset of AIP-160 (https://google.aip.dev/160).

Takes a text. Gives an expression: And, Or, Not, Comparison. Next: `zoo.search.query`.

    filter     = [conjunction]
    conjunction= disjunction {["AND"] disjunction}       AND may be left out: white space means it
    disjunction= term {"OR" term}                        OR binds tighter than AND, as AIP-160 has it
    term       = ["NOT" | "-"] ("(" conjunction ")" | comparison)
    comparison = field operator value
    field      = name {"." name}                         a name may be quoted: metrics.test."top 5"
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":"
    value      = a quoted text ("…" or '…', with \\" \\' \\\\ \\*), or a word up to white space or a parenthesis

`AND`, `OR` and `NOT` are capitals. `*` in a value stands for any text, `\\*` for the character. Not in this subset:
functions, and words alone (`inception` without a field). What is more than AIP-160 has: a word as a value may hold
`:` and the like, so that times and digests need no quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from zoo.errors import InvalidArgument

MAX_LENGTH = 4_000  # characters
MAX_DEPTH = 40  # parentheses and NOTs within each other
MAX_COMPARISONS = 100

Operator = Literal["=", "!=", "<", "<=", ">", ">=", ":"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r"<=|>=|!=|=|<|>|:")
_WORD = re.compile(r"[^\s()\"']+")
_SPACE = re.compile(r"\s*")
_KEYWORDS = ("AND", "OR", "NOT")


class InvalidFilter(InvalidArgument):
    """A filter that cannot be read, or asks for what isn't there."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A text with wildcards: `parts` are what stands between them, so one part is a text without any."""

    parts: tuple[str, ...]
    column: int = field(default=1, compare=False)  # where it stands in the filter, from 1

    @property
    def text(self) -> str | None:
        """The text; None when there are wildcards in it."""
        return self.parts[0] if len(self.parts) == 1 else None

    @property
    def is_any(self) -> bool:
        """Just `*`."""
        return self.parts == ("", "")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    path: tuple[str, ...]  # the field's names
    operator: Operator
    value: Value
    column: int = field(default=1, compare=False)


@dataclass(frozen=True, kw_only=True)
class Not:
    term: Expression


@dataclass(frozen=True, kw_only=True)
class And:
    terms: tuple[Expression, ...]  # two or more


@dataclass(frozen=True, kw_only=True)
class Or:
    terms: tuple[Expression, ...]  # two or more


Expression = Comparison | Not | And | Or


def parse(text: str) -> Expression | None:
    """The expression that `text` means; None when it is blank. Raises InvalidFilter."""
    if len(text) > MAX_LENGTH:
        raise InvalidFilter(f"the filter has {len(text)} characters, at most {MAX_LENGTH} are allowed")
    reader = _Reader(text)
    if reader.at_end():
        return None
    expression = _conjunction(reader, 0)
    if not reader.at_end():
        raise reader.unexpected("AND, OR or the end")
    return expression


def print_expression(expression: Expression) -> str:
    """A text that `parse` reads as the same expression."""
    if isinstance(expression, And):
        return " AND ".join(_inner(term, (And,)) for term in expression.terms)
    if isinstance(expression, Or):
        return " OR ".join(_inner(term, (And, Or)) for term in expression.terms)
    if isinstance(expression, Not):
        return f"NOT {_inner(expression.term, (And, Or, Not))}"
    path = ".".join(name if _is_plain_name(name) else _quoted((name,)) for name in expression.path)
    return f"{path} {expression.operator} {_quoted(expression.value.parts)}"


def comparisons(expression: Expression | None) -> Iterator[Comparison]:
    """Every comparison in an expression."""
    if isinstance(expression, Comparison):
        yield expression
    elif isinstance(expression, Not):
        yield from comparisons(expression.term)
    elif expression is not None:
        for term in expression.terms:
            yield from comparisons(term)


def _inner(term: Expression, in_parentheses: tuple[type, ...]) -> str:
    text = print_expression(term)
    return f"({text})" if isinstance(term, in_parentheses) else text


def _is_plain_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and name not in _KEYWORDS


def _quoted(parts: tuple[str, ...]) -> str:
    escaped = (part.replace("\\", "\\\\").replace('"', '\\"').replace("*", "\\*") for part in parts)
    return f'"{"*".join(escaped)}"'


class _Reader:
    """A text and how far it has been read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.comparisons = 0

    @property
    def column(self) -> int:
        return self.position + 1

    def skip_space(self) -> None:
        match = _SPACE.match(self.text, self.position)
        assert match is not None  # it may match nothing
        self.position = match.end()

    def at_end(self) -> bool:
        self.skip_space()
        return self.position == len(self.text)

    def take(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self.text, self.position)
        if match is None:
            return None
        self.position = match.end()
        return match.group()

    def take_mark(self, mark: str) -> bool:
        self.skip_space()
        if not self.text.startswith(mark, self.position):
            return False
        self.position += len(mark)
        return True

    def at_keyword(self, word: str) -> bool:
        self.skip_space()
        match = _WORD.match(self.text, self.position)
        return match is not None and match.group() == word

    def take_keyword(self, word: str) -> bool:
        if not self.at_keyword(word):
            return False
        self.position += len(word)
        return True

    def unexpected(self, expected: str, *, after: str = "") -> InvalidFilter:
        """Says what stands at the place reached, after the word `after`."""
        self.skip_space()
        word = re.compile(r"[\w.@/*-]+|.", re.DOTALL).match(self.text, self.position)
        found = repr(word.group()[:60]) if word else "the end"
        lower = {after, word.group() if word else ""} & {"and", "or", "not"}
        return InvalidFilter(
            f"filter, column {self.column}: found {found}, expected {expected}",
            hint="AND, OR and NOT are written in capitals" if lower else None,
            column=str(self.column),
        )


def _conjunction(reader: _Reader, depth: int) -> Expression:
    terms = [_disjunction(reader, depth)]
    while not reader.at_end() and reader.text[reader.position] != ")":
        if reader.at_keyword("OR"):
            break
        reader.take_keyword("AND")
        terms.append(_disjunction(reader, depth))
    return terms[0] if len(terms) == 1 else And(terms=tuple(terms))


def _disjunction(reader: _Reader, depth: int) -> Expression:
    terms = [_term(reader, depth)]
    while reader.take_keyword("OR"):
        terms.append(_term(reader, depth))
    return terms[0] if len(terms) == 1 else Or(terms=tuple(terms))


def _term(reader: _Reader, depth: int) -> Expression:
    if depth > MAX_DEPTH:
        raise InvalidFilter(
            f"filter, column {reader.column}: more than {MAX_DEPTH} parentheses and NOTs within each other",
            column=str(reader.column),
        )
    if reader.take_keyword("NOT") or reader.take_mark("-"):
        return Not(term=_simple(reader, depth + 1))
    return _simple(reader, depth)


def _simple(reader: _Reader, depth: int) -> Expression:
    if not reader.take_mark("("):
        return _comparison(reader)
    inner = _nested(reader, depth + 1)
    if not reader.take_mark(")"):
        raise reader.unexpected("')'")
    return inner


def _nested(reader: _Reader, depth: int) -> Expression:
    if depth > MAX_DEPTH:
        raise InvalidFilter(
            f"filter, column {reader.column}: more than {MAX_DEPTH} parentheses and NOTs within each other",
            column=str(reader.column),
        )
    return _conjunction(reader, depth)


def _comparison(reader: _Reader) -> Comparison:
    reader.skip_space()
    column = reader.column
    path = [_field_name(reader, first=True)]
    while reader.text.startswith(".", reader.position):
        reader.position += 1
        path.append(_field_name(reader, first=False))
    reader.skip_space()
    operator = reader.take(_OPERATOR)
    if operator is None:
        raise reader.unexpected(f"one of {' '.join(OPERATORS)} after {'.'.join(path)!r}", after=path[0])
    reader.comparisons += 1
    if reader.comparisons > MAX_COMPARISONS:
        raise InvalidFilter(f"the filter has more than {MAX_COMPARISONS} comparisons", column=str(column))
    return Comparison(path=tuple(path), operator=_operator(operator), value=_value(reader), column=column)


def _operator(text: str) -> Operator:
    return next(operator for operator in OPERATORS if operator == text)


def _field_name(reader: _Reader, *, first: bool) -> str:
    if first and any(reader.at_keyword(word) for word in _KEYWORDS):
        raise reader.unexpected("a field")
    if reader.position < len(reader.text) and reader.text[reader.position] in "\"'":
        parts = _quoted_parts(reader)
        if len(parts) > 1:
            raise InvalidFilter(
                f"filter, column {reader.column}: '*' stands for any text only in values, not in a field's name",
                column=str(reader.column),
            )
        return parts[0]
    name = reader.take(_NAME)
    if name is None:
        raise reader.unexpected("a field" if first else "a name after '.'")
    return name


def _value(reader: _Reader) -> Value:
    reader.skip_space()
    column = reader.column
    if reader.position < len(reader.text) and reader.text[reader.position] in "\"'":
        return Value(parts=_quoted_parts(reader), column=column)
    word = reader.take(_WORD)
    if word is None:
        raise reader.unexpected("a value")
    if word in _KEYWORDS:
        reader.position -= len(word)
        raise reader.unexpected("a value (a text that is AND, OR or NOT needs quotes)")
    return Value(parts=tuple(word.split("*")), column=column)


def _quoted_parts(reader: _Reader) -> tuple[str, ...]:
    """Reads a quoted text; what stands between its wildcards."""
    start = reader.column
    mark = reader.text[reader.position]
    parts: list[str] = []
    current = ""
    position = reader.position + 1
    while position < len(reader.text):
        char = reader.text[position]
        if char == mark:
            reader.position = position + 1
            return (*parts, current)
        if char == "\\":
            position += 1
            char = reader.text[position : position + 1]
            if not char or char not in "\\\"'*":
                raise InvalidFilter(
                    f"filter, column {position}: found '\\{char}', expected one of \\\\ \\\" \\' \\*",
                    column=str(position),
                )
            current += char
        elif char == "*":
            parts.append(current)
            current = ""
        else:
            current += char
        position += 1
    raise InvalidFilter(f"filter, column {start}: the quoted text has no end", column=str(start))
