"""Times in filters. Takes a text. Gives microseconds since the epoch, UTC. Next: `zoo.search.query`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}\Z")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})\Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
DAY = 86_400_000_000  # microseconds


def microseconds(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    return _EPOCH + value * _MICROSECOND


def read_time(text: str) -> tuple[int, int] | None:
    """When what `text` says begins, and when it has ended: a day for a date, a microsecond for a time; None for
    anything else."""
    try:
        if _DATE.match(text):
            start = microseconds(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC))
            return start, start + DAY
        if _TIME.match(text):
            start = microseconds(datetime.fromisoformat(_six_digits(text.upper())))
            return start, start + 1
    except (ValueError, OverflowError):  # no such day or hour
        return None
    return None


def _six_digits(text: str) -> str:
    """Nanoseconds are cut: the catalogue's times are whole microseconds."""
    return re.sub(r"(\.\d{6})\d+", r"\1", text)
