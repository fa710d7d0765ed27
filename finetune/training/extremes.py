"""The worst and the best predicted validation examples: what a person looks at first. No TensorFlow.

Takes what a head says of each example. Gives their ids for an evaluation's file; of the best Checkpoint a contact sheet
in `examples/`. Next: somebody's eyes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.contact_sheet import SheetRow, write_contact_sheet
from finetune.data.source import Example, ExampleSource
from finetune.models.heads.head import Shown
from finetune.training.evaluations import EvalResult
from finetune.training.split_data import SplitData
from zoo.errors import ZooError

WORST, BEST = 12, 4  # rows of four: mistakes teach more
_LONGEST = 300  # characters of a text in an evaluation's file


def extremes(examples: Sequence[Example], shown: Sequence[Shown]) -> dict[str, Any]:
    """`worst` and `best`: {id, said, truth}, each from its end on; an example is in one of them only."""
    order = np.argsort([each.goodness for each in shown], kind="stable")
    worst = order[:WORST]
    best = order[len(worst) :][::-1][:BEST]
    return {
        name: [
            {"id": examples[i].id, "said": shown[i].said[:_LONGEST], "truth": shown[i].truth[:_LONGEST]} for i in places
        ]
        for name, places in (("worst", worst), ("best", best))
    }


def write_extremes(folder: Path, result: EvalResult, split: SplitData, source: ExampleSource) -> list[str]:
    """Writes the contact sheet of an evaluation into `folder`. Returns warnings: a model is published without its
    sheet rather than not at all."""
    try:
        title = f"Worst and best of {len(split.examples)} at step {result.step}"
        write_sheet(folder, result.extremes, split, source, title=title)
    except ZooError as error:
        return [f"warning: no contact sheet of the examples: {error.message}"]
    return []


def write_sheet(folder: Path, found: Mapping[str, Any], split: SplitData, source: ExampleSource, *, title: str) -> None:
    """The contact sheet of what `extremes` found. Raises UnreadableImage, NoSpace, NoAccess."""
    place = {example.id: int(index) for example, index in zip(split.examples, split.source_index, strict=True)}
    rows: list[SheetRow] = []
    for name in ("worst", "best"):
        for number, each in enumerate(found[name], start=1):
            image = source.read(place[each["id"]])
            named = f"{name} {number}: {each['id']}"
            rows.append(SheetRow(name=named, image=image, truth=[each["truth"]], caption=each["said"]))
    write_contact_sheet(folder, rows, title=title)
