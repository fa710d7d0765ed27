"""MixUp and CutMix: two images of a batch in one, and how much each counts.

Takes a batch of images. Gives mixed images, partners and shares for the targets. Next: `finetune.training.trainer`.

MixUp: Zhang et al. (2017): a weighted mean. CutMix: Yun et al. (2019): a box of the partner is pasted in. Shares are
Beta(α, α), drawn for every row. With both, each batch gets one of them, by equal chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune.data.augment_box import box_around
from finetune.data.augment_chance import Chance


@dataclass(frozen=True, kw_only=True)
class MixedBatch:
    """A loss of row b is share[b] × loss(target[b]) + (1 − share[b]) × loss(target[partner[b]]).

    `image`: [B, H, W, 3] of the dtype that came in; `partner`: int64 [B]; `share`: float32 [B], 0 to 1.
    """

    image: np.ndarray
    partner: np.ndarray
    share: np.ndarray


def mix_batch(
    image_BHWC: np.ndarray,
    *,
    mixup: float,
    cutmix: float,
    seed: int,
    position: int,
    weight_B: np.ndarray | None = None,
) -> MixedBatch:
    """Mixes the rows of a batch, decided by (seed, position) alone; the input stays as it is.

    Args:
        image_BHWC: uint8 (mixed values are rounded) or float32.
        mixup, cutmix: α of each; 0 for not at all.
        position: of the batch's first row in the endless order, which no other batch or worker has.
        weight_B: rows of weight 0 (images that couldn't be used) are neither mixed nor partners.
    """
    batch = len(image_BHWC)
    partner, share = np.arange(batch), np.ones(batch, np.float32)
    rows = np.arange(batch) if weight_B is None else np.flatnonzero(weight_B)
    chance = Chance(seed, position, purpose="mix")
    alphas = [(name, alpha) for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0]
    if not alphas or len(rows) < 2:
        return MixedBatch(image=image_BHWC, partner=partner, share=share)
    name, alpha = alphas[chance.below(len(alphas))]
    partner[rows] = rows[chance.permutation(len(rows))]
    mixed_BHWC = image_BHWC.copy()
    for row in rows:
        other_HWC = image_BHWC[partner[row]]
        share[row] = _MIXES[name](mixed_BHWC[row], other_HWC, chance.beta(alpha), chance)
    return MixedBatch(image=mixed_BHWC, partner=partner, share=share)


def _mixup(image_HWC: np.ndarray, other_HWC: np.ndarray, share: float, chance: Chance) -> float:
    mixed_HWC = image_HWC * np.float32(share)
    mixed_HWC += other_HWC * np.float32(1 - share)
    if image_HWC.dtype == np.uint8:
        np.rint(mixed_HWC, out=mixed_HWC)
    image_HWC[...] = mixed_HWC.astype(image_HWC.dtype, copy=False)
    return share


def _cutmix(image_HWC: np.ndarray, other_HWC: np.ndarray, share: float, chance: Chance) -> float:
    """The share is what is left after the box was cut off at the edges."""
    height, width = image_HWC.shape[:2]
    left, top, right, bottom = box_around(width, height, share=1 - share, chance=chance)
    image_HWC[top:bottom, left:right] = other_HWC[top:bottom, left:right]
    return 1 - (right - left) * (bottom - top) / (width * height)


_MIXES = {"mixup": _mixup, "cutmix": _cutmix}
