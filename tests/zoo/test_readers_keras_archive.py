"""`.keras` files: zips that lead elsewhere, configurations with code, and what is cut short."""

from __future__ import annotations

import json
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.zoo.keras_files import layer, sequential, write_archive, write_v3
from zoo.readers.checkpoint import (
    DamagedCheckpoint,
    MissingCheckpointFile,
    NotACheckpoint,
    UnsafeCheckpoint,
)
from zoo.readers.keras_archive import MAX_CONFIG_BYTES
from zoo.readers.keras_file import read

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)
CONFIG = sequential(layer("Dense", "d", activation="relu"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_v3(tmp_path / "weights", {"layers/dense": ("d", [KERNEL, np.ones(3, np.float32)])})


def linked(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def test_the_content_tells_the_format_not_the_name(weights: Path, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "odd.h5", CONFIG, weights)
    found = read(archive)
    np.testing.assert_array_equal(found.tensors["d/kernel"], KERNEL)
    assert found.files == (archive,)
    bare = tmp_path / "odd.keras"
    bare.write_bytes(weights.read_bytes())
    np.testing.assert_array_equal(read(bare).tensors["d/kernel"], KERNEL)


def test_an_unpacked_archive(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(NotACheckpoint, match=r"has no model\.weights\.h5; it holds config\.json"):
        read(folder)
    weights.rename(folder / "model.weights.h5")
    found = read(folder)
    assert sorted(found.tensors) == ["d/bias", "d/kernel"]
    assert [file.name for file in found.files] == ["config.json", "model.weights.h5"]
    assert [dense.activation for dense in found.dense] == ["relu"]


def test_files_of_layers_are_left_aside_with_their_names(weights: Path, tmp_path: Path) -> None:
    vocabulary = "assets/layers/string_lookup/vocabulary.txt"
    found = read(write_archive(tmp_path / "m.keras", CONFIG, weights, (vocabulary, b"a")))
    assert list(found.aside) == [vocabulary]


def test_packed_entries_are_read(weights: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps(CONFIG))
        archive.writestr("model.weights.h5", weights.read_bytes())
    np.testing.assert_array_equal(read(tmp_path / "m.keras").tensors["d/kernel"], KERNEL)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("../evil.txt", "leads out"),
        ("assets/../../evil.txt", "leads out"),
        ("/etc/evil.txt", "leads out"),
        ("..\\evil.txt", "leads out"),
        ("C:/evil.txt", "leads out"),
        (linked("assets/vocabulary.txt"), "is a link"),
        ("config.json", "is there twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # of zipfile, which writes it all the same
def test_entries_that_lead_elsewhere(entry: zipfile.ZipInfo | str, told: str, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = write_archive(folder / "m.keras", CONFIG, weights, (entry, b"../../secret"))
    with pytest.raises(UnsafeCheckpoint, match=rf"m\.keras: entry .*{told}"):
        read(path)
    assert [each.name for each in folder.iterdir()] == ["m.keras"]
    assert not (tmp_path / "evil.txt").exists()


def test_encrypted_entries(weights: Path, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.keras", CONFIG, weights)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")  # the first entry of the directory; its flags are 8 bytes on
    struct.pack_into("<H", data, at + 8, 1)
    path.write_bytes(data)
    with pytest.raises(UnsafeCheckpoint, match=r"entry 'metadata\.json' is encrypted"):
        read(path)


def test_an_entry_that_claims_more_than_it_holds(weights: Path, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.keras", CONFIG, weights)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")  # the weights; their size is 24 bytes on
    struct.pack_into("<I", data, at + 24, 4_000_000_000)
    path.write_bytes(data)
    with pytest.raises(UnsafeCheckpoint, match=rf"claims 4000000000 bytes, it holds {weights.stat().st_size}"):
        read(path)


def test_a_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps(CONFIG))
        archive.writestr("model.weights.h5", bytes(70 << 20))
    with pytest.raises(UnsafeCheckpoint, match="claims 73400320 bytes"):
        read(tmp_path / "m.keras")
    assert (tmp_path / "m.keras").stat().st_size < 200_000


def test_a_configuration_without_end(weights: Path, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.keras", b" " * (MAX_CONFIG_BYTES + 1), weights)
    with pytest.raises(UnsafeCheckpoint, match=r"config\.json claims \d+ bytes"):
        read(path)


@pytest.mark.parametrize(
    ("config", "error", "told"),
    [
        (b"{", DamagedCheckpoint, "is not JSON"),
        (b"\xff\xfe", DamagedCheckpoint, "is not JSON"),
        (b"[" * 100_000, DamagedCheckpoint, "is not JSON"),
        (b"[]", NotACheckpoint, "holds a list"),
    ],
)
def test_configurations_that_are_none(
    config: bytes, error: type[Exception], told: str, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=rf"m\.keras: config\.json.*{told}"):
        read(write_archive(tmp_path / "m.keras", config, weights))


@pytest.mark.parametrize("config", [{}, {"config": 3}, {"config": {"layers": [3, {}, {"class_name": 4}]}}])
def test_a_configuration_that_tells_no_layers_leaves_it_to_the_titles(
    config: Any, weights: Path, tmp_path: Path
) -> None:
    found = read(write_archive(tmp_path / "m.keras", config, weights))
    assert sorted(found.tensors) == ["d/bias", "d/kernel"]
    assert found.dense == ()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["data.pkl"], "without config.json"),
        (["config.json", "model.weights.npz"], r"no model\.weights\.h5; it holds config\.json, model\.weights\.npz"),
    ],
)
def test_other_archives(names: list[str], told: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    with pytest.raises(NotACheckpoint, match=told) as caught:
        read(tmp_path / "m.keras")
    assert ("zoo import torch" in str(caught.value.hint)) == ("data.pkl" in names)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    for content, error, told in (
        (b"", DamagedCheckpoint, "is empty"),
        (b"hello", NotACheckpoint, "not an HDF5 file"),
        (b'{"weight_map": {}}', NotACheckpoint, "index of sharded weights"),
    ):
        path.write_bytes(content)
        with pytest.raises(error, match=told):
            read(path)
    with pytest.raises(MissingCheckpointFile, match="is a folder") as caught:
        read(tmp_path)
    assert "m.keras" in str(caught.value.hint)


def test_an_archive_cut_anywhere_is_an_error_of_ours(weights: Path, tmp_path: Path) -> None:
    whole = write_archive(tmp_path / "m.keras", CONFIG, weights).read_bytes()
    cut = tmp_path / "cut.keras"
    for size in (*range(1, 60, 7), *range(60, len(whole), 401), len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises((DamagedCheckpoint, NotACheckpoint), match=r"cut\.keras"):
            read(cut)


def test_a_flipped_byte_of_the_weights_is_found_by_the_archive(weights: Path, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.keras", CONFIG, weights)
    data = bytearray(path.read_bytes())
    data[data.index(KERNEL.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=r"'model\.weights\.h5' cannot be read: Bad CRC"):
        read(path)


def test_weights_of_another_model_in_the_archive(tmp_path: Path) -> None:
    other = write_v3(tmp_path / "w", {"layers/dense": (None, [KERNEL])})
    with pytest.raises(DamagedCheckpoint, match="layer 'd' holds 1 values"):
        read(write_archive(tmp_path / "m.keras", CONFIG, other))


CODE = "4wEAAAAAAAAAAAAAAAEAAAADAAAA8wYAAACXAHwAUwA="
LAMBDA = {"class_name": "__lambda__", "config": {"code": CODE}}


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (layer("Lambda", "twice", function="builtins.abs"), "layer 'twice' is a Lambda layer"),
        ({**layer("Mine", "x"), "class_name": "pack>Lambda"}, "layer 'x' is a Lambda layer"),
        (
            layer("Dense", "x", activation={"class_name": "__lambda__", "config": {"code": CODE}}),
            "layer 'x' holds a lam",
        ),
        (layer("Dense", "x", activation={"value": [CODE, None, None]}), "layer 'x' holds marshalled"),
        (layer("TimeDistributed", "t", layer=layer("Lambda", "deep")), "layer 'deep' is a Lambda layer"),
        (
            sequential(layer("Mine", "x", function_type="lambda", function=[CODE, None, None])),
            "layer 'x' holds a lambda",
        ),
    ],
)
def test_code_anywhere_in_a_configuration_is_refused_by_the_layers_name(
    part: dict[str, Any], told: str, weights: Path, tmp_path: Path
) -> None:
    config = sequential(layer("Dense", "d"), part)
    with pytest.raises(UnsafeCheckpoint, match=rf"{told}.*nothing was loaded"):
        read(write_archive(tmp_path / "m.keras", config, weights))
    legacy = tmp_path / "whole.h5"
    with h5py.File(legacy, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.create_group("model_weights").attrs["layer_names"] = [b"d"]
    with pytest.raises(UnsafeCheckpoint, match=told):
        read(legacy)


def test_code_in_what_a_model_was_compiled_with_is_refused_too(weights: Path, tmp_path: Path) -> None:
    config = {**CONFIG, "compile_config": {"loss": LAMBDA}}
    with pytest.raises(UnsafeCheckpoint, match="the model holds a lambda"):
        read(write_archive(tmp_path / "m.keras", config, weights))


def test_a_whole_legacy_model_whose_configuration_is_damaged(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = "{"
        file.create_group("model_weights")
    with pytest.raises(DamagedCheckpoint, match="model_config is not JSON"):
        read(tmp_path / "m.h5")
