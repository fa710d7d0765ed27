"""The loss of captions under teacher forcing, and the recurrence that it is taken over.

Takes a captioner, images and target rows. Gives LossTerms. Next: `finetune.training.trainer`.

A row's weight multiplies its words' losses and counts in the mean. So a weight may also be a reward: what self-critical
training (arXiv:1612.00563) wants is this loss of drawn captions, each weighed by how much better than the others it is.

Shapes: B rows, T words with the end token, S inputs (T, or T + 1 where the image is the first), N real words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from finetune.models.decoders.attention import Memory, unevenness
from finetune.models.decoders.cells import State
from finetune.models.heads.head import LossTerms
from finetune.text.vocabulary import PAD, START, UNKNOWN

if TYPE_CHECKING:
    from finetune.models.heads.captioner_layer import CaptionerLayer

_IMPOSSIBLE = -1e9  # logit of what is never drawn as an input


class CaptionLoss:
    def __init__(self, layer: CaptionerLayer) -> None:
        self._layer = layer
        self._global_step: Any = tf.constant(0, tf.int64)

    def follow(self, global_step: Any) -> None:
        self._global_step = global_step

    def terms(self, features: Mapping[str, Any], targets: Mapping[str, Any], *, training: bool) -> LossTerms:
        """See `CaptionerLayer.loss`; `features` are parted into vector and map."""
        layer, arguments = self._layer, self._layer.arguments
        tokens_BT = tf.cast(targets["tokens"], tf.int32)
        longest = tf.reduce_max(tf.reduce_sum(tf.cast(tokens_BT != PAD, tf.int32), axis=1))
        tokens_BT = tokens_BT[:, : tf.maximum(longest, 1)]
        image_BE = layer.embed_image(features["feature_vector"], training=training)
        memory = layer.look(features, image_BE, training=training)
        output_BTU, looked_BTR = self._outputs(image_BE, memory, tokens_BT, training=training)

        real_BT = tokens_BT != PAD
        word_N = tf.boolean_mask(tokens_BT, real_BT)  # only real words meet the output layer, half of the work saved
        weight_B = tf.cast(targets["weight"], tf.float32)
        weight_N = tf.boolean_mask(weight_B[:, tf.newaxis] * tf.ones(tf.shape(tokens_BT)), real_BT)
        output_NU = layer.drop(tf.boolean_mask(output_BTU, real_BT), arguments.output_dropout, training)
        logits_NV = layer.logits(output_NU)

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
        if training and layer.word_bag is not None:
            bag_BV = layer.word_bag(layer.drop(image_BE, arguments.embedding_dropout, training))
            log_BT = tf.gather(tf.nn.log_softmax(bag_BV), tokens_BT, batch_dims=1)
            bag_sum = -tf.reduce_sum(tf.boolean_mask(log_BT, real_BT) * weight_N)
            metrics["word_bag"] = (bag_sum, weight_sum)
        if training and looked_BTR is not None and arguments.attention_regulariser:
            words_B = tf.reduce_sum(tf.cast(real_BT, tf.float32), axis=1)
            uneven_sum = tf.reduce_sum(weight_B * words_B * unevenness(looked_BTR, real_BT))
            metrics["attention_unevenness"] = (uneven_sum, weight_sum)
        if training and arguments.label_smoothing:
            smoothing = arguments.label_smoothing
            uniform_N = tf.reduce_logsumexp(logits_NV, axis=-1) - tf.reduce_mean(logits_NV, axis=-1)
            loss_sum = (1 - smoothing) * loss_sum + smoothing * tf.reduce_sum(weight_N * uniform_N)
        if "word_bag" in metrics:
            loss_sum += arguments.word_bag * bag_sum
        if "attention_unevenness" in metrics:
            loss_sum += arguments.attention_regulariser * uneven_sum
        return LossTerms(loss_sum=loss_sum, weight_sum=weight_sum, metrics=metrics)

    def _outputs(
        self, image_BE: tf.Tensor, memory: Memory, tokens_BT: tf.Tensor, *, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Outputs [B, T, U] and, of a decoder that looks, weights [B, T, R]: entry t has seen the image, <s> and the
        words before t, and predicts word t."""
        layer, arguments = self._layer, self._layer.arguments
        shifted_BT = tf.concat([tf.fill([tf.shape(tokens_BT)[0], 1], START), tokens_BT[:, :-1]], axis=1)
        if training and arguments.word_dropout:
            chance_BT = keras.random.uniform(tf.shape(shifted_BT), seed=layer.dropout_seed)
            hidden_BT = (chance_BT < arguments.word_dropout) & (shifted_BT != START)
            shifted_BT = tf.where(hidden_BT, UNKNOWN, shifted_BT)
        state = layer.begin(image_BE)
        if training and arguments.scheduled_sampling:
            outputs_TBU, looked_TBR = self._partly_own(image_BE, shifted_BT, state, memory)
        else:
            inputs_SBE = tf.transpose(layer.embed_words(shifted_BT), [1, 0, 2])  # (not the numbers: oneDNN grumbles)
            first = int(arguments.image_as == "first_input")
            if first:
                inputs_SBE = tf.concat([image_BE[tf.newaxis], inputs_SBE], axis=0)
            inputs_SBE = layer.drop(inputs_SBE, arguments.embedding_dropout, training)
            outputs_SBU, looked_SBR = self._unroll(layer.decoder.inputs(inputs_SBE), state, memory)
            outputs_TBU = outputs_SBU[first:]
            looked_TBR = None if looked_SBR is None else looked_SBR[first:]
        looked_BTR = None if looked_TBR is None else tf.transpose(looked_TBR, [1, 0, 2])
        return tf.transpose(outputs_TBU, [1, 0, 2]), looked_BTR

    def _unroll(self, gates_SBG: tf.Tensor, state: State, memory: Memory) -> tuple[tf.Tensor, tf.Tensor | None]:
        """The recurrence over S steps whose words are known: outputs [S, B, U] and weights [S, B, R]."""
        steps = tf.shape(gates_SBG)[0]
        gates = tf.TensorArray(tf.float32, size=steps, element_shape=[None, gates_SBG.shape[-1]]).unstack(gates_SBG)

        def step(s: tf.Tensor, state: State, written: tuple[tf.TensorArray, ...]) -> tuple[Any, ...]:
            done = self._layer.decoder.step(gates.read(s), state, memory)
            return s + 1, done.state, _write(written, s, done.output_NU, done.weights_NR)

        *_, written = tf.while_loop(lambda s, *_: s < steps, step, (0, state, self._arrays(steps)))
        return _stacked(written)

    def _partly_own(
        self, image_BE: tf.Tensor, shifted_BT: tf.Tensor, state: State, memory: Memory
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """The recurrence with scheduled sampling (Bengio et al. 2015, arXiv:1506.03099): an input word is, by a share
        that grows with global_step, one drawn from what the step before predicted. Draws depend on (seed, global_step)
        alone, so that a run that is resumed draws the same."""
        layer, arguments = self._layer, self._layer.arguments
        batch, steps = tf.shape(shifted_BT)[0], tf.shape(shifted_BT)[1]
        now = tf.cast(tf.convert_to_tensor(self._global_step), tf.int64)
        grown = tf.cast(now, tf.float32) / arguments.scheduled_sampling_steps
        share = arguments.scheduled_sampling * tf.minimum(grown, 1.0)
        seed_2 = tf.stack([tf.constant(layer.seed, tf.int64), now])
        own_TB = tf.random.stateless_uniform([steps, batch], seed_2) < share
        ones_SBE = tf.ones([steps + 1, batch, arguments.embedding])
        kept_SBE = layer.drop(ones_SBE, arguments.embedding_dropout, True)
        if arguments.image_as == "first_input":
            state = layer.decoder.step(layer.decoder.inputs(image_BE * kept_SBE[0]), state, memory).state
        shifted_TB = tf.transpose(shifted_BT)
        words = len(layer.vocabulary)
        never_V = tf.where((tf.range(words) == PAD) | (tf.range(words) == START), _IMPOSSIBLE, 0.0)

        def step(t: tf.Tensor, drawn_B: tf.Tensor, state: State, written: Any) -> tuple[Any, ...]:
            word_B = tf.where(own_TB[t] & (t > 0), drawn_B, shifted_TB[t])
            gates_BG = layer.decoder.inputs(layer.embed_words(word_B) * kept_SBE[t + 1])
            done = layer.decoder.step(gates_BG, state, memory)
            logits_BV = tf.stop_gradient(layer.logits(done.output_NU)) + never_V
            seed = tf.random.experimental.stateless_fold_in(seed_2, t + 1)
            drawn_B1 = tf.random.stateless_categorical(logits_BV, 1, seed, dtype=tf.int32)
            return t + 1, drawn_B1[:, 0], done.state, _write(written, t, done.output_NU, done.weights_NR)

        loop = (0, tf.fill([batch], START), state, self._arrays(steps))
        *_, written = tf.while_loop(lambda t, *_: t < steps, step, loop)
        return _stacked(written)

    def _arrays(self, steps: tf.Tensor) -> tuple[tf.TensorArray, ...]:
        """Of outputs and, if the decoder looks, of weights."""
        layer = self._layer
        sizes = [layer.arguments.units] + ([layer.places] if layer.decoder.attends else [])
        return tuple(tf.TensorArray(tf.float32, size=steps, element_shape=[None, size]) for size in sizes)


def _write(
    written: tuple[tf.TensorArray, ...], place: tf.Tensor, output_BU: tf.Tensor, weights_BR: tf.Tensor | None
) -> tuple[tf.TensorArray, ...]:
    values = [output_BU] if weights_BR is None else [output_BU, weights_BR]
    return tuple(array.write(place, value) for array, value in zip(written, values, strict=True))


def _stacked(written: tuple[tf.TensorArray, ...]) -> tuple[tf.Tensor, tf.Tensor | None]:
    outputs, *weights = [array.stack() for array in written]
    return outputs, weights[0] if weights else None
