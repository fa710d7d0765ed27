"""Predictor: a ModelVersion that answers. TensorFlow is imported when one is loaded.

Takes encoded images. Gives captions, labels or feature vectors. Next: the command line, `server.model_process`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.models.decoding_options import DecodingRequest
from finetune.models.feature_row import FeatureRow, RowBackbone, as_rows, row_of_layer
from finetune.text.caption import Caption
from zoo.catalog import Catalog, ModelVersion
from zoo.errors import FailedPrecondition, InvalidArgument
from zoo.input_spec import InputSpec

if TYPE_CHECKING:
    from finetune.models.backbone import Backbone
    from finetune.models.heads.captioner_speech import Explanation

MAX_BEAM = 20
MAX_WORDS = 200
MAX_PIXELS = 50_000_000
CLASSIFYING = ("classifier", "multilabel")  # heads that name classes
_TOP = 5
_CONSTANT_BELOW = 256 * 2**20  # bytes of backbone weights, see `_constant`
_BATCH = 32  # images in memory at a time


class WrongHead(FailedPrecondition):
    """The version has no head of the kind that was asked to answer."""


class InvalidRequest(InvalidArgument):
    """An option of a prediction that is out of range."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """`score` is the probability, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is said of one image. `unsure`: the best score is below the version's abstain threshold."""

    labels: list[Label]
    unsure: bool


def require_head(version: ModelVersion, *kinds: str) -> None:
    """Raises WrongHead unless the version's head is of one of those kinds. Reads the manifest only."""
    head = version.manifest.head
    if head is not None and head.kind in kinds:
        return
    kind = kinds[0]
    has = "a backbone only" if head is None else f"{'an' if head.kind[0] in 'aeiou' else 'a'} {head.kind} head"
    raise WrongHead(
        f"{version.reference} has {has}, no {kind} head",
        hint=f"finetune run --backbone {version.reference} --head {kind} --data DATA --name NAME",
        reference=version.reference,
    )


def check_request(request: DecodingRequest) -> None:
    """What a caller may ask of any captioner. Raises InvalidRequest."""
    if request.beam_size is not None and not 1 <= request.beam_size <= MAX_BEAM:
        raise InvalidRequest(f"beam_size is {request.beam_size}, allowed are 1 to {MAX_BEAM}")
    if request.max_words is not None and not 1 <= request.max_words <= MAX_WORDS:
        raise InvalidRequest(f"max_words is {request.max_words}, allowed are 1 to {MAX_WORDS}")


class Predictor:
    """A version's networks in memory, made with `load`. Not safe to call from several threads at once.

    Attributes:
        version: what answers.
    """

    def __init__(
        self,
        *,
        version: ModelVersion,
        input_spec: InputSpec,
        feature_row: Callable[[np.ndarray], Any],
        row: FeatureRow,
        head: Any,
        max_pixels: int,
    ) -> None:
        self.version = version
        self._input_spec = input_spec
        self._feature_row = feature_row
        self._row = row
        self._head = head
        self._max_pixels = max_pixels

    @classmethod
    def load(
        cls,
        catalog: Catalog,
        reference: str | ModelVersion,
        *,
        head: str | None = None,
        max_pixels: int = MAX_PIXELS,
        resident: bool = False,
    ) -> Predictor:
        """Reads, builds and restores a version; its head too where it has one.

        Args:
            head: the kind of head that will be asked; a version without it is refused before anything is built.
            max_pixels: larger images are refused by their header.
            resident: it will answer many calls, so that a second spent on a faster graph comes back.
        Raises:
            NotFound, WrongHead, NoBackbone, IncompleteRestore, DataLoss.
        """
        version = catalog.get(reference) if isinstance(reference, str) else reference
        if head is not None:
            require_head(version, head)
        from finetune.models.backbone import Backbone
        from finetune.models.task_model import load_head

        backbone = Backbone.from_version(catalog, version)
        layer: Any = None
        if version.manifest.head is not None:
            layer = load_head(catalog, version, backbone.feature_dim, feature_map_shape=backbone.feature_map_shape)
        row = row_of_layer(layer, backbone)
        rows = as_rows(backbone, row)
        if resident and version.manifest.head is not None and version.manifest.head.kind == "captioner":
            layer.compile_decoding()
        return cls(
            version=version,
            input_spec=backbone.input_spec,
            feature_row=_constant(rows) if resident and _small(version) else rows.feature_vector,
            row=row,
            head=layer,
            max_pixels=max_pixels,
        )

    @property
    def input_spec(self) -> InputSpec:
        return self._input_spec

    def warm_up(self, request: DecodingRequest | None = None) -> None:
        """Traces and compiles by answering for one black image, so that the first caller doesn't wait for it.

        `request`: how a captioner will be asked. Raises InvalidDecoding.
        """
        spec = self._input_spec
        row_BX = np.asarray(self._feature_row(np.zeros((1, spec.height, spec.width, 3), np.float32)))
        kind = self.version.manifest.head.kind if self.version.manifest.head else None
        if kind == "captioner":
            self._head.captions(row_BX, request)
        elif kind in CLASSIFYING:
            self._head.probabilities(row_BX)
        elif kind == "embedding":
            self._head.embeddings(row_BX)

    def caption(
        self,
        images: Sequence[bytes],
        request: DecodingRequest | None = None,
        *,
        beam_size: int | None = None,
        max_words: int | None = None,
    ) -> list[list[Caption]]:
        """Captions of each encoded image, best first.

        Args:
            request: how they are found; None: as the head by itself finds them.
            beam_size, max_words: the same as the request's.
        Raises:
            WrongHead, InvalidRequest, InvalidDecoding; UnreadableImage naming the image by its place.
        """
        request = self._asked(request, beam_size, max_words)
        captions: list[list[Caption]] = self._head.captions(self._features(images), request)
        return captions

    def explain(self, images: Sequence[bytes], request: DecodingRequest | None = None) -> list[Explanation]:
        """How the best caption of each encoded image came about, word by word. Raises as `caption` does."""
        request = self._asked(request, None, None)
        explained: list[Explanation] = self._head.explain(self._features(images), request)
        return explained

    def _asked(self, request: DecodingRequest | None, beam_size: int | None, max_words: int | None) -> DecodingRequest:
        require_head(self.version, "captioner")
        request = request or DecodingRequest()
        if beam_size is not None or max_words is not None:
            request = replace(request, beam_size=beam_size, max_words=max_words)
        check_request(request)
        request.resolved(self._head.arguments)  # before minutes are spent on images
        return request

    def classify(self, images: Sequence[bytes], *, top: int | None = None) -> list[list[Label]]:
        """Labels of each encoded image, best first.

        Args:
            top: at most so many. None: of a classifier 5; of a multi-label head every label at or above its threshold,
                which may be none. A multi-label head never gives those below.
        Raises:
            WrongHead, InvalidRequest, UnreadableImage.
        """
        return [each.labels for each in self.classified(images, top=top)]

    def classified(self, images: Sequence[bytes], *, top: int | None = None) -> list[Labels]:
        """As `classify`, and whether each answer is to be relied on."""
        require_head(self.version, *CLASSIFYING)
        if top is not None and top < 1:
            raise InvalidRequest(f"top is {top}, allowed is 1 or more")
        if self.version.manifest.head is not None and self.version.manifest.head.kind == "multilabel":
            return self._above_thresholds(images, top)
        top = _TOP if top is None else top
        offset = self.version.manifest.class_offset
        probabilities_BC = np.asarray(self._head.probabilities(self._features(images)))[:, offset:]
        names = self.version.manifest.classes or tuple(str(place) for place in range(probabilities_BC.shape[1]))
        order_BC = np.argsort(-probabilities_BC, axis=1, kind="stable")[:, :top]
        least = self._head.abstain_below
        return [
            Labels(
                labels=[Label(label=names[place], score=float(row[place])) for place in order],
                unsure=least is not None and float(row.max()) < least,
            )
            for row, order in zip(probabilities_BC, order_BC, strict=True)
        ]

    def _above_thresholds(self, images: Sequence[bytes], top: int | None) -> list[Labels]:
        names = self._head.classes
        return [
            Labels(
                labels=[Label(label=names[place], score=float(row[place])) for place in self._head.said(row)[:top]],
                unsure=False,
            )
            for row in np.asarray(self._head.probabilities(self._features(images)))
        ]

    def embed(self, images: Sequence[bytes]) -> np.ndarray:
        """float32 [N, D]: of an embedding head its vectors, each of length 1; else the backbone's feature vectors.

        Raises UnreadableImage.
        """
        feature_ND = self._features(images)
        head = self.version.manifest.head
        if head is None or head.kind != "embedding":
            return feature_ND[:, : self._row.vector_size]
        return np.asarray(self._head.embeddings(feature_ND))

    def _features(self, images: Sequence[bytes]) -> np.ndarray:
        """float32 [N, X]: what the head reads of each image (finetune.models.feature_row)."""
        row_NX = np.zeros((len(images), self._row.size), np.float32)
        for start in range(0, len(images), _BATCH):
            some = images[start : start + _BATCH]
            image_BHWC = np.stack([self._preprocessed(data, start + place) for place, data in enumerate(some)])
            row_NX[start : start + len(some)] = np.asarray(self._feature_row(image_BHWC))
        return row_NX

    def _preprocessed(self, data: bytes, place: int) -> np.ndarray:
        from finetune.data.preprocess import UnreadableImage, preprocess

        try:
            return preprocess(data, self._input_spec, max_pixels=self._max_pixels)
        except UnreadableImage as error:
            raise UnreadableImage(
                f"image {place + 1}: {error.message}", hint=error.hint, **error.details, image=str(place)
            ) from None


def _small(version: ModelVersion) -> bool:
    component = version.manifest.component("backbone")
    return component is not None and component.bytes < _CONSTANT_BELOW


def _constant(backbone: Backbone | RowBackbone) -> Callable[[np.ndarray], Any]:
    """The backbone's feature vector, or its row, with its weights as constants of the graph.

    Only then does Grappler fold batch normalisation into the convolutions and fuse the activation: on two cores
    EfficientNet-Lite0 took 6.3 ms an image instead of 9.0, Inception v3 29.2 instead of 32.8, within 1e-6. It costs 1 s
    and 2.4 s when a model is loaded, and its weights twice in memory while it is made.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = backbone.input_spec
    signature = [tf.TensorSpec([None, spec.height, spec.width, 3], tf.float32, name="image_BHWC")]
    traced = tf.function(backbone.feature_vector, input_signature=signature).get_concrete_function()
    constant = convert_variables_to_constants_v2(traced)

    def feature_vector(image_BHWC: np.ndarray) -> Any:
        return constant(tf.constant(image_BHWC))[0]

    return feature_vector
