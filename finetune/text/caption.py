"""Caption: what a captioner says of one image.

Takes a beam of `finetune.models.decoding`. Gives a plain value. Next: `finetune.predictor`, the command line.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Caption:
    """`log_prob` is the natural logarithm of the model's probability of this caption: the sum over its words and, when
    `finished`, the end token. `finished` is False for a caption that was cut off at the longest allowed length.
    """

    text: str
    log_prob: float
    finished: bool
