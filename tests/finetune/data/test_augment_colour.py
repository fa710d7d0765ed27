"""Colour distortion beside TensorFlow's, which TF-Slim's is made of."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from finetune.data import augment_colour
from finetune.data.augment_chance import Chance
from finetune.data.augment_colour import ORDERS, distort_colour


def pixels(seed: int = 0) -> np.ndarray:
    """Every kind of colour: noise, greys, pure hues, black, white."""
    noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    noise[0] = noise[0, :, :1]
    noise[1] = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0]], np.uint8).repeat(8, axis=0)
    noise[2] = np.array([[0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255]], np.uint8).repeat(8, axis=0)
    return noise


STEPS = {
    "brightness": (lambda image, amount: tf.image.adjust_brightness(image, amount / 255), (-32, -1.5, 0, 20)),
    "contrast": (tf.image.adjust_contrast, (0.5, 0.9, 1.0, 1.5)),
    "saturation": (tf.image.adjust_saturation, (0.0, 0.5, 1.0, 1.2, 1.5)),
    "hue": (tf.image.adjust_hue, (-0.2, -0.03, 0.0, 0.1, 0.2, 0.5)),
}


@pytest.mark.parametrize("name", STEPS)
def test_each_step_is_tensorflows(name: str) -> None:
    theirs, amounts = STEPS[name]
    image_HWC = pixels()
    for amount in amounts:
        rgb_CHW = image_HWC.transpose(2, 0, 1).astype(np.float32)
        getattr(augment_colour, name)(rgb_CHW, amount)
        expected_HWC = theirs(tf.constant(image_HWC / np.float32(255)), amount).numpy() * 255
        assert np.abs(rgb_CHW.transpose(1, 2, 0) - expected_HWC).max() < 0.01, amount


def test_steps_that_change_nothing() -> None:
    image_CHW = pixels().transpose(2, 0, 1).astype(np.float32)
    for name, amount in (("brightness", 0), ("contrast", 1), ("saturation", 1), ("hue", 0), ("hue", 1)):
        rgb_CHW = image_CHW.copy()
        getattr(augment_colour, name)(rgb_CHW, amount)
        assert np.abs(rgb_CHW - image_CHW).max() < 1e-3, name


def test_what_an_earlier_step_pushed_out_is_cut_off_first() -> None:
    rgb_CHW = np.array([-40.0, 100.0, 300.0], np.float32).reshape(3, 1, 1)
    augment_colour.saturation(rgb_CHW, 0.5)
    assert rgb_CHW.ravel().tolist() == [127.5, 177.5, 255.0]


@pytest.mark.parametrize("kind", ORDERS)
def test_all_orders_come_up_and_values_stay_in_range(kind: str) -> None:
    image_HWC = pixels()
    kept = image_HWC.copy()
    for number in range(40):
        made_HWC = distort_colour(image_HWC, kind, Chance(number, purpose="colour"))
        assert made_HWC.dtype == np.uint8
        assert made_HWC.shape == image_HWC.shape
        assert made_HWC.flags.c_contiguous
        assert np.abs(made_HWC.astype(int) - image_HWC).mean() > 0.5
    assert np.array_equal(image_HWC, kept)
    first = {Chance(number, purpose="colour").below(len(ORDERS[kind])) for number in range(40)}
    assert first == set(range(len(ORDERS[kind])))


def test_the_table_is_slims() -> None:
    assert {tuple(sorted(order)) for order in ORDERS["full"]} == {("brightness", "contrast", "hue", "saturation")}
    assert len(set(ORDERS["full"])) == 4
    assert set(ORDERS["fast"]) == {("brightness", "saturation"), ("saturation", "brightness")}
