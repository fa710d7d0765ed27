"""The formats that a version can leave the zoo in: one file and one line each. Nothing is imported before it is asked.

`finetune.export.export.export` is the way in.
"""

from __future__ import annotations

from collections.abc import Callable

from finetune.export.exporter import Exporter
from zoo.errors import InvalidArgument


class UnknownFormat(InvalidArgument):
    """A format that is not in `EXPORTERS`."""


def _saved_model() -> Exporter:
    from finetune.export.saved_model import SavedModelExporter

    return SavedModelExporter()


def _hub() -> Exporter:
    from finetune.export.hub_module import HubExporter

    return HubExporter()


def _keras() -> Exporter:
    from finetune.export.keras_archive import KerasExporter

    return KerasExporter()


def _onnx() -> Exporter:
    from finetune.export.onnx_graph import OnnxExporter

    return OnnxExporter()


def _litert() -> Exporter:
    from finetune.export.litert_model import LitertExporter

    return LitertExporter()


EXPORTERS: dict[str, Callable[[], Exporter]] = {
    "saved_model": _saved_model,
    "hub": _hub,
    "keras": _keras,
    "onnx": _onnx,
    "litert": _litert,
}


def check_kind(kind: str) -> None:
    """Raises UnknownFormat naming those there are."""
    if kind not in EXPORTERS:
        raise UnknownFormat(f"no export format {kind!r}; there are {', '.join(EXPORTERS)}", kind=kind[:200])


def exporter_of(kind: str) -> Exporter:
    """The entry of a format; its module imports TensorFlow. Raises UnknownFormat."""
    check_kind(kind)
    return EXPORTERS[kind]()
