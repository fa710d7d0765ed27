"""The weight files of Keras Applications: addresses and checksums as Keras 3 has them in its own source.

Takes the name of a function in `keras.applications`. Gives an address. Next: `zoo.sources.doors`. Files with the
output layer are taken, since leaving it out is what an import can do by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

_HOST = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """`checksum`: `md5:<hex>` or `sha256:<hex>`, None where Keras checks none."""

    url: str
    checksum: str | None


def _kernels(folder: str, name: str, md5: str) -> PublishedFile:
    url = f"{_HOST}/{folder}/{name}_weights_tf_dim_ordering_tf_kernels.h5"
    return PublishedFile(url=url, checksum=f"md5:{md5}")


KERAS_FILES: dict[str, PublishedFile] = {
    "ConvNeXtTiny": PublishedFile(
        url=f"{_HOST}/convnext/convnext_tiny.h5",
        checksum="sha256:8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
    ),
    "EfficientNetV2B0": PublishedFile(
        url=f"{_HOST}/efficientnet_v2/efficientnetv2-b0.h5", checksum="md5:21ecbf6da12460d5c40bb2f29ceb2188"
    ),
    "InceptionResNetV2": _kernels("inception_resnet_v2", "inception_resnet_v2", "e693bd0210a403b3192acc6073ad2e96"),
    "InceptionV3": _kernels("inception_v3", "inception_v3", "9a0d58056eeedaa3f26cb7ebd46da564"),
    "MobileNetV2": PublishedFile(
        url=f"{_HOST}/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5", checksum=None
    ),
    "MobileNetV3Large": PublishedFile(
        url=f"{_HOST}/mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float.h5",
        checksum="md5:59e551e166be033d707958cf9e29a6a7",
    ),
    "MobileNetV3Small": PublishedFile(
        url=f"{_HOST}/mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float.h5",
        checksum="md5:8768d4c2e7dee89b9d02b2d03d65d862",
    ),
    "ResNet50": _kernels("resnet", "resnet50", "2cb95161c43110f7111970584f804107"),
    "ResNet50V2": _kernels("resnet", "resnet50v2", "3ef43a0b657b3be2300d5770ece849e0"),
    "Xception": _kernels("xception", "xception", "0a58e3b7378bc2990ea3b43d5981f1f6"),
}
