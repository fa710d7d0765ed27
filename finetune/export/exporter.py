"""The Exporter seam: one file a format, one line in `EXPORTERS` (finetune.export).

Takes an ExportSource and an empty folder. Gives files there, and runs to try them with. Next:
`finetune.export.comparison`, which reopens the files in a fresh process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune.export.source import ExportSource
from zoo.errors import FailedPrecondition, InvalidArgument

FEATURE_TOLERANCE = 1e-5  # of an output's largest value
# Another runtime's arithmetic: it folds batch normalisation into convolutions and adds in another order. Trained
# networks were met at 1 to 5e-6; random weights make more of it (up to 4.4e-5 in EfficientNet-Lite4).
CONVERTED_TOLERANCE = 1e-4


class NotExportable(FailedPrecondition):
    """A version that this format can't hold."""


class InvalidOption(InvalidArgument):
    """An option that this format doesn't have."""


class MissingTool(FailedPrecondition):
    """A package that this format needs isn't installed."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """`quantise`: weights as 8-bit integers (litert). `with_head`: keep a classifier's layers (hub)."""

    quantise: bool = False
    with_head: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of an export, and what the source answers to the same.

    Attributes:
        signature: the name of what is called, as the format's own runtime knows it.
        inputs: name → array; or a list of encoded images.
        expected: output name → array; strings must come out equal, numbers within the tolerance.
        tolerance: of the difference, relative to the output's largest value.
    """

    signature: str
    inputs: Mapping[str, np.ndarray | Sequence[bytes]]
    expected: Mapping[str, np.ndarray]
    tolerance: float = FEATURE_TOLERANCE


@dataclass(frozen=True, kw_only=True)
class Written:
    """`signatures`: name → {"inputs": {name: type and shape}, "outputs": …}, for people. `notes` are for them too."""

    signatures: Mapping[str, Mapping[str, Mapping[str, str]]]
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)


class Exporter(Protocol):
    """The entry of a format in `EXPORTERS`."""

    kind: str
    options: frozenset[str]  # of ExportOptions, that it takes

    def check(self, head_kind: str | None, options: ExportOptions) -> None:
        """Before anything is built. Raises NotExportable, InvalidOption, MissingTool."""

    def write(self, source: ExportSource, folder: Path, images: Sequence[bytes], options: ExportOptions) -> Written:
        """`images`: encoded, for runs; at least two, one of them of the input's own size."""


def shape_text(dtype: str, *sides: Any) -> str:
    """`float32 [B, 299, 299, 3]`."""
    return f"{dtype} [{', '.join(str(side) for side in sides)}]"
