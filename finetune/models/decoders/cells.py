"""Recurrent cells of a decoder: LSTM and GRU, each with or without layer normalisation.

Takes inputs and a state. Gives the next state. Next: `finetune.models.decoders.decoder`.

A cell's product with its inputs is apart from its recurrence, so that the words of a whole caption meet their matrix in
one product when they are known beforehand; what else feeds the gates (what attention gathered) is added to it. The
variables are Keras' (`LSTMCell`, `GRUCell`): their names, shapes and order of gates.

Shapes: N rows, X inputs, U units, G gates (4U of an LSTM, 3U of a GRU).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol

import keras
import tensorflow as tf

State = tuple[tf.Tensor, ...]
CellKind = Literal["lstm", "gru"]
_EPSILON = 1e-5


class Cell(Protocol):
    """One recurrent layer. `layers` hold its variables, for the owner to track; `num_states` tensors are its state, the
    first of which is its output; `gates` is G."""

    gates: int
    num_states: int
    layers: list[keras.layers.Layer]

    def build(self, input_size: int) -> None: ...

    def share(self, inputs: tf.Tensor) -> tf.Tensor:
        """[..., X] → [..., G]: what the inputs add to the gates."""

    def with_bias(self, gates: tf.Tensor) -> tf.Tensor:
        """The sum of all that feeds the gates, ready for `recur`."""

    def recur(self, gates_NG: tf.Tensor, state: State) -> State:
        """One step."""


class _GatedCell(ABC):
    """What an LSTM and a GRU have alike: how inputs come to the gates."""

    def __init__(self, gates: int, cell: keras.layers.Layer, norm: _Norms | None) -> None:
        self.gates = gates
        self._cell = cell
        self._norm = norm
        self.layers: list[keras.layers.Layer] = [cell] if norm is None else [cell, norm]

    def build(self, input_size: int) -> None:
        for layer in self.layers:
            layer.build((None, input_size))

    def share(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.tensordot(inputs, tf.convert_to_tensor(self._cell.kernel), axes=1)

    def with_bias(self, gates: tf.Tensor) -> tf.Tensor:
        if self._norm is not None:
            gates = self._norm.inputs(gates)
        return gates + self._input_bias()

    @abstractmethod
    def _input_bias(self) -> tf.Tensor:
        """[G]."""


class LstmCell(_GatedCell):
    """Hochreiter and Schmidhuber's, as Keras has it; gates in the order input, forget, cell, output.

    With `layer_norm` as Ba et al. 2016 (arXiv:1607.06450, equations 20 to 22): inputs' and recurrent shares of the
    gates are normalised each by itself, and the cell's state where it is read.
    """

    num_states = 2

    def __init__(self, *, units: int, layer_norm: bool, seed: int, name: str) -> None:
        norm = _Norms(gates=4 * units, units=units, name=f"{name}_norm") if layer_norm else None
        super().__init__(4 * units, _keras_cell(keras.layers.LSTMCell, units, seed, name), norm)

    def _input_bias(self) -> tf.Tensor:
        return tf.convert_to_tensor(self._cell.bias)

    def recur(self, gates_NG: tf.Tensor, state: State) -> State:
        h_NU, c_NU = state
        recurrent_NG = tf.matmul(h_NU, tf.convert_to_tensor(self._cell.recurrent_kernel))
        gates_NG = gates_NG + (recurrent_NG if self._norm is None else self._norm.recurrent(recurrent_NG))
        input_NU, forget_NU, cell_NU, output_NU = tf.split(gates_NG, 4, axis=-1)
        c_NU = tf.sigmoid(forget_NU) * c_NU + tf.sigmoid(input_NU) * tf.tanh(cell_NU)
        read_NU = c_NU if self._norm is None else self._norm.cell(c_NU)
        return tf.sigmoid(output_NU) * tf.tanh(read_NU), c_NU


class GruCell(_GatedCell):
    """Cho et al. 2014 (arXiv:1406.1078) as cuDNN and Keras have it (`reset_after`); gates update, reset, candidate."""

    num_states = 1

    def __init__(self, *, units: int, layer_norm: bool, seed: int, name: str) -> None:
        norm = _Norms(gates=3 * units, units=None, name=f"{name}_norm") if layer_norm else None
        super().__init__(3 * units, _keras_cell(keras.layers.GRUCell, units, seed, name), norm)

    def _input_bias(self) -> tf.Tensor:
        return tf.convert_to_tensor(self._cell.bias)[0]

    def recur(self, gates_NG: tf.Tensor, state: State) -> State:
        (h_NU,) = state
        recurrent_NG = tf.matmul(h_NU, tf.convert_to_tensor(self._cell.recurrent_kernel))
        if self._norm is not None:
            recurrent_NG = self._norm.recurrent(recurrent_NG)
        recurrent_NG = recurrent_NG + tf.convert_to_tensor(self._cell.bias)[1]
        update_NU, reset_NU, candidate_NU = tf.split(gates_NG, 3, axis=-1)
        update_h_NU, reset_h_NU, candidate_h_NU = tf.split(recurrent_NG, 3, axis=-1)
        update_NU = tf.sigmoid(update_NU + update_h_NU)
        candidate_NU = tf.tanh(candidate_NU + tf.sigmoid(reset_NU + reset_h_NU) * candidate_h_NU)
        return (update_NU * h_NU + (1.0 - update_NU) * candidate_NU,)


CELLS: dict[str, type[LstmCell] | type[GruCell]] = {"lstm": LstmCell, "gru": GruCell}


def make_cell(kind: CellKind, *, units: int, layer_norm: bool, seed: int, name: str | None = None) -> Cell:
    """`name`: of its variables; by default the kind. Seeds `seed` and `seed + 1` decide its fresh weights."""
    return CELLS[kind](units=units, layer_norm=layer_norm, seed=seed, name=name or kind)


class _Norms(keras.layers.Layer):
    """The gains of a cell's normalisations. The gates' offsets are the cell's own biases."""

    def __init__(self, *, gates: int, units: int | None, name: str) -> None:
        super().__init__(name=name)
        self._gates = gates
        self._units = units

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        del input_shape
        self.input_gain = self.add_weight(shape=(self._gates,), initializer="ones", name="input_gain")
        self.recurrent_gain = self.add_weight(shape=(self._gates,), initializer="ones", name="recurrent_gain")
        if self._units is not None:
            self.cell_gain = self.add_weight(shape=(self._units,), initializer="ones", name="cell_gain")
            self.cell_offset = self.add_weight(shape=(self._units,), initializer="zeros", name="cell_offset")
        self.built = True

    def inputs(self, gates: tf.Tensor) -> tf.Tensor:
        return _normalised(gates) * tf.convert_to_tensor(self.input_gain)

    def recurrent(self, gates: tf.Tensor) -> tf.Tensor:
        return _normalised(gates) * tf.convert_to_tensor(self.recurrent_gain)

    def cell(self, c_NU: tf.Tensor) -> tf.Tensor:
        return _normalised(c_NU) * tf.convert_to_tensor(self.cell_gain) + tf.convert_to_tensor(self.cell_offset)


def _normalised(values: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(values, axes=[-1], keepdims=True)
    return (values - mean) * tf.math.rsqrt(variance + _EPSILON)


def _keras_cell(kind: type[keras.layers.Layer], units: int, seed: int, name: str) -> keras.layers.Layer:
    return kind(
        units,
        kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
        recurrent_initializer=keras.initializers.Orthogonal(seed=seed + 1),
        name=name,
    )
