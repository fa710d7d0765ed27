"""Some tensors of a version: only the chunks that hold them are fetched, and they are the bytes that were published."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.zoo.samples import new_catalog, version
from tests.zoo.test_cache_download import Counting
from zoo.atomic_file import FileTaken
from zoo.cache import CorruptBlob, blob_key
from zoo.catalog import Catalog, ModelVersion, UnknownComponent
from zoo.file_hash import CHUNK_BYTES, hash_file
from zoo.manifest import Component
from zoo.pull import pull, pull_tensors
from zoo.tensor_fetch import chosen_tensors, fetch
from zoo.tensor_header import header_length, parse_header
from zoo.tensors import (
    DamagedTensors,
    UnknownTensor,
    UnstorableTensor,
    read_metadata,
    read_safetensors,
    tensor_infos,
    write_safetensors,
)

BIG = 5 * CHUNK_BYTES // 4  # values of a tensor that fills five chunks


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, Path, dict[str, np.ndarray]]:
    """In the file's order: a (5 chunks), b (small, in the sixth), c (5 chunks), then small ones of other types."""
    random_ = np.random.default_rng(0)
    tensors = {
        "a/kernel": random_.standard_normal(BIG, np.float32),
        "b/bias": random_.standard_normal(7, np.float32),
        "c/kernel": random_.standard_normal((BIG // 4, 4), np.float32),
        "d/half": random_.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
        "e/empty": np.zeros((0, 3), np.int32),
        "f/flag": np.array(True),
    }
    path = tmp_path_factory.mktemp("big") / "backbone.safetensors"
    write_safetensors(path, tensors)
    return Component.of("backbone", hash_file(path), num_tensors=len(tensors)), path, tensors


@pytest.fixture
def remote(
    tmp_path: Path, big: tuple[Component, Path, dict[str, np.ndarray]]
) -> tuple[Catalog, ModelVersion, Counting]:
    component, path, _ = big
    small, files = version(tmp_path / "files")
    manifest = small.model_copy(update={"components": (component, small.components[1])})
    files = {digest: file for digest, file in files.items() if digest != small.components[0].digest}
    store = Counting()
    published = new_catalog(store, tmp_path).publish("m", manifest, files | {component.digest: path}).version
    store.streamed = 0
    return new_catalog(store, tmp_path / "reader"), published, store


def one(catalog: Catalog, published: ModelVersion, *patterns: str, **more: str) -> dict[str, np.ndarray]:
    [chosen] = chosen_tensors(catalog, published, patterns, **more)
    return fetch(catalog, published, chosen)


@pytest.mark.parametrize(
    ("pattern", "chunks"),
    [("b/bias", {0, 5}), ("a/kernel", {0, 1, 2, 3, 4, 5}), ("[e]/*", {0}), ("f/flag", {0, 10}), ("[bf]/*", {0, 5, 10})],
)
def test_only_the_header_and_the_chunks_of_the_tensor_are_fetched(
    remote: tuple[Catalog, ModelVersion, Counting],
    big: tuple[Component, Path, dict[str, np.ndarray]],
    pattern: str,
    chunks: set[int],
) -> None:
    catalog, published, store = remote
    component, _, tensors = big
    found = one(catalog, published, pattern, component="backbone")
    assert found
    for name, value in found.items():
        assert value.dtype == tensors[name].dtype
        assert value.shape == tensors[name].shape
        assert value.tobytes() == tensors[name].tobytes()
    sizes = {index: min(CHUNK_BYTES, component.bytes - index * CHUNK_BYTES) for index in chunks}
    assert store.streamed == sum(sizes.values())
    assert store.streamed < component.bytes
    one(catalog, published, pattern, component="backbone")
    assert store.streamed == sum(sizes.values())  # what was fetched is kept


def test_every_tensor_is_what_the_library_reads(
    remote: tuple[Catalog, ModelVersion, Counting], big: tuple[Component, Path, dict[str, np.ndarray]]
) -> None:
    catalog, published, store = remote
    component, path, _ = big
    [chosen] = chosen_tensors(catalog, published, ["backbone/*"])
    assert {place.info.name: place.info for place in chosen.places} == tensor_infos(path)
    heard: list[int] = []
    found = fetch(catalog, published, chosen, on_bytes=heard.append)
    assert sum(heard) == chosen.bytes == component.bytes
    assert list(found) == sorted(found)
    for name, value in read_safetensors(path).items():
        assert found[name].tobytes() == value.tobytes(), name
    assert store.streamed == component.bytes + published.manifest.components[1].bytes  # the head is of one chunk


def test_they_become_a_file_for_each_component(
    remote: tuple[Catalog, ModelVersion, Counting], big: tuple[Component, Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    catalog, published, _ = remote
    totals: list[int] = []
    heard: list[int] = []
    pulled = pull_tensors(
        catalog,
        published,
        tmp_path / "out",
        ["d/half", "head/head/*"],
        on_total=totals.append,
        on_bytes=heard.append,
    )
    assert [each.file.path.name for each in pulled] == ["backbone.tensors.safetensors", "head.tensors.safetensors"]
    assert totals == [sum(heard)]
    values = read_safetensors(pulled[0].file.path)
    assert {name: value.tobytes() for name, value in values.items()} == {"d/half": big[2]["d/half"].tobytes()}
    assert set(read_safetensors(pulled[1].file.path)) == {"head/kernel", "head/bias"}
    assert read_metadata(pulled[0].file.path) == {
        "component": "backbone",
        "digest": published.digest,
        "version": "m@1",
    }
    again = pull_tensors(catalog, published, tmp_path / "out", ["d/half"])
    assert [(each.file.existing, each.file.digest) for each in again] == [(True, pulled[0].file.digest)]
    before = pulled[0].file.path.read_bytes()
    with pytest.raises(FileTaken, match="in the way"):
        pull_tensors(catalog, published, tmp_path / "out", ["b/bias"])
    assert pulled[0].file.path.read_bytes() == before


def test_a_name_that_is_not_there(remote: tuple[Catalog, ModelVersion, Counting], tmp_path: Path) -> None:
    catalog, published, _ = remote
    with pytest.raises(UnknownTensor, match=r"no tensor 'a/kernal': did you mean backbone/a/kernel") as caught:
        pull_tensors(catalog, published, tmp_path / "out", ["b/bias", "a/kernal"])
    assert "--tensor 'backbone/a/kernel'" in (caught.value.hint or "")
    with pytest.raises(UnknownTensor, match="it has 2, such as head/head/"):
        pull_tensors(catalog, published, tmp_path / "out", ["zzz*"], component="head")
    with pytest.raises(UnknownTensor):  # of another component
        pull_tensors(catalog, published, tmp_path / "out", ["b/bias"], component="head")
    with pytest.raises(UnknownComponent, match="no component 'tail'"):
        pull_tensors(catalog, published, tmp_path / "out", ["*"], component="tail")
    assert not (tmp_path / "out").exists()


def test_a_spoilt_chunk_is_refused_and_the_others_can_be_had(
    remote: tuple[Catalog, ModelVersion, Counting], big: tuple[Component, Path, dict[str, np.ndarray]]
) -> None:
    catalog, published, store = remote
    component, path, tensors = big
    data = bytearray(path.read_bytes())
    data[7 * CHUNK_BYTES + 3] ^= 1
    store.put(blob_key(component.digest), bytes(data))
    with pytest.raises(CorruptBlob) as caught:
        one(catalog, published, "c/kernel")
    assert caught.value.details["offset"] == str(7 * CHUNK_BYTES)
    assert one(catalog, published, "b/bias")["b/bias"].tobytes() == tensors["b/bias"].tobytes()


def test_what_was_fetched_serves_a_whole_pull(
    remote: tuple[Catalog, ModelVersion, Counting], big: tuple[Component, Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    catalog, published, store = remote
    one(catalog, published, "a/kernel")
    before = store.streamed
    pull(catalog, published, tmp_path / "out", component="backbone")
    assert (tmp_path / "out/backbone.safetensors").read_bytes() == big[1].read_bytes()
    assert store.streamed - before == big[0].bytes - 6 * CHUNK_BYTES


class TestHeader:
    """What the library refuses is refused; nothing is read outside the file."""

    def file(self, header: object, data: bytes = b"") -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    def read(self, data: bytes) -> object:
        end = 8 + header_length(data, len(data), "f")
        return parse_header(data[8:end], len(data), "f")

    def entry(self, **changed: object) -> dict[str, object]:
        return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changed}

    def test_sound(self) -> None:
        assert list(self.read(self.file({"__metadata__": {"a": "b"}} | self.entry(), bytes(8)))) == ["t"]  # type: ignore[call-overload]

    @pytest.mark.parametrize(
        "header",
        [
            b"not json",
            b"[]",
            b'{"t": 1}',
            b'{"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "t": {}}',
            b"[" * 5000,
            {"t": {"dtype": "F32", "shape": [2]}},
        ],
    )
    def test_no_header(self, header: object) -> None:
        with pytest.raises(DamagedTensors):
            self.read(self.file(header, bytes(8)))

    @pytest.mark.parametrize(
        "changed",
        [
            {"shape": [3]},
            {"shape": [-2]},
            {"shape": [2.0]},
            {"shape": [True, 2]},
            {"shape": "2"},
            {"shape": [1 << 70]},
            {"data_offsets": [0, 9]},
            {"data_offsets": [-8, 0]},
            {"data_offsets": [1 << 62, (1 << 62) + 8]},
            {"data_offsets": [8, 0]},
            {"data_offsets": [0]},
            {"data_offsets": [8, 16]},
        ],
    )
    def test_impossible_places(self, changed: dict[str, object]) -> None:
        with pytest.raises(DamagedTensors):
            self.read(self.file(self.entry(**changed), bytes(8)))

    def test_overlaps_holes_and_what_follows(self) -> None:
        two = self.entry() | {"u": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}
        for header, data in ((two, bytes(12)), (self.entry(), bytes(9)), (self.entry(), bytes(7))):
            with pytest.raises(DamagedTensors):
                self.read(self.file(header, data))

    @pytest.mark.parametrize("dtype", ["F8_E4M3", "PICKLE", 7, None])
    def test_unknown_types(self, dtype: object) -> None:
        with pytest.raises(UnstorableTensor):
            self.read(self.file(self.entry(dtype=dtype), bytes(8)))

    @pytest.mark.parametrize("data", [b"", b"\x01", bytes(8), struct.pack("<Q", 9) + b"{}", b"\xff" * 16])
    def test_no_safetensors(self, data: bytes) -> None:
        with pytest.raises(DamagedTensors, match="announce a header of"):
            self.read(data)

    def test_it_agrees_with_the_library_on_damaged_headers(self, tmp_path: Path) -> None:
        """Whatever one byte of the header becomes: never taken where the library refuses."""
        path = tmp_path / "f.safetensors"
        write_safetensors(path, {"a": np.arange(6, dtype=np.float32), "b": np.arange(3, dtype=np.int16)}, {"k": "v"})
        good, taken = path.read_bytes(), 0
        end = 8 + header_length(good, len(good), "f")
        random_ = random.Random(1)
        for _ in range(2000):
            data = bytearray(good)
            data[random_.randrange(end)] = random_.randrange(256)
            path.write_bytes(data)
            try:
                ours = self.read(bytes(data))
            except (DamagedTensors, UnstorableTensor):
                continue
            taken += 1
            assert {name: place.info for name, place in ours.items()} == tensor_infos(path)  # type: ignore[attr-defined]
        assert taken > 20
