from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.readers.checkpoint import (
    DamagedCheckpoint,
    DenseLayer,
    MissingCheckpointFile,
    NotACheckpoint,
    UnsafeCheckpoint,
)
from zoo.readers.tfjs import read


def write(folder: Path, weights: list[dict[str, Any]], data: bytes, *, shards: int = 2, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    size = -(-len(data) // shards)
    paths = [f"group1-shard{place + 1}of{shards}" for place in range(shards)]
    for place, path in enumerate(paths):
        (folder / path).write_bytes(data[place * size : (place + 1) * size])
    model = {"weightsManifest": [{"paths": paths, "weights": weights}], **more}
    (folder / "model.json").write_text(json.dumps(model))
    return folder


def entry(name: str, shape: list[int], dtype: str = "float32", **quantisation: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": dtype, **({"quantization": quantisation} if quantisation else {})}


def test_every_stored_type(tmp_path: Path) -> None:
    floats = np.array([[1.5, -2.25]], np.float32)
    data = b"".join(
        [
            floats.tobytes(),
            np.array([0, 128, 255], np.uint8).tobytes(),
            np.array([0, 65535], np.uint16).tobytes(),
            np.array([0.5, -3], np.float16).tobytes(),
            np.array([7, -9], np.int32).tobytes(),
            np.array([True, False]).tobytes(),
            np.array([0, 3], np.uint8).tobytes(),
            floats[0, :1].tobytes(),
        ]
    )
    weights = [
        entry("plain", [1, 2]),
        _quantised("bytes", [3], "uint8", 0.1, -1.5),
        _quantised("words", [2], "uint16", 0.25, 2.0),
        {"name": "half", "shape": [2], "dtype": "float32", "quantization": {"dtype": "float16"}},
        entry("ints", [2], "int32"),
        entry("flags", [2], "bool"),
        {**_quantised("steps", [2], "uint8", 1.5, -1.0), "dtype": "int32"},
        entry("scalar", []),
    ]
    found = read(write(tmp_path / "m", weights, data, shards=3))
    expected = {
        "plain": floats,
        "bytes": np.array([-1.5, 128 * 0.1 - 1.5, 255 * 0.1 - 1.5]).astype(np.float32),
        "words": np.array([2.0, 65535 * 0.25 + 2], np.float32),
        "half": np.array([0.5, -3], np.float32),
        "ints": np.array([7, -9], np.int32),
        "flags": np.array([True, False]),
        "steps": np.array([-1, 4], np.int32),  # 3.5 rounds up, as Math.round does
        "scalar": np.float32(1.5).reshape(()),
    }
    assert list(found.tensors) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found.tensors[name], value, strict=True)
    assert found.dequantised == {"bytes", "words", "steps"}
    assert found.widened == {"half": "float16"}
    assert [path.name for path in found.files] == ["model.json", *(f"group1-shard{n}of3" for n in (1, 2, 3))]


def _quantised(name: str, shape: list[int], stored: str, scale: float, minimum: float) -> dict[str, Any]:
    quantisation = {"dtype": stored, "scale": scale, "min": minimum}
    return {"name": name, "shape": shape, "dtype": "float32", "quantization": quantisation}


def test_model_json_itself_may_be_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", [entry("a", [2])], bytes(8))
    assert list(read(folder / "model.json").tensors) == ["a"]


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", [entry("a", [8])], bytes(32), shards=4)
    (folder / "group1-shard2of4").unlink()
    (folder / "group1-shard4of4").unlink()
    with pytest.raises(MissingCheckpointFile, match=r"2 of 4 shards.*group1-shard2of4, group1-shard4of4"):
        read(folder)


@pytest.mark.parametrize(("size", "what"), [(31, "cut short"), (33, "too long")])
def test_shards_of_another_size(size: int, what: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match=rf"{what}: {size} bytes, the manifest wants 32"):
        read(write(tmp_path / "m", [entry("a", [8])], bytes(size)))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret", "link"])
def test_shards_outside_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(8))
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    model = {"weightsManifest": [{"paths": [name], "weights": [entry("a", [2])]}]}
    (folder / "model.json").write_text(json.dumps(model))
    with pytest.raises(UnsafeCheckpoint, match="outside"):
        read(folder)


@pytest.mark.parametrize(
    "weight",
    [
        entry("a", [2], "string"),
        entry("a", [-2]),
        {"name": "a", "shape": "2", "dtype": "float32"},
        {"shape": [2], "dtype": "float32"},
        entry("a", [2], "float32") | {"quantization": {"dtype": "int4", "scale": 1, "min": 0}},
        entry("a", [2], "float32") | {"quantization": {"dtype": "uint8", "scale": None, "min": 0}},
        entry("a", [2], "float32") | {"quantization": {"dtype": "uint8", "scale": float("nan"), "min": 0}},
    ],
)
def test_manifest_entries_that_make_no_sense(weight: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="weight"):
        read(write(tmp_path / "m", [weight], bytes(8)))


def test_two_weights_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match="two weights are named 'a'"):
        read(write(tmp_path / "m", [entry("a", [2]), entry("a", [2])], bytes(16)))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weightsManifest": 3}', '{"weightsManifest": [{}]}', "[" * 100_000])
def test_other_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(NotACheckpoint, match=r"model\.json"):
        read(tmp_path)


def test_a_folder_without_model_json(tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpointFile, match=r"no model\.json"):
        read(tmp_path)


def dense(name: str, source: str, activation: str = "relu") -> dict[str, Any]:
    config = {"name": name, "activation": activation}
    return {"class_name": "Dense", "name": name, "config": config, "inbound_nodes": [[[source, 0, 0, {}]]]}


def topology(layers: list[dict[str, Any]], outputs: list[Any]) -> dict[str, Any]:
    config = {"layers": layers, "output_layers": outputs}
    return {"model_config": {"class_name": "Model", "config": config}}


def test_the_head_is_read_from_the_topology_whatever_the_order_of_layers(tmp_path: Path) -> None:
    drop = {"class_name": "Dropout", "name": "drop", "config": {"rate": 0.5}, "inbound_nodes": [[["d_b", 0, 0, {}]]]}
    flatten = {"class_name": "Flatten", "name": "flat", "config": {}, "inbound_nodes": [[["conv", 0, 0, {}]]]}
    norm = {"class_name": "BatchNormalization", "name": "bn", "config": {"epsilon": 0.001}, "inbound_nodes": []}
    layers = [norm, dense("d_a", "drop", "softmax"), drop, dense("d_b", "flat"), flatten]
    model = topology(layers, [["d_a", 0, 0]])
    found = read(write(tmp_path / "m", [entry("a", [2])], bytes(8), modelTopology=model))
    assert found.dense == (
        DenseLayer(name="d_b", activation="relu", dropout=0.5),
        DenseLayer(name="d_a", activation="softmax"),
    )
    assert found.batch_norm_epsilons == {0.001}


def test_a_sequential_model_and_an_activation_of_its_own(tmp_path: Path) -> None:
    layers = [
        {"class_name": "Flatten", "config": {"name": "flat"}},
        {"class_name": "Dense", "config": {"name": "d", "activation": "linear"}},
        {"class_name": "Activation", "config": {"name": "s", "activation": "softmax"}},
    ]
    model = {"model_config": {"class_name": "Sequential", "config": layers}}
    found = read(write(tmp_path / "m", [entry("a", [2])], bytes(8), modelTopology=model))
    assert found.dense == (DenseLayer(name="d", activation="softmax"),)


@pytest.mark.parametrize(
    "model",
    [None, 3, [], {"model_config": []}, topology([dense("a", "b"), dense("b", "a")], [["a", 0, 0], ["b", 0, 0]])],
)
def test_odd_topologies_give_no_head(model: Any, tmp_path: Path) -> None:
    assert read(write(tmp_path / "m", [entry("a", [2])], bytes(8), modelTopology=model)).dense == ()


def test_layers_in_a_circle_end(tmp_path: Path) -> None:
    model = topology([dense("a", "b"), dense("b", "a")], [["a", 0, 0]])
    found = read(write(tmp_path / "m", [entry("a", [2])], bytes(8), modelTopology=model))
    assert [layer.name for layer in found.dense] == ["b", "a"]


def test_code_in_a_topology_is_refused(tmp_path: Path) -> None:
    code = {"class_name": "Lambda", "name": "twice", "config": {}, "inbound_nodes": []}
    model = topology([code, dense("a", "twice")], [["a", 0, 0]])
    with pytest.raises(UnsafeCheckpoint, match="layer 'twice' is a Lambda layer"):
        read(write(tmp_path / "m", [entry("a", [2])], bytes(8), modelTopology=model))
