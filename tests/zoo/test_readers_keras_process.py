"""Keras' files are read in a process of their own: what comes back from it, and what it takes down with itself."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.zoo.keras_files import layer, sequential, write_archive, write_v3
from zoo.readers import keras_file, read_checkpoint
from zoo.readers.checkpoint import DamagedCheckpoint, MissingCheckpointFile, NotACheckpoint, UnsafeCheckpoint
from zoo.readers.keras_process import read

KERNEL = np.arange(6, dtype=np.float16).reshape(2, 3)


def archive(path: Path) -> Path:
    norm = layer("BatchNormalization", "bn", epsilon=0.002, scale=False)
    config = sequential(norm, layer("Dense", "d", activation="relu"), layer("Dropout", "x", rate=0.5))
    vectors = [np.full(3, place, np.float32) for place in range(3)]
    groups: dict[str, tuple[str | None, list[np.ndarray]]] = {
        "layers/dense": ("d", [KERNEL, np.ones(3, np.float32)]),
        "layers/batch_normalization": ("bn", vectors),
        "optimizer": ("adam", [np.array(7)]),
    }
    return write_archive(path, config, write_v3(path.with_name("w"), groups), ("assets/x.txt", b"a"))


def test_everything_comes_back_as_it_was_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras")
    here, there = keras_file.read(path), read_checkpoint("keras", path)
    assert list(there.tensors) == list(here.tensors)
    for name, value in here.tensors.items():
        np.testing.assert_array_equal(there.tensors[name], value, strict=True)
    for fact in ("files", "frameworks", "widened", "dense", "batch_norm_epsilons", "notes"):
        assert getattr(there, fact) == getattr(here, fact)
        assert fact == "notes" or getattr(here, fact)
    assert dict(there.aside) == dict(here.aside)
    assert len(there.aside) == 2


def test_refusals_come_back_with_their_hints(tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpointFile, match="nowhere"):
        read(tmp_path / "nowhere")
    (tmp_path / "m.keras").write_bytes(b"hello")
    with pytest.raises(NotACheckpoint, match=r"m\.keras is not an HDF5 file"):
        read(tmp_path / "m.keras")
    path = write_archive(tmp_path / "l.keras", sequential(layer("Lambda", "twice")), archive(tmp_path / "m.keras"))
    with pytest.raises(UnsafeCheckpoint, match="'twice' is a Lambda layer") as caught:
        read(path)
    assert "without code" in str(caught.value.hint)
    assert caught.value.details == {"named": "layer 'twice'"}


def circle(path: Path) -> Path:
    """A file whose texts HDF5 1.14 walks over for ever: the free place at their end claims a size of 0."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["d"]
        file.create_group("d").attrs["weight_names"] = ["d/kernel:0"]
        file["d/d/kernel:0"] = KERNEL
    data = bytearray(path.read_bytes())
    at = data.index(b"GCOL\x01")
    step, end = at + 16, at + int.from_bytes(data[at + 8 : at + 16], "little")
    while data[step : step + 2] != b"\0\0":
        step += 16 + (int.from_bytes(data[step + 8 : step + 16], "little") + 7) // 8 * 8
        assert step < end
    struct.pack_into("<Q", data, step + 8, 0)
    path.write_bytes(data)
    return path


def test_a_file_that_leads_in_circles_ends(tmp_path: Path) -> None:
    path = circle(tmp_path / "w.h5")
    with pytest.raises(DamagedCheckpoint, match=r"w\.h5 is damaged.*(computed without end|was killed)"):
        read(path, seconds=1)
    assert path.exists()


def test_a_relative_path_is_where_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "m.keras")
    monkeypatch.chdir(tmp_path)
    assert [str(file) for file in read(Path("m.keras")).files] == ["m.keras"]


def test_the_importing_process_never_loads_the_library(tmp_path: Path) -> None:
    archive(tmp_path / "m.keras")
    code = (
        "import json, sys; from pathlib import Path; from zoo.readers import read_checkpoint;"
        "found = read_checkpoint('keras', Path('m.keras'));"
        "print(json.dumps([len(found.tensors), sorted({'h5py', 'keras', 'tensorflow'} & set(sys.modules))]))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=True
    )
    assert json.loads(told.stdout) == [5, []]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["h5", "weights.h5"])
def test_any_change_of_bytes_is_harmless_or_an_error_of_ours(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"changed.{ending}"
    if ending == "h5":
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = ["d"]
            file.create_group("d").attrs["weight_names"] = ["d/kernel:0"]
            file["d/d/kernel:0"] = KERNEL
    else:
        write_v3(path, {"layers/dense": ("d", [KERNEL]), "layers/conv2d": ("c", [np.ones((1, 1, 2, 2))])})
    whole = path.read_bytes()
    rng = np.random.default_rng(5)
    words = (b"\0" * 8, b"\xff" * 8, b"\x10" + b"\0" * 7, b"\0" * 7 + b"\x80", b"\xf0" + b"\xff" * 7)
    messages = []
    told = [place for place in range(0, len(whole), 8) if any(whole[place : place + 8])]  # most of a file is zeros
    for place in rng.permutation(told)[:40]:
        changed = bytearray(whole)
        changed[place : place + 8] = words[int(rng.integers(len(words)))]
        path.write_bytes(changed)
        try:
            read(path, seconds=2)
        except (DamagedCheckpoint, NotACheckpoint, UnsafeCheckpoint) as error:
            messages.append(error.message)
    assert len(messages) > 10
    assert all(path.name in message for message in messages)
