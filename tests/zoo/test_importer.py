from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.zoo.foreign import dense_topology, foreign_tensors, with_torch_head, write_tfjs
from tests.zoo.torch_files import tensors as torch_tensors
from tests.zoo.torch_files import write_legacy
from zoo.architectures.choosing import NothingExcluded, UnknownSource
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.errors import NotFound
from zoo.imported_head import UnsupportedHead
from zoo.importer import ImportResult, NotFinite, import_checkpoint
from zoo.names import InvalidName
from zoo.restore_report import IncompleteRestore
from zoo.store.memory import MemoryStore
from zoo.tensors import read_safetensors, write_safetensors


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(MemoryStore(f"importer-{tmp_path.name}"), BlobCache(tmp_path / "cache"))


@pytest.fixture(scope="module")
def lite() -> dict[str, np.ndarray]:
    """EfficientNet-Lite0 under efficientnet_lite_pytorch's names, with an output layer of 6 classes."""
    return with_torch_head(foreign_tensors("efficientnet_lite0", "torch"), classes=6)


@pytest.fixture(scope="module")
def inception() -> dict[str, np.ndarray]:
    return foreign_tensors("inception_v3", "keras")


@pytest.fixture
def run(catalog: Catalog, tmp_path: Path) -> Callable[..., ImportResult]:
    """Writes a safetensors file and imports it."""

    def import_(tensors: dict[str, np.ndarray], **options: Any) -> ImportResult:
        path = tmp_path / "model.safetensors"
        write_safetensors(path, tensors)
        return import_checkpoint(catalog, kind="safetensors", source=path, name="m", **options)

    return import_


def nothing_stored(catalog: Catalog) -> bool:
    return not list(catalog.store.list("models/")) and not list(catalog.store.list("blobs/"))


def test_backbone_and_head_become_files_of_their_own(
    run: Callable[..., ImportResult], lite: dict[str, np.ndarray], catalog: Catalog, tmp_path: Path
) -> None:
    result = run(lite, license="Apache-2.0")
    assert result.published is not None
    version = catalog.get("m")
    manifest = version.manifest
    assert (version.reference, result.layout, result.notes) == ("m@1", "torch", ())
    assert manifest == result.manifest
    assert {c.name: c.num_tensors for c in manifest.components} == {"backbone": 245, "head": 2}
    assert manifest.architecture.model_dump() == {"name": "efficientnet_lite0", "arguments": {"width": 1.0}}
    assert manifest.head is not None
    assert manifest.head.model_dump() == {
        "kind": "classifier",
        "arguments": {"num_classes": 6, "hidden": [], "dropout": [], "activation": "softmax"},
    }
    assert manifest.license == "Apache-2.0"
    source = manifest.lineage.source
    assert source is not None
    assert (source.kind, source.location) == ("safetensors", "model.safetensors")
    assert source.digest == "sha256:" + hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()

    backbone = read_safetensors(catalog.open_component(version, "backbone"))
    head = read_safetensors(catalog.open_component(version, "head"))
    stem = lite["_conv_stem.weight"]
    np.testing.assert_array_equal(backbone["stem/kernel"], stem.transpose(2, 3, 1, 0), strict=True)
    depthwise = lite["_blocks.3._depthwise_conv.weight"]
    kernel = backbone["block_3/depthwise/depthwise_kernel"]
    assert kernel.shape == (5, 5, depthwise.shape[0], 1)
    assert kernel[1, 4, 7, 0] == depthwise[7, 0, 1, 4]
    np.testing.assert_array_equal(backbone["block_3/project/moving_variance"], lite["_blocks.3._bn2.running_var"])
    np.testing.assert_array_equal(head["logits/kernel"], lite["_fc.weight"].T, strict=True)
    assert set(head) == {"logits/kernel", "logits/bias"}


def test_the_report_says_what_became_of_every_tensor(
    run: Callable[..., ImportResult], lite: dict[str, np.ndarray]
) -> None:
    report = run(lite).report
    assert report.complete
    assert len(report.restored) == 247
    assert report.renamed["_bn1.weight"] == "backbone/top/gamma"
    assert "backbone/stem/kernel" in report.transposed
    assert "backbone/stem/gamma" not in report.transposed
    assert list(report.unused) == ["_bn0.num_batches_tracked"]
    assert "counter" in report.unused["_bn0.num_batches_tracked"]
    assert set(lite) == set(report.renamed) | set(report.unused)


def test_lineage_has_the_fate_of_every_tensor(run: Callable[..., ImportResult], lite: dict[str, np.ndarray]) -> None:
    fates = run(lite).manifest.lineage.tensors
    assert len(fates) == 247
    assert fates["head/logits/bias"] == "renamed"


def test_the_same_again_is_existing_and_stores_nothing(
    run: Callable[..., ImportResult], lite: dict[str, np.ndarray]
) -> None:
    run(lite)
    second = run(lite).published
    assert second is not None
    assert (second.existing, second.version.number, second.bytes_sent) == (True, 1, 0)
    third = run(lite, again=True).published
    assert third is not None
    assert (third.existing, third.version.number, third.bytes_sent) == (False, 2, 0)


def test_a_dry_run_stores_nothing(
    run: Callable[..., ImportResult], lite: dict[str, np.ndarray], catalog: Catalog
) -> None:
    result = run(lite, dry_run=True)
    assert result.published is None
    assert result.report.complete
    assert nothing_stored(catalog)


def test_a_torch_file_gives_the_very_same_components(
    run: Callable[..., ImportResult], lite: dict[str, np.ndarray], catalog: Catalog, tmp_path: Path
) -> None:
    path = write_legacy(tmp_path / "m.pth", torch_tensors(lite))
    by_torch = import_checkpoint(catalog, kind="torch", source=path, name="t")
    assert by_torch.manifest.components == run(lite).manifest.components


def test_order_in_the_file_means_nothing(
    lite: dict[str, np.ndarray], catalog: Catalog, tmp_path: Path, run: Callable[..., ImportResult]
) -> None:
    shuffled = dict(sorted(lite.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).digest()))
    path = write_legacy(tmp_path / "m.pth", torch_tensors(shuffled))
    by_torch = import_checkpoint(catalog, kind="torch", source=path, name="t")
    assert by_torch.manifest.components == run(lite).manifest.components


def test_a_checkpoint_without_output_layer_is_a_backbone(run: Callable[..., ImportResult]) -> None:
    manifest = run(foreign_tensors("efficientnet_lite0", "torch")).manifest
    assert manifest.head is None
    assert [c.name for c in manifest.components] == ["backbone"]


def test_every_fault_is_named_at_once(
    run: Callable[..., ImportResult], lite: dict[str, np.ndarray], catalog: Catalog
) -> None:
    broken = dict(lite)
    del broken["_blocks.2._bn1.running_mean"]
    broken["_blocks.5._bn0.weight"] = np.zeros(7, np.float32)
    broken["stranger"] = np.zeros(3, np.float32)
    with pytest.raises(IncompleteRestore) as caught:
        run(broken)
    for part in ("_blocks.2._bn1.running_mean", "(7,)", "(240,)", "stranger", "efficientnet_lite0"):
        assert part in caught.value.message
    assert nothing_stored(catalog)


def test_another_order_of_axes_is_guessed(run: Callable[..., ImportResult], lite: dict[str, np.ndarray]) -> None:
    turned = {n: v.transpose(2, 3, 1, 0) if v.ndim == 4 else v for n, v in lite.items()}
    with pytest.raises(IncompleteRestore, match="another framework's layout"):
        run(turned)


def test_another_width_is_guessed(run: Callable[..., ImportResult], lite: dict[str, np.ndarray]) -> None:
    def wider(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(round(side * 1.4) if side > 6 else side for side in shape)

    with pytest.raises(IncompleteRestore, match=r"1\.4 times the width"):
        run({name: np.zeros(wider(value.shape), np.float32) for name, value in lite.items()})


def test_half_precision_and_its_note(run: Callable[..., ImportResult], lite: dict[str, np.ndarray]) -> None:
    half = {n: v.astype(np.float16) if v.dtype == np.float32 else v for n, v in lite.items()}
    result = run(half)
    assert len(result.report.widened) == 247
    assert any("247 tensors were widened from float16" in note for note in result.notes)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused_unless_allowed(
    value: float, run: Callable[..., ImportResult], lite: dict[str, np.ndarray], catalog: Catalog
) -> None:
    bias = lite["_fc.bias"].copy()
    bias[2] = value
    broken = {**lite, "_fc.bias": bias}
    with pytest.raises(NotFinite, match=r"head/logits/bias \(1 of 6 values\)"):
        run(broken)
    assert nothing_stored(catalog)
    assert run(broken, allow_nan=True).published is not None


def test_exclude_leaves_out_a_scope(run: Callable[..., ImportResult], lite: dict[str, np.ndarray]) -> None:
    result = run({**lite, "aux.conv.weight": np.zeros(3, np.float32)}, exclude=["aux", "_fc"])
    assert result.manifest.head is None
    assert result.report.unused["aux.conv.weight"] == "excluded by 'aux'"
    assert result.report.unused["_fc.bias"] == "excluded by '_fc'"


@pytest.mark.parametrize("entry", ["_fcs", "_f", "", "/"])
def test_an_exclude_that_matches_nothing_is_an_error(
    entry: str, run: Callable[..., ImportResult], lite: dict[str, np.ndarray]
) -> None:
    with pytest.raises(NothingExcluded, match="matches none"):
        run(lite, exclude=[entry])


def test_a_mistyped_exclude_names_what_is_near(run: Callable[..., ImportResult], lite: dict[str, np.ndarray]) -> None:
    with pytest.raises(NothingExcluded, match=r"_conv_head"):
        run(lite, exclude=["conv_head"])


def test_excluding_half_of_the_head_is_no_head(run: Callable[..., ImportResult], lite: dict[str, np.ndarray]) -> None:
    with pytest.raises(IncompleteRestore, match="head/logits/bias"):
        run(lite, exclude=["_fc.bias"])


def test_names_of_no_architecture(run: Callable[..., ImportResult]) -> None:
    with pytest.raises(UnknownSource, match=r"\(keras.* names\) 0% of its names.*others no nearer.*such as a"):
        run({"a": np.zeros(3, np.float32)})


def test_the_wrong_architecture_is_refused(run: Callable[..., ImportResult], lite: dict[str, np.ndarray]) -> None:
    with pytest.raises(UnknownSource, match="inception_v3"):
        run(lite, architecture="inception_v3")


@pytest.mark.parametrize("layout", ["keras", "keras-from-0", "torch"])
def test_inception_is_known_by_its_names(layout: str, run: Callable[..., ImportResult]) -> None:
    result = run(foreign_tensors("inception_v3", layout))
    assert result.layout == layout
    assert result.manifest.architecture.arguments == {"pool_counts_padding": layout == "torch"}


def test_keras_counting_from_elsewhere_is_not_taken_for_the_usual(
    run: Callable[..., ImportResult], inception: dict[str, np.ndarray]
) -> None:
    def moved(name: str) -> str:
        layer, _, part = name.partition("/")
        kind, _, number = layer.rpartition("_")
        return f"{kind}_{int(number) + 1}/{part}"

    with pytest.raises(IncompleteRestore, match="missing"):
        run({moved(name): value for name, value in inception.items()})


def test_gammas_are_multiplied_in(run: Callable[..., ImportResult], catalog: Catalog) -> None:
    stored = foreign_tensors("inception_v3", "torch")
    gamma = np.linspace(0.5, 2, 32).astype(np.float32)
    stored["Conv2d_1a_3x3.bn.weight"] = gamma
    result = run(stored)
    assert "gamma" in result.report.unused["Conv2d_1a_3x3.bn.weight"]
    found = read_safetensors(catalog.open_component(catalog.get("m"), "backbone"))
    kernel = stored["Conv2d_1a_3x3.conv.weight"].transpose(2, 3, 1, 0) * gamma
    np.testing.assert_array_equal(found["Conv2d_1a_3x3/kernel"], kernel)
    mean = stored["Conv2d_1a_3x3.bn.running_mean"] * gamma
    np.testing.assert_array_equal(found["Conv2d_1a_3x3/moving_mean"], mean)
    np.testing.assert_array_equal(found["Conv2d_1a_3x3/beta"], stored["Conv2d_1a_3x3.bn.bias"])


def test_a_missing_gamma_is_missed(run: Callable[..., ImportResult]) -> None:
    stored = foreign_tensors("inception_v3", "torch")
    del stored["Mixed_5b.branch1x1.bn.weight"]
    with pytest.raises(IncompleteRestore, match=r"Mixed_5b\.branch1x1\.bn\.weight"):
        run(stored)


def dense(sides: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    tensors = {}
    for name, (inputs, units) in sides.items():
        tensors[f"{name}/kernel"] = rng.standard_normal((inputs, units)).astype(np.float32)
        tensors[f"{name}/bias"] = rng.standard_normal(units).astype(np.float32)
    return tensors


def test_a_chain_of_dense_layers_becomes_the_head(
    inception: dict[str, np.ndarray], catalog: Catalog, tmp_path: Path
) -> None:
    # Names that sort against the flow: only the topology says which is last.
    head = dense({"d_z": (2048, 12), "d_m": (12, 8), "d_a": (8, 3)})
    topology = dense_topology(("d_z", "relu", 0.5), ("d_m", "relu", 0.25), ("d_a", "softmax", 0.0))
    source = write_tfjs(tmp_path / "m", {**inception, **head}, topology)
    manifest = import_checkpoint(catalog, kind="tfjs", source=source, name="m").manifest
    assert manifest.head is not None
    assert manifest.head.arguments == {
        "num_classes": 3,
        "hidden": [12, 8],
        "dropout": [0.5, 0.25],
        "activation": "softmax",
    }
    stored = read_safetensors(catalog.open_component(catalog.get("m"), "head"))
    np.testing.assert_array_equal(stored["hidden_0/kernel"], head["d_z/kernel"])
    np.testing.assert_array_equal(stored["hidden_1/bias"], head["d_m/bias"])
    np.testing.assert_array_equal(stored["logits/kernel"], head["d_a/kernel"])


def test_a_head_whose_layers_do_not_follow_each_other(
    inception: dict[str, np.ndarray], catalog: Catalog, tmp_path: Path
) -> None:
    head = dense({"d_1": (2048, 12), "d_2": (13, 3)})
    topology = dense_topology(("d_1", "relu", 0.0), ("d_2", "softmax", 0.0))
    source = write_tfjs(tmp_path / "m", {**inception, **head}, topology)
    with pytest.raises(IncompleteRestore, match=r"head/logits/kernel stored \(13, 3\), wanted \(12, 3\)"):
        import_checkpoint(catalog, kind="tfjs", source=source, name="m")


def test_activations_that_the_classifier_lacks_are_refused(
    inception: dict[str, np.ndarray], catalog: Catalog, tmp_path: Path
) -> None:
    head = dense({"d_1": (2048, 12), "d_2": (12, 3)})
    topology = dense_topology(("d_1", "tanh", 0.0), ("d_2", "sigmoid", 0.0))
    source = write_tfjs(tmp_path / "m", {**inception, **head}, topology)
    with pytest.raises(UnsupportedHead, match="d_1: tanh, d_2: sigmoid") as caught:
        import_checkpoint(catalog, kind="tfjs", source=source, name="m")
    assert "--exclude d_1 --exclude d_2" in str(caught.value.hint)
    alone = import_checkpoint(catalog, kind="tfjs", source=source, name="m", exclude=["d_1", "d_2"])
    assert alone.manifest.head is None


def test_dense_layers_without_a_topology_are_left_over(
    run: Callable[..., ImportResult], inception: dict[str, np.ndarray]
) -> None:
    with pytest.raises(IncompleteRestore, match="2 left over: predictions/bias, predictions/kernel"):
        run({**inception, **dense({"predictions": (2048, 3)})})


def test_another_epsilon_is_another_network(inception: dict[str, np.ndarray], catalog: Catalog, tmp_path: Path) -> None:
    source = write_tfjs(tmp_path / "m", inception, dense_topology(epsilon=1e-5))
    with pytest.raises(UnknownSource, match="epsilon 1e-05"):
        import_checkpoint(catalog, kind="tfjs", source=source, name="m")


def test_a_name_that_cannot_be_one_is_refused_first(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        import_checkpoint(catalog, kind="torch", source=tmp_path / "no.pth", name="../evil")


def test_a_source_that_is_not_there(catalog: Catalog, tmp_path: Path) -> None:
    for kind in ("torch", "tfjs", "safetensors"):
        with pytest.raises(NotFound, match="nowhere"):
            import_checkpoint(catalog, kind=kind, source=tmp_path / "nowhere", name="m")


def test_integers_where_weights_belong(run: Callable[..., ImportResult], lite: dict[str, np.ndarray]) -> None:
    with pytest.raises(UnknownSource, match=r"_fc\.bias is int64"):
        run({**lite, "_fc.bias": np.zeros(6, np.int64)})


def test_a_component_above_8_mib_has_a_hash_for_every_chunk(shared: Path, tmp_path: Path) -> None:
    catalog = Catalog(MemoryStore(), BlobCache(tmp_path / "cache"))
    source = shared / "checkpoints/efficientnet_lite0/efficientnet_lite0.safetensors"
    result = import_checkpoint(catalog, kind="safetensors", source=source, name="m", architecture="efficientnet_lite0")
    assert result.published is not None
    version = result.published.version
    backbone = version.manifest.component("backbone")
    assert backbone is not None
    data = catalog.open_component(version, "backbone").read_bytes()
    chunks = [data[at : at + (8 << 20)] for at in range(0, len(data), 8 << 20)]
    assert len(chunks) > 1
    assert backbone.chunks == tuple(hashlib.sha256(chunk).hexdigest() for chunk in chunks)
