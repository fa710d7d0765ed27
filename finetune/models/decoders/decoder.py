"""Decoders: the step from one word to the next, one and the same in training, sampling and beam search.

Takes an image's embedding and its places, then words. Gives outputs that predict the next word. Next:
`finetune.models.heads.captioner_layer`, which owns the words; `finetune.models.decoding`.

| decoder | `attention` | what happens in a step |
|---|---|---|
| PlainDecoder | none | cell(word) (Show and Tell, arXiv:1411.4555) |
| SoftDecoder | soft | look by the state before, cell(word, gathered) (Show, Attend and Tell, arXiv:1502.03044) |
| TopDownDecoder | top_down | cell 1(word, image, state 2), look by it, cell 2(gathered, state 1) (arXiv:1707.07998) |

A state is a tuple of tensors [N, U]; what is computed once an image is its memory, with a row an image. N is a multiple
of the number of images, and the rows of an image (its beams) lie together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import keras
import tensorflow as tf

from finetune.models.decoders.attention import Memory, SoftAttention
from finetune.models.decoders.cells import CellKind, State, make_cell

Drop = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step gives. `weights_NR` says where it looked; None of a decoder that doesn't look."""

    state: State
    output_NU: tf.Tensor
    weights_NR: tf.Tensor | None = None


class Decoder(Protocol):
    """`layers` hold its variables, for the owner to track. Seeds are the owner's `seed + 2`, `+ 3` and from `+ 10` on.

    `attends`: whether it wants places; `state_sizes` are those of the state's tensors.
    """

    layers: list[keras.layers.Layer]
    attends: bool
    state_sizes: tuple[int, ...]

    def build(self, *, channels: int | None) -> None: ...

    def memory(self, image_BE: tf.Tensor, place_BRC: tf.Tensor | None, drop: Drop) -> Memory:
        """What is computed once an image."""

    def inputs(self, word_XE: tf.Tensor) -> tf.Tensor:
        """[..., E] → [..., G]: the words' share of the gates, for any number of steps in one product."""

    def step(self, gates_NG: tf.Tensor, state: State, memory: Memory) -> Step:
        """One step from the words' share."""


class PlainDecoder:
    """One cell, fed words alone."""

    attends = False

    def __init__(self, *, cell: CellKind, embedding: int, units: int, layer_norm: bool, seed: int) -> None:
        self._cell = make_cell(cell, units=units, layer_norm=layer_norm, seed=seed + 2)
        self._embedding = embedding
        self.state_sizes = (units,) * self._cell.num_states
        self.layers = self._cell.layers

    def build(self, *, channels: int | None) -> None:
        del channels
        self._cell.build(self._embedding)

    def memory(self, image_BE: tf.Tensor, place_BRC: tf.Tensor | None, drop: Drop) -> Memory:
        return ()

    def inputs(self, word_XE: tf.Tensor) -> tf.Tensor:
        return self._cell.with_bias(self._cell.share(word_XE))

    def step(self, gates_NG: tf.Tensor, state: State, memory: Memory) -> Step:
        state = self._cell.recur(gates_NG, state)
        return Step(state=state, output_NU=state[0])


class SoftDecoder:
    """One cell, fed a word and what the state before looks at, which also goes straight to the output."""

    attends = True

    def __init__(
        self, *, cell: CellKind, embedding: int, units: int, attention: int, layer_norm: bool, seed: int
    ) -> None:
        self._cell = make_cell(cell, units=units, layer_norm=layer_norm, seed=seed + 2)
        self._look = SoftAttention(embedding=embedding, attention=attention, units=units, seed=seed + 10)
        self._gathered = _matrix(self._cell.gates, seed + 15, f"{cell}_gathered")
        self._said = _matrix(units, seed + 16, "attention_output")
        self._embedding = embedding
        self.state_sizes = (units,) * self._cell.num_states
        self.layers = [*self._cell.layers, *self._look.layers, self._gathered, self._said]

    def build(self, *, channels: int | None) -> None:
        self._cell.build(self._embedding)
        self._look.build(channels or 0)
        for layer in (self._gathered, self._said):
            layer.build((None, self._embedding))

    def memory(self, image_BE: tf.Tensor, place_BRC: tf.Tensor | None, drop: Drop) -> Memory:
        return self._look.look(place_BRC, drop)

    def inputs(self, word_XE: tf.Tensor) -> tf.Tensor:
        return self._cell.share(word_XE)

    def step(self, gates_NG: tf.Tensor, state: State, memory: Memory) -> Step:
        gathered_NE, weights_NR = self._look.attend(state[0], memory)
        state = self._cell.recur(self._cell.with_bias(gates_NG + self._gathered(gathered_NE)), state)
        return Step(state=state, output_NU=state[0] + self._said(gathered_NE), weights_NR=weights_NR)


class TopDownDecoder:
    """Two cells: the first, fed word, whole image and the second's last output, decides where to look; the second says
    what was seen."""

    attends = True

    def __init__(
        self, *, cell: CellKind, embedding: int, units: int, attention: int, layer_norm: bool, seed: int
    ) -> None:
        self._first = make_cell(cell, units=units, layer_norm=layer_norm, seed=seed + 2, name=f"attention_{cell}")
        self._second = make_cell(cell, units=units, layer_norm=layer_norm, seed=seed + 17, name=f"language_{cell}")
        self._look = SoftAttention(embedding=embedding, attention=attention, units=units, seed=seed + 10)
        self._image = _matrix(self._first.gates, seed + 15, f"attention_{cell}_image")
        self._last = _matrix(self._first.gates, seed + 16, f"attention_{cell}_language")
        self._sizes = (embedding, units)
        self.state_sizes = (units,) * (self._first.num_states + self._second.num_states)
        self.layers = [*self._first.layers, *self._second.layers, *self._look.layers, self._image, self._last]

    def build(self, *, channels: int | None) -> None:
        embedding, units = self._sizes
        self._first.build(embedding)
        self._second.build(embedding + units)
        self._look.build(channels or 0)
        self._image.build((None, embedding))
        self._last.build((None, units))

    def memory(self, image_BE: tf.Tensor, place_BRC: tf.Tensor | None, drop: Drop) -> Memory:
        return (*self._look.look(place_BRC, drop), self._image(image_BE))

    def inputs(self, word_XE: tf.Tensor) -> tf.Tensor:
        return self._first.share(word_XE)

    def step(self, gates_NG: tf.Tensor, state: State, memory: Memory) -> Step:
        first, second = state[: self._first.num_states], state[self._first.num_states :]
        image_BG = memory[2]
        gates_BKG = tf.reshape(gates_NG, [tf.shape(image_BG)[0], -1, self._first.gates]) + image_BG[:, tf.newaxis]
        gates_NG = tf.reshape(gates_BKG, [-1, self._first.gates]) + self._last(second[0])
        first = self._first.recur(self._first.with_bias(gates_NG), first)
        gathered_NE, weights_NR = self._look.attend(first[0], memory)
        inputs_NX = tf.concat([gathered_NE, first[0]], axis=-1)
        second = self._second.recur(self._second.with_bias(self._second.share(inputs_NX)), second)
        return Step(state=(*first, *second), output_NU=second[0], weights_NR=weights_NR)


def _matrix(size: int, seed: int, name: str) -> keras.layers.Dense:
    initializer = keras.initializers.GlorotUniform(seed=seed)
    return keras.layers.Dense(size, kernel_initializer=initializer, use_bias=False, name=name)
