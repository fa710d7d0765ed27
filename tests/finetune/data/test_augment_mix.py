"""MixUp and CutMix: the targets' shares are what really is in the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finetune.data.augment_mix import mix_batch

GREYS = np.arange(8, dtype=np.uint8) * 30


def batch(dtype: Any = np.uint8) -> np.ndarray:
    """[8, 20, 24, 3]; row b is one grey, 30 × b."""
    return np.broadcast_to(GREYS[:, None, None, None], (8, 20, 24, 3)).astype(dtype)


def mixed(image_BHWC: np.ndarray, *, mixup: float = 0, cutmix: float = 0, position: int = 0, **more: Any) -> Any:
    return mix_batch(image_BHWC, mixup=mixup, cutmix=cutmix, seed=3, position=position, **more)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mixup_is_the_weighted_mean(dtype: Any) -> None:
    images = batch(dtype)
    images.setflags(write=False)
    made = mixed(images, mixup=1.0)
    assert made.image.dtype == dtype
    assert made.share.dtype == np.float32
    assert sorted(made.partner) == list(range(8))
    assert not np.array_equal(made.partner, np.arange(8))
    expected = made.share * GREYS + (1 - made.share) * GREYS[made.partner]
    assert np.abs(made.image[:, 5, 5, 1] - expected).max() <= (0.5001 if dtype == np.uint8 else 1e-4)
    assert np.ptp(made.image, axis=(1, 2, 3)).max() == 0


def test_cutmix_shares_are_the_areas_left() -> None:
    seen = []
    for position in range(0, 160, 8):
        made = mixed(batch(), cutmix=1.0, position=position)
        for row, partner in enumerate(made.partner):
            own = made.image[row, :, :, 0] == GREYS[row]
            assert (own | (made.image[row, :, :, 0] == GREYS[partner])).all()
            if partner != row:
                assert own.mean() == pytest.approx(made.share[row], abs=1e-6)
                pasted = ~own
                rows, columns = pasted.any(axis=1).sum(), pasted.any(axis=0).sum()
                assert pasted.sum() == rows * columns, "one box"
        seen.extend(made.share)
    assert min(seen) < 0.3
    assert max(seen) == pytest.approx(1, abs=0.05)


def test_with_both_each_batch_gets_one() -> None:
    kinds = set()
    for position in range(0, 400, 8):
        made = mixed(batch(), mixup=1.0, cutmix=1.0, position=position)
        kinds.add("cutmix" if set(np.unique(made.image)) <= set(GREYS.tolist()) else "mixup")
    assert kinds == {"mixup", "cutmix"}


def test_seed_and_position_decide() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), np.uint8)
    one, again = mixed(noise, mixup=0.4, position=16), mixed(noise, mixup=0.4, position=16)
    assert one.image.tobytes() == again.image.tobytes()
    assert one.partner.tolist() == again.partner.tolist()
    assert one.share.tolist() == again.share.tolist()
    others = [mixed(noise, mixup=0.4, position=position).share.tolist() for position in range(20)]
    assert len({tuple(share) for share in others}) == 20
    assert mix_batch(noise, mixup=0.4, cutmix=0, seed=4, position=16).share.tolist() != one.share.tolist()


def test_results_are_frozen() -> None:
    made = mixed(batch(), mixup=0.4, position=16)
    assert made.partner.tolist() == [3, 4, 6, 7, 5, 2, 1, 0]
    assert made.image[:, 0, 0, 0].tolist() == [28, 113, 161, 121, 142, 102, 170, 61]
    assert mixed(batch(), cutmix=1.0, position=16).share.tolist() == pytest.approx(
        [0.75, 0.5125, 0.566667, 0.75625, 0.708333, 0.6, 0.64375, 0.220833], abs=1e-5
    )


def test_images_that_can_not_be_used_stay_out() -> None:
    weight_B = np.array([1, 0, 1, 1, 0, 1, 1, 1], np.float32)
    for position in range(0, 80, 8):
        made = mixed(batch(), mixup=1.0, position=position, weight_B=weight_B)
        assert made.partner[[1, 4]].tolist() == [1, 4]
        assert made.share[[1, 4]].tolist() == [1, 1]
        assert np.array_equal(made.image[[1, 4]], batch()[[1, 4]])
        assert not {1, 4} & set(made.partner[[0, 2, 3, 5, 6, 7]].tolist())


@pytest.mark.parametrize(("images", "alpha"), [(batch(), 0.0), (batch()[:1], 1.0), (batch()[:0], 1.0)])
def test_nothing_to_mix(images: np.ndarray, alpha: float) -> None:
    made = mixed(images, mixup=alpha, cutmix=alpha)
    assert np.array_equal(made.image, images)
    assert made.partner.tolist() == list(range(len(images)))
    assert made.share.tolist() == [1] * len(images)
