"""A network that is kept as it came, for formats that hold its graph.

Takes a ForeignCheckpoint whose names no architecture here has. Gives Kept. Next: `zoo.importer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.architectures import architecture_facts
from zoo.architectures.matching import Match
from zoo.errors import InvalidArgument, ZooError
from zoo.input_spec import InputSpec
from zoo.readers.checkpoint import ForeignCheckpoint, WholeNetwork, widen
from zoo.restore_report import RestoreReport


class AnotherSize(InvalidArgument):
    """An input spec of a size that the network doesn't take."""


class NotKept(InvalidArgument):
    """What the user asks of a network that is to be kept as it came, and can't be had."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """`found` has all that a report and a manifest say of it; `assets` are the files that the network is built from."""

    found: Match
    tensors: dict[str, np.ndarray]
    input_spec: InputSpec
    assets: Mapping[str, bytes]
    notes: tuple[str, ...]


def keep(checkpoint: ForeignCheckpoint, spec: InputSpec | None, exclude: Sequence[str], unfit: ZooError | None) -> Kept:
    """The network of a checkpoint, every part of it.

    Args:
        spec: what the user says that it wants to see.
        unfit: why it is none of the architectures here, if that was looked for.
    Raises NotKept, AnotherSize, and what `ForeignCheckpoint.whole` raises.
    """
    if checkpoint.whole is None:
        raise NotKept("files of this kind hold no graph, so no network can be kept as it came", hint="zoo import hub")
    if exclude:
        raise NotKept(f"a network that is kept as it came is kept whole: --exclude {' '.join(exclude)} can't be heeded")
    try:
        whole = checkpoint.whole()
    except ZooError as error:
        if unfit is None:
            raise
        message = f"{error.message}. Nor has it the names of an architecture here: {unfit.message}"
        raise type(error)(message, hint=error.hint or unfit.hint, **error.details) from None
    facts = architecture_facts(whole.architecture)
    tensors, widened = widen(whole.tensors)
    report = RestoreReport(
        restored=tuple(f"backbone/{name}" for name in tensors),
        renamed={stored: f"backbone/{name}" for name, stored in whole.stored.items() if stored != name},
        widened=tuple(f"backbone/{name}" for name in widened),
        unused=dict(checkpoint.aside),
    )
    found = Match(
        facts=facts,
        layout="as it came",
        arguments=facts.resolved(whole.arguments),
        targets={},
        dense=(),
        coverage=1.0,
        report=report,
    )
    notes = whole.notes
    if unfit is not None:
        notes = (f"no architecture here is its like: {_short(unfit.message)}", *notes)
    if spec is None and not (whole.height and whole.width):
        usual = facts.input_spec
        notes += (f"it takes images of any size; {usual.height} × {usual.width} is taken, --input-spec says otherwise",)
    return Kept(
        found=found, tensors=tensors, input_spec=_spec(whole, spec, facts.input_spec), assets=whole.assets, notes=notes
    )


def _spec(whole: WholeNetwork, given: InputSpec | None, usual: InputSpec) -> InputSpec:
    if given is None:
        return usual.model_copy(update={"height": whole.height or usual.height, "width": whole.width or usual.width})
    if (given.height, given.width) != (whole.height or given.height, whole.width or given.width):
        raise AnotherSize(
            f"the network takes images of {whole.height or 'any'} × {whole.width or 'any'} pixels, the input spec says "
            f"{given.height} × {given.width}"
        )
    return given


def _short(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:160]}…"
