"""Inception v1, GoogLeNet (Szegedy et al. 2014, arXiv:1409.4842), as TF-Slim builds it: with BatchNorm where the paper
has local response normalisation and biases, and with a 3 × 3 convolution where it has a 5 × 5 one.

Canonical scopes are TF-Slim's, `Mixed_5b/Branch_2/Conv2d_0a_3x3` included, which breaks the pattern. Each scope is a
convolution without bias, then a BatchNorm without gamma, then relu. torchvision's googlenet is a port of the same
network, trained by Slim's authors; it has gammas, and other paddings.
"""

from __future__ import annotations

from zoo.architectures.facts import (
    ArchitectureFacts,
    Arguments,
    Endpoint,
    NameMap,
    PublishedCount,
    Shape,
    Target,
)
from zoo.architectures.publishers import hub, slim
from zoo.architectures.units import (
    SLIM_UNUSED,
    TORCH_UNUSED,
    Unit,
    slim_input_spec,
    slim_logits,
    slim_names,
    torch_dense,
    torch_names,
    unit_shapes,
)
from zoo.input_spec import InputSpec


def _mixed(name: str, torch: str, inputs: int, widths: tuple[int, ...], odd: str = "Conv2d_0b_3x3") -> tuple[Unit, ...]:
    """`widths`: of branch 0; of branch 1, both convolutions; of branch 2, both; of branch 3, after its pooling."""
    zero, one_a, one_b, two_a, two_b, three = widths
    return (
        Unit(f"{name}/Branch_0/Conv2d_0a_1x1", f"{torch}.branch1", 1, 1, inputs, zero),
        Unit(f"{name}/Branch_1/Conv2d_0a_1x1", f"{torch}.branch2.0", 1, 1, inputs, one_a),
        Unit(f"{name}/Branch_1/Conv2d_0b_3x3", f"{torch}.branch2.1", 3, 3, one_a, one_b),
        Unit(f"{name}/Branch_2/Conv2d_0a_1x1", f"{torch}.branch3.0", 1, 1, inputs, two_a),
        Unit(f"{name}/Branch_2/{odd}", f"{torch}.branch3.1", 3, 3, two_a, two_b),
        Unit(f"{name}/Branch_3/Conv2d_0b_1x1", f"{torch}.branch4.1", 1, 1, inputs, three),
    )


# In the order in which Slim makes them.
UNITS: tuple[Unit, ...] = (
    Unit("Conv2d_1a_7x7", "conv1", 7, 7, 3, 64),
    Unit("Conv2d_2b_1x1", "conv2", 1, 1, 64, 64),
    Unit("Conv2d_2c_3x3", "conv3", 3, 3, 64, 192),
    *_mixed("Mixed_3b", "inception3a", 192, (64, 96, 128, 16, 32, 32)),
    *_mixed("Mixed_3c", "inception3b", 256, (128, 128, 192, 32, 96, 64)),
    *_mixed("Mixed_4b", "inception4a", 480, (192, 96, 208, 16, 48, 64)),
    *_mixed("Mixed_4c", "inception4b", 512, (160, 112, 224, 24, 64, 64)),
    *_mixed("Mixed_4d", "inception4c", 512, (128, 128, 256, 24, 64, 64)),
    *_mixed("Mixed_4e", "inception4d", 512, (112, 144, 288, 32, 64, 64)),
    *_mixed("Mixed_4f", "inception4e", 528, (256, 160, 320, 32, 128, 128)),
    *_mixed("Mixed_5b", "inception5a", 832, (256, 160, 320, 32, 128, 128), odd="Conv2d_0a_3x3"),
    *_mixed("Mixed_5c", "inception5b", 832, (384, 192, 384, 48, 128, 128)),
)


def tensor_shapes(arguments: Arguments) -> dict[str, Shape]:
    """Canonical tensor name → shape; the arguments change none of them."""
    return unit_shapes(UNITS)


def _slim(*, gamma: bool) -> NameMap:
    def backbone(arguments: Arguments) -> dict[str, Target]:
        return slim_names(UNITS, "InceptionV1", gamma=gamma)

    return NameMap(
        framework="slim",
        backbone=backbone,
        head=slim_logits("InceptionV1/Logits/Conv2d_0c_1x1"),
        unused=SLIM_UNUSED,
        input_spec=slim_input_spec(224),
    )


_USUAL = InputSpec(height=224, width=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_AUXILIARY = "the auxiliary classifier only serves training from scratch"

FACTS = ArchitectureFacts(
    name="inception_v1",
    paper="Szegedy et al. 2014, Going Deeper with Convolutions, arXiv:1409.4842; BatchNorm as in arXiv:1502.03167",
    # torchvision pads the strided convolution by 3 pixels on every side, where TensorFlow's "same" pads 2 before and 3
    # after; and its strided poolings begin at the first pixel (ceil mode), also on an odd side.
    defaults={"torch_padding": False},
    tensor_shapes=tensor_shapes,
    feature_dim=lambda arguments: 1024,
    endpoints=(
        Endpoint(name="Conv2d_1a_7x7", stride=2, channels=64),
        Endpoint(name="MaxPool_2a_3x3", stride=4, channels=64),
        Endpoint(name="Conv2d_2b_1x1", stride=4, channels=64),
        Endpoint(name="Conv2d_2c_3x3", stride=4, channels=192),
        Endpoint(name="MaxPool_3a_3x3", stride=8, channels=192),
        Endpoint(name="Mixed_3b", stride=8, channels=256),
        Endpoint(name="Mixed_3c", stride=8, channels=480),
        Endpoint(name="MaxPool_4a_3x3", stride=16, channels=480),
        Endpoint(name="Mixed_4b", stride=16, channels=512),
        Endpoint(name="Mixed_4c", stride=16, channels=512),
        Endpoint(name="Mixed_4d", stride=16, channels=512),
        Endpoint(name="Mixed_4e", stride=16, channels=528),
        Endpoint(name="Mixed_4f", stride=16, channels=832),
        Endpoint(name="MaxPool_5a_2x2", stride=32, channels=832),
        Endpoint(name="Mixed_5b", stride=32, channels=832),
        Endpoint(name="Mixed_5c", stride=32, channels=1024),
    ),
    parameters=5_607_184,  # the figure of TF-Slim's own test of its network
    flops=3_000_000_000,  # 1.498 billion multiply-adds, as torchvision publishes
    batch_norm_epsilon=1e-3,
    input_spec=_USUAL,
    min_size=15,  # torchvision's limit: PyTorch's paddings leave nothing of a smaller image, TensorFlow's always do
    name_maps={
        "slim": _slim(gamma=False),
        "slim-gamma": _slim(gamma=True),
        "torchvision": NameMap(
            framework="torch",
            backbone=lambda arguments: torch_names(UNITS),
            head=torch_dense("fc"),
            unused={"aux1.*": _AUXILIARY, "aux2.*": _AUXILIARY, **TORCH_UNUSED},
            arguments={"torch_padding": True},
            # Resized to 256, then cropped. Values in (-1, 1) as in Slim, whose weights torchvision published: its own
            # loader (transform_input) turns ImageNet's mean and deviation, which it asks of its users, back into that.
            input_spec=_USUAL.model_copy(update={"fit": "shortest", "crop_fraction": 0.875}),
        ),
    },
    published=PublishedCount(
        parameters=6_624_904,
        classes=1000,
        trainable_only=True,
        extra=sum(unit.outputs for unit in UNITS),  # its gammas
        where="torchvision's GoogLeNet_Weights.IMAGENET1K_V1, without the auxiliary classifiers",
    ),
    sources=(
        hub("inception_v1", 69.8),
        slim("inception_v1_2016_08_28", 69.8),
    ),
)
