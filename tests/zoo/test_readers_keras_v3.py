"""Keras 3's weights: whose values a group holds, and what is refused rather than guessed."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.zoo.keras_files import functional, layer, sequential, write_archive, write_v3
from zoo.readers.checkpoint import DamagedCheckpoint, DenseLayer, NotACheckpoint, UnsafeCheckpoint
from zoo.readers.keras_file import read
from zoo.readers.keras_names import counted_from_zero
from zoo.readers.keras_topology import group_name


def kernel(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape or (3, 3, 2, 2)).astype(np.float32)


def vector(seed: int, width: int = 2) -> np.ndarray:
    return kernel(seed, width)


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(found, wanted, strict=True)


def test_a_bare_file_names_its_layers_by_the_titles_in_it(tmp_path: Path) -> None:
    path = write_v3(
        tmp_path / "w.weights.h5",
        {
            "layers/conv2d": ("stem", [kernel(1)]),
            "layers/conv2d_1": ("conv2d", [kernel(2), vector(3)]),
            "layers/batch_normalization": ("bn", [vector(n) for n in range(4, 8)]),
            "layers/depthwise_conv2d": ("dw", [kernel(8)]),
            "layers/separable_conv2d": ("sep", [kernel(9), kernel(10, 1, 1, 2, 4), vector(11, 4)]),
            "layers/dense": ("predictions", [kernel(12, 4, 3), vector(13, 3)]),
        },
    )
    found = read(path)
    assert list(found.tensors) == [
        *(f"bn/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
        "stem/kernel",
        "conv2d/kernel",
        "conv2d/bias",
        "predictions/kernel",
        "predictions/bias",
        "dw/depthwise_kernel",
        "sep/depthwise_kernel",
        "sep/pointwise_kernel",
        "sep/bias",
    ]
    same(found.tensors["stem/kernel"], kernel(1))
    same(found.tensors["bn/moving_mean"], vector(6))
    same(found.tensors["sep/pointwise_kernel"], kernel(10, 1, 1, 2, 4))
    assert found.dense == (DenseLayer(name="predictions", activation="softmax"),)
    assert (found.frameworks, found.files, found.notes) == (("keras",), (path,), ())


def test_a_batch_norm_of_three_values_has_no_gamma_and_that_is_said(tmp_path: Path) -> None:
    groups = {
        "layers/batch_normalization": ("a", [vector(1), vector(2), vector(3)]),
        "layers/batch_normalization_1": ("b", [vector(4), vector(5)]),
    }
    found = read(write_v3(tmp_path / "w.h5", groups))
    assert sorted(found.tensors) == [
        "a/beta",
        "a/moving_mean",
        "a/moving_variance",
        "b/moving_mean",
        "b/moving_variance",
    ]
    same(found.tensors["a/beta"], vector(1))
    assert len(found.notes) == 1
    assert "scale=False" in found.notes[0]


BRANCHES = functional(
    "net",
    [
        layer("InputLayer", "input"),
        layer("Conv2D", "conv2d_1", "input", use_bias=False),  # deep branches come first, made last
        layer("Conv2D", "conv2d_2", "conv2d_1", use_bias=False),
        layer("Conv2D", "conv2d", "input", use_bias=False),
        layer("Concatenate", "join", "conv2d", "conv2d_2"),
        layer("BatchNormalization", "batch_normalization", "join", scale=True, center=False, epsilon=0.002),
    ],
    "batch_normalization",
)
BRANCH_VALUES = {
    "layers/conv2d": [kernel(1)],
    "layers/conv2d_1": [kernel(2)],
    "layers/conv2d_2": [kernel(3)],
    "layers/batch_normalization": [vector(4, 4), vector(5, 4), vector(6, 4)],
}


@pytest.mark.parametrize("titled", [False, True])
def test_an_archive_names_its_layers_by_its_configuration(titled: bool, tmp_path: Path) -> None:
    titles = ["conv2d_1", "conv2d_2", "conv2d", "batch_normalization"] if titled else [None] * 4
    groups = {group: (title, BRANCH_VALUES[group]) for group, title in zip(BRANCH_VALUES, titles, strict=True)}
    weights = write_v3(tmp_path / "w.h5", groups)
    found = read(write_archive(tmp_path / "m.keras", BRANCHES, weights))
    same(found.tensors["conv2d_1/kernel"], kernel(1))
    same(found.tensors["conv2d_2/kernel"], kernel(2))
    same(found.tensors["conv2d/kernel"], kernel(3))
    same(found.tensors["batch_normalization/gamma"], vector(4, 4))
    assert found.batch_norm_epsilons == {0.002}
    assert (found.dense, found.notes) == ((), ())


def test_a_bare_file_without_titles_is_not_guessed_at(tmp_path: Path) -> None:
    weights = write_v3(tmp_path / "w.h5", {group: (None, values) for group, values in BRANCH_VALUES.items()})
    with pytest.raises(
        NotACheckpoint, match=r"4 groups such as 'layers/\w+' don't say which layers.*a guess"
    ) as caught:
        read(weights)
    assert "model.keras" in str(caught.value.hint)


def test_titles_and_configuration_that_contradict_each_other(tmp_path: Path) -> None:
    weights = write_v3(tmp_path / "w.h5", {"layers/conv2d": ("conv2d_9", [kernel(1)])})
    with pytest.raises(DamagedCheckpoint, match=r"'layers/conv2d' is layer 'conv2d_9'.*not of one model"):
        read(write_archive(tmp_path / "m.keras", BRANCHES, weights))
    weights = write_v3(tmp_path / "w.h5", {"layers/dense": ("conv2d_1", [kernel(1, 2, 2)])})
    with pytest.raises(DamagedCheckpoint, match=r"'conv2d_1' lies in 'layers/dense', the configuration says Conv2D"):
        read(write_archive(tmp_path / "m.keras", BRANCHES, weights))


def test_operations_that_are_no_layers_count_in_the_configuration_alone(tmp_path: Path) -> None:
    """Keras' MobileNetV3: `x + 3` is listed as "Add" too, but has no group."""
    config = functional(
        "net",
        [
            layer("InputLayer", "input"),
            {**layer("Add", "add", "input"), "module": "keras.src.ops.numpy"},
            layer("Add", "block_add", "add"),
            layer("Dense", "out", "block_add"),
        ],
        "out",
    )
    groups = {"layers/add": ("block_add", []), "layers/dense": ("out", [kernel(1, 4, 3), vector(2, 3)])}
    found = read(write_archive(tmp_path / "m.keras", config, write_v3(tmp_path / "w.h5", groups)))
    assert sorted(found.tensors) == ["out/bias", "out/kernel"]


def test_a_normalization_is_no_quantised_layer_though_it_counts(tmp_path: Path) -> None:
    values = [vector(1, 3), vector(2, 3), np.array(5, np.int32)]
    found = read(write_v3(tmp_path / "w.h5", {"layers/normalization": ("n", values)}))
    assert sorted(found.tensors) == ["n/count", "n/mean", "n/variance"]


def test_another_number_of_values_than_configured(tmp_path: Path) -> None:
    weights = write_v3(tmp_path / "w.h5", {"layers/conv2d": (None, [kernel(1), vector(2)])})
    with pytest.raises(DamagedCheckpoint, match=r"layer 'conv2d_1' holds 2 values.*has 1: kernel"):
        read(write_archive(tmp_path / "m.keras", BRANCHES, weights))


def test_a_value_of_another_rank(tmp_path: Path) -> None:
    path = write_v3(tmp_path / "w.h5", {"layers/conv2d": ("c", [kernel(1, 2, 2)])})
    with pytest.raises(DamagedCheckpoint, match=r"layer 'c': its kernel has the shape \(2, 2\), expected 4 sides"):
        read(path)


def test_a_backbone_within_a_model_with_a_head(tmp_path: Path) -> None:
    config = sequential(
        layer("InputLayer", "input_1"),
        BRANCHES,
        layer("GlobalAveragePooling2D", "pool"),
        layer("Dense", "hidden", activation="relu"),
        layer("Dropout", "drop", rate=0.5),
        layer("Dense", "out", activation="linear"),
        layer("Softmax", "softmax", axis=-1),
    )
    groups: dict[str, tuple[str | None, list[np.ndarray]]] = {
        f"layers/functional/{group}": (None, values) for group, values in BRANCH_VALUES.items()
    }
    groups |= {"layers/dense": (None, [kernel(20, 4, 3), vector(21, 3)])}
    groups |= {"layers/dense_1": (None, [kernel(22, 3, 5), vector(23, 5)])}
    found = read(write_archive(tmp_path / "m.keras", config, write_v3(tmp_path / "w.h5", groups)))
    assert found.dense == (
        DenseLayer(name="hidden", activation="relu", dropout=0.5),
        DenseLayer(name="out", activation="softmax"),
    )
    same(found.tensors["conv2d/kernel"], kernel(3))
    same(found.tensors["out/kernel"], kernel(22, 3, 5))
    assert not any("functional" in name or "/vars" in name for name in found.tensors)


def test_a_head_that_is_a_model_of_its_own(tmp_path: Path) -> None:
    head = functional(
        "head", [layer("InputLayer", "features"), layer("Dense", "out", "features", activation="softmax")], "out"
    )
    head["inbound_nodes"] = layer("x", "x", "hidden")["inbound_nodes"]
    config = functional(
        "net", [layer("InputLayer", "i"), layer("Dense", "hidden", "i", activation="relu"), head], "head"
    )
    groups: dict[str, tuple[str | None, list[np.ndarray]]] = {
        "layers/dense": (None, [kernel(1, 4, 3), vector(2, 3)]),
        "layers/functional/layers/dense": (None, [kernel(3, 3, 2), vector(4, 2)]),
    }
    found = read(write_archive(tmp_path / "m.keras", config, write_v3(tmp_path / "w.h5", groups)))
    assert [dense.name for dense in found.dense] == ["hidden", "out"]
    same(found.tensors["out/kernel"], kernel(3, 3, 2))


def test_an_activation_of_the_users_own_keeps_no_name_of_keras(tmp_path: Path) -> None:
    activation = {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"}
    config = sequential(layer("Dense", "d", activation=activation))
    weights = write_v3(tmp_path / "w.h5", {"layers/dense": ("d", [kernel(1, 4, 3), vector(2, 3)])})
    assert read(write_archive(tmp_path / "m.keras", config, weights)).dense[0].activation == "custom relu"


def test_two_layers_of_one_name(tmp_path: Path) -> None:
    groups = {"layers/dense": ("d", [kernel(1, 2, 2)]), "layers/functional/layers/dense": ("d", [kernel(2, 2, 2)])}
    with pytest.raises(DamagedCheckpoint, match="two weights are named 'd/kernel'"):
        read(write_v3(tmp_path / "w.h5", groups))


def test_what_no_network_wants_is_left_aside_with_its_reason(tmp_path: Path) -> None:
    groups: dict[str, tuple[str | None, list[np.ndarray]]] = {
        "layers/dense": ("d", [kernel(1, 2, 2)]),
        "layers/dropout/seed_generator": ("seed_generator", [np.zeros(2, np.uint32)]),
        "layers/random_flip/generator": ("seed_generator_1", [np.zeros(2, np.uint32)]),
        "optimizer": ("adam", [np.array(3), kernel(2, 2, 2)]),
        "metrics/mean": (None, [np.float32(1)]),
    }
    found = read(write_v3(tmp_path / "w.h5", groups))
    assert list(found.tensors) == ["d/kernel"]
    assert found.aside == {
        "layers/dropout/seed_generator/vars/0": "the state of a random number generator",
        "layers/random_flip/generator/vars/0": "the state of a random number generator",
        "optimizer/vars/0": "the optimizer's state",
        "optimizer/vars/1": "the optimizer's state",
        "metrics/mean/vars/0": "a metric's state",
    }


def test_layers_of_unknown_classes_keep_their_numbers(tmp_path: Path) -> None:
    groups = {
        "layers/lstm": ("lstm_4", []),
        "layers/lstm/cell": ("lstm_cell", [kernel(1, 2, 8)]),
        "layers/my_block": ("mine", [vector(2)]),
        "head": ("dense", [kernel(3, 2, 2)]),  # an attribute of the user's model: no class is told
    }
    found = read(write_v3(tmp_path / "w.h5", groups))
    assert sorted(found.tensors) == ["dense/vars/0", "lstm_cell/vars/0", "mine/vars/0"]


def test_the_container_of_tf_keras_2_13(tmp_path: Path) -> None:
    root = "_layer_checkpoint_dependencies"
    weights = write_v3(tmp_path / "w.h5", {f"{root}/dense": (None, [kernel(1, 4, 3), vector(2, 3)])})
    found = read(write_archive(tmp_path / "m.keras", sequential(layer("Dense", "out")), weights))
    assert sorted(found.tensors) == ["out/bias", "out/kernel"]


def test_automatic_names_that_begin_late_are_counted_from_zero(tmp_path: Path) -> None:
    groups: dict[str, tuple[str | None, list[np.ndarray]]] = {
        "layers/conv2d": ("conv2d_95", [kernel(1)]),
        "layers/conv2d_1": ("conv2d_94", [kernel(2)]),
        "layers/batch_normalization": ("batch_normalization_99", [vector(n) for n in range(4)]),
        "layers/dense": ("dense_7", [kernel(3, 2, 2)]),
    }
    found = read(write_v3(tmp_path / "w.h5", groups))
    same(found.tensors["conv2d/kernel"], kernel(2))
    same(found.tensors["conv2d_1/kernel"], kernel(1))
    assert "batch_normalization/gamma" in found.tensors
    assert "dense_7/kernel" in found.tensors
    assert "counted from 0" in found.notes[0]
    legacy = tmp_path / "legacy.h5"
    with h5py.File(legacy, "w") as file:
        file.attrs["layer_names"] = [b"conv2d_95", b"conv2d_94", b"dense_7"]
        for name, value in (("conv2d_95", kernel(1)), ("conv2d_94", kernel(2)), ("dense_7", kernel(3, 2, 2))):
            file.create_group(name).attrs["weight_names"] = [f"{name}/kernel:0".encode()]
            file[f"{name}/{name}/kernel:0"] = value
    again = read(legacy)
    same(again.tensors["conv2d/kernel"], kernel(2))
    assert sorted(again.tensors) == ["conv2d/kernel", "conv2d_1/kernel", "dense_7/kernel"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["conv2d_2", "conv2d_3"], {"conv2d_2": "conv2d", "conv2d_3": "conv2d_1"}),
        (["conv2d", "conv2d_1"], {}),
        (["conv2d_1", "conv2d_2"], {}),
        (["conv2d_2", "conv2d_4"], {"conv2d_2": "conv2d", "conv2d_4": "conv2d_2"}),
        (["conv2d_2", "stem", "conv2d_02", "my_conv2d_3"], {"conv2d_2": "conv2d"}),
    ],
)
def test_where_counting_begins(names: list[str], expected: dict[str, str]) -> None:
    assert counted_from_zero([("conv2d", name) for name in names]) == expected


def test_counts_of_two_classes_that_begin_apart() -> None:
    layers = [("conv2d", "conv2d"), ("batch_normalization", "batch_normalization_1")]
    assert counted_from_zero(layers)["batch_normalization_1"] == "batch_normalization"


@pytest.mark.parametrize("dtype", ["<f2", ">f4", ">f2", "<f8"])
def test_other_floats_and_byte_orders(dtype: str, tmp_path: Path) -> None:
    value = np.array([[1.5, -2.0]], dtype)
    found = read(write_v3(tmp_path / "w.h5", {"layers/dense": ("d", [value])}))
    same(found.tensors["d/kernel"], np.array([[1.5, -2.0]], np.float32))
    kept = {"<f2": "float16", ">f2": "float16", "<f8": "float64"}
    assert found.widened == ({"d/kernel": kept[dtype]} if dtype in kept else {})


def test_bfloat16_as_keras_writes_it(tmp_path: Path) -> None:
    bits = (np.array([[1.5, -2.0]], np.float32).view(np.uint32) >> 16).astype("<u2")
    path = write_v3(tmp_path / "w.h5", {"layers/dense": ("d", [bits.view("V2")])})
    with pytest.raises(NotACheckpoint, match=r"\|V2"):
        read(path)
    with h5py.File(path, "a") as file:
        file["layers/dense/vars/0"].attrs["dtype"] = "bfloat16"
    found = read(path)
    same(found.tensors["d/kernel"], np.array([[1.5, -2.0]], np.float32))
    assert found.widened == {"d/kernel": "bfloat16"}


def test_quantised_layers_are_refused_by_name(tmp_path: Path) -> None:
    values = [np.ones((4, 3), np.int8), vector(1, 3), vector(2, 3)]
    with pytest.raises(NotACheckpoint, match=r"layer 'd' is stored as int8: quantised"):
        read(write_v3(tmp_path / "w.h5", {"layers/dense": ("d", values)}))


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/elsewhere")])
@pytest.mark.parametrize("place", ["layers/dense/vars/0", "layers/dense/vars", "layers/dense"])
def test_links_out_of_the_file_are_refused(link: object, place: str, tmp_path: Path) -> None:
    path = write_v3(tmp_path / "w.h5", {"layers/dense": ("d", [kernel(1, 2, 2)])})
    with h5py.File(path, "a") as file:
        del file[place]
        file[place] = link
    with pytest.raises(UnsafeCheckpoint, match="link to elsewhere"):
        read(path)


def test_a_group_within_itself_ends(tmp_path: Path) -> None:
    path = write_v3(tmp_path / "w.h5", {"layers/dense": ("d", [kernel(1, 2, 2)])})
    with h5py.File(path, "a") as file:
        file["layers/dense/layers"] = file["layers"]
    with pytest.raises(UnsafeCheckpoint, match="linked twice"):
        read(path)


def test_claims_that_only_together_are_too_large(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        for place in range(200):  # 200 MiB of which nothing is stored
            at = file.create_group(f"layers/my_block_{place}/vars")
            at.attrs["name"] = f"mine_{place}"
            at.create_dataset("0", shape=(1 << 18,), dtype="f4", chunks=(1 << 10,))
    with pytest.raises(UnsafeCheckpoint, match=r"claim \d+ bytes, the file has"):
        read(path)


def test_a_file_cut_anywhere_is_an_error_of_ours(tmp_path: Path) -> None:
    whole = write_v3(tmp_path / "w.h5", {"layers/conv2d": ("c", [kernel(1)])}).read_bytes()
    cut = tmp_path / "cut.h5"
    for size in (*range(0, 100, 9), *range(100, len(whole), 331), len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises((DamagedCheckpoint, NotACheckpoint), match=r"cut\.h5"):
            read(cut)


def test_every_class_has_the_group_name_that_keras_gives_it() -> None:
    keras = pytest.importorskip("keras")
    from keras.src.utils.naming import to_snake_case

    kinds = [name for name in dir(keras.layers) if isinstance(getattr(keras.layers, name), type)]
    assert len(kinds) > 100
    assert {kind: group_name(kind) for kind in kinds} == {kind: to_snake_case(kind) for kind in kinds}
    assert group_name("XMLBlockV2Norm") == to_snake_case("XMLBlockV2Norm")
