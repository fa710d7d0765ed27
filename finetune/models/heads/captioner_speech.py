"""What a captioner says: captions as text, and how each word of one came about.

Takes a captioner and what it reads of images. Gives Captions and Explanations. Next: `finetune.predictor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from finetune.models.beam_search import BeamSearch
from finetune.models.decoding import DecodedCaptions
from finetune.models.decoding_options import Decoding, DecodingRequest, InvalidDecoding
from finetune.models.sampling import Sampler
from finetune.text.caption import Caption
from finetune.text.vocabulary import END, SPECIALS, START
from zoo.errors import InvalidArgument

if TYPE_CHECKING:
    from finetune.models.heads.captioner_layer import CaptionerLayer

# Images are captioned in batches of these sizes, padded: a fixed set of shapes means a fixed set of traces.
BATCH_SIZES = (1, 8, 32)
ALTERNATIVES = 5  # words of a step that an Explanation names
_END = "</s>"


@dataclass(frozen=True, kw_only=True)
class ExplainedWord:
    """`alternatives`: the likeliest words of the step and their probabilities, falling. `attention`: float32 [H, W],
    where the captioner looked when it said the word, adding up to 1; None where it doesn't look."""

    word: str
    log_prob: float
    alternatives: tuple[tuple[str, float], ...]
    attention: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """`words` ends with `</s>` where the caption is finished; their log_probs add up to the caption's."""

    caption: Caption
    words: tuple[ExplainedWord, ...]


class Speech:
    def __init__(self, layer: CaptionerLayer) -> None:
        self._layer = layer
        self._search = BeamSearch(layer)
        self._sampler = Sampler(layer)
        self._retrace = tf.function(self._steps, reduce_retracing=True)

    @property
    def traces(self) -> int:
        return self._search.traces + self._sampler.traces

    def decode(self, row_BX: tf.Tensor, request: DecodingRequest) -> DecodedCaptions:
        decoding = self._decided(request)
        return self._sampler(row_BX, decoding) if decoding.sample else self._search(row_BX, decoding)

    def compile(self) -> None:
        self._search.compile(self._layer.row.size, self._decided(DecodingRequest()))

    def captions(self, features: np.ndarray, request: DecodingRequest) -> list[list[Caption]]:
        return [[caption for caption, _ in beams] for beams in self._said(features, request)]

    def explain(self, features: np.ndarray, request: DecodingRequest) -> list[Explanation]:
        features = self._checked(features)
        said = self._said(features, request)
        return [self._explained(row_X, *beams[0]) for row_X, beams in zip(features, said, strict=True)]

    def _decided(self, request: DecodingRequest) -> Decoding:
        decoding = request.resolved(self._layer.arguments)
        if decoding.coverage and self._layer.places is None:
            raise InvalidDecoding("coverage counts what attention has looked at; this captioner has no attention")
        return decoding

    def _checked(self, features: np.ndarray) -> np.ndarray:
        features = np.asarray(features, np.float32)
        if features.ndim != 2 or features.shape[1] != self._layer.row.size:
            raise InvalidArgument(f"expected features [N, {self._layer.row.size}], got {list(features.shape)}")
        return features

    def _said(self, features: np.ndarray, request: DecodingRequest) -> list[list[tuple[Caption, list[int]]]]:
        """Captions of each image with their words' numbers."""
        features = self._checked(features)
        result: list[list[tuple[Caption, list[int]]]] = []
        for start, stop, size in _batches(len(features)):
            batch_BX = np.zeros((size, features.shape[1]), np.float32)
            batch_BX[: stop - start] = features[start:stop]
            result.extend(self._texts(self.decode(tf.constant(batch_BX), request), stop - start))
        return result

    def _texts(self, decoded: DecodedCaptions, count: int) -> list[list[tuple[Caption, list[int]]]]:
        tokens_BKT, log_probs_BK = decoded.tokens_BKT.numpy(), decoded.log_probs_BK.numpy()
        lengths_BK, finished_BK = decoded.lengths_BK.numpy(), decoded.finished_BK.numpy()
        result = []
        for b in range(count):
            beams = [k for k in range(tokens_BKT.shape[1]) if np.isfinite(log_probs_BK[b, k])]
            ended = [k for k in beams if finished_BK[b, k]]
            numbers = {k: tokens_BKT[b, k, : lengths_BK[b, k]].tolist() for k in ended or beams}
            result.append(
                [
                    (
                        Caption(
                            text=self._layer.vocabulary.text(words),
                            log_prob=float(log_probs_BK[b, k]),
                            finished=bool(finished_BK[b, k]),
                        ),
                        words,
                    )
                    for k, words in numbers.items()
                ]
            )
        return result

    def _explained(self, row_X: np.ndarray, caption: Caption, words: Sequence[int]) -> Explanation:
        """Goes through the caption once more, as it was said."""
        said = [*words, END] if caption.finished else list(words)
        fed = tf.constant([START, *words][: len(said)], tf.int32)
        log_TV, looked_TR = (values.numpy() for values in self._retrace(tf.constant(row_X[np.newaxis]), fed))
        shape = self._layer.row.map_shape
        explained = []
        for t, word in enumerate(said):
            order = np.argsort(-log_TV[t], kind="stable")[:ALTERNATIVES]
            explained.append(
                ExplainedWord(
                    word=self._name(word),
                    log_prob=float(log_TV[t, word]),
                    alternatives=tuple((self._name(other), float(np.exp(log_TV[t, other]))) for other in order),
                    attention=None if shape is None else looked_TR[t].reshape(shape[:2]),
                )
            )
        return Explanation(caption=caption, words=tuple(explained))

    def _steps(self, row_1X: tf.Tensor, fed_T: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Log-probabilities [T, V] of each next word, and weights [T, R] (R = 0 without attention)."""
        layer = self._layer
        state, memory = layer.start(row_1X)
        steps = tf.shape(fed_T)[0]
        sizes = (len(layer.vocabulary), layer.places or 0)
        arrays = tuple(tf.TensorArray(tf.float32, size=steps, element_shape=[size]) for size in sizes)

        def step(t: tf.Tensor, state: Any, log: tf.TensorArray, looked: tf.TensorArray) -> tuple[Any, ...]:
            done = layer.advance(tf.reshape(fed_T[t], [1]), state, memory)
            weights_R = tf.zeros([0]) if done.weights_NR is None else done.weights_NR[0]
            log_V = tf.nn.log_softmax(layer.logits(done.output_NU))[0]
            return t + 1, done.state, log.write(t, log_V), looked.write(t, weights_R)

        *_, log, looked = tf.while_loop(lambda t, *_: t < steps, step, (0, state, *arrays))
        return log.stack(), looked.stack()

    def _name(self, word: int) -> str:
        if word == END:
            return _END
        return SPECIALS[word] if word < len(SPECIALS) else self._layer.vocabulary.words[word - len(SPECIALS)]


def _batches(count: int) -> list[tuple[int, int, int]]:
    """(first, one past the last, padded size) of each batch."""
    result = []
    start = 0
    while start < count:
        size = next((size for size in BATCH_SIZES if size >= count - start), BATCH_SIZES[-1])
        stop = min(start + size, count)
        result.append((start, stop, size))
        start = stop
    return result
