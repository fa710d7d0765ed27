"""CaptionerLayer: the variables and the arithmetic of a Show and Tell captioner (arXiv:1411.4555).

Takes feature vectors of a backbone, and in training target rows. Gives losses, captions and metrics. Next:
`finetune.models.decoding` for captions, `finetune.training.trainer` for training.

    feature vector ── image_embedding ──▶ LSTM step 0          (its output predicts nothing)
    <s>, word 1, … ── word_embedding ───▶ LSTM steps 1, 2, …  ── output ──▶ word 1, word 2, …, </s>

    in training also: the image's embedding ── word_bag ──▶ the caption's words, in any order

Training and beam search share `input_gates`, `recur` and `logits`; only the loop round them differs. Captions don't
need `word_bag`; it is published with the rest, so that training can go on from a version as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.source import Example
from finetune.metrics.captions import caption_metrics
from finetune.models.decoding import BeamSearch, DecodedCaptions
from finetune.models.heads.captioner import CAPTIONER, CaptionerArguments
from finetune.models.heads.head import Assets, LossTerms
from finetune.text.caption import Caption
from finetune.text.vocabulary import PAD, START, UNKNOWN, Vocabulary
from zoo.errors import InvalidArgument

# Images are captioned in batches of these sizes, padded: a fixed set of shapes means a fixed set of traces.
BATCH_SIZES = (1, 8, 32)
_LOSS_BATCH = 64  # rows in a batch of `evaluate`'s perplexity


class CaptionerLayer(keras.layers.Layer):
    """The captioner head: a HeadLayer (finetune.models.heads.head). Make it with `CAPTIONER.build`.

    `seed_generators` hold the state of dropout: a Checkpoint must name every one, or resuming isn't exact.
    """

    def __init__(self, *, arguments: CaptionerArguments, vocabulary: Vocabulary, seed: int, name: str) -> None:
        super().__init__(name=name)
        self.arguments = arguments
        self.vocabulary = vocabulary
        initializer = keras.initializers.GlorotUniform
        self.image_embedding = keras.layers.Dense(
            arguments.embedding, kernel_initializer=initializer(seed=seed), name="image_embedding"
        )
        self.word_embedding = keras.layers.Embedding(
            len(vocabulary),
            arguments.embedding,
            embeddings_initializer=keras.initializers.RandomUniform(-0.08, 0.08, seed=seed + 1),
            name="word_embedding",
        )
        self.lstm = keras.layers.LSTMCell(
            arguments.units,
            kernel_initializer=initializer(seed=seed + 2),
            recurrent_initializer=keras.initializers.Orthogonal(seed=seed + 3),
            name="lstm",
        )
        self.output_projection = keras.layers.Dense(
            len(vocabulary), kernel_initializer=initializer(seed=seed + 4), name="output"
        )
        self.word_bag: keras.layers.Dense | None = None
        if arguments.word_bag:
            self.word_bag = keras.layers.Dense(
                len(vocabulary), kernel_initializer=initializer(seed=seed + 6), name="word_bag"
            )
        self._dropout_seed = keras.random.SeedGenerator(seed=seed + 5)
        self._beam_search = BeamSearch(self)

    @property
    def seed_generators(self) -> list[keras.random.SeedGenerator]:
        return [self._dropout_seed]

    @property
    def decoding_traces(self) -> int:
        """How many beam search graphs were made: one for each pair of batch and beam size."""
        return self._beam_search.traces

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the variables: `image_embedding/kernel` and so on, below the layer's own name."""
        arguments = self.arguments
        self.image_embedding.build((None, input_shape[-1]))
        self.word_embedding.build((None, None))
        self.lstm.build((None, arguments.embedding))
        self.output_projection.build((None, arguments.units))
        if self.word_bag is not None:
            self.word_bag.build((None, arguments.embedding))
        self.feature_dim = input_shape[-1] or 0
        self.built = True

    # The step, shared by training and decoding.

    def embed_image(self, feature_BD: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        """The LSTM's first input, [B, E]."""
        feature_BD = tf.cast(feature_BD, tf.float32)
        if self.arguments.normalise_features == "l2":
            feature_BD = tf.math.l2_normalize(feature_BD, axis=-1) * math.sqrt(self.feature_dim)
        elif self.arguments.normalise_features == "standard":
            mean_B1, variance_B1 = tf.nn.moments(feature_BD, axes=[-1], keepdims=True)
            feature_BD = (feature_BD - mean_B1) * tf.math.rsqrt(variance_B1 + 1e-6)
        feature_BD = self._drop(feature_BD, self.arguments.feature_dropout, training)
        return self.image_embedding(feature_BD)

    def embed_words(self, words: tf.Tensor) -> tf.Tensor:
        """Embeddings [..., E] of word numbers [...]."""
        return _rows(tf.convert_to_tensor(self.word_embedding.embeddings), words)

    def input_gates(self, inputs: tf.Tensor) -> tf.Tensor:
        """[..., E] → [..., 4U]: the inputs' share of the four gates, for any number of steps in one product."""
        return tf.tensordot(inputs, tf.convert_to_tensor(self.lstm.kernel), axes=1) + tf.convert_to_tensor(
            self.lstm.bias
        )

    def recur(self, gates_N4U: tf.Tensor, h_NU: tf.Tensor, c_NU: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One LSTM step: (h, c) from the inputs' share of the gates, in Keras' order: input, forget, cell, output."""
        gates_N4U = gates_N4U + tf.matmul(h_NU, tf.convert_to_tensor(self.lstm.recurrent_kernel))
        input_NU, forget_NU, cell_NU, output_NU = tf.split(gates_N4U, 4, axis=-1)
        c_NU = tf.sigmoid(forget_NU) * c_NU + tf.sigmoid(input_NU) * tf.tanh(cell_NU)
        return tf.sigmoid(output_NU) * tf.tanh(c_NU), c_NU

    def logits(self, h_NU: tf.Tensor) -> tf.Tensor:
        """Logits [N, V] over the vocabulary, specials included."""
        return self.output_projection(h_NU)

    def start(self, feature_BD: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """State (h, c) [B, U] of an LSTM that has seen the images and nothing else."""
        zero_BU = tf.zeros([tf.shape(feature_BD)[0], self.arguments.units])
        return self.recur(self.input_gates(self.embed_image(feature_BD)), zero_BU, zero_BU)

    # Training.

    def loss(self, features: Mapping[str, Any], targets: Mapping[str, Any], *, training: bool) -> LossTerms:
        """Sums of cross-entropies over words and end tokens, and their number.

        Args:
            features: {"feature_vector": float [B, D]}, one view of each row's image.
            targets: {"tokens": int32 [B, T] (words, END, PAD …), "weight": float [B]}. T may be any; work stops at the
                batch's longest caption, without another trace.
            training: dropout, word dropout and label smoothing on. Without it exp(loss_sum / weight_sum) is the
                perplexity a word, end token included.
        """
        tokens_BT = tf.cast(targets["tokens"], tf.int32)
        longest = tf.reduce_max(tf.reduce_sum(tf.cast(tokens_BT != PAD, tf.int32), axis=1))
        tokens_BT = tokens_BT[:, : tf.maximum(longest, 1)]
        image_BE = self.embed_image(features["feature_vector"], training=training)
        h_BTU = self._teacher_forced(image_BE, tokens_BT, training=training)

        real_BT = tokens_BT != PAD
        word_N = tf.boolean_mask(tokens_BT, real_BT)  # only real words meet the output layer, half of the work saved
        weight_BT = tf.cast(targets["weight"], tf.float32)[:, tf.newaxis] * tf.ones(tf.shape(tokens_BT))
        weight_N = tf.boolean_mask(weight_BT, real_BT)
        h_NU = self._drop(tf.boolean_mask(h_BTU, real_BT), self.arguments.output_dropout, training)
        logits_NV = self.logits(h_NU)

        with tf.name_scope("loss"):
            entropy_N = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=word_N, logits=logits_NV)
        loss_sum = tf.reduce_sum(weight_N * entropy_N)
        weight_sum = tf.reduce_sum(weight_N)
        right_N = tf.cast(tf.argmax(logits_NV, axis=-1, output_type=tf.int32) == word_N, tf.float32)
        # In training the loss may hold more: by `cross_entropy`, training and validation can be compared.
        metrics = {
            "word_accuracy": (tf.reduce_sum(weight_N * right_N), weight_sum),
            "cross_entropy": (loss_sum, weight_sum),
        }
        if training and self.word_bag is not None:
            bag_BV = self.word_bag(self._drop(image_BE, self.arguments.embedding_dropout, training))
            log_BT = tf.gather(tf.nn.log_softmax(bag_BV), tokens_BT, batch_dims=1)
            bag_sum = -tf.reduce_sum(tf.boolean_mask(log_BT, real_BT) * weight_N)
            metrics["word_bag"] = (bag_sum, weight_sum)
        if training and self.arguments.label_smoothing:
            smoothing = self.arguments.label_smoothing
            uniform_N = tf.reduce_logsumexp(logits_NV, axis=-1) - tf.reduce_mean(logits_NV, axis=-1)
            loss_sum = (1 - smoothing) * loss_sum + smoothing * tf.reduce_sum(weight_N * uniform_N)
        if training and self.word_bag is not None:
            loss_sum += self.arguments.word_bag * bag_sum
        return LossTerms(loss_sum=loss_sum, weight_sum=weight_sum, metrics=metrics)

    def _teacher_forced(self, image_BE: tf.Tensor, tokens_BT: tf.Tensor, *, training: bool) -> tf.Tensor:
        """Outputs [B, T, U]: entry t has seen the image, <s> and the words before t, and predicts word t."""
        shifted_BT = tf.concat([tf.fill([tf.shape(tokens_BT)[0], 1], START), tokens_BT[:, :-1]], axis=1)
        if training and self.arguments.word_dropout:
            chance_BT = keras.random.uniform(tf.shape(shifted_BT), seed=self._dropout_seed)
            hidden_BT = (chance_BT < self.arguments.word_dropout) & (shifted_BT != START)
            shifted_BT = tf.where(hidden_BT, UNKNOWN, shifted_BT)
        words_TBE = tf.transpose(self.embed_words(shifted_BT), [1, 0, 2])  # (not the numbers: oneDNN grumbles at int32)
        inputs_SBE = tf.concat([image_BE[tf.newaxis], words_TBE], axis=0)  # S = T + 1 steps
        inputs_SBE = self._drop(inputs_SBE, self.arguments.embedding_dropout, training)
        return tf.transpose(self._unroll(self.input_gates(inputs_SBE))[1:], [1, 0, 2])

    def _unroll(self, gates_SB4U: tf.Tensor) -> tf.Tensor:
        """The recurrence over S steps: outputs [S, B, U]."""
        steps = tf.shape(gates_SB4U)[0]
        batch = tf.shape(gates_SB4U)[1]
        units = self.arguments.units
        gates = tf.TensorArray(tf.float32, size=steps, element_shape=[None, 4 * units]).unstack(gates_SB4U)
        outputs = tf.TensorArray(tf.float32, size=steps, element_shape=[None, units])

        def step(s: tf.Tensor, h_BU: tf.Tensor, c_BU: tf.Tensor, outputs: tf.TensorArray) -> tuple[Any, ...]:
            h_BU, c_BU = self.recur(gates.read(s), h_BU, c_BU)
            return s + 1, h_BU, c_BU, outputs.write(s, h_BU)

        zero_BU = tf.zeros([batch, units])
        *_, outputs = tf.while_loop(lambda s, *_: s < steps, step, (0, zero_BU, zero_BU, outputs))
        return outputs.stack()

    def _drop(self, values: tf.Tensor, share: float, training: bool) -> tf.Tensor:
        return keras.random.dropout(values, share, seed=self._dropout_seed) if training and share else values

    # Captions.

    def decode(
        self,
        feature_BD: tf.Tensor,
        *,
        beam_size: int | None = None,
        max_words: int | None = None,
        length_penalty: float | None = None,
    ) -> DecodedCaptions:
        """Beam search (finetune.models.decoding). What isn't given is the head's own argument."""
        return self._beam_search(
            feature_BD,
            beam_size=self.arguments.beam_size if beam_size is None else beam_size,
            max_words=self.arguments.max_words if max_words is None else max_words,
            length_penalty=self.arguments.length_penalty if length_penalty is None else length_penalty,
        )

    def compile_decoding(self) -> None:
        """Half a second for faster captions of single images with the head's own beam, length and α."""
        self._beam_search.compile(
            self.feature_dim,
            beam_size=self.arguments.beam_size,
            max_words=self.arguments.max_words,
            length_penalty=self.arguments.length_penalty,
        )

    def captions(
        self, features: np.ndarray, *, beam_size: int | None = None, max_words: int | None = None
    ) -> list[list[Caption]]:
        """Captions of images, best first, at most `beam_size` each and at least one.

        Args:
            features: float [N, D].

        A caption that was cut off at `max_words` is among them only when no beam ended by then.
        """
        features = np.asarray(features, np.float32)
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise InvalidArgument(f"expected features [N, {self.feature_dim}], got {list(features.shape)}")
        result: list[list[Caption]] = []
        for start, stop, size in _batches(len(features)):
            batch_BD = np.zeros((size, features.shape[1]), np.float32)
            batch_BD[: stop - start] = features[start:stop]
            decoded = self.decode(tf.constant(batch_BD), beam_size=beam_size, max_words=max_words)
            result.extend(self._texts(decoded, stop - start))
        return result

    def _texts(self, decoded: DecodedCaptions, count: int) -> list[list[Caption]]:
        tokens_BKT, log_probs_BK = decoded.tokens_BKT.numpy(), decoded.log_probs_BK.numpy()
        lengths_BK, finished_BK = decoded.lengths_BK.numpy(), decoded.finished_BK.numpy()
        result = []
        for b in range(count):
            beams = [k for k in range(tokens_BKT.shape[1]) if np.isfinite(log_probs_BK[b, k])]
            ended = [k for k in beams if finished_BK[b, k]]
            result.append(
                [
                    Caption(
                        text=self.vocabulary.text(tokens_BKT[b, k, : lengths_BK[b, k]].tolist()),
                        log_prob=float(log_probs_BK[b, k]),
                        finished=bool(finished_BK[b, k]),
                    )
                    for k in ended or beams
                ]
            )
        return result

    def sample_texts(self, features: np.ndarray) -> list[str]:
        """The best caption of each image of a sample, for people; features [N, D]."""
        return [beams[0].text for beams in self.captions(features)]

    # Metrics.

    def evaluate(self, features: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
        """Metrics of the best caption of each image against all its captions.

        Args:
            features: float [N, D], one row an example.

        Returns:
            `caption_metrics` plus `perplexity` (a word, end token included, under teacher forcing; a word outside the
            vocabulary counts as <unk>), `distinct_captions` and `finished_captions` (shares), and `bleu_cider`, the
            geometric mean of `bleu_4` and `cider`: to choose the best step by, since either alone leaps about on a
            hundred photos and the loss is at its best long before the captions are.
        """
        if len(features) != len(examples):
            raise InvalidArgument(f"got features of {len(features)} images for {len(examples)} examples")
        captions = [beams[0] for beams in self.captions(features)]
        texts = [caption.text for caption in captions]
        metrics: dict[str, Any] = caption_metrics(texts, [list(example.captions) for example in examples])
        distinct = len(set(texts)) / len(texts)
        metrics["bleu_cider"] = math.sqrt(metrics["bleu_4"] * metrics["cider"])
        metrics["perplexity"] = self._perplexity(features, examples)
        metrics["distinct_captions"] = distinct
        used = {word for text in texts for word in self.vocabulary.cutter.tokenize(text)}
        metrics["vocabulary_used"] = len(used & set(self.vocabulary.words)) / len(self.vocabulary.words)
        metrics["captions"] = texts  # no metric: whoever asked takes them out
        metrics["finished_captions"] = sum(caption.finished for caption in captions) / len(captions)
        if distinct < 0.05 and len(texts) > 1:
            metrics["warnings"].append(
                f"only {len(set(texts))} different captions for {len(texts)} images ({distinct:.1%}): "
                "the captioner hardly looks at the image"
            )
        return metrics

    def _perplexity(self, features: np.ndarray, examples: Sequence[Example]) -> float:
        assets = Assets(files=self.vocabulary.to_files())
        table = CAPTIONER.targets(examples, self.arguments, assets)
        tokens_NT = table.arrays["tokens"]
        order = np.argsort((tokens_NT != PAD).sum(axis=1), kind="stable")  # like lengths together: less padding
        total, words = 0.0, 0.0
        for start in range(0, len(order), _LOSS_BATCH):
            rows = order[start : start + _LOSS_BATCH]
            weight_B = np.zeros(_LOSS_BATCH, np.float32)
            weight_B[: len(rows)] = 1
            rows = np.concatenate([rows, np.full(_LOSS_BATCH - len(rows), rows[0])])
            loss_sum, weight_sum = self._plain_loss(
                np.asarray(features[table.image_index[rows]], np.float32), tokens_NT[rows], weight_B
            )
            total, words = total + float(loss_sum), words + float(weight_sum)
        return math.exp(min(total / words, 700.0))

    @tf.function(reduce_retracing=True)
    def _plain_loss(
        self, feature_BD: tf.Tensor, tokens_BT: tf.Tensor, weight_B: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        terms = self.loss({"feature_vector": feature_BD}, {"tokens": tokens_BT, "weight": weight_B}, training=False)
        return terms.loss_sum, terms.weight_sum


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


@tf.custom_gradient
def _rows(table_VE: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """`tf.gather` with a dense gradient.

    A sparse one (IndexedSlices) would make every optimizer, clip and all-reduce a case of its own: Adam's moments of
    words that a batch doesn't hold would not decay.
    """
    size = tf.shape(table_VE)[0]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        flat_NE = tf.reshape(upstream, [-1, table_VE.shape[-1]])
        return tf.math.unsorted_segment_sum(flat_NE, tf.reshape(indices, [-1]), size), None

    return tf.gather(table_VE, indices), gradient
