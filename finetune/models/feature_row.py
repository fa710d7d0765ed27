"""FeatureRow: what a head reads of a backbone, as one row of numbers an image.

Takes a backbone's outputs. Gives rows, and the outputs back. Next: `finetune.data.features` (caches rows),
`finetune.training.prepare`, `finetune.predictor`.

Most heads read the feature vector, and their row is that. A head that looks at places reads the map too, which lies
behind the vector in the same row: cache, views, splits, input queue and servers handle either without knowing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from zoo.errors import FailedPrecondition

if TYPE_CHECKING:
    from finetune.models.backbone import Backbone
    from finetune.models.heads.head import Assets, HeadKind, HeadLayer


class NoFeatureMap(FailedPrecondition):
    """A head that looks at places, on a backbone that has none."""


@runtime_checkable
class ReadsFeatureMap(Protocol):
    """A HeadKind of which some heads read the feature map. Their layers say what they read in `row`, a FeatureRow."""

    kind: str

    def reads_feature_map(self, arguments: Any) -> bool: ...

    def build(
        self,
        *,
        arguments: Any,
        feature_dim: int,
        assets: Assets,
        seed: int,
        feature_map_shape: tuple[int, int, int] | None = None,
    ) -> HeadLayer: ...


@dataclass(frozen=True, kw_only=True)
class FeatureRow:
    """`map_shape` (H, W, C) is None where the row is the vector alone."""

    vector_size: int
    map_shape: tuple[int, int, int] | None = None

    @property
    def size(self) -> int:
        return self.vector_size + (math.prod(self.map_shape) if self.map_shape else 0)

    def join(self, outputs: Mapping[str, Any]) -> Any:
        """float32 [B, size] of `feature_vector` [B, D] and `feature_map` [B, H, W, C]."""
        if self.map_shape is None:
            return outputs["feature_vector"]
        import tensorflow as tf

        flat_BX = tf.reshape(outputs["feature_map"], [-1, math.prod(self.map_shape)])
        return tf.concat([outputs["feature_vector"], flat_BX], axis=-1)

    def split(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """`feature_vector` and, if there is one, `feature_map`: of a row, which the queue calls feature_vector, or of a
        backbone's outputs as they are."""
        row = features["feature_vector"]
        if self.map_shape is None or "feature_map" in features:
            return dict(features)
        import tensorflow as tf

        return {
            "feature_vector": row[:, : self.vector_size],
            "feature_map": tf.reshape(row[:, self.vector_size :], [-1, *self.map_shape]),
        }


class RowBackbone:
    """A Backbone whose feature vector is a row, for the feature cache and a predictor."""

    def __init__(self, backbone: Backbone, row: FeatureRow) -> None:
        import tensorflow as tf

        spec = backbone.input_spec
        self.digest = backbone.digest
        self.input_spec = spec
        self.feature_dim = row.size  # part of the cache's key, so that rows and vectors never meet
        signature = [tf.TensorSpec([None, spec.height, spec.width, 3], tf.float32, name="image_BHWC")]
        self._row = tf.function(
            lambda image_BHWC: row.join(backbone.model(image_BHWC, training=False)), input_signature=signature
        )

    def feature_vector(self, image_BHWC: Any) -> Any:
        """float32 [B, size] of preprocessed images."""
        import tensorflow as tf

        return self._row(tf.convert_to_tensor(image_BHWC, tf.float32))


def row_of(
    kind: HeadKind, arguments: Any, *, feature_dim: int, feature_map_shape: tuple[int, int, int] | None
) -> FeatureRow:
    """What a head with these arguments reads of a backbone with such outputs. Raises NoFeatureMap."""
    if not (isinstance(kind, ReadsFeatureMap) and kind.reads_feature_map(arguments)):
        return FeatureRow(vector_size=feature_dim)
    if feature_map_shape is None or feature_map_shape[0] * feature_map_shape[1] < 2:
        raise NoFeatureMap(
            f"the {kind.kind} head looks at places of the image, and the backbone gives one feature vector only",
            hint="another backbone, or --set head.arguments.attention=none",
        )
    return FeatureRow(vector_size=feature_dim, map_shape=feature_map_shape)


def row_of_layer(head: Any, backbone: Backbone) -> FeatureRow:
    """What a head layer reads; of no head, the feature vector."""
    row = getattr(head, "row", None)
    return row if isinstance(row, FeatureRow) else FeatureRow(vector_size=backbone.feature_dim)


def as_rows(backbone: Backbone, row: FeatureRow) -> Backbone | RowBackbone:
    """The backbone as it is where the row is its vector, else one that gives rows."""
    return backbone if row.map_shape is None else RowBackbone(backbone, row)


def build_head(kind: HeadKind, *, arguments: Any, row: FeatureRow, assets: Assets, seed: int) -> HeadLayer:
    """`kind.build` for what the head reads."""
    if row.map_shape is None or not isinstance(kind, ReadsFeatureMap):
        return kind.build(arguments=arguments, feature_dim=row.vector_size, assets=assets, seed=seed)
    return kind.build(
        arguments=arguments,
        feature_dim=row.vector_size,
        assets=assets,
        seed=seed,
        feature_map_shape=row.map_shape,
    )
