"""safetensors files: what goes in comes out, equal contents have equal bytes, and damage is named."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zoo.atomic_file import FileMissing, NoSpace, replaced_file
from zoo.tensors import (
    DamagedTensors,
    TensorInfo,
    UnknownTensor,
    UnstorableTensor,
    read_metadata,
    read_safetensors,
    tensor_infos,
    write_safetensors,
)

DTYPES = ["<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "<u8", "<u4", "<u2", "u1", "?"]


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        hnp.arrays(st.sampled_from(DTYPES).map(np.dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)),
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]) -> None:
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    write_safetensors(path, tensors)
    read = read_safetensors(path)
    assert list(read) == sorted(tensors)
    for name, value in tensors.items():
        assert (read[name].dtype, read[name].shape) == (value.dtype, value.shape)
        assert read[name].tobytes() == value.tobytes()
    assert tensor_infos(path) == {
        name: TensorInfo(name=name, dtype=value.dtype.name, shape=value.shape, bytes=value.nbytes)
        for name, value in sorted(tensors.items())
    }


def test_bfloat16(tmp_path: Path) -> None:
    value = np.array([[1.5, -2, 0]], ml_dtypes.bfloat16)
    write_safetensors(tmp_path / "x", {"a": value})
    code = """
import pathlib, sys
from zoo.tensors import read_safetensors
value = read_safetensors(pathlib.Path(sys.argv[1]))["a"]
print(value.dtype, value.astype("float32").tolist())
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, check=True)
    assert done.stdout == "bfloat16 [[1.5, -2.0, 0.0]]\n"  # in a process that never imported ml_dtypes itself
    assert tensor_infos(tmp_path / "x")["a"] == TensorInfo(name="a", dtype="bfloat16", shape=(1, 3), bytes=6)


def test_float8_is_refused_by_name(tmp_path: Path) -> None:
    value = np.array([1, 2], ml_dtypes.float8_e5m2)
    with pytest.raises(UnstorableTensor, match="'a': dtype float8_e5m2"):
        write_safetensors(tmp_path / "x", {"a": value})
    write_safetensors(tmp_path / "x", {"a": value.view(np.int8)})
    data = (tmp_path / "x").read_bytes().replace(b'"I8"', b'"F8_E5M2"')
    header = data[8:-2].rstrip(b" ")
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + data[-2:])
    for read in (read_safetensors, tensor_infos):
        with pytest.raises(UnstorableTensor, match="'a' has dtype F8_E5M2; known are F64"):
            read(tmp_path / "x")


def test_views_and_foreign_byte_orders(tmp_path: Path) -> None:
    value = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    views = {"turned": value.transpose(2, 0, 1), "every other": value[:, ::2], "big": value.astype(">f4")}
    write_safetensors(tmp_path / "x", views)
    for name, read in read_safetensors(tmp_path / "x").items():
        np.testing.assert_array_equal(read, views[name])


def test_the_library_of_the_format_reads_it(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    tensors = {"b": np.ones((2, 3), np.float32), "a": np.array([True]), "c": np.float64(2)}
    write_safetensors(tmp_path / "x", tensors, {"by": "us"})
    for name, value in load_file(tmp_path / "x").items():
        np.testing.assert_array_equal(value, tensors[name])


def test_equal_contents_have_equal_bytes(tmp_path: Path) -> None:
    values = {name: np.full(3, index, np.float32) for index, name in enumerate("abcdef")}
    texts = {key: key * 2 for key in "uvwxyz"}
    write_safetensors(tmp_path / "1", values, texts)
    write_safetensors(tmp_path / "2", dict(reversed(values.items())), dict(reversed(texts.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert read_metadata(tmp_path / "1") == texts
    code = """
import sys, numpy as np, pathlib
from zoo.tensors import write_safetensors
values = {name: np.full(3, index, np.float32) for index, name in enumerate("abcdef")}
write_safetensors(pathlib.Path(sys.argv[1]), values, {key: key * 2 for key in "uvwxyz"})
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "3")], check=True)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


def test_bytes_are_frozen(tmp_path: Path) -> None:
    """Digests of components rest on this form."""
    write_safetensors(tmp_path / "x", {"b": np.array([1, 2], np.int8), "a": np.array([1], np.float16)}, {"k": "v"})
    header = b'{"__metadata__":{"k":"v"},"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},'
    header += b'"b":{"dtype":"I8","shape":[2],"data_offsets":[2,4]}}'
    header += b" " * (-len(header) % 8)
    assert (tmp_path / "x").read_bytes() == len(header).to_bytes(8, "little") + header + b"\x00\x3c\x01\x02"


def test_only_the_asked_names(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", {name: np.zeros(2, np.float32) for name in "abc"})
    assert list(read_safetensors(tmp_path / "x", ["c", "a"])) == ["a", "c"]
    assert read_safetensors(tmp_path / "x", []) == {}
    with pytest.raises(UnknownTensor, match="has no tensor d"):
        read_safetensors(tmp_path / "x", ["a", "d"])


@pytest.mark.parametrize(
    "value", [np.array(["text"]), np.array([1j]), np.array([None]), np.array(["2026-01-01"], "M8[D]")]
)
def test_what_cannot_be_stored(tmp_path: Path, value: np.ndarray) -> None:
    with pytest.raises(UnstorableTensor, match="'odd'"):
        write_safetensors(tmp_path / "x", {"odd": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "__metadata__"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnstorableTensor, match="cannot be called"):
        write_safetensors(tmp_path / "x", {name: np.zeros(1, np.float32)})


class TestDamage:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        write_safetensors(tmp_path / "w.safetensors", {"a": np.ones((10, 10), np.float32)})
        return tmp_path / "w.safetensors"

    @pytest.mark.parametrize("keep", [0, 1, 7, 8, 20, 100, -1])
    def test_cut_short(self, path: Path, keep: int) -> None:
        path.write_bytes(path.read_bytes()[:keep])
        for read in (read_safetensors, tensor_infos, read_metadata):
            with pytest.raises(DamagedTensors, match=r"w\.safetensors"):
                read(path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda data: data + b"more",
            lambda data: b"\xff" * 8 + data[8:],
            lambda data: data.replace(b"F32", b"F99"),
            lambda data: data.replace(b"[0,400]", b"[0,404]"),
            lambda data: data.replace(b"[10,10]", b"[10,11]"),
            lambda data: b"PK\x03\x04" + data,
            lambda data: b"\x80\x02}q\x00." * 100,
        ],
    )
    def test_other_bytes(self, path: Path, change: object) -> None:
        path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
        with pytest.raises(DamagedTensors, match=r"w\.safetensors"):
            read_safetensors(path)

    def test_not_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileMissing, match="no such file"):
            read_safetensors(tmp_path / "nothing")
        for path in (tmp_path, Path("/dev/null")):
            with pytest.raises(DamagedTensors, match="not a regular file"):
                tensor_infos(path)


class TestAtomicity:
    @pytest.mark.parametrize(
        ("failure", "raised"), [(OSError(errno.ENOSPC, "full"), NoSpace), (KeyboardInterrupt(), KeyboardInterrupt)]
    )
    def test_a_failed_write_keeps_the_old_file(
        self, tmp_path: Path, failure: BaseException, raised: type[BaseException]
    ) -> None:
        path = tmp_path / "x"
        path.write_bytes(b"old")

        def write() -> None:
            with replaced_file(path) as file:
                file.write(b"new")
                raise failure

        with pytest.raises(raised):
            write()
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_missing_folders_are_made(self, tmp_path: Path) -> None:
        write_safetensors(tmp_path / "a/b/x", {"t": np.zeros(1, np.float32)})
        assert read_safetensors(tmp_path / "a/b/x")["t"].shape == (1,)
