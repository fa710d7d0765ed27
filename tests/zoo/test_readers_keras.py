"""Legacy Keras `.h5` weights, as Keras' own writer makes them; and files that point elsewhere."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from zoo.readers.checkpoint import DamagedCheckpoint, MissingCheckpointFile, NotACheckpoint, UnsafeCheckpoint
from zoo.readers.keras_file import read


def write_legacy(path: Path, layers: dict[str, dict[str, np.ndarray]], root: str | None = None) -> Path:
    """The layout of Keras' legacy HDF5 weights: layer → weight → value."""
    with h5py.File(path, "w") as file:
        place = file.create_group(root) if root else file
        place.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, weights in layers.items():
            group = place.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{name}:0".encode() for name in weights]
            for name, value in weights.items():
                group.create_dataset(f"{layer}/{name}:0", data=value)
    return path


LAYERS = {
    "conv2d_1": {"kernel": np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)},
    "activation_1": {},
    "predictions": {"kernel": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)},
}


@pytest.mark.parametrize("root", [None, "model_weights"])
def test_weights_come_by_layer_and_name(tmp_path: Path, root: str | None) -> None:
    found = read(write_legacy(tmp_path / "w.h5", LAYERS, root))
    assert sorted(found.tensors) == ["conv2d_1/kernel", "predictions/bias", "predictions/kernel"]
    np.testing.assert_array_equal(found.tensors["conv2d_1/kernel"], LAYERS["conv2d_1"]["kernel"])
    assert [layer.name for layer in found.dense] == ["predictions"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3.15's, under NumPy 2
def test_keras_own_writer(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    from keras.src.legacy.saving import legacy_h5_format

    layer = keras.layers.Dense(3, name="predictions")
    model = keras.Sequential([keras.Input((2,)), layer])
    with h5py.File(tmp_path / "w.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    found = read(tmp_path / "w.h5").tensors
    np.testing.assert_array_equal(found["predictions/kernel"], np.asarray(layer.kernel))
    np.testing.assert_array_equal(found["predictions/bias"], np.asarray(layer.bias))


@pytest.mark.parametrize(("dtype", "widened"), [(">f4", False), ("<f2", True), (">f8", True)])
def test_other_floats_and_byte_orders_become_native_float32(tmp_path: Path, dtype: str, widened: bool) -> None:
    value = np.array([[1.5, -2.0]], dtype=dtype)
    found = read(write_legacy(tmp_path / "w.h5", {"dense": {"kernel": value}}))
    assert found.tensors["dense/kernel"].dtype == np.dtype("<f4")
    assert found.tensors["dense/kernel"].tolist() == [[1.5, -2.0]]
    assert ("dense/kernel" in found.widened) == widened


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/elsewhere")])
def test_links_out_of_the_file_are_refused(tmp_path: Path, link: object) -> None:
    path = write_legacy(tmp_path / "w.h5", LAYERS)
    with h5py.File(path, "a") as file:
        del file["conv2d_1/conv2d_1/kernel:0"]
        file["conv2d_1/conv2d_1/kernel:0"] = link
    with pytest.raises(UnsafeCheckpoint, match="link to elsewhere"):
        read(path)


def test_external_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    path = write_legacy(tmp_path / "w.h5", LAYERS)
    with h5py.File(path, "a") as file:
        del file["conv2d_1/conv2d_1/kernel:0"]
        file["conv2d_1/conv2d_1"].create_dataset(
            "kernel:0", shape=(4,), dtype="f4", external=[(str(tmp_path / "secret"), 0, 16)]
        )
    with pytest.raises(UnsafeCheckpoint, match="another file"):
        read(path)


def test_a_claim_of_memory_that_no_file_backs_is_refused(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "w.h5", LAYERS)
    with h5py.File(path, "a") as file:
        del file["conv2d_1/conv2d_1/kernel:0"]
        file["conv2d_1/conv2d_1"].create_dataset("kernel:0", shape=(1 << 40,), dtype="f4", chunks=(1 << 10,))
    with pytest.raises(UnsafeCheckpoint, match="claims"):
        read(path)


def test_a_listed_weight_that_is_not_there(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "w.h5", LAYERS)
    with h5py.File(path, "a") as file:
        del file["predictions/predictions/bias:0"]
    with pytest.raises(DamagedCheckpoint, match=r"predictions/bias:0.*not there"):
        read(path)


def test_a_model_within_the_model_keeps_its_layers_apart(tmp_path: Path) -> None:
    """Keras Applications' ConvNeXt: a stem of two layers in one group, in a file without a configuration."""
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"stem"]
        names = ["stem_conv/kernel:0", "stem_norm/gamma:0"]
        file.create_group("stem").attrs["weight_names"] = [name.encode() for name in names]
        for place, name in enumerate(names):
            file[f"stem/{name}"] = np.full(2, place, np.float32)
    found = read(path)
    assert sorted(found.tensors) == ["stem_conv/kernel", "stem_norm/gamma"]


def test_a_scope_that_tensorflow_made_unique_is_the_layers_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv2d_1"]
        file.create_group("conv2d_1").attrs["weight_names"] = [b"model/conv2d_1_2/kernel:0", b"model/conv2d_1_2/bias:0"]
        file["conv2d_1/model/conv2d_1_2/kernel:0"] = np.ones((1, 1, 2, 3), np.float32)
        file["conv2d_1/model/conv2d_1_2/bias:0"] = np.ones(3, np.float32)
    assert sorted(read(path).tensors) == ["conv2d_1/bias", "conv2d_1/kernel"]


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "w.h5", LAYERS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((DamagedCheckpoint, NotACheckpoint)):
        read(path)


def test_what_is_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"hello")
    with pytest.raises(NotACheckpoint, match="not an HDF5 file"):
        read(tmp_path / "x.h5")
    with h5py.File(tmp_path / "new.h5", "w") as file:
        file.create_group("layers")
    with pytest.raises(NotACheckpoint, match=r"holds no weights"):
        read(tmp_path / "new.h5")
    with pytest.raises(MissingCheckpointFile):
        read(tmp_path / "none.h5")
