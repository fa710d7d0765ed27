"""CaptionerLayer: the variables of a captioner and the step from one word to the next.

Takes what a head reads of images (finetune.models.feature_row), and in training target rows. Gives losses, captions and
metrics. Next: `finetune.models.heads.captioner_loss` (training), `captioner_speech` (captions), `captioner_scores`.

    feature vector ── image_embedding ──▶ the first input (Show and Tell, arXiv:1411.4555; it predicts nothing),
                                          or the initial state
    feature map ───── (attention) ──────▶ every step
    <s>, word 1, … ── word_embedding ───▶ decoder steps ── output ──▶ word 1, word 2, …, </s>

    in training also: the image's embedding ── word_bag ──▶ the caption's words, in any order

Training, sampling, beam search and explanations share `start`, `advance` and `logits`; only the loop round them
differs. Captions don't need `word_bag`; it is published with the rest, so that training can go on from a version as it
was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.source import Example
from finetune.models.decoders.attention import Memory
from finetune.models.decoders.cells import State
from finetune.models.decoders.decoder import Decoder, PlainDecoder, SoftDecoder, Step, TopDownDecoder
from finetune.models.decoders.words import TiedOutput, rows
from finetune.models.decoding import DecodedCaptions
from finetune.models.decoding_options import DecodingRequest
from finetune.models.feature_row import FeatureRow
from finetune.models.heads.captioner import CaptionerArguments
from finetune.models.heads.captioner_loss import CaptionLoss
from finetune.models.heads.captioner_scores import CaptionScores
from finetune.models.heads.captioner_speech import BATCH_SIZES, Explanation, Speech
from finetune.models.heads.head import LossTerms
from finetune.models.heads.self_critical import SelfCritic
from finetune.models.word_vectors import WordVectors
from finetune.text.caption import Caption
from finetune.text.vocabulary import SPECIALS, Vocabulary

__all__ = ["BATCH_SIZES", "CaptionerLayer"]


class CaptionerLayer(keras.layers.Layer):
    """The captioner head: a HeadLayer (finetune.models.heads.head). Make it with `CAPTIONER.build`.

    `seed_generators` hold the state of dropout: a Checkpoint must name every one, or resuming isn't exact.
    """

    def __init__(
        self, *, arguments: CaptionerArguments, vocabulary: Vocabulary, row: FeatureRow, seed: int, name: str
    ) -> None:
        super().__init__(name=name)
        self.arguments = arguments
        self.vocabulary = vocabulary
        self.row = row
        self.seed = seed
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
        self.decoder = _decoder(arguments, seed)
        self.decoder_layers = self.decoder.layers
        self.output_projection = _output(arguments, len(vocabulary), seed + 4)
        self.word_bag: keras.layers.Dense | None = None
        if arguments.word_bag:
            self.word_bag = keras.layers.Dense(
                len(vocabulary), kernel_initializer=initializer(seed=seed + 6), name="word_bag"
            )
        self.initial_state: list[keras.layers.Dense] = []
        if arguments.image_as == "initial_state":
            self.initial_state = [
                keras.layers.Dense(
                    size,
                    activation="tanh",
                    kernel_initializer=initializer(seed=seed + 30 + place),
                    name=f"initial_state_{place}",
                )
                for place, size in enumerate(self.decoder.state_sizes)
            ]
        self.dropout_seed = keras.random.SeedGenerator(seed=seed + 5)
        self._loss = CaptionLoss(self)
        self._speech = Speech(self)
        self._scores = CaptionScores(self)
        self._critic = SelfCritic(self)

    @property
    def seed_generators(self) -> list[keras.random.SeedGenerator]:
        return [self.dropout_seed]

    @property
    def decoding_traces(self) -> int:
        """How many decoding graphs were made; see BeamSearch and Sampler for what makes another."""
        return self._speech.traces

    @property
    def places(self) -> int | None:
        """R, of a captioner that looks at places of the image."""
        return self.row.map_shape[0] * self.row.map_shape[1] if self.row.map_shape else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the variables: `image_embedding/kernel` and so on, below the layer's own name."""
        arguments = self.arguments
        self.image_embedding.build((None, input_shape[-1]))
        self.word_embedding.build((None, None))
        self.decoder.build(channels=self.row.map_shape[2] if self.row.map_shape else None)
        self.output_projection.build((None, arguments.units))
        if self.word_bag is not None:
            self.word_bag.build((None, arguments.embedding))
        for layer in self.initial_state:
            layer.build((None, arguments.embedding))
        if arguments.initial_scale is not None:
            for place, weight in enumerate(self.trainable_weights):
                if len(weight.shape) >= 2:
                    scale, seed = arguments.initial_scale, self.seed + 100 + place
                    weight.assign(keras.initializers.RandomUniform(-scale, scale, seed=seed)(weight.shape))
        self.built = True

    def start_from_word_vectors(self, given: WordVectors) -> None:
        """Puts pretrained vectors into the embeddings of the words that have one."""
        embedding_VE = self.word_embedding.embeddings.numpy()
        embedding_VE[len(SPECIALS) :][given.found] = given.vectors[given.found]
        self.word_embedding.embeddings.assign(embedding_VE)

    # The step, shared by training and decoding.

    def embed_image(self, feature_BD: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        """The image's embedding, [B, E]."""
        feature_BD = self._normalised(feature_BD, self.row.vector_size)
        feature_BD = self.drop(feature_BD, self.arguments.feature_dropout, training)
        return self.image_embedding(feature_BD)

    def look(self, features: Mapping[str, Any], image_BE: tf.Tensor, *, training: bool = False) -> Memory:
        """What the decoder computes once an image, of `row.split(features)`."""
        place_BRC = None
        if self.row.map_shape is not None:
            height, width, channels = self.row.map_shape
            place_BRC = tf.reshape(features["feature_map"], [-1, height * width, channels])
            place_BRC = self._normalised(place_BRC, channels)
            place_BRC = self.drop(place_BRC, self.arguments.feature_dropout, training)
        return self.decoder.memory(
            image_BE, place_BRC, lambda values: self.drop(values, self.arguments.embedding_dropout, training)
        )

    def embed_words(self, words: tf.Tensor) -> tf.Tensor:
        """Embeddings [..., E] of word numbers [...]."""
        return rows(tf.convert_to_tensor(self.word_embedding.embeddings), words)

    def begin(self, image_BE: tf.Tensor) -> State:
        """State of a decoder that has read nothing: zeros, or what the image says."""
        if self.initial_state:
            return tuple(layer(image_BE) for layer in self.initial_state)
        return tuple(tf.zeros([tf.shape(image_BE)[0], size]) for size in self.decoder.state_sizes)

    def start(self, row_BX: tf.Tensor) -> tuple[State, Memory]:
        """State before <s>, and the memory, of what the head reads of images."""
        return self.start_of(self.row.split({"feature_vector": tf.cast(row_BX, tf.float32)}))

    def start_of(self, features: Mapping[str, Any]) -> tuple[State, Memory]:
        """`start` of `row.split(features)`."""
        image_BE = self.embed_image(features["feature_vector"])
        memory = self.look(features, image_BE)
        state = self.begin(image_BE)
        if self.arguments.image_as == "first_input":
            state = self.decoder.step(self.decoder.inputs(image_BE), state, memory).state
        return state, memory

    def advance(self, word_N: tf.Tensor, state: State, memory: Memory) -> Step:
        """One step of N rows, outside training."""
        return self.decoder.step(self.decoder.inputs(self.embed_words(word_N)), state, memory)

    def logits(self, output_NU: tf.Tensor) -> tf.Tensor:
        """Logits [N, V] over the vocabulary, specials included."""
        if isinstance(self.output_projection, TiedOutput):
            return self.output_projection.logits(output_NU, tf.convert_to_tensor(self.word_embedding.embeddings))
        return self.output_projection(output_NU)

    def drop(self, values: tf.Tensor, share: float, training: bool) -> tf.Tensor:
        """Dropout, in training."""
        return keras.random.dropout(values, share, seed=self.dropout_seed) if training and share else values

    def _normalised(self, values: tf.Tensor, size: int) -> tf.Tensor:
        """Each feature vector by itself."""
        values = tf.cast(values, tf.float32)
        if self.arguments.normalise_features == "l2":
            return tf.math.l2_normalize(values, axis=-1) * math.sqrt(size)
        if self.arguments.normalise_features == "standard":
            mean, variance = tf.nn.moments(values, axes=[-1], keepdims=True)
            return (values - mean) * tf.math.rsqrt(variance + 1e-6)
        return values

    # What a HeadLayer does.

    def follow_steps(self, global_step: Any) -> None:
        """Scheduled sampling grows with it; self-critical training begins by it."""
        self._loss.follow(global_step)
        self._critic.follow(global_step)

    def learn_from(self, examples: Sequence[Example]) -> None:
        """The training split, whose captions drawn ones are compared with."""
        if self.arguments.self_critical_from is not None:
            self._critic.learn_from(examples)

    def loss(self, features: Mapping[str, Any], targets: Mapping[str, Any], *, training: bool) -> LossTerms:
        """Sums of cross-entropies over words and end tokens, and their number.

        Args:
            features: {"feature_vector": float [B, X]}, one view of each row's image (finetune.models.feature_row).
            targets: {"tokens": int32 [B, T] (words, END, PAD …), "weight": float [B]}. T may be any; work stops at the
                batch's longest caption, without another trace.
            training: dropout, word dropout, label smoothing, scheduled sampling and the losses beside the words' own
                on. Without it exp(loss_sum / weight_sum) is the perplexity a word, end token included.
        """
        features = self.row.split(features)
        terms = self._loss.terms(features, targets, training=training)
        if training and self.arguments.self_critical_from is not None:
            return self._critic.instead(terms, features, targets)
        return terms

    def word_loss(self, features: Mapping[str, Any], targets: Mapping[str, Any]) -> LossTerms:
        """The words' own loss of `row.split(features)`: no dropout, nothing beside it."""
        return self._loss.terms(features, targets, training=False)

    def decode(self, row_BX: tf.Tensor, request: DecodingRequest | None = None, **wanted: Any) -> DecodedCaptions:
        """Captions of images as numbers (finetune.models.decoding). What isn't asked for, by a DecodingRequest or its
        fields as keywords, is the head's own argument. Raises InvalidDecoding."""
        return self._speech.decode(row_BX, request or DecodingRequest(**wanted))

    def compile_decoding(self) -> None:
        """Half a second for faster captions of single images as the head by itself finds them."""
        self._speech.compile()

    def captions(
        self, features: np.ndarray, request: DecodingRequest | None = None, **wanted: Any
    ) -> list[list[Caption]]:
        """Captions of images, best first, at most `beam_size` each and at least one.

        Args:
            features: float [N, X], what the head reads of each image.
            request, wanted: see `decode`.

        A caption that was cut off at `max_words` is among them only when no beam ended by then.
        """
        return self._speech.captions(features, request or DecodingRequest(**wanted))

    def explain(self, features: np.ndarray, request: DecodingRequest | None = None, **wanted: Any) -> list[Explanation]:
        """How the best caption of each image came about, word by word; arguments as `captions` takes them."""
        return self._speech.explain(features, request or DecodingRequest(**wanted))

    def sample_texts(self, features: np.ndarray) -> list[str]:
        """The best caption of each image of a sample, for people; features [N, X]."""
        return [beams[0].text for beams in self.captions(features)]

    def evaluate(self, features: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
        """Metrics of the best caption of each image against all its captions; see CaptionScores."""
        return self._scores.of(features, examples)


def _decoder(arguments: CaptionerArguments, seed: int) -> Decoder:
    if arguments.attention == "none":
        return PlainDecoder(
            cell=arguments.cell,
            embedding=arguments.embedding,
            units=arguments.units,
            layer_norm=arguments.layer_norm,
            seed=seed,
        )
    attending = SoftDecoder if arguments.attention == "soft" else TopDownDecoder
    return attending(
        cell=arguments.cell,
        embedding=arguments.embedding,
        units=arguments.units,
        attention=arguments.attention_units,
        layer_norm=arguments.layer_norm,
        seed=seed,
    )


def _output(arguments: CaptionerArguments, words: int, seed: int) -> keras.layers.Layer:
    initializer = keras.initializers.GlorotUniform(seed=seed)
    if arguments.tie_embeddings:
        return TiedOutput(words=words, embedding=arguments.embedding, kernel_initializer=initializer, name="output")
    return keras.layers.Dense(words, kernel_initializer=initializer, name="output")
