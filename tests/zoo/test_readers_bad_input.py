"""What every door refuses, and says which tensor or file is meant: one test for all formats at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

from tests.zoo import torch_files
from tests.zoo.foreign import foreign_tensors, with_torch_head, write_tfjs
from tests.zoo.keras_files import layer, sequential, write_archive, write_v3
from zoo.architectures.choosing import UnknownSource
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.errors import DataLoss, InvalidArgument, NotFound, ZooError
from zoo.importer import ImportResult, NotFinite, import_checkpoint
from zoo.readers import READERS, keras_file, read_checkpoint
from zoo.readers.checkpoint import ForeignCheckpoint, NotACheckpoint
from zoo.store.memory import MemoryStore
from zoo.tensors import write_safetensors

Tensors = Mapping[str, np.ndarray]
KINDS_WRITTEN_HERE = ("keras legacy", "keras v3", "keras archive", "safetensors", "tfjs", "torch old", "torch zip")
EVERY_FORMAT = pytest.mark.parametrize("form", KINDS_WRITTEN_HERE)

# What the layouts of Keras 3 number: the place of each weight within its layer.
ORDER = ("kernel", "gamma", "beta", "moving_mean", "moving_variance", "bias")


def write(form: str, folder: Path, tensors: Tensors) -> Path:
    """Writes `tensors` (Keras' names, or PyTorch's) in one format; gives what to name to `zoo import`."""
    writers: dict[str, Callable[[], Path]] = {
        "keras legacy": lambda: _legacy(folder / "m.h5", tensors),
        "keras v3": lambda: write_v3(folder / "m.weights.h5", _groups(tensors)),
        "keras archive": lambda: write_archive(
            folder / "m.keras", _configuration(tensors), write_v3(folder / "w", _groups(tensors))
        ),
        "safetensors": lambda: _safetensors(folder / "m.safetensors", tensors),
        "tfjs": lambda: write_tfjs(folder / "tfjs", tensors),
        "torch old": lambda: torch_files.write_legacy(folder / "m.pth", torch_files.tensors(tensors)),
        "torch zip": lambda: torch_files.write_zip(folder / "m.pth", torch_files.tensors(tensors)),
    }
    return writers[form]()


def _safetensors(path: Path, tensors: Tensors) -> Path:
    write_safetensors(path, tensors)
    return path


def _legacy(path: Path, tensors: Tensors) -> Path:
    with h5py.File(path, "w") as file:
        layers = list(dict.fromkeys(name.rpartition("/")[0] for name in tensors))
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name in layers:
            weights = [each for each in tensors if each.rpartition("/")[0] == name]
            file.create_group(name).attrs["weight_names"] = [f"{each}:0".encode() for each in weights]
        for name, value in tensors.items():
            file[f"{name.rpartition('/')[0]}/{name}:0"] = value
    return path


def _kind(layer_name: str) -> str:
    return {"conv2d": "Conv2D", "dense": "Dense"}.get(layer_name.partition("_")[0], "BatchNormalization")


def _groups(tensors: Tensors) -> dict[str, tuple[str | None, list[np.ndarray]]]:
    groups: dict[str, tuple[str | None, list[np.ndarray]]] = {}
    for name in sorted(tensors, key=lambda each: ORDER.index(each.rpartition("/")[2])):
        owner = name.rpartition("/")[0]
        groups.setdefault(f"layers/{owner}", (owner, []))[1].append(tensors[name])
    return groups


def _configuration(tensors: Tensors) -> object:
    layers = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
    return sequential(
        *(
            layer(_kind(name), name, use_bias=f"{name}/bias" in tensors, scale=f"{name}/gamma" in tensors)
            for name in layers
        )
    )


def read(form: str, source: Path) -> ForeignCheckpoint:
    """As `zoo import` reads it, but for Keras' files without the process of their own, which takes a second each."""
    return keras_file.read(source) if kind_of(form) == "keras" else read_checkpoint(kind_of(form), source)


def kind_of(form: str) -> str:
    return form.partition(" ")[0]


def small(form: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    names = ("conv.weight", "conv.bias") if form.startswith("torch") else ("conv2d/kernel", "conv2d/bias")
    return {names[0]: rng.standard_normal((3, 3, 2, 4)).astype(np.float32), names[1]: np.ones(4, np.float32)}


def test_every_kind_of_file_is_tried_here() -> None:
    elsewhere = {"hub", "slim"}  # their formats are TensorFlow's; they have tests of their own
    assert {kind_of(form) for form in KINDS_WRITTEN_HERE} == set(READERS) - elsewhere


@EVERY_FORMAT
def test_what_is_written_is_read(form: str, tmp_path: Path) -> None:
    tensors = small(form)
    found = read(form, write(form, tmp_path, tensors)).tensors
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


@EVERY_FORMAT
def test_files_cut_short_are_named(form: str, tmp_path: Path) -> None:
    source = write(form, tmp_path, small(form))
    file = source / "weights.bin" if source.is_dir() else source
    whole = file.read_bytes()
    for size in (0, 1, 7, 64, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ZooError) as caught:
            read(form, source)
        assert isinstance(caught.value, DataLoss | InvalidArgument)
        assert source.name in caught.value.message or file.name in caught.value.message
    file.write_bytes(whole)
    assert read(form, source).tensors


@EVERY_FORMAT
def test_what_is_not_there_is_named(form: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        read(form, tmp_path / "nowhere")


@EVERY_FORMAT
def test_another_formats_file_is_no_checkpoint(form: str, tmp_path: Path) -> None:
    for place, other in enumerate(KINDS_WRITTEN_HERE):
        folder = tmp_path / f"{place}"
        folder.mkdir()
        source = write(other, folder, small(other))
        if kind_of(other) == kind_of(form):
            continue
        file = source / "model.json" if source.is_dir() else source
        with pytest.raises(ZooError) as caught:
            read(form, file)
        assert isinstance(caught.value, DataLoss | InvalidArgument), other
        assert file.name in caught.value.message


@pytest.mark.parametrize("form", [form for form in KINDS_WRITTEN_HERE if form != "tfjs"])
def test_halves_are_widened_and_said_so(form: str, tmp_path: Path) -> None:
    exact = {name: value.astype(np.float16) for name, value in small(form).items()}
    found = read(form, write(form, tmp_path, exact))
    assert dict(found.widened) == dict.fromkeys(exact, "float16")
    for name, value in exact.items():
        np.testing.assert_array_equal(found.tensors[name], value.astype(np.float32), strict=True)


def test_bfloat16_without_a_word_that_it_is_one_is_refused(tmp_path: Path) -> None:
    """Keras notes beside two opaque bytes that they are a bfloat16; other writers of HDF5 don't."""
    brain = small("keras legacy")["conv2d/bias"].astype(ml_dtypes.bfloat16)
    with pytest.raises(NotACheckpoint, match=r"'conv2d/bias:0' has the type"):
        keras_file.read(write("keras legacy", tmp_path, {"conv2d/bias": brain}))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(MemoryStore(f"bad-{tmp_path.name}"), BlobCache(tmp_path / "cache"))


@pytest.fixture(scope="module")
def networks() -> dict[str, dict[str, np.ndarray]]:
    """Whole networks under Keras' and under PyTorch's names."""
    lite = with_torch_head(foreign_tensors("efficientnet_lite0", "torch"), classes=3)
    return {"keras": foreign_tensors("inception_v3", "keras"), "torch": lite}


def names_of(form: str, networks: dict[str, dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], str]:
    """A network, and the name of one of its tensors."""
    if form.startswith(("torch", "safetensors")):
        return dict(networks["torch"]), "_blocks.3._bn2.running_var"
    return dict(networks["keras"]), "batch_normalization_7/beta"


def imported(catalog: Catalog, form: str, source: Path, *, allow_nan: bool = False) -> ImportResult:
    return import_checkpoint(catalog, kind=kind_of(form), source=source, name="m", allow_nan=allow_nan)


@EVERY_FORMAT
def test_numbers_that_are_none_are_found_behind_every_door(
    form: str, networks: dict[str, dict[str, np.ndarray]], catalog: Catalog, tmp_path: Path
) -> None:
    tensors, name = names_of(form, networks)
    tensors[name] = tensors[name].copy()
    tensors[name][[0, 2]] = np.nan, np.inf
    source = write(form, tmp_path, tensors)
    with pytest.raises(NotFinite, match=r"in 1 tensors: backbone/\S+ \(2 of \d+ values\)") as caught:
        imported(catalog, form, source)
    assert "--allow-nan" in str(caught.value.hint)
    assert not list(catalog.store.list("models/"))
    assert imported(catalog, form, source, allow_nan=True).published is not None


@pytest.mark.parametrize("form", [form for form in KINDS_WRITTEN_HERE if form != "tfjs"])
def test_integers_that_no_scale_belongs_to_are_no_weights(
    form: str, networks: dict[str, dict[str, np.ndarray]], catalog: Catalog, tmp_path: Path
) -> None:
    tensors, name = names_of(form, networks)
    tensors[name] = np.ones(tensors[name].shape, np.int64)
    told = (
        r"layer 'batch_normalization_7' is stored as int64" if "v3" in form or "archive" in form else f"{name} is int64"
    )
    with pytest.raises((UnknownSource, NotACheckpoint), match=told):
        imported(catalog, form, write(form, tmp_path, tensors))
    assert not list(catalog.store.list("models/"))
