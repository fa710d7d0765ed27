"""The head of an imported checkpoint, as a manifest records it.

Takes a Match and the head's tensors. Gives a Head. Next: `zoo.importer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.architectures.matching import Match
from zoo.errors import InvalidArgument
from zoo.manifest import Head

# What formats call the activations of hidden layers that the classifier has → what it calls them.
_HIDDEN = {"relu": "relu", "hard_swish": "hard_swish", "hard_silu": "hard_swish"}


class UnsupportedHead(InvalidArgument):
    """A head that our classifier can't express."""


def head_record(found: Match, tensors: Mapping[str, np.ndarray] | None) -> Head | None:
    """What `finetune.models.heads.classifier` must build to hold the head's tensors; None without a head."""
    if tensors is None:
        return None
    *hidden, last = found.dense
    activations = {_HIDDEN[layer.activation] for layer in hidden if layer.activation in _HIDDEN}
    mixed = len(activations) > 1
    odd = [f"{layer.name}: {layer.activation}" for layer in hidden if mixed or layer.activation not in _HIDDEN]
    if last.activation not in ("softmax", "linear"):
        odd.append(f"{last.name}: {last.activation}")
    if odd:
        excludes = " ".join(f"--exclude {layer.name}" for layer in found.dense)
        raise UnsupportedHead(
            f"the head's activations are not supported ({', '.join(odd)}): hidden layers are all relu or "
            "all hard-swish, the last is softmax",
            hint=f"import the backbone alone: {excludes}",
        )
    arguments: dict[str, Any] = {
        "num_classes": int(tensors["logits/bias"].size),
        "hidden": [int(tensors[f"hidden_{place}/bias"].size) for place in range(len(hidden))],
        "dropout": [layer.dropout for layer in hidden],
        "activation": "softmax",
    }
    if activations - {"relu"}:  # left out where it is relu, as in the manifests from before there was another
        arguments["hidden_activation"] = activations.pop()
    return Head(kind="classifier", arguments=arguments)
