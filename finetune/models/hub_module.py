"""A TF2 SavedModel as a Keras 3 layer: TensorFlow Hub's modules, kept as they came.

Takes the version's `saved_model.pb`, an InputSpec and the arguments of `zoo.architectures.hub_module`. Gives a Body
whose one layer is a HubModule. Next: `finetune.models.backbone`, which puts the stored values into its variables.

`hub.KerasLayer` belongs to tf-keras and can't be part of a Keras 3 model. TensorFlow's own loader makes the functions
and the variables; the values come from the version's safetensors, never from the SavedModel's own restore function.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from pydantic import JsonValue

from finetune.models.body import Body
from zoo.architectures.facts import InvalidArguments
from zoo.architectures.hub_module import FACTS, GRAPH
from zoo.errors import DataLoss, FailedPrecondition, InvalidArgument
from zoo.input_spec import InputSpec
from zoo.readers.hub_call import ModuleCall, feature_dim, find_call, trainable_variables
from zoo.readers.hub_graph import ModuleGraph, check_safe, parse


class MissingGraph(DataLoss):
    """A version whose network is kept as it came, without the file that holds it."""


class UnloadableGraph(DataLoss):
    """A graph that TensorFlow can't make anything of."""


class NoConfiguration(FailedPrecondition):
    """Something that only networks of Keras' own layers can do is asked of a graph."""


class NothingTrainable(FailedPrecondition):
    """`trainable` is asked of a module that has no trainable variables."""


class AnotherInputSize(InvalidArgument):
    """A size of images that the module doesn't take."""


def build(spec: InputSpec, arguments: dict[str, JsonValue], assets: Mapping[str, bytes]) -> Body:
    """The module as a network, its variables zero: `[B, height, width, 3]` → `[B, D]` and `[B, H, W, C]`.

    A module without a feature map gets one of 1 × 1, which is its vector; one without a vector, the map's mean.

    Raises:
        MissingGraph, AnotherInputSize, InvalidArguments (a function or an output that the graph doesn't have);
        UnsafeCheckpoint, DamagedCheckpoint, UnloadableGraph: what the store holds is no harmless graph, or none.
    """
    layer = hub_module(spec, arguments, assets)
    image = keras.Input((spec.height, spec.width, 3), name="image")
    features = layer(image)
    vector = features.get("feature_vector")
    if "feature_map" in features:
        feature_map = features["feature_map"]
    else:
        feature_map = keras.layers.Reshape((1, 1, int(vector.shape[-1])), name="feature_map")(vector)
    return Body(image=image, feature_map=feature_map, feature_vector=vector)


def hub_module(
    spec: InputSpec, arguments: Mapping[str, JsonValue], assets: Mapping[str, bytes], *, trainable: bool = False
) -> HubModule:
    """The layer alone. Raises as `build`, and NothingTrainable."""
    if GRAPH not in assets:
        raise MissingGraph(f"a {FACTS.name} is built from the version's {GRAPH}, which isn't among its files")
    graph = parse(assets[GRAPH], GRAPH)
    call = find_call(graph, GRAPH, str(arguments["function"]))
    outputs = arguments["outputs"]
    wanted = {part: str(key) for part, key in outputs.items()} if isinstance(outputs, dict) else {}
    unknown = [key for key in wanted.values() if key not in call.outputs]
    if unknown or not set(wanted) & {"feature_vector", "feature_map"}:
        raise InvalidArguments(
            f"architecture {FACTS.name!r}: {call.function} gives {', '.join(map(repr, sorted(call.outputs)))}; "
            f"the arguments' outputs are {wanted}"
        )
    if (spec.height, spec.width) != (call.height or spec.height, call.width or spec.width):
        raise AnotherInputSize(
            f"the module takes images of {call.height} × {call.width} pixels only, got {spec.height} × {spec.width}"
        )
    if feature_dim(call, wanted) != arguments["feature_dim"]:
        raise InvalidArguments(
            f"architecture {FACTS.name!r}: feature_dim is {arguments['feature_dim']!r}, the graph gives "
            f"{feature_dim(call, wanted)}"
        )
    check_safe(graph, call.functions, GRAPH)
    return HubModule(
        graph=graph,
        call=call,
        outputs=wanted,
        loaded=_loaded(assets[GRAPH]),
        image_size=(spec.height, spec.width),
        trainable=trainable,
    )


def _loaded(graph: bytes) -> Any:
    """What TensorFlow makes of the graph: functions, and variables without values."""
    with tempfile.TemporaryDirectory(prefix="finetune-hub-") as folder:
        (Path(folder) / GRAPH).write_bytes(graph)
        options = tf.saved_model.LoadOptions(experimental_skip_checkpoint=True)
        try:
            return tf.saved_model.load(folder, options=options)
        except Exception as error:  # a dozen kinds, some of its own, come of a damaged graph
            said = str(getattr(error, "message", error))[:500]
            raise UnloadableGraph(f"TensorFlow {tf.__version__} can't load {GRAPH}: {said}") from error


class HubModule(keras.layers.Layer):
    """float32 `[B, height, width, 3]` → {"feature_vector": [B, D], "feature_map": [B, H, W, C]}, those that there are.

    `training=True` reaches the module where it has such a mode and the layer is trainable; so a frozen one gives the
    same features whoever asks.
    """

    def __init__(
        self,
        *,
        graph: ModuleGraph,
        call: ModuleCall,
        outputs: Mapping[str, str],
        loaded: Any,
        image_size: tuple[int, int],
        trainable: bool,
    ) -> None:
        super().__init__(name="module", trainable=False)
        self._outputs_wanted = dict(outputs)
        self._has_training = call.training is not None
        # Behind a closure: were the loaded object an attribute, Keras and tf.train.Checkpoint would track everything
        # that hangs on it, and run its own save functions.
        self._module = _caller(loaded, call)
        variables = _variables(graph, call, loaded)
        may_train = {each.path for each in trainable_variables(graph, call)}
        self._attributes: dict[str, str] = {}
        for number, (path, variable) in enumerate(variables.items()):
            variable.assign(tf.zeros(variable.shape, variable.dtype))
            self._attributes[path] = f"variable_{number:04}"
            name = path.replace("/", ".")  # Keras forbids the slash
            kept = keras.Variable(
                variable, shape=variable.shape, dtype=variable.dtype.name, trainable=path in may_train, name=name
            )
            setattr(self, self._attributes[path], kept)  # tf.train.Checkpoint finds attributes, not elements of lists
        self._num_trainable = len(may_train)
        self._shapes = self._output_shapes(call, image_size)
        self.built = True
        self.trainable = trainable

    @property
    def trainable(self) -> bool:
        return bool(self._trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if value and not self._num_trainable:
            raise NothingTrainable(
                f"the module has no trainable variables ({len(self._attributes)} in all): it can be used as it is, "
                "frozen, not fine-tuned",
            )
        keras.layers.Layer.trainable.fset(self, value)

    def named_weights(self) -> dict[str, keras.Variable]:
        """The module's variables by their paths in its object graph: the names of the backbone component's tensors."""
        return {path: getattr(self, attribute) for path, attribute in self._attributes.items()}

    def call(self, image_BHWC: Any, training: bool | None = None) -> dict[str, Any]:
        mode = bool(training) and self.trainable and self._has_training
        given = self._module(image_BHWC, mode)
        return {part: tf.ensure_shape(given[key], self._shapes[part]) for part, key in self._outputs_wanted.items()}

    def compute_output_spec(self, image_BHWC: Any, training: bool | None = None) -> dict[str, Any]:
        return {part: keras.KerasTensor(shape, "float32") for part, shape in self._shapes.items()}

    def get_config(self) -> dict[str, Any]:
        """Raises NoConfiguration: a graph isn't made of layers that a `.keras` archive could name."""
        raise NoConfiguration(
            "a network that came as a SavedModel has no configuration of Keras layers, so it can't be a .keras archive",
            hint="zoo export … --as saved_model, or --as hub",
        )

    def _output_shapes(self, call: ModuleCall, image_size: tuple[int, int]) -> dict[str, tuple[int | None, ...]]:
        """From the graph; a module for any size of images leaves some sides open: then one image is tried."""
        shapes = {part: (None, *call.outputs[key][1:]) for part, key in self._outputs_wanted.items()}
        if any(side is None for shape in shapes.values() for side in shape[1:]):
            given = self._module(tf.zeros([1, *image_size, 3]), False)
            shapes = {part: (None, *given[key].shape[1:]) for part, key in self._outputs_wanted.items()}
        return shapes


def _caller(loaded: Any, call: ModuleCall) -> Callable[[Any, bool], Mapping[str, Any]]:
    """(images, training) → output by key."""

    def run(image_BHWC: Any, training: bool) -> Mapping[str, Any]:
        if call.keyword is not None:
            given = loaded.signatures[call.function](**{call.keyword: image_BHWC})
        elif call.takes_training:
            given = loaded(image_BHWC, training=training)
        else:
            given = loaded(image_BHWC)
        if isinstance(given, Mapping):
            return given
        return {str(n): each for n, each in enumerate(given)} if isinstance(given, list | tuple) else {"": given}

    return run


def _variables(graph: ModuleGraph, call: ModuleCall, loaded: Any) -> dict[str, tf.Variable]:
    """Path → the variable that TensorFlow made, in the order of the paths. A function's captured inputs are bound to
    the graph's nodes one by one."""
    if call.keyword is not None:
        functions = {call.inference: loaded.signatures[call.function]}
    else:
        node = graph.nodes[graph.child(0, call.function)]
        made = dict(zip(node.function.concrete_functions, loaded.__call__.concrete_functions, strict=True))
        functions = {name: made[name] for name in call.functions}
    found: dict[int, tf.Variable] = {}
    for name, function in functions.items():
        by_handle = {id(variable.handle): variable for variable in function.variables}
        captured = zip(graph.concrete(name).bound_inputs, function.captured_inputs, strict=True)
        found |= {at: by_handle[id(handle)] for at, handle in captured if id(handle) in by_handle}
    return {each.path: found[each.node] for each in graph.bound(call.functions)}
