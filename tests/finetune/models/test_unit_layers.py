"""The layers of the Inception family against NumPy."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from finetune.models.unit_layers import average_pool, chain, convolve, max_pool, max_pool_ceil
from zoo.architectures.units import Unit


def torch_max_pool(image_BHWC: np.ndarray, size: int, stride: int) -> np.ndarray:
    """PyTorch's definition: windows from the first pixel on, as many as begin inside, the last one cut at the edge."""
    _, height, width, _ = image_BHWC.shape
    rows, columns = (math.ceil(max(side - size, 0) / stride) + 1 for side in (height, width))
    windows = [
        [image_BHWC[:, y * stride : y * stride + size, x * stride : x * stride + size] for x in range(columns)]
        for y in range(rows)
    ]
    return np.stack([np.stack([w.max(axis=(1, 2)) for w in row], axis=1) for row in windows], axis=1)


def applied(layer: object, height: int, width: int, image_BHWC: np.ndarray) -> np.ndarray:
    image = keras.Input((height, width, image_BHWC.shape[3]))
    return np.asarray(keras.Model(image, layer(image))(image_BHWC))  # type: ignore[operator]


def random_image(height: int, width: int, channels: int = 2) -> np.ndarray:
    """What a relu gives: zeros among positive values."""
    values = np.random.default_rng(height * 100 + width).standard_normal((1, height, width, channels))
    return np.maximum(values, 0).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (9, 10), (11, 12), (3, 4), (5, 2)])
@pytest.mark.parametrize("size", [2, 3])
def test_ceil_mode_is_pytorchs(height: int, width: int, size: int) -> None:
    image = random_image(height, width)
    found = applied(lambda x: max_pool_ceil(x, "pool", size=size), height, width, image)
    np.testing.assert_array_equal(found, torch_max_pool(image, size, 2), strict=True)


def test_ceil_mode_and_same_differ_on_odd_sides_only() -> None:
    for side, equal in ((8, True), (9, False)):
        image = random_image(side, side)
        ceil = applied(lambda x: max_pool_ceil(x, "pool"), side, side, image)
        same = applied(lambda x: max_pool(x, "pool"), side, side, image)
        assert np.array_equal(ceil, same) == equal


@pytest.mark.parametrize("counts", [True, False])
def test_the_average_at_a_corner(counts: bool) -> None:
    image = random_image(4, 5)
    found = applied(lambda x: average_pool(x, "pool", counts_padding=counts), 4, 5, image)
    assert found.shape == image.shape
    corner = image[0, :2, :2].sum(axis=(0, 1)) / (9 if counts else 4)
    np.testing.assert_allclose(found[0, 0, 0], corner, rtol=1e-6)
    np.testing.assert_allclose(found[0, 1, 1], image[0, :3, :3].mean(axis=(0, 1)), rtol=1e-6)


def test_a_number_pads_every_side_where_same_pads_the_end() -> None:
    """A 7 × 7 kernel that is 1 in its middle gives the pixel that it stands on: 3 before the end, or 2."""
    unit = Unit("a/b", "", 7, 7, 1, 1)
    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1)
    kernel = np.zeros((7, 7, 1, 1), np.float32)
    kernel[3, 3] = 1
    found = {}
    for padding in ("same", 3):
        entry = keras.Input((8, 8, 1))
        model = keras.Model(entry, convolve(entry, unit, stride=2, padding=padding, epsilon=0.0))  # type: ignore[arg-type]
        model.get_layer("a.b").kernel.assign(kernel)
        found[padding] = np.asarray(model(image))[0, :, :, 0]
    np.testing.assert_array_equal(found[3], image[0, ::2, ::2, 0])
    np.testing.assert_array_equal(found["same"], image[0, 1::2, 1::2, 0])


def test_a_chain_takes_the_units_below_its_scope_and_strides_at_the_end() -> None:
    units = (Unit("m/b_1/one", "", 1, 1, 3, 4), Unit("m/b_10/other", "", 1, 1, 3, 9), Unit("m/b_1/two", "", 3, 3, 4, 5))
    entry = keras.Input((8, 8, 3))
    model = keras.Model(entry, chain(entry, units, "m/b_1", last_stride=2))
    assert model.output.shape == (None, 4, 4, 5)
    kernels = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert kernels == ["m.b_1.one", "m.b_1.two"]
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert [norm.scale for norm in norms] == [False, False]
    with pytest.raises(KeyError, match="m/b_2"):
        chain(entry, units, "m/b_2")
