"""Puts stored tensors into variables by name, and says what became of each.

Takes named variables and named arrays. Gives a RestoreReport. Next: `finetune.models.backbone`, `task_model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from finetune.models.hub_module import HubModule
from zoo.errors import Internal
from zoo.restore_report import Mismatch, RestoreReport, guess_cause

# A layer's name holds its canonical scope with "." for "/", which Keras forbids in names. The BatchNorm of a scope
# needs a name of its own: it ends in this suffix, which its tensors' names leave out.
NORM_SUFFIX = ".norm"


def named_variables(model_or_layer: keras.Layer) -> dict[str, keras.Variable]:
    """Tensor name → variable, for a backbone (canonical names) or a head (paths below the layer).

    Random generators' states are left out: they belong to Checkpoints, not to published weights.
    """
    if isinstance(model_or_layer, keras.Model):
        pairs = [pair for layer in model_or_layer.layers for pair in _named(layer)]
    else:
        prefix = f"{model_or_layer.name}/"
        pairs = [(weight.path, weight) for weight in model_or_layer.weights]
        strangers = [path for path, _ in pairs if not path.startswith(prefix)]
        if strangers:
            raise Internal(f"layer {model_or_layer.name!r} has variables outside itself: {', '.join(strangers)}")
        pairs = [(path.removeprefix(prefix), weight) for path, weight in pairs]
    named = dict(pairs)
    if len(named) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise Internal(f"{model_or_layer.name!r} has several variables of one name: {', '.join(twice)}")
    return named


def _named(layer: keras.Layer) -> list[tuple[str, keras.Variable]]:
    if isinstance(layer, HubModule):
        return list(layer.named_weights().items())
    return [(f"{_scope(layer)}/{_own_name(layer, weight)}", weight) for weight in layer.weights]


def _scope(layer: keras.Layer) -> str:
    return str(layer.name).removesuffix(NORM_SUFFIX).replace(".", "/")


def _own_name(layer: keras.Layer, weight: keras.Variable) -> str:
    if isinstance(layer, keras.layers.DepthwiseConv2D) and weight.name == "kernel":
        return "depthwise_kernel"  # Keras 3 says kernel; every other tool says depthwise
    if type(layer).__name__ == "LayerScale":  # Keras' ConvNeXt; it gives its one variable no name
        return "gamma"
    return str(weight.name)


def restore(
    variables: Mapping[str, Any], tensors: Mapping[str, np.ndarray], *, allow_fresh: Iterable[str] = ()
) -> RestoreReport:
    """Assigns each variable the tensor of its name; assigns nothing at all when anything does not fit.

    Args:
        variables: name → keras.Variable.
        tensors: name → array; integer and half-precision arrays are cast to the variable's dtype.
        allow_fresh: names that may be absent from `tensors` and then keep their initial value.
    Returns:
        The report; nothing was assigned unless `report.complete` (call `require_complete`). A tensor of another shape
        is never loaded, reshaped or cut, and a report without one restored tensor is never complete.
    """
    allowed = set(allow_fresh)
    wanted = {name: tuple(int(side) for side in variable.shape) for name, variable in variables.items()}
    both = [name for name in wanted if name in tensors]
    mismatched = tuple(
        Mismatch(name=name, stored=tuple(tensors[name].shape), wanted=wanted[name])
        for name in both
        if tuple(tensors[name].shape) != wanted[name]
    )
    wrong = {mismatch.name for mismatch in mismatched}
    absent = [name for name in wanted if name not in tensors]
    report = RestoreReport(
        restored=tuple(name for name in both if name not in wrong),
        fresh=tuple(name for name in absent if name in allowed),
        missing=tuple(name for name in absent if name not in allowed),
        unexplained=tuple(name for name in tensors if name not in wanted),
        mismatched=mismatched,
        guess=guess_cause(mismatched),
    )
    if report.complete:
        for name in report.restored:
            variables[name].assign(np.asarray(tensors[name]).astype(variables[name].dtype))
    return report
