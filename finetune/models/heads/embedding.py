"""Head kind `embedding`: a vector of length 1 by which images of one class lie near; without its weights.

Takes labels of a split. Gives the class list and target rows, one an image. Next:
`finetune.models.heads.embedding_layer`, which is imported only to build (this module needs no TensorFlow).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from finetune.data.source import Example
from finetune.models.heads.dense_arguments import DenseArguments, InvalidLabels, NoClassNames, require_labels
from finetune.models.heads.head import Assets, TargetTable

if TYPE_CHECKING:
    from finetune.models.heads.embedding_layer import EmbeddingLayer
    from finetune.spec import JobSpec

_MANY_LONE = 0.1  # share of images without a partner in their batch from which on a run is warned of it


class EmbeddingArguments(DenseArguments):
    """`dim`: of the vector. `loss`: `contrastive`, supervised (Khosla et al. 2020, arXiv:2004.11362), with its
    `contrastive_temperature`; or `arcface` (Deng et al. 2019, arXiv:1801.07698), with its `margin` in radians and
    `scale`: classes then have centres, which are tensors of the head that serving doesn't need.
    """

    dim: Annotated[int, Field(ge=2, le=4096)] = 128
    loss: Literal["contrastive", "arcface"] = "contrastive"
    contrastive_temperature: Annotated[float, Field(gt=0, le=1)] = 0.1
    margin: Annotated[float, Field(ge=0, le=1.5)] = 0.5
    scale: Annotated[float, Field(gt=0, le=256)] = 30.0  # 64 in the paper, for a thousand times as many classes


class EmbeddingKind:
    """See `HeadKind`."""

    kind = "embedding"
    Arguments: type[BaseModel] = EmbeddingArguments
    class_axes: Mapping[str, int] = MappingProxyType({"centres": 0})

    def learn_assets(self, examples: Sequence[Example], arguments: EmbeddingArguments) -> Assets:
        """The classes: labels of the training split in lexicographic order (of code points). Raises InvalidLabels."""
        require_labels(examples)
        count = Counter(str(example.label) for example in examples)
        if len(count) < 2:
            found = f"only {next(iter(count))!r}" if count else "none, for there are no examples"
            raise InvalidLabels(f"an embedding needs two classes or more; the training split has {found}")
        if max(count.values()) < 2:
            raise InvalidLabels(f"an embedding needs images of one class; all {len(count)} classes have a single image")
        return Assets(files={}, classes=tuple(sorted(count)))

    def targets(self, examples: Sequence[Example], arguments: EmbeddingArguments, assets: Assets) -> TargetTable:
        """One row an image: label int32, a position in the classes. Classes that training hasn't seen are numbered
        after them: an embedding is for those too. Raises InvalidLabels."""
        require_labels(examples)
        classes = assets.classes or ()
        position = {name: place for place, name in enumerate(classes)}
        for name in sorted({str(example.label) for example in examples} - set(position)):
            position[name] = len(position)
        label_N = np.array([position[str(example.label)] for example in examples], np.int32).reshape(len(examples))
        return TargetTable(image_index=np.arange(len(examples), dtype=np.int32), arrays={"label": label_N})

    def build(self, *, arguments: EmbeddingArguments, feature_dim: int, assets: Assets, seed: int) -> EmbeddingLayer:
        from finetune.models.heads.embedding_layer import EmbeddingLayer

        if assets.classes is None:
            raise NoClassNames("an embedding head needs the names of the classes it learnt from")
        return EmbeddingLayer(arguments=arguments, num_classes=len(assets.classes), feature_dim=feature_dim, seed=seed)

    def resolved(self, arguments: EmbeddingArguments, assets: Assets) -> dict[str, Any]:
        known = arguments.model_copy(update={"dropout": arguments.dropout_shares})
        return known.model_dump(mode="json", exclude=arguments.later)

    def plan_warnings(self, examples: Sequence[Example], arguments: EmbeddingArguments, spec: JobSpec) -> list[str]:
        """See `WarnsOfPlan`: an image without another of its class in the batch teaches nothing by contrast."""
        if arguments.loss != "contrastive" or getattr(spec.data, "order", "shuffled") == "balanced":
            return []
        batch = spec.train.batch_size
        share_C = np.array(list(Counter(example.label for example in examples).values())) / len(examples)
        lone = float(np.sum(share_C * (1 - share_C) ** (batch - 1)))
        if lone < _MANY_LONE:
            return []
        return [
            f"in shuffled batches of {batch} about {lone:.0%} of the images have no other of their class beside them "
            "and teach nothing: raise train.batch_size or set head.arguments.loss=arcface"
        ]


EMBEDDING = EmbeddingKind()
