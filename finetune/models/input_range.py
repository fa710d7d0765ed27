"""Whether images reach a backbone in the range that it learnt from: its first BatchNorm remembers that.

Takes a Backbone and pixels. Gives a RangeFinding. Next: `finetune.training.data_warnings`.

A file of weights doesn't say what was done to its images, so an InputSpec can be wrong: 0 to 1 where the network learnt
from −1 to 1, or a mean and deviation of another library. Nothing fails then, features are merely worse. But the moving
averages of the first BatchNorm are those of the activations of the training images; they are compared with those of
the images at hand. Measured on 32 photos of Flickr8k, 32 stamps, 32 drawn scenes: Inception v3 with its own range has
0.97, 1.5 and 1.8 times the squared deviation that its BatchNorm expects, with −1 to 1 instead of 0 to 1 it has 6.1, 5.6
and 10, with 0 to 255 more than 100,000. EfficientNet-Lite0 learnt from −1 to 1 (0.99, 1.8, 1.7); with ImageNet's mean
and deviation, as some copies of it say, it has 4.8, 9.5 and 8.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import keras
import numpy as np
import tensorflow as tf

from finetune.data.preprocess import normalise
from finetune.models.backbone import Backbone
from zoo.input_spec import InputSpec

FAR = 3.0  # times more, or a third of it: further than other motifs come
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# What networks are usually given: scale, mean, std of an InputSpec.
USUAL: Mapping[str, tuple[float, tuple[float, float, float], tuple[float, float, float]]] = MappingProxyType(
    {
        "0 to 1": (1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        "-1 to 1": (1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "ImageNet's mean and deviation": (1 / 255, *_IMAGENET),
        "0 to 255": (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    }
)


@dataclass(frozen=True, kw_only=True)
class RangeFinding:
    """`spread`: the median over channels of the images' variance in the first BatchNorm's input over the one that it
    remembers; `deviation`: the same of the mean squared distance from the mean that it remembers. Both are near 1 where
    images are like those of its training. `better`: usual ranges that fit where this one doesn't, the nearest first.
    """

    spread: float
    deviation: float
    better: tuple[str, ...] = ()

    @property
    def far(self) -> bool:
        return _far(self.spread, self.deviation)

    def warning(self, spec: InputSpec) -> str | None:
        """A line for the log; None where the range fits."""
        if not self.far:
            return None
        fitting = [
            f"{name} (scale {USUAL[name][0]:.6g}, mean {list(USUAL[name][1])}, std {list(USUAL[name][2])})"
            for name in self.better
        ]
        remedy = (
            f"what would fit: {' or '.join(fitting)}; import the backbone with the right --input-spec"
            if fitting
            else "look at the backbone's input spec (`zoo show`) and at the images"
        )
        return (
            f"images reach the backbone unlike those that it learnt from: in its first BatchNorm they vary "
            f"{self.spread:.2g} times and deviate {self.deviation:.2g} times as much as it remembers, with scale "
            f"{spec.scale:.6g}, mean {list(spec.mean)}, std {list(spec.std)}; {remedy}"
        )


def input_range(backbone: Backbone, pixels_BHWC: np.ndarray) -> RangeFinding | None:
    """Of uint8 [B, height, width, 3] as `load_pixels` gives them. None for a network without BatchNorm."""
    norm = next((layer for layer in backbone.model.layers if isinstance(layer, keras.layers.BatchNormalization)), None)
    if norm is None or not len(pixels_BHWC):
        return None
    stem = tf.function(keras.Model(backbone.model.input, norm.input))
    mean_C, variance_C = norm.moving_mean.numpy(), norm.moving_variance.numpy()

    def measured(spec: InputSpec) -> tuple[float, float]:
        x_XC = np.asarray(stem(tf.convert_to_tensor(normalise(pixels_BHWC, spec)), training=False), np.float64)
        x_XC = x_XC.reshape(-1, x_XC.shape[-1])
        alive_C = variance_C > 0  # a channel that never varied says nothing
        spread_C = x_XC.var(axis=0)[alive_C] / variance_C[alive_C]
        away_C = np.square(x_XC.mean(axis=0) - mean_C)[alive_C] / variance_C[alive_C]
        return (float(np.median(spread_C)), float(np.median(spread_C + away_C))) if alive_C.any() else (1.0, 1.0)

    spread, deviation = measured(backbone.input_spec)
    if not _far(spread, deviation):
        return RangeFinding(spread=spread, deviation=deviation)
    fits: dict[str, float] = {}
    for name, (scale, mean, std) in USUAL.items():
        other = measured(backbone.input_spec.model_copy(update={"scale": scale, "mean": mean, "std": std}))
        if not _far(*other):
            fits[name] = sum(abs(np.log(each)) for each in other)
    return RangeFinding(spread=spread, deviation=deviation, better=tuple(sorted(fits, key=fits.__getitem__)))


def _far(spread: float, deviation: float) -> bool:
    return not (spread >= 1 / FAR and deviation <= FAR)
