"""Inception v2, BN-Inception (Ioffe and Szegedy 2015, arXiv:1502.03167), as TF-Slim builds it.

Canonical scopes are TF-Slim's. The stem is a 7 × 7 separable convolution with a bias, without BatchNorm, of depth
multiplier 8: 3 channels become 24, then 64. Every other scope is a convolution without bias, then a BatchNorm without
gamma, then relu.
"""

from __future__ import annotations

from zoo.architectures.facts import ArchitectureFacts, Arguments, Endpoint, NameMap, PublishedCount, Shape, Target
from zoo.architectures.publishers import hub, slim
from zoo.architectures.units import SLIM_UNUSED, Unit, slim_input_spec, slim_logits, slim_names, unit_shapes
from zoo.input_spec import InputSpec

STEM = "Conv2d_1a_7x7"
DEPTH_MULTIPLIER = 8
_STEM_OUTPUTS = 64

STEM_SHAPES: dict[str, Shape] = {
    f"{STEM}/depthwise_kernel": (7, 7, 3, DEPTH_MULTIPLIER),
    f"{STEM}/pointwise_kernel": (1, 1, 3 * DEPTH_MULTIPLIER, _STEM_OUTPUTS),
    f"{STEM}/bias": (_STEM_OUTPUTS,),
}


def _unit(scope: str, size: int, inputs: int, outputs: int) -> Unit:
    # No library for PyTorch has this network: nothing reads the module's name.
    return Unit(f"{scope}_{size}x{size}", "", size, size, inputs, outputs)


def _mixed(name: str, inputs: int, widths: tuple[int, ...]) -> tuple[Unit, ...]:
    """`widths`: of branch 0; of branch 1, both convolutions; of branch 2, the last two being as wide as each other; of
    branch 3, after its pooling."""
    zero, one_a, one_b, two_a, two_b, three = widths
    return (
        _unit(f"{name}/Branch_0/Conv2d_0a", 1, inputs, zero),
        _unit(f"{name}/Branch_1/Conv2d_0a", 1, inputs, one_a),
        _unit(f"{name}/Branch_1/Conv2d_0b", 3, one_a, one_b),
        _unit(f"{name}/Branch_2/Conv2d_0a", 1, inputs, two_a),
        _unit(f"{name}/Branch_2/Conv2d_0b", 3, two_a, two_b),
        _unit(f"{name}/Branch_2/Conv2d_0c", 3, two_b, two_b),
        _unit(f"{name}/Branch_3/Conv2d_0b", 1, inputs, three),
    )


def _reduction(name: str, inputs: int, widths: tuple[int, ...]) -> tuple[Unit, ...]:
    """The last convolution of each branch, `Conv2d_1a`, has stride 2; branch 2 is a pooling."""
    zero_a, zero_b, one_a, one_b = widths
    return (
        _unit(f"{name}/Branch_0/Conv2d_0a", 1, inputs, zero_a),
        _unit(f"{name}/Branch_0/Conv2d_1a", 3, zero_a, zero_b),
        _unit(f"{name}/Branch_1/Conv2d_0a", 1, inputs, one_a),
        _unit(f"{name}/Branch_1/Conv2d_0b", 3, one_a, one_b),
        _unit(f"{name}/Branch_1/Conv2d_1a", 3, one_b, one_b),
    )


# In the order in which Slim makes them, after the stem.
UNITS: tuple[Unit, ...] = (
    _unit("Conv2d_2b", 1, _STEM_OUTPUTS, 64),
    _unit("Conv2d_2c", 3, 64, 192),
    *_mixed("Mixed_3b", 192, (64, 64, 64, 64, 96, 32)),
    *_mixed("Mixed_3c", 256, (64, 64, 96, 64, 96, 64)),
    *_reduction("Mixed_4a", 320, (128, 160, 64, 96)),
    *_mixed("Mixed_4b", 576, (224, 64, 96, 96, 128, 128)),
    *_mixed("Mixed_4c", 576, (192, 96, 128, 96, 128, 128)),
    *_mixed("Mixed_4d", 576, (160, 128, 160, 128, 160, 96)),
    *_mixed("Mixed_4e", 576, (96, 128, 192, 160, 192, 96)),
    *_reduction("Mixed_5a", 576, (128, 192, 192, 256)),
    *_mixed("Mixed_5b", 1024, (352, 192, 320, 160, 224, 128)),
    *_mixed("Mixed_5c", 1024, (352, 192, 320, 192, 224, 128)),
)


def tensor_shapes(arguments: Arguments) -> dict[str, Shape]:
    """Canonical tensor name → shape."""
    return {**STEM_SHAPES, **unit_shapes(UNITS)}


def _slim(*, gamma: bool) -> NameMap:
    def backbone(arguments: Arguments) -> dict[str, Target]:
        at = f"InceptionV2/{STEM}"
        return {
            f"{at}/depthwise_weights": Target(name=f"{STEM}/depthwise_kernel"),
            f"{at}/pointwise_weights": Target(name=f"{STEM}/pointwise_kernel"),
            f"{at}/biases": Target(name=f"{STEM}/bias"),
            **slim_names(UNITS, "InceptionV2", gamma=gamma),
        }

    return NameMap(
        framework="slim",
        backbone=backbone,
        head=slim_logits("InceptionV2/Logits/Conv2d_1c_1x1"),
        unused=SLIM_UNUSED,
        input_spec=slim_input_spec(224),
    )


FACTS = ArchitectureFacts(
    name="inception_v2",
    paper="Ioffe and Szegedy 2015, Batch Normalization, arXiv:1502.03167",
    defaults={},
    tensor_shapes=tensor_shapes,
    feature_dim=lambda arguments: 1024,
    endpoints=(
        Endpoint(name="Conv2d_1a_7x7", stride=2, channels=64),
        Endpoint(name="MaxPool_2a_3x3", stride=4, channels=64),
        Endpoint(name="Conv2d_2b_1x1", stride=4, channels=64),
        Endpoint(name="Conv2d_2c_3x3", stride=4, channels=192),
        Endpoint(name="MaxPool_3a_3x3", stride=8, channels=192),
        Endpoint(name="Mixed_3b", stride=8, channels=256),
        Endpoint(name="Mixed_3c", stride=8, channels=320),
        Endpoint(name="Mixed_4a", stride=16, channels=576),
        Endpoint(name="Mixed_4b", stride=16, channels=576),
        Endpoint(name="Mixed_4c", stride=16, channels=576),
        Endpoint(name="Mixed_4d", stride=16, channels=576),
        Endpoint(name="Mixed_4e", stride=16, channels=576),
        Endpoint(name="Mixed_5a", stride=32, channels=1024),
        Endpoint(name="Mixed_5b", stride=32, channels=1024),
        Endpoint(name="Mixed_5c", stride=32, channels=1024),
    ),
    parameters=10_173_112,  # the figure of TF-Slim's own test of its network
    flops=3_880_000_000,  # 3.87 of its convolutions; google-research/receptive_field counts 3.88 for Slim's network
    batch_norm_epsilon=1e-3,
    input_spec=InputSpec(height=224, width=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    min_size=32,  # the limit that Slim names; any size runs, but a smaller one sees mostly padding at the end
    name_maps={"slim": _slim(gamma=False), "slim-gamma": _slim(gamma=True)},
    published=PublishedCount(
        parameters=10_173_112, classes=0, trainable_only=False, where="TF-Slim's own test, inception_v2_test.py"
    ),
    sources=(
        hub("inception_v2", 73.9),
        slim("inception_v2_2016_08_28", 73.9),
    ),
)
