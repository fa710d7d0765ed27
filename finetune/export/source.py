"""ExportSource: a ModelVersion in memory, and what it answers, for exports to be made of and compared with.

Takes a reference. Gives networks, and expected outputs. Next: one of `finetune.export.EXPORTERS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.models.feature_row import FeatureRow, as_rows, row_of_layer
from finetune.predictor import MAX_PIXELS
from zoo.card import show_card
from zoo.catalog import Catalog, ModelVersion
from zoo.input_spec import InputSpec

if TYPE_CHECKING:
    from finetune.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """`head` is the version's head layer, or None for a backbone; `card` the model card in Markdown."""

    version: ModelVersion
    backbone: Backbone
    head: Any
    card: str

    @classmethod
    def load(cls, catalog: Catalog, version: ModelVersion) -> ExportSource:
        """Reads, builds and restores. Raises NoBackbone, IncompleteRestore, UnknownHead, DataLoss."""
        from finetune.models.backbone import Backbone
        from finetune.models.task_model import load_head

        backbone = Backbone.from_version(catalog, version)
        head: Any = None
        if version.manifest.head:
            head = load_head(catalog, version, backbone.feature_dim, feature_map_shape=backbone.feature_map_shape)
        return cls(version=version, backbone=backbone, head=head, card=show_card(catalog, version).text)

    @property
    def input_spec(self) -> InputSpec:
        return self.backbone.input_spec

    @property
    def head_kind(self) -> str | None:
        head = self.version.manifest.head
        return head.kind if head else None

    @property
    def row(self) -> FeatureRow:
        """What the head reads of the backbone."""
        return row_of_layer(self.head, self.backbone)

    @property
    def labels(self) -> tuple[str, ...]:
        """A classifier's class names, or numbers where it has none; those before `class_offset` have no name."""
        offset = self.version.manifest.class_offset
        return self.version.manifest.classes or tuple(str(place) for place in range(self.head.num_classes - offset))

    def preprocessed(self, images: Sequence[bytes]) -> np.ndarray:
        """float32 [N, height, width, 3], by the zoo's own preprocessing. Raises UnreadableImage."""
        from finetune.data.preprocess import preprocess

        return np.stack([preprocess(data, self.input_spec, max_pixels=MAX_PIXELS) for data in images])

    def outputs(self, image_BHWC: np.ndarray) -> dict[str, np.ndarray]:
        """`feature_vector` [B, D], and by the head `scores` [B, C] without those before the first class, and
        `logits` [B, C']; of a multi-label head `scores`, `labels` and `thresholds` [B, C]; of an embedding head
        `embedding` [B, dim]; or `text` and `log_prob` [B, K] (see `finetune.export.caption_graph.captions`)."""
        feature_BD = np.asarray(self.backbone.feature_vector(image_BHWC))
        found = {"feature_vector": feature_BD}
        if self.head_kind == "classifier":
            found["scores"] = np.asarray(self.head.probabilities(feature_BD))[:, self.version.manifest.class_offset :]
            found["logits"] = np.asarray(self.head.logits(feature_BD))
            found["labels"] = np.tile(np.array(self.labels, dtype=np.str_), (len(feature_BD), 1))
        elif self.head_kind == "multilabel":
            found["scores"] = np.asarray(self.head.probabilities(feature_BD))
            found["labels"] = np.tile(np.array(self.labels, dtype=np.str_), (len(feature_BD), 1))
            found["thresholds"] = np.tile(np.array(self.head.thresholds, np.float32), (len(feature_BD), 1))
        elif self.head_kind == "embedding":
            found["embedding"] = np.asarray(self.head.embeddings(feature_BD))
        elif self.head_kind == "captioner":
            rows = as_rows(self.backbone, self.row)
            found |= _caption_arrays(self.head, np.asarray(rows.feature_vector(image_BHWC)))
        return found


def _caption_arrays(head: Any, row_BX: np.ndarray) -> dict[str, np.ndarray]:
    beams = head.captions(row_BX)
    places = head.arguments.beam_size
    rows = [[*((c.text, c.log_prob) for c in row), *[("", -np.inf)] * (places - len(row))] for row in beams]
    return {
        "text": np.array([[text for text, _ in row] for row in rows], dtype=np.str_),
        "log_prob": np.array([[log_prob for _, log_prob in row] for row in rows], dtype=np.float32),
    }
