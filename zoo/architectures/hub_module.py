"""A network that came as a TF2 SavedModel and is kept as it came: TensorFlow Hub's modules, where no architecture here
is their like.

Its graph is an asset of the version (`saved_model.pb`), its variables are the backbone component, by their paths in the
SavedModel's object graph. So, unlike everywhere else, the version's own files say what the network is; that they do
nothing but arithmetic is checked when they come in and again before they are built (`zoo.readers.hub_graph`).
"""

from __future__ import annotations

from zoo.architectures.facts import ArchitectureFacts
from zoo.input_spec import InputSpec

GRAPH = "saved_model.pb"

FACTS = ArchitectureFacts(
    name="hub_module",
    paper="https://www.tensorflow.org/hub/common_signatures/images and https://www.tensorflow.org/hub/tf2_saved_model",
    # function: `__call__` or a signature's name; outputs: `feature_vector` and `feature_map` → the key of the output.
    defaults={"function": "__call__", "outputs": {}, "feature_dim": 0},
    tensor_shapes=lambda arguments: {},  # the version's own component says them
    feature_dim=lambda arguments: int(str(arguments["feature_dim"])),  # 0: only a version's arguments say it
    endpoints=(),
    parameters=0,
    flops=0,
    batch_norm_epsilon=0.0,
    input_spec=InputSpec(height=224, width=224),
    min_size=1,
    name_maps={},
    assets=(GRAPH,),
)
