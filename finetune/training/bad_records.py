"""Bad records: dropped, counted and listed, up to a share. No TensorFlow.

Takes the records that can't be used. Gives a verdict on the data. Next: `finetune.training.prepare`, `evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetune.data.source import BadRecord, Example
from finetune.data.splits import PARTS, Split
from finetune.spec import DataConfig
from zoo.errors import FailedPrecondition

_SHOWN = 10  # bad records listed in an error


class TooManyBadRecords(FailedPrecondition):
    """More than data.max_bad_share of the records can't be used."""


def require_few(bad: Sequence[BadRecord], *, total: int, data: DataConfig, listed_in: str | None = None) -> None:
    """Raises TooManyBadRecords with the count and the first ones, when they are more than a share of `total`."""
    share = len(bad) / total if total else 0.0
    if share <= data.max_bad_share:
        return
    first = "; ".join(f"{one.id}: {one.reason}" for one in bad[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    where = f" (all are listed in {listed_in})" if listed_in else ""
    raise TooManyBadRecords(
        f"{len(bad)} of {total} records of {data.location} can't be used ({share:.1%}; data.max_bad_share allows "
        f"{data.max_bad_share:.1%}): {first}{more}",
        hint=f"mend them{where}, or raise data.max_bad_share",
        count=str(len(bad)),
    )


def without(split: Split, bad: Sequence[BadRecord], examples: Sequence[Example]) -> Split:
    """The split without the examples that are bad."""
    ids = {record.id for record in bad}
    return replace(
        split,
        **{part: tuple(i for i in getattr(split, part) if examples[i].id not in ids) for part in PARTS},
    )
