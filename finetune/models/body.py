"""Body: a network without its output layers, as a builder gives it.

Takes nothing. Gives the one value that every builder returns. Next: `finetune.models.backbone`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Body:
    """Symbolic tensors (`keras.KerasTensor`) of one functional graph whose layers have canonical names.

    Attributes:
        image: the input, float32 [B, height, width, 3].
        feature_map: [B, H, W, C].
        feature_vector: [B, C]; None where it is the map's mean, as in nearly all networks.
        endpoints: name → [B, h, w, c], one for each entry of the architecture's `FACTS.endpoints`.
    """

    image: Any
    feature_map: Any
    feature_vector: Any = None
    endpoints: Mapping[str, Any] = field(default_factory=dict)
