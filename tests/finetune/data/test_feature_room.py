"""The feature cache below its cap, and in float16."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data import features as features_module
from finetune.data.feature_fill import UnusableFeatures
from finetune.data.feature_room import feature_limit, in_use, last_use, make_room
from finetune.data.feature_shards import ShardFolder
from finetune.data.features import FeatureCache
from tests.finetune.data.test_features import DIM, SCENES, MeanBackbone, fill
from zoo.cache import InvalidCacheLimit

ROOT = Path(__file__).parents[3]


def a_set(root: Path, name: str, *, used: float, vectors: int = 100) -> Path:
    folder = ShardFolder(root / name, dim=512, key={"backbone": name, "view": 0, "dtype": "float32"})
    for number in range(vectors):
        folder.add(bytes([number]) * 32, np.zeros(512, np.float32))
    folder.write()
    for path in folder.path.iterdir():
        os.utime(path, (used, used))
    return folder.path


def test_float16_takes_half_the_space_and_is_within_its_rounding(tmp_path: Path) -> None:
    full = fill(tmp_path, MeanBackbone(), SCENES)
    half = fill(tmp_path, MeanBackbone(), SCENES, dtype="float16")
    assert half.features.dtype == np.float16
    np.testing.assert_array_equal(half.features, full.features.astype(np.float16))
    again = fill(tmp_path, MeanBackbone(), SCENES, dtype="float16")
    assert again.computed == 0
    assert again.features.tobytes() == half.features.tobytes()
    small, large = sorted(FeatureCache(tmp_path).list(), key=lambda entry: entry.bytes)
    assert (small.dtype, large.dtype) == ("float16", "float32")
    assert large.bytes - small.bytes == pytest.approx(11 * DIM * 2, abs=64)  # the files' heads differ a little


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    class Loud(MeanBackbone):
        def feature_vector(self, image_BHWC: Any) -> np.ndarray:
            return np.full((len(image_BHWC), DIM), 70_000, np.float32)

    with pytest.raises(UnusableFeatures, match=r"a feature of 70000, float16 goes to 65504") as caught:
        fill(tmp_path, Loud(), SCENES, dtype="float16")
    assert caught.value.hint == "--set data.features=float32"
    assert not list(tmp_path.glob("*/*.npy"))
    assert fill(tmp_path, Loud(), SCENES).computed == 11


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_large_arrays_are_mapped_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    small = fill(tmp_path, MeanBackbone(), SCENES, views=2, dtype=dtype)
    monkeypatch.setattr(features_module, "_MAPPED_FROM", 1)
    mapped = fill(tmp_path, MeanBackbone(), SCENES, views=2, dtype=dtype)
    assert isinstance(mapped.features, np.memmap)
    assert mapped.features.tobytes() == small.features.tobytes()
    assert {path.suffix for path in tmp_path.glob("*/*")} <= {".npy", ".json", "", ".claims"}
    assert not [path for path in tmp_path.iterdir() if path.is_file()]  # the file has no name


def test_on_a_full_disk_large_arrays_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = fill(tmp_path, MeanBackbone(), SCENES)

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(features_module, "_MAPPED_FROM", 1)
    monkeypatch.setattr(os, "posix_fallocate", full)
    made = fill(tmp_path, MeanBackbone(), SCENES)
    assert not isinstance(made.features, np.memmap)
    assert made.features.tobytes() == small.features.tobytes()
    assert "264 bytes of features are kept in memory" in caplog.text
    assert "the disk is full" in caplog.text


def test_sets_that_were_not_used_for_longest_go_first(tmp_path: Path) -> None:
    now = time.time()
    sets = [a_set(tmp_path, name, used=now - age) for name, age in (("new", 10), ("old", 3000), ("older", 9000))]
    size = sum(path.stat().st_blocks * 512 for path in sets[0].iterdir())
    assert make_room(tmp_path, 3 * size) == 0
    assert make_room(tmp_path, 0) == 0  # no cap
    assert make_room(tmp_path, 2 * size) == size
    assert [path.exists() for path in sets] == [True, True, False]
    assert make_room(tmp_path, 1) == 2 * size
    assert not FeatureCache(tmp_path).list()


USER = """
    import sys
    from pathlib import Path
    from finetune.data.feature_room import hold
    hold(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_a_living_process_uses_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    used, unused = a_set(tmp_path, "used", used=1000.0), a_set(tmp_path, "unused", used=2000.0)
    command = [sys.executable, "-c", textwrap.dedent(USER), str(used)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "held\n"
        assert in_use(used)
        assert not in_use(unused)
        assert last_use(used) == pytest.approx(time.time(), abs=60)
        listed = {entry.backbone: entry.in_use for entry in FeatureCache(tmp_path).list()}
        assert listed == {"used": True, "unused": False}
        make_room(tmp_path, 1)
        assert (used.exists(), unused.exists()) == (True, False)
        assert "running processes use all of it" in caplog.text
        user.kill()
    assert not in_use(used)
    make_room(tmp_path, 1)
    assert not used.exists()


def test_what_may_not_be_removed_keeps_nobody_from_filling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a_set(tmp_path, "another's", used=1000.0)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("finetune.data.feature_room.shutil.rmtree", refuse)
    made = FeatureCache(tmp_path, limit=1).open_or_fill(
        backbone=MeanBackbone(), source=SCENES, indices=range(11), max_pixels=10**6, batch_size=4
    )
    assert made.valid.all()
    assert "cannot make room in" in caplog.text


def test_filling_makes_room_and_never_removes_what_it_fills(tmp_path: Path) -> None:
    old = a_set(tmp_path, "old", used=1000.0)
    made = FeatureCache(tmp_path, limit=1).open_or_fill(
        backbone=MeanBackbone(), source=SCENES, indices=range(11), max_pixels=10**6, batch_size=4
    )
    assert not old.exists()
    assert made.computed == 11
    (entry,) = FeatureCache(tmp_path).list()
    assert (entry.vectors, entry.in_use) == (11, True)


def test_the_cap_is_its_own_or_that_of_the_other_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELZOO_CACHE_LIMIT", raising=False)
    monkeypatch.delenv("MODELZOO_FEATURE_CACHE_LIMIT", raising=False)
    assert feature_limit() == 20 * 10**9
    monkeypatch.setenv("MODELZOO_CACHE_LIMIT", "5GB")
    assert feature_limit() == 5 * 10**9
    monkeypatch.setenv("MODELZOO_FEATURE_CACHE_LIMIT", "none")
    assert feature_limit() == 0
    monkeypatch.setenv("MODELZOO_FEATURE_CACHE_LIMIT", "much")
    with pytest.raises(InvalidCacheLimit, match="MODELZOO_FEATURE_CACHE_LIMIT='much' is no size"):
        feature_limit()
