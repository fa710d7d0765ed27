"""Augmentation: the same pixels for the same (seed, epoch, index), whatever the thread, the order or the day."""

from __future__ import annotations

import hashlib
import io
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from finetune.data.augment import INCEPTION, augmented, erased
from finetune.data.augment_box import box_around, box_of_share
from finetune.data.augment_chance import Chance
from finetune.data.augment_rand import OPERATIONS, rand_augment
from finetune.data.augmentation import Augmentation, Erase, RandAugment
from finetune.data.image_header import UnreadableImage
from finetune.data.preprocess import load_pixels
from zoo.input_spec import InputSpec

MAX = 10_000_000
SPEC = InputSpec(width=48, height=40)
EVERYTHING = Augmentation(
    crop="inception",
    mirror=True,
    rand_augment=RandAugment(number=2),
    colour="full",
    erase=Erase(probability=0.5),
)
# One setting on at a time; what each name means is in the table of finetune.data.augment.
ALONE = {
    "nothing": Augmentation(),
    "crop": Augmentation(crop="inception"),
    "mirror": Augmentation(mirror=True),
    "rand_augment": Augmentation(rand_augment=RandAugment(number=3, magnitude=7)),
    "colour fast": Augmentation(colour="fast"),
    "colour full": Augmentation(colour="full"),
    "erase": Augmentation(erase=Erase(probability=1.0)),
    "everything": EVERYTHING,
}


def picture(width: int = 48, height: int = 40) -> np.ndarray:
    """Whole-number arithmetic only, so that it is the same everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 5 % 256, (y * 6 + x) % 256, (x * y // 8 + 40) % 256]
    return np.stack(channels, axis=-1).astype(np.uint8)


def encoded(pixels_HWC: np.ndarray, kind: str = "PNG") -> bytes:
    with io.BytesIO() as buffer:
        Image.fromarray(pixels_HWC).save(buffer, kind)
        return buffer.getvalue()


DATA = encoded(picture())


def made(augmentation: Augmentation, *, data: bytes = DATA, spec: InputSpec = SPEC, **key: Any) -> np.ndarray:
    key = {"seed": 1, "epoch": 0, "index": 0, "may_mirror": True} | key
    return augmented(data, spec, augmentation, max_pixels=MAX, **key)


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


# Frozen: a running job that is resumed must see the same pixels. A changed hash means a raised AUGMENT_VERSION. The
# picture has the input's size, so that Pillow's resampling has a part in `crop`, `rand_augment` and `everything` only.
GOLDEN = {
    "nothing": "013b414637964697",
    "crop": "41c316b301ae8018",
    "mirror": "6e4efedd73c9dd17",
    "rand_augment": "e4d32c39ee982b82",
    "colour fast": "1ecadc572f85926e",
    "colour full": "2a60e3b14489f2d4",
    "erase": "fd55cdfe0408121e",
    "everything": "3aa902bc7d9bb2c6",
}


@pytest.mark.parametrize("name", ALONE)
def test_pixels_are_frozen(name: str) -> None:
    pixels = np.stack([made(ALONE[name], seed=7, epoch=epoch, index=11) for epoch in range(4)])
    assert digest(pixels) == GOLDEN[name]


def test_draws_are_frozen() -> None:
    chance = Chance(7, 3, 11, purpose="crop")
    assert [chance.random() for _ in range(2)] == [0.8252353647521427, 0.1327202842377707]
    assert [chance.below(1000) for _ in range(10)] == [680, 636, 77, 888, 971, 288, 351, 825, 591, 955]
    assert chance.permutation(6).tolist() == [3, 1, 5, 2, 4, 0]
    assert chance.noise((4,)).tolist() == [42, 121, 164, 114]
    box = box_of_share(640, 427, area=(0.05, 1.0), aspect=(0.75, 4 / 3), chance=Chance(7, 3, 11, purpose="crop"))
    assert box == (14, 7, 468, 427)


def test_every_part_of_the_key_counts() -> None:
    keys = [{}, {"seed": 2}, {"epoch": 1}, {"index": 1}, {"seed": 10}, {"epoch": 10}, {"index": 10}, {"seed": -1}]
    assert len({digest(made(EVERYTHING, **key)) for key in keys}) == len(keys)
    assert len({digest(made(EVERYTHING, epoch=epoch)) for epoch in range(60)}) == 60


def test_threads_and_order_make_no_difference() -> None:
    def one(index: int) -> str:
        return digest(made(EVERYTHING, index=index, seed=3, epoch=5))

    alone = [one(index) for index in range(48)]
    for threads in (2, 7):
        with ThreadPoolExecutor(threads) as pool:
            assert list(pool.map(one, range(48))) == alone
            assert list(pool.map(one, reversed(range(48)))) == alone[::-1]


def test_another_process_makes_the_same_and_needs_no_tensorflow() -> None:
    program = (
        "import sys, tests.finetune.data.test_augment as t\n"
        "print(t.digest(t.made(t.EVERYTHING, seed=5, epoch=6, index=7)), 'tensorflow' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == [digest(made(EVERYTHING, seed=5, epoch=6, index=7)), "False"]


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    to_width=st.integers(1, 40),
    to_height=st.integers(1, 40),
    seed=st.integers(-(2**70), 2**70),
    name=st.sampled_from(sorted(ALONE)),
    fit=st.sampled_from(["squash", "shortest", "pad"]),
)
def test_any_picture_and_size(
    width: int, height: int, to_width: int, to_height: int, seed: int, name: str, fit: Any
) -> None:
    spec = InputSpec(width=to_width, height=to_height, fit=fit)
    data = encoded(picture(width, height))
    pixels = made(ALONE[name], data=data, spec=spec, seed=seed)
    assert pixels.shape == (to_height, to_width, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, made(ALONE[name], data=data, spec=spec, seed=seed))
    if name == "nothing":
        assert np.array_equal(pixels, load_pixels(data, spec, max_pixels=MAX))


def test_a_part_that_is_switched_off_leaves_the_others_as_they_were() -> None:
    for epoch in range(20):
        boxed = made(Augmentation(crop="inception"), epoch=epoch)
        both = made(Augmentation(crop="inception", mirror=True), epoch=epoch)
        assert np.array_equal(both, boxed) or np.array_equal(both, boxed[:, ::-1])
        mirrored = not np.array_equal(made(Augmentation(mirror=True), epoch=epoch), picture())
        assert np.array_equal(both, boxed[:, ::-1]) == mirrored


def test_every_second_picture_is_mirrored_and_none_that_may_not() -> None:
    mirror = Augmentation(mirror=True)
    seen = [np.array_equal(made(mirror, index=index), picture()[:, ::-1]) for index in range(400)]
    assert 160 < sum(seen) < 240
    assert all(np.array_equal(made(mirror, index=index, may_mirror=False), picture()) for index in range(50))


def test_crops_have_the_areas_and_shapes_that_were_asked_for() -> None:
    boxes = [
        box_of_share(640, 427, area=(0.05, 1.0), aspect=(0.75, 4 / 3), chance=Chance(1, number, purpose="crop"))
        for number in range(2000)
    ]
    sides = np.array([(box[2] - box[0], box[3] - box[1]) for box in boxes if box], float)
    assert len(sides) == 2000
    share = sides.prod(axis=1) / (640 * 427)
    ratio = sides[:, 0] / sides[:, 1]
    assert share.min() == pytest.approx(0.05, abs=0.02)
    assert 0.85 < share.max() <= 1
    assert ratio.min() > 0.74
    assert ratio.max() < 4 / 3 + 0.01
    for box in boxes:
        assert box
        assert 0 <= box[0] < box[2] <= 640
        assert 0 <= box[1] < box[3] <= 427
    assert np.std([box[0] for box in boxes if box]) > 60  # anywhere


def test_a_shape_that_never_fits_gives_the_whole_picture() -> None:
    chance = Chance(0, purpose="crop")
    assert box_of_share(100, 1, area=(0.9, 1.0), aspect=(0.75, 4 / 3), chance=chance) is None
    strip = encoded(picture(100, 1))
    crop = Augmentation(crop="inception", crop_area=(0.9, 1.0))
    assert np.array_equal(made(crop, data=strip), load_pixels(strip, SPEC, max_pixels=MAX))


def test_boxes_around_a_point_are_cut_off_at_the_edges() -> None:
    for number in range(300):
        left, top, right, bottom = box_around(31, 17, share=0.4, chance=Chance(number, purpose="box"))
        assert 0 <= left <= right <= 31
        assert 0 <= top <= bottom <= 17
        assert (right - left) * (bottom - top) <= 0.4 * 31 * 17 + 31


def test_erasing_puts_noise_in_one_box() -> None:
    erase = Erase(probability=1.0, area=(0.1, 0.2))
    for number in range(30):
        black = np.zeros((60, 80, 3), np.uint8)
        noise = erased(black, erase, Chance(number, purpose="erase"))
        assert not black.any()
        rows, columns = noise.any(axis=(1, 2)).nonzero()[0], noise.any(axis=(0, 2)).nonzero()[0]
        box = noise[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert 0.09 < box[..., 0].size / (60 * 80) < 0.21
        assert (box.any(axis=2)).mean() > 0.99
        assert 110 < box.mean() < 145
    happened = [erased(black, Erase(probability=0.25), Chance(n, purpose="erase")).any() for n in range(400)]
    assert 70 < sum(happened) < 130


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_grow_with_their_magnitude(name: str) -> None:
    operation, image = OPERATIONS[name], Image.fromarray(picture(64, 64))
    strong, weak = (np.asarray(operation.apply(image, operation.most * share)).astype(int) for share in (1.0, 0.3))
    assert strong.shape == (64, 64, 3)
    if operation.most:
        none = np.asarray(operation.apply(image, 0.0)).astype(int)
        assert np.array_equal(none, picture(64, 64)), "magnitude 0 changes nothing"
        assert 0 < np.abs(weak - none).mean() < np.abs(strong - none).mean()
    if operation.signed:
        assert not np.array_equal(strong, np.asarray(operation.apply(image, -operation.most)))


def test_rand_augment_draws_all_operations_and_both_signs() -> None:
    seen = {
        digest(rand_augment(picture(), number=1, magnitude=10, chance=Chance(n, purpose="rand"))) for n in range(600)
    }
    signed = sum(operation.signed for operation in OPERATIONS.values())
    assert len(OPERATIONS) == 14
    assert len(OPERATIONS) + signed - 2 <= len(seen) <= len(OPERATIONS) + signed
    assert np.array_equal(rand_augment(picture(), number=0, magnitude=10, chance=Chance(0, purpose="rand")), picture())


def test_noise_has_every_value() -> None:
    noise = Chance(1, purpose="x").noise((256, 300))
    counts = np.bincount(noise.ravel(), minlength=256)
    assert counts.min() > 200
    assert counts.max() < 400


def test_beta_has_its_mean_and_spread() -> None:
    for alpha in (0.01, 0.2, 1.0, 2.0):
        chance = Chance(3, purpose="beta")
        drawn = np.array([chance.beta(alpha) for _ in range(2000)])
        assert drawn.min() >= 0
        assert drawn.max() <= 1
        assert drawn.mean() == pytest.approx(0.5, abs=0.04)
        assert drawn.std() == pytest.approx(math.sqrt(1 / (4 * (2 * alpha + 1))), abs=0.02)


def test_bad_images_are_refused_as_elsewhere() -> None:
    with pytest.raises(UnreadableImage, match="zero bytes"):
        made(INCEPTION, data=b"")
    with pytest.raises(UnreadableImage, match="truncated"):
        made(INCEPTION, data=DATA[: len(DATA) // 2])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"crop_area": (0.5, 0.1)}, "crop_area goes from 0.5 to 0.1"),
        ({"erase": {"area": (0.5, 0.1)}}, "erase.area goes from 0.5 to 0.1"),
        ({"mixup": 0.001}, "mixup is 0.001: allowed are 0"),
        ({"rand_augment": {"magnitude": 11}}, "less than or equal to 10"),
        ({"flip": True}, "Extra inputs"),
    ],
)
def test_settings_that_can_not_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Augmentation.model_validate(settings)


def test_whether_it_changes_images() -> None:
    assert [name for name, value in ALONE.items() if not value.changes_images] == ["nothing"]
    assert not Augmentation(mixup=0.2, cutmix=1.0).changes_images
    assert INCEPTION.changes_images
