"""Probe: a look at one batch with the weights as they are, which changes nothing.

Takes a Network and a batch. Gives gradients, tensors printed from inside the graph, or the first operation that gave
NaN or Inf. Next: `finetune.training.observed`.

A probe has graphs of its own, beside the training step's: to read what lies between two operations keeps TensorFlow
from fusing them, so that a step which is looked at would give other last bits. Generators of random numbers are put
back, so that a probe sees the dropout that the step itself is going to draw, and BatchNorm's moving averages too.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.models.network import Network
from finetune.training.micro_batches import summed
from finetune.training.weights import seed_states
from zoo.errors import InvalidArgument

_SLICE = 6  # values that are printed of a tensor


class UnknownTensor(InvalidArgument):
    """A name to print that the network has no tensor, layer or endpoint for."""


@dataclass(frozen=True, kw_only=True)
class NonFiniteOp:
    """`op`: TensorFlow's kind of operation; `scope`: where in the network, e.g. `head/logits`; `inputs`: the names of
    what it was given, all of which was finite."""

    op: str
    scope: str
    shape: str
    kind: str  # "NaN", "Inf" or both
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        given = f", given {', '.join(self.inputs)}" if self.inputs else ""
        return f"{self.op} in {self.scope} gave {self.kind} (shape {self.shape}{given})"


class Probe:
    """See above. Each kind of look is traced when it is first taken. `pieces`: micro-batches of a batch."""

    def __init__(self, network: Network, *, pieces: int = 1) -> None:
        self._network = network
        self._pieces = pieces
        self._states = [*seed_states(network.head).values(), *network.statistics]
        self._gradient = tf.function(self._loss_and_gradients)

    def gradients(self, features: Any, targets: Any) -> list[np.ndarray]:
        """Of the batch's mean loss, one for each of the network's trainable variables."""
        with self._same_dice():
            return [gradient.numpy() for gradient in self._gradient(features, targets)]

    def first_non_finite(self, features: Any, targets: Any) -> NonFiniteOp | None:
        """The first operation of loss and gradients that gave NaN or Inf; None where all are finite."""
        checked = tf.function(self._loss_and_gradients)
        tf.debugging.enable_check_numerics()  # acts on what is traced from now on
        try:
            with self._same_dice():
                checked(features, targets)
        except tf.errors.InvalidArgumentError as error:
            return _read(str(error))
        finally:
            tf.debugging.disable_check_numerics()
        return None

    def printer(self, names: Sequence[str], *, file: str) -> Any:
        """A function of (step, features, targets) that appends a line a name to `file`, printed inside the graph.

        Raises UnknownTensor naming near ones.
        """
        tensors = {
            f"{component}/{name}": variable
            for component, variables in self._network.groups.items()
            for name, variable in variables.items()
        }
        layers = self._network.layers
        chosen = {name: _found(name, tensors, layers) for name in names}

        unused: list[str] = []

        @tf.function
        def said(step: tf.Tensor, features: Any, targets: Any) -> None:
            with _outputs({name: x for name, x in chosen.items() if isinstance(x, keras.Layer)}) as outputs:
                self._network.loss(features, targets, training=True)
            for name, found in chosen.items():
                if not isinstance(found, keras.Layer):
                    _print(name, found.value, step, file)
                elif name in outputs:
                    _print(name, outputs[name], step, file)
                elif name not in unused:  # raising here would give TensorFlow's error instead
                    unused.append(name)

        def look(step: int, features: Any, targets: Any) -> None:
            with self._same_dice():
                said(tf.constant(step, tf.int64), features, targets)
            if unused:
                raise UnknownTensor(
                    f"debug.print: {', '.join(unused)} is a layer whose call is no part of this network's training",
                    hint="print its tensors, e.g. " + ", ".join(_near(unused[0], tensors)),
                )

        return look

    def _loss_and_gradients(self, features: Any, targets: Any) -> list[tf.Tensor]:
        """As the training step has them, before they are clipped."""
        variables = [variable.value for variable in self._network.trainable_variables]

        def sums(features: Any, targets: Any) -> tuple[list[tf.Tensor], tf.Tensor]:
            with tf.GradientTape() as tape:
                terms = self._network.loss(features, targets, training=True)
            gradients = tape.gradient(terms.loss_sum, variables, unconnected_gradients="zero")
            return [tf.convert_to_tensor(gradient) for gradient in gradients], terms.weight_sum

        gradients, weight_sum = summed(sums, features, targets, self._pieces)
        return [gradient / tf.maximum(weight_sum, 1e-12) for gradient in gradients]

    @contextlib.contextmanager
    def _same_dice(self) -> Iterator[None]:
        before = [state.numpy() for state in self._states]
        try:
            yield
        finally:
            for state, value in zip(self._states, before, strict=True):
                state.assign(value)


def bad_values(named: Mapping[str, Any]) -> list[str]:
    """Which of the arrays hold NaN or Inf, and how much of it."""
    found = []
    for name, value in named.items():
        array = np.asarray(value)
        if not np.issubdtype(array.dtype, np.floating):
            continue
        if count := int(array.size - np.isfinite(array).sum()):
            found.append(f"{name} ({count} of {array.size} values)")
    return found


def _found(name: str, tensors: Mapping[str, Any], layers: Mapping[str, Any]) -> Any:
    """A variable or a layer by its name, with or without its component."""
    plain = name.replace(".", "/")
    for candidates in (tensors, layers):
        if plain in candidates:
            return candidates[plain]
        ends = [known for known in candidates if known.partition("/")[2] == plain]
        if len(ends) == 1:
            return candidates[ends[0]]
    known = [*tensors, *layers]
    near = _near(plain, known)
    raise UnknownTensor(
        f"debug.print: the network has no tensor, layer or endpoint {name!r}; "
        + (f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known[:12])}, …")
    )


def _near(name: str, known: Any) -> list[str]:
    short = {each.partition("/")[2] or each: each for each in known}
    near = [*difflib.get_close_matches(name, known, n=3), *difflib.get_close_matches(name, short, n=3)]
    return list(dict.fromkeys(short.get(each, each) for each in near))[:3]


@contextlib.contextmanager
def _outputs(layers: Mapping[str, keras.Layer]) -> Iterator[dict[str, Any]]:
    """Fills a dictionary with what the layers give, the first time that each is called inside the context."""
    outputs: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            original = layer.call

            def call(*args: Any, _name: str = name, _call: Any = original, **kwargs: Any) -> Any:
                result = _call(*args, **kwargs)
                outputs.setdefault(_name, result)
                return result

            object.__setattr__(layer, "call", call)
            stack.callback(object.__delattr__, layer, "call")
        yield outputs


def _print(name: str, value: Any, step: tf.Tensor, file: str) -> None:
    x = tf.cast(tf.convert_to_tensor(value), tf.float32)
    flat = tf.reshape(x, [-1])
    values = (tf.shape(x), tf.reduce_min(x), tf.reduce_max(x), tf.reduce_mean(x), flat[:_SLICE])
    text = f"step {{}}: {name} {{}} min {{}} max {{}} mean {{}} first {{}}"
    tf.print(tf.strings.format(text, (step, *values), summarize=-1), output_stream=f"file://{file}")


def _read(message: str) -> NonFiniteOp:
    """What `tf.debugging.enable_check_numerics` says, in few words."""
    text = message[message.find("!!! Detected") :]
    said = re.search(r"Detected (.*?) in output \d+ of (?:graph|eagerly executing) op \"(\w+)\"", text)
    shape = re.search(r"shape: (\([^)]*\))", text)
    inputs = tuple(name for name in re.findall(r'Tensor\("([^"]+):\d+"', text.partition("Stack trace")[0]))
    node = re.search(r"node ([\w./-]+?)/?CheckNumericsV2", message)
    kind = said[1] if said else "NaN or Inf"
    return NonFiniteOp(
        op=said[2] if said else "an operation",
        scope=(node[1] if node else "the network").rstrip("/"),
        shape=shape[1] if shape else "?",
        kind=kind.replace("Infinity", "Inf"),
        inputs=inputs,
    )
