"""The feature cache: computed once, right to the bit, whole after anything that may happen to it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data.feature_fill import FillStopped, UnusableFeatures
from finetune.data.features import CacheCleared, FeatureArray, FeatureCache
from finetune.data.preprocess import load_views, normalise
from finetune.data.scenes import SceneSource
from finetune.data.sources import open_source
from zoo.atomic_file import NoSpace, NotADirectory
from zoo.errors import InvalidArgument
from zoo.input_spec import InputSpec

DIM = 6
SPEC = InputSpec(height=24, width=24)
LIMIT = 10**6


class MeanBackbone:
    """A linear network: quadrant means through a fixed matrix. Counts its passes."""

    feature_dim = DIM

    def __init__(self, digest: str = "sha256:one", spec: InputSpec = SPEC) -> None:
        self.digest = digest
        self.input_spec = spec
        self.passes: list[tuple[int, ...]] = []

    def feature_vector(self, image_BHWC: Any) -> np.ndarray:
        self.passes.append(image_BHWC.shape)
        mean_BC = np.concatenate([image_BHWC[:, :12].mean((1, 2)), image_BHWC[:, :, :12].mean((1, 2))], axis=1)
        return mean_BC @ np.arange(DIM * DIM, dtype=np.float32).reshape(DIM, DIM)


def fill(root: Path, backbone: Any, source: Any, **more: Any) -> FeatureArray:
    options = {"indices": range(len(source.examples)), "max_pixels": LIMIT, "batch_size": 4} | more
    cache = FeatureCache(root, dtype=options.pop("dtype", "float32"))
    return cache.open_or_fill(backbone=backbone, source=source, **options)


SCENES = SceneSource.open("count=11,size=32")


def expected(source: Any, index: int, view: int = 0) -> np.ndarray:
    pixels = load_views(source.read(index), SPEC, views=[view], max_pixels=LIMIT)[0]
    return MeanBackbone().feature_vector(normalise(pixels, SPEC)[None])[0]


def test_features_are_those_of_the_images_asked_for_in_their_order(tmp_path: Path) -> None:
    backbone = MeanBackbone()
    made = fill(tmp_path, backbone, SCENES, indices=[7, 0, 3, 10, 5], views=3)
    assert made.features.shape == (5, 3, DIM)
    assert made.features.dtype == np.float32
    for row, index in enumerate([7, 0, 3, 10, 5]):
        for view in range(3):
            assert made.features[row, view] == pytest.approx(expected(SCENES, index, view), rel=1e-5)
    assert backbone.passes == [(4, 24, 24, 3)] * 4  # 15 vectors, the last pass filled up
    assert made.rows_of([0, 5]).tolist() == [1, 4]
    assert made.computed == 15


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    first = fill(tmp_path, MeanBackbone(), SCENES, indices=range(8))
    overlapping = MeanBackbone()
    second = fill(tmp_path, overlapping, SCENES)
    assert second.computed == 3
    assert len(overlapping.passes) == 1
    assert second.features[:8].tobytes() == first.features.tobytes()
    more_views = fill(tmp_path, MeanBackbone(), SCENES, views=2)
    assert more_views.computed == 11
    assert more_views.features[:, 0].tobytes() == second.features[:, 0].tobytes()


def test_what_decides_a_vector_is_in_its_key(tmp_path: Path) -> None:
    fill(tmp_path, MeanBackbone(), SCENES)
    for backbone, more in (
        (MeanBackbone("sha256:other"), {}),
        (MeanBackbone(spec=InputSpec(height=24, width=24, background=(0, 0, 0))), {}),
        (MeanBackbone(), {"batch_size": 5}),
        (MeanBackbone(), {"dtype": "float16"}),
    ):
        assert fill(tmp_path, backbone, SCENES, **more).computed == 11


def test_the_same_bytes_under_two_names_are_one_image(tmp_path: Path) -> None:
    folder = tmp_path / "data/a"
    folder.mkdir(parents=True)
    for name in ("x.png", "y.png"):
        (folder / name).write_bytes(SCENES.read(0))
    source = open_source(f"folder:{tmp_path / 'data'}")
    made = fill(tmp_path / "cache", MeanBackbone(), source)
    assert made.computed == 1
    assert made.features[0].tobytes() == made.features[1].tobytes()


def test_bad_images_are_listed_and_have_no_rows(tmp_path: Path) -> None:
    folder = tmp_path / "data/a"
    folder.mkdir(parents=True)
    data = SCENES.read(0)
    for name, content in {"1": data, "2": b"", "3": data[:150], "4": SCENES.read(1), "5": b"no image"}.items():
        (folder / name).write_bytes(content)
    source = open_source(f"folder:{tmp_path / 'data'}")
    made = fill(tmp_path / "cache", MeanBackbone(), source)
    assert [record.id for record in made.bad] == ["a/2", "a/3", "a/5"]
    assert "zero bytes" in made.bad[0].reason
    assert "truncated" in made.bad[1].reason
    assert made.valid.tolist() == [True, False, False, True, False]
    assert made.rows_of([0, 3]).tolist() == [0, 3]
    with pytest.raises(InvalidArgument, match="1 examples have no features, the first is number 2"):
        made.rows_of([0, 2])


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fill(tmp_path, MeanBackbone(), SCENES, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (11, 11)
    assert seen == sorted(seen)


def _interrupt_after(images: int) -> Callable[[], bool]:
    asked = iter(range(1000))
    return lambda: next(asked) >= images


def test_stopping_loses_nothing_that_was_computed(tmp_path: Path) -> None:
    with pytest.raises(FillStopped, match="stopped after 9 of 11 images"):
        fill(tmp_path, MeanBackbone(), SCENES, stop=_interrupt_after(9))
    assert fill(tmp_path, MeanBackbone(), SCENES).computed == 3


def test_ctrl_c_loses_nothing_that_was_computed(tmp_path: Path) -> None:
    class Interrupted(MeanBackbone):
        def feature_vector(self, image_BHWC: Any) -> np.ndarray:
            if len(self.passes) == 2:
                raise KeyboardInterrupt
            return super().feature_vector(image_BHWC)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Interrupted(), SCENES)
    assert fill(tmp_path, MeanBackbone(), SCENES).computed == 3


def test_a_full_disk_is_said_and_the_cache_stays_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, MeanBackbone(), SCENES, indices=range(4))
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match="disk is full"):
        fill(tmp_path, MeanBackbone(), SCENES)
    monkeypatch.setattr(os, "fsync", real)
    assert not list(tmp_path.glob("*/.tmp-*"))
    assert len(list(tmp_path.glob("*/*.npy"))) == 1
    assert fill(tmp_path, MeanBackbone(), SCENES).computed == 7


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NotADirectory, match=r"cannot write .*/file/.*key\.json"):
        fill(tmp_path / "file", MeanBackbone(), SCENES)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99])
def test_a_damaged_shard_is_computed_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    good = fill(tmp_path, MeanBackbone(), SCENES)
    (shard,) = tmp_path.glob("*/*.npy")
    shard.write_bytes(damage(shard.read_bytes()))
    again = fill(tmp_path, MeanBackbone(), SCENES)
    assert again.computed == 11
    assert again.features.tobytes() == good.features.tobytes()
    assert f"removing the damaged feature file {shard}" in caplog.text


def test_values_that_are_not_finite_never_reach_the_cache(tmp_path: Path) -> None:
    class Broken(MeanBackbone):
        def feature_vector(self, image_BHWC: Any) -> np.ndarray:
            return super().feature_vector(image_BHWC) * np.nan

    with pytest.raises(UnusableFeatures, match="not finite"):
        fill(tmp_path, Broken(), SCENES)
    assert not list(tmp_path.glob("*/*.npy"))


def test_list_and_clear(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    assert cache.list() == []
    fill(tmp_path, MeanBackbone(), SCENES, views=2)
    entries = cache.list()
    assert [(entry.backbone, entry.view, entry.vectors) for entry in entries] == [
        ("sha256:one", 0, 11),
        ("sha256:one", 1, 11),
    ]
    assert entries[0].to_json()["key"]["preprocess"] == "2"
    assert cache.clear() == sum(entry.bytes for entry in entries)
    assert cache.list() == []
    assert cache.clear() == 0


def test_clearing_while_it_is_filled_is_said(tmp_path: Path) -> None:
    def clear(done: int, total: int) -> None:
        if done == total:
            FeatureCache(tmp_path).clear()

    with pytest.raises(CacheCleared, match="11 of 11 feature vectors vanished"):
        fill(tmp_path, MeanBackbone(), SCENES, on_progress=clear)


FILLER = """
    import sys, time
    from pathlib import Path
    from tests.finetune.data.test_features import MeanBackbone, fill
    from finetune.data.scenes import SceneSource
    class Slow(MeanBackbone):
        def feature_vector(self, image_BHWC):
            time.sleep(0.02)
            print("pass", flush=True)
            return super().feature_vector(image_BHWC)
    made = fill(Path(sys.argv[1]), Slow(), SceneSource.open("count=200,size=32"), indices=eval(sys.argv[2]))
    print(made.computed, made.features.sum())
"""


def _filler(root: Path, indices: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(FILLER), str(root), indices]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    both = [_filler(tmp_path, "range(200)"), _filler(tmp_path, "range(199, -1, -1)")]
    assert [process.communicate(timeout=120)[0] != "" for process in both] == [True, True]
    assert [process.returncode for process in both] == [0, 0]
    source = SceneSource.open("count=200,size=32")
    made = fill(tmp_path, MeanBackbone(), source)
    assert made.computed == 0
    assert made.features[::40, 0] == pytest.approx(
        np.stack([expected(source, index) for index in range(0, 200, 40)]), rel=1e-5
    )


def test_a_killed_filler_leaves_a_sound_cache(tmp_path: Path) -> None:
    with _filler(tmp_path, "range(200)") as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    source = SceneSource.open("count=200,size=32")
    made = fill(tmp_path, MeanBackbone(), source)
    assert made.features[123, 0] == pytest.approx(expected(source, 123), rel=1e-5)


def test_unfinished_files_of_the_dead_are_removed_after_a_day(tmp_path: Path) -> None:
    fill(tmp_path, MeanBackbone(), SCENES, indices=range(4))
    (folder,) = tmp_path.glob("[!.]*")
    old, new = folder / ".tmp-old", folder / ".tmp-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    fill(tmp_path, MeanBackbone(), SCENES)
    assert (old.exists(), new.exists()) == (False, True)
