"""Keras layers as ONNX nodes.

Takes a functional Keras model. Gives nodes and weights of an ONNX graph. Next: `finetune.export.onnx_graph`.

An own walk rather than tf2onnx: that one needs 5 to 8 GB for the 87 MB of Inception v3, 20 to 40 s, and brings a
top-level package named `tests`. Pictures travel as [B, C, H, W], ONNX's order, so that each convolution is one node.
Operators: onnx.ai/onnx/operators, opset 18. ONNX's SAME_UPPER is TensorFlow's "same": the odd pixel goes to the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from finetune.export.exporter import NotExportable


class NodeList:
    """Nodes and weights in the order in which they are made. A value is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one output. Gives the output's name: `name`, or one that nobody has."""
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def weight(self, values: Any, dtype: type = np.float32) -> str:
        name = f"weight_{len(self.weights)}"
        array: np.ndarray = np.ascontiguousarray(np.asarray(values, dtype=dtype))
        self.weights.append(numpy_helper.from_array(array, name))
        return name


def add_model(to: NodeList, model: keras.Model, image: str) -> dict[str, str]:
    """Adds a functional model.

    Args:
        image: the value [B, C, H, W] that goes in.
    Returns:
        The values of its outputs by their names ("" for a model with one nameless output).
    Raises:
        NotExportable: a layer that isn't in `_LAYERS`.
    """
    values: dict[int, str] = {id(model.inputs[0]): image}
    for operation in model.operations:
        if isinstance(operation, keras.layers.InputLayer):
            continue
        output = operation.output
        values[id(output)] = _add_operation(to, operation, values)
    if isinstance(model.output, dict):
        return {name: values[id(tensor)] for name, tensor in model.output.items()}
    return {"": values[id(model.outputs[0])]}


def _add_operation(to: NodeList, operation: Any, values: dict[int, str]) -> str:
    kind = type(operation).__name__
    if isinstance(operation, keras.Model):
        return add_model(to, operation, values[id(operation.input)])[""]
    if kind in _ARITHMETIC and not isinstance(operation, keras.layers.Layer):
        return to.add(_ARITHMETIC[kind], *_operands(to, operation, values))
    if kind not in _LAYERS:
        known = ", ".join(sorted(_LAYERS))
        raise NotExportable(
            f"ONNX: the layer {operation.name!r} is a {kind}, which has no counterpart here; known are {known}",
            hint="zoo export REF DIR --as saved_model",
        )
    tensors = operation.input if isinstance(operation.input, list | tuple) else [operation.input]
    return _LAYERS[kind](to, operation, [values[id(tensor)] for tensor in tensors])


def _operands(to: NodeList, operation: Any, values: dict[int, str]) -> list[str]:
    """Of `x + 3` and the like: a value, or a number. (Keras keeps numbers with the call, nowhere else.)"""
    (node,) = operation._inbound_nodes
    arguments = [*node.arguments.args, *node.arguments.kwargs.values()]
    return [values[id(each)] if id(each) in values else to.weight(each) for each in arguments]


def _auto_pad(layer: Any) -> str:
    return {"same": "SAME_UPPER", "valid": "VALID"}[layer.padding]


def add_activation(to: NodeList, x: str, activation: Any, where: str) -> str:
    """Raises NotExportable for a function that isn't known."""
    name = activation if isinstance(activation, str) else getattr(activation, "__name__", str(activation))
    if name not in _ACTIVATIONS:
        raise NotExportable(
            f"ONNX: the activation {name!r} of layer {where!r} has no counterpart here; known are "
            f"{', '.join(sorted(_ACTIVATIONS))}",
            hint="zoo export REF DIR --as saved_model",
        )
    return _ACTIVATIONS[name](to, x)


def _gelu(to: NodeList, x: str) -> str:
    """x · Φ(x), exactly: by the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    inner = to.add("Erf", to.add("Mul", x, to.weight(1 / math.sqrt(2))))
    return to.add("Mul", to.add("Mul", x, to.weight(0.5)), to.add("Add", inner, to.weight(1.0)))


_ACTIVATIONS: dict[str, Callable[[NodeList, str], str]] = {
    "linear": lambda to, x: x,
    "relu": lambda to, x: to.add("Relu", x),
    "relu6": lambda to, x: to.add("Clip", x, to.weight(0.0), to.weight(6.0)),
    "sigmoid": lambda to, x: to.add("Sigmoid", x),
    "silu": lambda to, x: to.add("Mul", x, to.add("Sigmoid", x)),
    "hard_silu": lambda to, x: to.add("HardSwish", x),
    "hard_sigmoid": lambda to, x: to.add("HardSigmoid", x, alpha=1 / 6, beta=0.5),
    "tanh": lambda to, x: to.add("Tanh", x),
    "gelu": _gelu,
}


def _convolution(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    kernel = np.transpose(np.asarray(layer.kernel), (3, 2, 0, 1))
    x = _conv(to, layer, inputs[0], kernel, bias=layer.bias, groups=layer.groups)
    return add_activation(to, x, layer.activation, layer.name)


def _depthwise(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    kernel, groups = _by_channel(layer.kernel)
    x = _conv(to, layer, inputs[0], kernel, bias=layer.bias, groups=groups)
    return add_activation(to, x, layer.activation, layer.name)


def _separable(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    kernel, groups = _by_channel(layer.depthwise_kernel)
    x = _conv(to, layer, inputs[0], kernel, bias=None, groups=groups)
    point = to.weight(np.transpose(np.asarray(layer.pointwise_kernel), (3, 2, 0, 1)))
    bias = [] if layer.bias is None else [to.weight(layer.bias)]
    return add_activation(to, to.add("Conv", x, point, *bias), layer.activation, layer.name)


def _by_channel(kernel: Any) -> tuple[np.ndarray, int]:
    """[h, w, C, M] as [C · M, 1, h, w], and C: output c · M + m is filter m of channel c in both."""
    values = np.transpose(np.asarray(kernel), (2, 3, 0, 1))
    return values.reshape(-1, 1, *values.shape[2:]), values.shape[0]


def _conv(to: NodeList, layer: Any, x: str, kernel: np.ndarray, *, bias: Any, groups: int) -> str:
    biases = [] if bias is None else [to.weight(bias)]
    return to.add(
        "Conv",
        x,
        to.weight(kernel),
        *biases,
        auto_pad=_auto_pad(layer),
        strides=list(layer.strides),
        dilations=list(layer.dilation_rate),
        group=groups,
    )


def _batch_norm(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    size = layer.moving_mean.shape[0]
    gamma = np.ones(size) if layer.gamma is None else layer.gamma
    beta = np.zeros(size) if layer.beta is None else layer.beta
    weights = [to.weight(values) for values in (gamma, beta, layer.moving_mean, layer.moving_variance)]
    return to.add("BatchNormalization", inputs[0], *weights, epsilon=layer.epsilon)


def _layer_norm(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    """Over the channels, which must be last for it."""
    size = layer.input.shape[-1]
    gamma = np.ones(size) if layer.gamma is None else layer.gamma
    beta = np.zeros(size) if layer.beta is None else layer.beta
    picture = len(layer.input.shape) == 4
    x = to.add("Transpose", inputs[0], perm=[0, 2, 3, 1]) if picture else inputs[0]
    x = to.add("LayerNormalization", x, to.weight(gamma), to.weight(beta), axis=-1, epsilon=layer.epsilon)
    return to.add("Transpose", x, perm=[0, 3, 1, 2]) if picture else x


def _relu(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    if layer.negative_slope or layer.threshold:
        raise NotExportable(f"ONNX: the ReLU {layer.name!r} has a slope or a threshold, which aren't known here")
    if layer.max_value is None:
        return to.add("Relu", inputs[0])
    return to.add("Clip", inputs[0], to.weight(0.0), to.weight(layer.max_value))


def _pool(kind: str, **attributes: Any) -> Callable[[NodeList, Any, Sequence[str]], str]:
    def add(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
        window, strides = list(layer.pool_size), list(layer.strides)
        return to.add(kind, inputs[0], auto_pad=_auto_pad(layer), kernel_shape=window, strides=strides, **attributes)

    return add


def _global_pool(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    x = to.add("GlobalAveragePool", inputs[0])
    return x if layer.keepdims else to.add("Flatten", x)


def _zero_padding(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    (top, bottom), (left, right) = layer.padding
    return to.add("Pad", inputs[0], to.weight([0, 0, top, left, 0, 0, bottom, right], np.int64))


def _reshape(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    """Only from [B, C] to [B, 1, 1, C], as squeeze-and-excitation has it: another order of sides would mix values."""
    size = layer.input.shape[-1]
    if len(layer.input.shape) != 2 or tuple(layer.target_shape) != (1, 1, size):
        raise NotExportable(
            f"ONNX: the layer {layer.name!r} reshapes {list(layer.input.shape)} to {list(layer.target_shape)}; "
            f"known is [B, C] to [B, 1, 1, C]"
        )
    return to.add("Reshape", inputs[0], to.weight([-1, size, 1, 1], np.int64))


def _dense(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    kernel = np.asarray(layer.kernel)
    bias = [] if layer.bias is None else [to.weight(layer.bias)]
    if len(layer.input.shape) == 4:
        x = to.add("Conv", inputs[0], to.weight(kernel.T[:, :, np.newaxis, np.newaxis]), *bias)
    else:
        x = to.add("Gemm", inputs[0], to.weight(kernel), *bias)
    return add_activation(to, x, layer.activation, layer.name)


def _rescaling(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    scale, offset = (np.asarray(value, np.float32) for value in (layer.scale, layer.offset))
    if scale.size != 1 or offset.size != 1:
        scale, offset = (np.broadcast_to(value, (3,)).reshape(3, 1, 1) for value in (scale, offset))
    return to.add("Add", to.add("Mul", inputs[0], to.weight(scale)), to.weight(offset))


def _layer_scale(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    return to.add("Mul", inputs[0], to.weight(np.asarray(layer.gamma)[:, np.newaxis, np.newaxis]))


def _concatenate(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
    if layer.axis not in (-1, len(layer.output.shape) - 1):
        raise NotExportable(f"ONNX: the layer {layer.name!r} joins along axis {layer.axis}; known are the channels")
    return to.add("Concat", *inputs, axis=1)


def _chain(kind: str) -> Callable[[NodeList, Any, Sequence[str]], str]:
    def add(to: NodeList, layer: Any, inputs: Sequence[str]) -> str:
        x = inputs[0]
        for other in inputs[1:]:
            x = to.add(kind, x, other)
        return x

    return add


_ARITHMETIC = {"Add": "Add", "Multiply": "Mul", "Subtract": "Sub", "Divide": "Div"}  # keras.ops on tensors and numbers
# By class name: Keras' own classes, and ConvNeXt's LayerScale, which isn't exported under a public name.
_LAYERS: dict[str, Callable[[NodeList, Any, Sequence[str]], str]] = {
    "Activation": lambda to, layer, inputs: add_activation(to, inputs[0], layer.activation, layer.name),
    "Add": _chain("Add"),
    "AveragePooling2D": _pool("AveragePool", count_include_pad=0),
    "BatchNormalization": _batch_norm,
    "Concatenate": _concatenate,
    "Conv2D": _convolution,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "Dropout": lambda to, layer, inputs: inputs[0],
    "GlobalAveragePooling2D": _global_pool,
    "LayerNormalization": _layer_norm,
    "LayerScale": _layer_scale,
    "MaxPooling2D": _pool("MaxPool"),
    "Multiply": _chain("Mul"),
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv2D": _separable,
    "ZeroPadding2D": _zero_padding,
}
