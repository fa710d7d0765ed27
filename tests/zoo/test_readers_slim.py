from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.zoo.seeded import write_slim
from tests.zoo.slim_training import OPTIMIZERS, save_training
from zoo.crc32c import crc32c, unmasked
from zoo.errors import ZooError
from zoo.readers.checkpoint import (
    DamagedCheckpoint,
    ForeignCheckpoint,
    MissingCheckpointFile,
    NotACheckpoint,
    ReadOptions,
)
from zoo.readers.slim import read
from zoo.readers.slim_bundle import Bundle
from zoo.readers.slim_files import SeveralCheckpoints, find_files
from zoo.readers.slim_index import BundleIndex, read_index
from zoo.readers.slim_tensorflow import TensorFlowReader

SMALL = {
    "Net/layer/weights": np.arange(24, dtype=np.float32).reshape(6, 4),
    "Net/layer/biases": np.array([0.5, -2.0], np.float32),
}
FORMS = [(1, False), (1, True), (2, False), (2, True)]


def reading(path: Path, *, raw: bool = False) -> ForeignCheckpoint:
    return read(path, ReadOptions(raw_weights=raw))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The prefix of a small V2 checkpoint, alone in its folder and without a state file."""
    (tmp_path / "run").mkdir()
    return write_slim(tmp_path / "run/model.ckpt-3", SMALL)


# Whichever way it is named.


@pytest.mark.parametrize(("version", "sharded"), FORMS)
def test_every_way_to_name_a_checkpoint_reads_the_same(tmp_path: Path, version: int, sharded: bool) -> None:
    wanted = save_training(tmp_path / "run", version=version, sharded=sharded)
    folder = tmp_path / "run"
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) >= 3
    for way in (folder, folder / "model.ckpt-7", *(folder / name for name in names)):  # the state file and .meta too
        found = reading(way)
        assert sorted(found.tensors) == ["Net/layer/biases", "Net/layer/weights"]
        for name, value in found.tensors.items():
            np.testing.assert_array_equal(value, wanted[name])
            assert value.dtype == np.float32
        assert found.aside == {"global_step": "a counter of the training that made the checkpoint"}
        assert found.frameworks == ("slim",)
        files = [path.name for path in found.files]
        assert files == sorted(files, key=lambda name: (not name.endswith(".index"), name))
        assert set(files) == set(names) - {"checkpoint", "model.ckpt-7.meta"}


@pytest.mark.parametrize("version", [1, 2])
def test_a_variable_in_slices_is_read_whole(tmp_path: Path, version: int) -> None:
    wanted = save_training(tmp_path / "run", version=version, slices=3)
    np.testing.assert_array_equal(reading(tmp_path / "run").tensors["Net/layer/weights"], wanted["Net/layer/weights"])


@pytest.mark.parametrize(("version", "sharded"), FORMS)
def test_brackets_and_stars_in_a_path_are_no_pattern(tmp_path: Path, version: int, sharded: bool) -> None:
    wanted = save_training(tmp_path / "plain", version=version, sharded=sharded)
    odd = tmp_path / "run [1]*?"
    (tmp_path / "plain").rename(odd)
    found = reading(odd)
    np.testing.assert_array_equal(found.tensors["Net/layer/weights"], wanted["Net/layer/weights"])
    assert all(path.parent == odd for path in found.files)


@pytest.mark.parametrize(
    "named",
    [
        "/other/machine/run/model.ckpt-3",
        r"C:\\runs\\model.ckpt-3",
        "../outside/model.ckpt-3",
        "./model.ckpt-3",
    ],
)
def test_a_state_file_of_another_machine_means_the_file_beside_it(saved: Path, named: str) -> None:
    state = saved.parent / "checkpoint"
    state.write_text(f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "{named}"\n')
    outside = saved.parent.parent / "outside"
    outside.mkdir()
    write_slim(outside / "model.ckpt-3", {"Secret/weights": SMALL["Net/layer/weights"]})
    for way in (state, saved.parent):
        assert sorted(reading(way).tensors) == sorted(SMALL)
        assert all(path.parent == saved.parent for path in find_files(way).files)


def test_a_state_file_says_which_is_the_newest(saved: Path) -> None:
    newer = {name: value + 1 for name, value in SMALL.items()}
    write_slim(saved.with_name("model.ckpt-10"), newer)
    with pytest.raises(SeveralCheckpoints, match=r"holds 2 checkpoints and no checkpoint file.*ckpt-10, model.ckpt-3"):
        reading(saved.parent)
    (saved.parent / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-10"\n')
    np.testing.assert_array_equal(reading(saved.parent).tensors["Net/layer/biases"], newer["Net/layer/biases"])


@pytest.mark.parametrize("text", ["", "model_checkpoint_path: \n", 'model_checkpoint_path: "a\\0b"\n', "\xff\xfe"])
def test_a_state_file_that_is_none_is_refused(saved: Path, text: str) -> None:
    (saved.parent / "checkpoint").write_text(text, encoding="latin-1")
    with pytest.raises(NotACheckpoint, match="no checkpoint state file"):
        reading(saved.parent)


def test_a_state_file_whose_checkpoint_is_gone_says_so(saved: Path) -> None:
    (saved.parent / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-4"\n')
    with pytest.raises(
        MissingCheckpointFile, match=r"names 'model.ckpt-4' as the newest.*no TensorFlow checkpoint"
    ) as caught:
        reading(saved.parent)
    assert caught.value.hint is not None
    assert "model.ckpt-3" in caught.value.hint


def test_a_folder_without_a_checkpoint_and_a_name_of_none_are_refused(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingCheckpointFile, match="holds no TensorFlow checkpoint"):
        reading(tmp_path / "empty")
    with pytest.raises(MissingCheckpointFile, match=r"neither the file nor model.cktp.index") as caught:
        reading(saved.with_name("model.cktp"))
    assert caught.value.hint == f"in {saved.parent} there is model.ckpt-3"
    other = tmp_path / "weights.h5"
    other.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(NotACheckpoint, match="no TensorFlow checkpoint of variables"):
        reading(other)


# Whole or not.


def damaged(saved: Path, change: Callable[[Path, Path], Any]) -> str:
    """Changes index and data; the message of what is raised for the prefix."""
    change(saved.with_name("model.ckpt-3.index"), saved.with_name("model.ckpt-3.data-00000-of-00001"))
    with pytest.raises(ZooError) as caught:
        reading(saved)
    assert isinstance(caught.value, DamagedCheckpoint | MissingCheckpointFile)
    return f"{caught.value.message} | {caught.value.hint}"


def test_a_missing_half_is_named(saved: Path) -> None:
    said = damaged(saved, lambda index, data: data.unlink())
    assert "has an index but no data: model.ckpt-3.data-00000-of-00001" in said
    write_slim(saved, SMALL)
    said = damaged(saved, lambda index, data: index.unlink())
    assert "1 data shards but no index: model.ckpt-3.index is missing" in said


def test_a_half_that_was_renamed_is_pointed_at(saved: Path) -> None:
    said = damaged(saved, lambda index, data: data.rename(data.with_name("inception.ckpt.data-00000-of-00001")))
    assert "inception.ckpt.data-00000-of-00001 lies there without its other half: was only one" in said
    with pytest.raises(MissingCheckpointFile, match=r"inception\.ckpt\.index is missing") as caught:
        reading(saved.with_name("inception.ckpt"))
    assert (
        caught.value.hint == "model.ckpt-3.index lies there without its other half: was only one of the files renamed?"
    )


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    for version in (1, 2):
        folder = tmp_path / str(version)
        save_training(folder, version=version, sharded=True, slices=2)
        shards = sorted(path for path in folder.iterdir() if path.name.endswith("-of-00002"))
        assert len(shards) == 2
        shards[1].unlink()
        with pytest.raises(MissingCheckpointFile, match=f"1 of 2 shards are missing: {re.escape(shards[1].name)}"):
            reading(folder)


def test_shards_of_two_checkpoints_are_told_apart(saved: Path) -> None:
    said = damaged(saved, lambda index, data: data.with_name("model.ckpt-3.data-00000-of-00002").write_bytes(b"x"))
    assert "shards of different checkpoints lie together: some are of 00001 and some of 00002" in said


def test_an_index_of_another_number_of_shards_is_found_out(saved: Path) -> None:
    def split(index: Path, data: Path) -> None:
        for number in range(2):
            data.with_name(f"model.ckpt-3.data-{number:05}-of-00002").write_bytes(data.read_bytes())
        data.unlink()

    assert "model.ckpt-3.index is of a checkpoint of 1 shards, here are 2" in damaged(saved, split)


@pytest.mark.parametrize("left", [0, 1, 100])
def test_a_truncated_shard_is_named_before_anything_is_read(saved: Path, left: int) -> None:
    data = saved.with_name("model.ckpt-3.data-00000-of-00001")
    assert data.stat().st_size == 104
    said = damaged(saved, lambda index, data: data.write_bytes(data.read_bytes()[:left]))
    assert f"1 of 1 shards are cut short: model.ckpt-3.data-00000-of-00001 has {left} of 104 bytes" in said


@pytest.mark.parametrize("left", [0, 10, 60])
def test_a_truncated_index_is_named(saved: Path, left: int) -> None:
    said = damaged(saved, lambda index, data: index.write_bytes(index.read_bytes()[:left]))
    assert "model.ckpt-3" in said


def test_changed_bytes_are_found_by_their_sums(saved: Path) -> None:
    def flip(path: Path, place: int) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    assert "hecksum" in damaged(saved, lambda index, data: flip(data, 20))
    write_slim(saved, SMALL)
    assert "model.ckpt-3" in damaged(saved, lambda index, data: flip(index, 30))


def test_any_flipped_or_cut_index_is_an_error_of_ours(saved: Path) -> None:
    """Never an exception of Python's or TensorFlow's, and never other values."""
    index = saved.with_name("model.ckpt-3.index")
    whole = index.read_bytes()
    survived = []
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        index.write_bytes(changed)
        try:
            found = reading(saved)
        except ZooError:
            continue
        survived.append(place)
        for name, value in found.tensors.items():
            np.testing.assert_array_equal(value, SMALL[name])
    assert min(survived) >= _end_of_first_block(whole) + 5  # what nobody reads: a second, empty block, and padding


def test_variables_that_share_bytes_take_no_more_memory_than_the_shards_have(saved: Path) -> None:
    files = find_files(saved).files
    index = read_index(files[0])
    assert index is not None
    entry = index.entries["Net/layer/weights"]
    many = BundleIndex(shards=1, entries={f"w{number}": entry for number in range(1000)}, plain=True)
    with pytest.raises(DamagedCheckpoint, match="claims tensors of 96000 bytes, its shards have 104"):
        Bundle(saved, many, files[1:])


@pytest.mark.parametrize("left", [0, 10, 200])
def test_a_truncated_v1_file_is_named(tmp_path: Path, left: int) -> None:
    path = write_slim(tmp_path / "old.ckpt", SMALL, version=1)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DamagedCheckpoint, match=f"old.ckpt is cut short: it has {left} bytes"):
        reading(path)


def test_the_sum_is_crc_32c_of_any_number_of_bytes() -> None:
    def plainly(data: bytes) -> int:
        value = 0xFFFFFFFF
        for byte in data:
            value ^= byte
            for _ in range(8):
                value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        return value ^ 0xFFFFFFFF

    assert crc32c(b"123456789") == 0xE3069283  # the check value of the catalogues of CRCs
    rng = np.random.default_rng(0)
    for size in (*range(20), 255, 256, 257, 5000):
        data = rng.bytes(size)
        assert crc32c(data) == plainly(data)
    long = rng.integers(0, 256, (3 << 20) + 5, np.uint8)
    parts = [crc32c(long.tobytes()), crc32c(long), crc32c(long[:-1])]
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize(
    ("version", "said"),
    [(1, r"claims tensors of 2032 bytes, its files have 1\d\d\d"), (2, r"w is float32 \[127, 4\] but has 1600")],
)
def test_a_shape_beyond_the_files_bytes_is_refused_before_memory_is_taken(
    tmp_path: Path, version: int, said: str
) -> None:
    prefix = write_slim(tmp_path / "huge", {"w": np.zeros((100, 4), np.float32)}, version=version)
    table = prefix if version == 1 else tmp_path / "huge.index"
    data = bytearray(table.read_bytes())
    end = _end_of_first_block(bytes(data))
    data[data.index(b"\x12\x02\x08\x64") + 3] = 127  # a dimension of 100
    total = crc32c(bytes(data[: end + 1]))  # with the block's type
    data[end + 1 : end + 5] = struct.pack("<I", ((total >> 15 | total << 17) + 0xA282EAD8) & 0xFFFFFFFF)
    assert unmasked(int.from_bytes(data[end + 1 : end + 5], "little")) == total
    table.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=said):
        reading(prefix)


def _end_of_first_block(data: bytes) -> int:
    """Where the type of a table's first block is: there the sum fits that follows it."""
    return next(
        place
        for place in range(len(data))
        if crc32c(data[: place + 1]) == unmasked(int.from_bytes(data[place + 1 : place + 5], "little"))
    )


def test_the_index_tells_every_shards_bytes(tmp_path: Path) -> None:
    save_training(tmp_path / "run", sharded=True, slices=2, optimizers=["adam"])
    files = find_files(tmp_path / "run").files
    index = read_index(files[0])
    assert index is not None
    assert index.shard_bytes() == {number: path.stat().st_size for number, path in enumerate(files[1:])}


def test_our_reader_and_tensorflows_read_the_same(tmp_path: Path) -> None:
    import tensorflow as tf

    rng = np.random.default_rng(4)
    kinds = ["float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
    values = {kind: rng.integers(0, 100, (3, 5)).astype(kind) for kind in kinds}
    values |= {
        "bool": rng.integers(0, 2, 7).astype(bool),
        "bfloat16": rng.normal(0, 1, (2, 3)).astype(tf.bfloat16.as_numpy_dtype),
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "large": rng.normal(0, 1, (1200, 700)).astype(np.float32),
    }
    files = find_files(write_slim(tmp_path / "m", values))
    index = read_index(files.files[0])
    assert index is not None
    assert index.plain
    ours, theirs = Bundle(tmp_path, index, files.files[1:]), TensorFlowReader(tmp_path, files)
    assert ours.shapes == theirs.shapes
    assert ours.types == theirs.types
    for name, value in values.items():
        assert ours.types[name] == value.dtype.name
        np.testing.assert_array_equal(ours.value(name), theirs.value(name))
        assert ours.value(name).dtype == (np.float32 if name == "bfloat16" else value.dtype)


def test_plain_v2_files_need_no_tensorflow(saved: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from zoo.readers.slim import read; "
        "from zoo.readers.checkpoint import ReadOptions; found = read(Path(sys.argv[1]), ReadOptions()); "
        "print(sorted(found.tensors), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['Net/layer/biases', 'Net/layer/weights'] False"


# What training leaves beside the variables.


def test_moving_averages_stand_in_for_weights(tmp_path: Path) -> None:
    wanted = save_training(tmp_path / "run", optimizers=["adam"], averages=True)
    average, raw = wanted["Net/layer/weights/ExponentialMovingAverage"], wanted["Net/layer/weights"]
    assert not np.array_equal(average, raw)

    found = reading(tmp_path / "run")
    np.testing.assert_array_equal(found.tensors["Net/layer/weights"], average)
    assert sorted(found.tensors) == ["Net/layer/biases", "Net/layer/weights"]
    assert found.recipe == {"ema": True}
    assert "--raw-weights takes these" in found.aside["Net/layer/weights"]
    assert "of 2 of 2 variables the moving average is taken" in found.notes[0]

    found = reading(tmp_path / "run", raw=True)
    np.testing.assert_array_equal(found.tensors["Net/layer/weights"], raw)
    assert found.recipe == {"ema": False}
    assert "the moving average" in found.aside["Net/layer/weights/ExponentialMovingAverage"]
    assert found.notes == ("2 variables have a moving average, which is not taken: --raw-weights",)


def test_only_variables_that_have_an_average_are_replaced(tmp_path: Path) -> None:
    average = np.array([7.0, 8.0], np.float32)
    write_slim(
        tmp_path / "m",
        {**SMALL, "Net/layer/biases/ExponentialMovingAverage": average, "Net/alone/ExponentialMovingAverage": average},
    )
    found = reading(tmp_path / "m")
    np.testing.assert_array_equal(found.tensors["Net/layer/weights"], SMALL["Net/layer/weights"])
    np.testing.assert_array_equal(found.tensors["Net/layer/biases"], average)
    np.testing.assert_array_equal(found.tensors["Net/alone"], average)  # saved as an average only
    assert sorted(reading(tmp_path / "m", raw=True).tensors) == sorted(SMALL)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_whatever_an_optimizer_adds_is_left_aside_by_name(tmp_path: Path, optimizer: str) -> None:
    wanted = save_training(tmp_path / "run", optimizers=[optimizer], averages=True)
    found = reading(tmp_path / "run", raw=True)
    assert sorted(found.tensors) == ["Net/layer/biases", "Net/layer/weights"]
    for name, value in found.tensors.items():
        np.testing.assert_array_equal(value, wanted[name])
    slots = [name for name, why in found.aside.items() if "optimizer" in why]
    assert len(slots) >= 2
    assert len(found.aside) == len(slots) + 3  # two averages and global_step


def test_counters_and_slots_of_other_trainings_are_left_aside_too(tmp_path: Path) -> None:
    more = {
        "OptimizeLoss/learning_rate": np.float32(2.0),
        "OptimizeLoss/Net/layer/weights/Momentum": SMALL["Net/layer/weights"],
        "Net/layer/BatchNorm/moving_mean/biased": SMALL["Net/layer/biases"],
        "Net/layer/BatchNorm/moving_mean/local_step": np.float32(3),
        "beta1_power_1": np.float32(0.9),
        "train/beta2_power": np.float32(0.9),
        "global_step": np.int64(3),
        "names": np.array([b"cat", b"dog"]),
    }
    write_slim(tmp_path / "m", {**SMALL, **more})
    found = reading(tmp_path / "m")
    assert sorted(found.tensors) == sorted(SMALL)
    assert set(found.aside) == set(more)
    assert "text" in found.aside["names"]


def test_a_checkpoint_of_objects_is_refused_with_the_door_to_take(tmp_path: Path) -> None:
    import tensorflow as tf

    path = tf.train.Checkpoint(weights=tf.Variable(SMALL["Net/layer/weights"])).write(str(tmp_path / "objects"))
    with pytest.raises(NotACheckpoint, match=r"TF 2 checkpoint of objects.*ATTRIBUTES") as caught:
        reading(Path(path))
    assert "zoo import keras" in str(caught.value.hint)
    assert "zoo import hub" in str(caught.value.hint)


def test_half_precision_becomes_float32_and_integers_stay(tmp_path: Path) -> None:
    import tensorflow as tf

    values = {
        "half": SMALL["Net/layer/biases"].astype(np.float16),
        "brain": SMALL["Net/layer/biases"].astype(tf.bfloat16.as_numpy_dtype),
        "double": SMALL["Net/layer/biases"].astype(np.float64),
        "whole": np.arange(3, dtype=np.int32),
    }
    found = reading(write_slim(tmp_path / "m", values))
    assert found.widened == {"half": "float16", "brain": "bfloat16", "double": "float64"}
    for name in found.widened:
        assert found.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(found.tensors[name], SMALL["Net/layer/biases"])
    assert found.tensors["whole"].dtype == np.int32
