from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.zoo.torch_files import Storage, Tensor, tensors, write_legacy, write_zip
from zoo.readers.checkpoint import (
    DamagedCheckpoint,
    MissingCheckpointFile,
    NotACheckpoint,
    ReadOptions,
    UnsafeCheckpoint,
)
from zoo.readers.torch_pickle import read

Write = Callable[..., Path]
LAYOUTS = pytest.mark.parametrize("write", [write_legacy, write_zip])


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "a.weight": rng.standard_normal((4, 3, 2, 2)).astype(np.float32),
        "a.bias": rng.standard_normal(4).astype(np.float32),
        "n": np.array(7, np.int64),
        "empty": np.zeros((0, 5), np.float32),
    }


@LAYOUTS
def test_reads_every_tensor(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", tensors(values()))
    found = read(path)
    assert found.files == (path,)
    assert list(found.tensors) == list(values())
    for name, value in values().items():
        np.testing.assert_array_equal(found.tensors[name], value, strict=True)
    assert not found.notes


@LAYOUTS
def test_windows_on_a_shared_storage(write: Write, tmp_path: Path) -> None:
    storage = Storage("0", np.arange(12, dtype=np.float32))
    state = {
        "transposed": Tensor(storage, (3, 4), stride=(1, 3)),
        "tail": Tensor(storage, (2,), offset=10),
        "every_other": Tensor(storage, (6,), stride=(2,)),
    }
    found = read(write(tmp_path / "a.pth", state)).tensors
    np.testing.assert_array_equal(found["transposed"], np.arange(12).reshape(4, 3).T)
    np.testing.assert_array_equal(found["tail"], [10, 11])
    np.testing.assert_array_equal(found["every_other"], [0, 2, 4, 6, 8, 10])


@LAYOUTS
def test_half_precision_is_widened_and_said_so(write: Write, tmp_path: Path) -> None:
    exact = np.array([1.5, -2.0, 0.0078125], np.float32)
    bits = (exact.view(np.uint32) >> 16).astype(np.uint16)
    state = {
        "half": Tensor(Storage("0", exact.astype(np.float16)), (3,)),
        "brain": Tensor(Storage("1", bits, kind="BFloat16Storage"), (3,)),
        "double": Tensor(Storage("2", exact.astype(np.float64)), (3,)),
    }
    found = read(write(tmp_path / "a.pth", state))
    for name in state:
        np.testing.assert_array_equal(found.tensors[name], exact, strict=True)
    assert found.widened == {"half": "float16", "brain": "bfloat16", "double": "float64"}


@LAYOUTS
def test_nested_state_dict_and_data_parallel(write: Write, tmp_path: Path) -> None:
    inner = OrderedDict((f"module.{name}", tensor) for name, tensor in tensors(values()).items())
    found = read(write(tmp_path / "a.pth", {"epoch": 3, "state_dict": inner, "arch": "x"}))
    assert list(found.tensors) == list(values())
    assert any("arch, epoch" in note for note in found.notes)
    assert any("module." in note for note in found.notes)


@LAYOUTS
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_weights_under_a_training_scripts_key(write: Write, key: str, tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.pth", {"epoch": 3, key: tensors(values())}))
    assert list(found.tensors) == list(values())
    assert found.notes == (f"read {key} only; the checkpoint also holds epoch",)
    assert found.recipe == {}


@LAYOUTS
def test_moving_averages_come_first_unless_the_raw_weights_are_asked_for(write: Write, tmp_path: Path) -> None:
    raw, averaged = {"a": np.zeros(2, np.float32)}, {"a": np.ones(2, np.float32)}
    both = [Tensor(Storage(str(place), each["a"]), (2,)) for place, each in enumerate((raw, averaged))]
    path = write(tmp_path / "a.pth", {"state_dict": {"a": both[0]}, "state_dict_ema": {"a": both[1]}})
    found = read(path)
    np.testing.assert_array_equal(found.tensors["a"], averaged["a"])
    assert found.recipe == {"ema": True}
    assert found.notes == ("read state_dict_ema only; the checkpoint also holds state_dict",)
    found = read(path, ReadOptions(raw_weights=True))
    np.testing.assert_array_equal(found.tensors["a"], raw["a"])
    assert found.recipe == {}
    only = write(tmp_path / "b.pth", {"state_dict_ema": {"a": both[1]}})
    with pytest.raises(NotACheckpoint, match="state_dict_ema"):
        read(only, ReadOptions(raw_weights=True))


class Shell:
    """Unpickled by the ordinary reader, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@LAYOUTS
@pytest.mark.parametrize("place", ["in", "beside"])
def test_code_in_a_pickle_is_named_and_never_run(write: Write, place: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    state: dict[str, Any] = {**tensors(values())}
    obj: dict[str, Any] = (
        {"state_dict": state, "extra": Shell(trap)} if place == "beside" else {"x": Shell(trap), **state}
    )
    path = write(tmp_path / "a.pth", obj)
    with pytest.raises(UnsafeCheckpoint, match=r"(posix|nt)\.system") as caught:
        read(path)
    assert str(path) in caught.value.message
    assert not trap.exists()


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (b"cbuiltins\neval\n(Vprint(1)\ntR.", "builtins.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),  # STACK_GLOBAL: only seen when it runs
        (b"(iposix\nsystem\n.", "posix.system"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02ccollections\nOrderedDict.__init__\n.", "collections.OrderedDict.__init__"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02)\x81.", "NEWOBJ"),
    ],
)
def test_opcodes_and_names_beyond_tensors_are_refused(code: bytes, named: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpoint, match=named):
        read(write_zip(tmp_path / "a.pth", {}, raw=code))


def test_an_attribute_set_on_the_state_dict_changes_nothing(tmp_path: Path) -> None:
    state = tensors({"a": np.ones(2, np.float32)})
    state.get = "not a method"  # type: ignore[assignment,method-assign]
    np.testing.assert_array_equal(read(write_zip(tmp_path / "a.pth", state)).tensors["a"], [1, 1])


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # LONG_BINPUT: a memo of two thousand million places
        b"\x80\x02\x8b\x20\x00\x00\x00" + b"\xff" * 31 + b"\x7f.",  # LONG4: an integer of 32 bytes
    ],
)
def test_pickle_bombs_are_refused(bomb: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpoint):
        read(write_zip(tmp_path / "a.pth", {}, raw=bomb))


def test_a_string_longer_than_the_file_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpoint):
        read(write_zip(tmp_path / "a.pth", {}, raw=b"\x80\x02X\xff\xff\xff\x7fabc."))


@LAYOUTS
def test_a_tensor_larger_than_its_storage_is_refused(write: Write, tmp_path: Path) -> None:
    storage = Storage("0", np.zeros(4, np.float32))
    with pytest.raises(UnsafeCheckpoint, match="'big' claims 1000000000000 values"):
        read(write(tmp_path / "a.pth", {"big": Tensor(storage, (10**6, 10**6), stride=(0, 0))}))


@LAYOUTS
def test_many_tensors_on_one_storage_are_refused(write: Write, tmp_path: Path) -> None:
    storage = Storage("0", np.zeros(100_000, np.float32))
    with pytest.raises(UnsafeCheckpoint, match="tensors claim"):
        read(write(tmp_path / "a.pth", {f"t{n}": Tensor(storage, (100_000,)) for n in range(20)}))


@LAYOUTS
@pytest.mark.parametrize(("shape", "stride", "offset"), [((2, 2), (1, 3), 0), ((4,), (1,), 1), ((2,), (4,), 0)])
def test_windows_beyond_the_storage_are_refused(
    write: Write, shape: tuple[int, ...], stride: tuple[int, ...], offset: int, tmp_path: Path
) -> None:
    tensor = Tensor(Storage("0", np.zeros(4, np.float32)), shape, stride=stride, offset=offset)
    with pytest.raises(DamagedCheckpoint, match="reaches to value"):
        read(write(tmp_path / "a.pth", {"a": tensor}))


@LAYOUTS
def test_negative_sides_are_refused(write: Write, tmp_path: Path) -> None:
    tensor = Tensor(Storage("0", np.zeros(4, np.float32)), (4,), stride=(-1,), offset=3)
    with pytest.raises(DamagedCheckpoint, match="stride"):
        read(write(tmp_path / "a.pth", {"a": tensor}))


@LAYOUTS
def test_a_storage_that_claims_more_than_the_file_has(write: Write, tmp_path: Path) -> None:
    storage = Storage("0", np.zeros(4, np.float32), claims=10**12)
    with pytest.raises((DamagedCheckpoint, UnsafeCheckpoint), match=r"cut short|claim"):
        read(write(tmp_path / "a.pth", {"a": Tensor(storage, (10**12,))}))


@LAYOUTS
def test_every_truncation_is_an_error(write: Write, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.pth", tensors(values())).read_bytes()
    for size in (*range(40), *range(40, len(whole), 37), len(whole) - 1):
        path = tmp_path / "cut.pth"
        path.write_bytes(whole[:size])
        with pytest.raises((DamagedCheckpoint, NotACheckpoint), match=r"cut\.pth"):
            read(path)


@LAYOUTS
def test_any_change_of_bytes_is_harmless_or_an_error_of_ours(write: Write, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.pth", tensors(values())).read_bytes()
    rng = np.random.default_rng(11)
    path = tmp_path / "changed.pth"
    messages = []
    for _ in range(400):
        changed = bytearray(whole)
        place = int(rng.integers(len(changed)))
        changed[place : place + int(rng.integers(0, 3))] = rng.bytes(int(rng.integers(1, 4)))
        path.write_bytes(changed)
        try:
            read(path)
        except (DamagedCheckpoint, NotACheckpoint, UnsafeCheckpoint) as error:
            messages.append(error.message)
    assert len(messages) > 200
    assert all("changed.pth" in message for message in messages)


def test_any_change_of_the_pickle_is_harmless_or_an_error_of_ours(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_zip(tmp_path / "whole.pth", tensors(values()))) as archive:
        whole = archive.read("archive/data.pkl")
    rng = np.random.default_rng(12)
    for _ in range(400):
        changed = bytearray(whole)
        place = int(rng.integers(len(changed)))
        changed[place : place + int(rng.integers(0, 3))] = rng.bytes(int(rng.integers(1, 4)))
        path = write_zip(tmp_path / "changed.pth", tensors(values()), raw=bytes(changed))
        with suppress(DamagedCheckpoint, NotACheckpoint, UnsafeCheckpoint):
            read(path)


def test_bytes_after_the_last_storage_are_an_error(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "a.pth", tensors(values()))
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DamagedCheckpoint, match="4 bytes follow"):
        read(path)


def test_a_missing_storage_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match="storage '1'"):
        read(write_zip(tmp_path / "a.pth", tensors(values()), without=("data/1",)))
    with pytest.raises(DamagedCheckpoint, match="storage '1'"):
        read(write_legacy(tmp_path / "b.pth", tensors(values()), keys=["0", "2", "3"]))


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    state = tensors({"a": np.zeros(10**6, np.float32)})
    with pytest.raises(UnsafeCheckpoint, match="compressed"):
        read(write_zip(tmp_path / "a.pth", state, compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("name", ["../evil", "archive/../../evil", "/evil", "..\\evil"])
def test_archives_with_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.pth", tensors(values()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(UnsafeCheckpoint, match=r"evil' leads out of the archive"):
        read(path)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"\x89PNG\r\n\x1a\n", NotACheckpoint),
        (pickle.dumps({"a": 1}, protocol=2), NotACheckpoint),
        (b"", DamagedCheckpoint),
    ],
)
def test_other_files_are_refused(content: bytes, error: type[Exception], tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(error, match=r"a\.pth"):
        read(path)


@LAYOUTS
def test_what_is_no_state_dict_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="holds a list"):
        read(write(tmp_path / "a.pth", [1, 2]))
    with pytest.raises(NotACheckpoint, match="'epoch'"):
        read(write(tmp_path / "b.pth", {**tensors(values()), "epoch": 3}))


def test_a_folder_or_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpointFile, match="nowhere"):
        read(tmp_path / "nowhere.pth")
    (tmp_path / "inside.pth").write_bytes(b"x")
    with pytest.raises(MissingCheckpointFile) as caught:
        read(tmp_path)
    assert caught.value.hint is not None
    assert "inside.pth" in caught.value.hint
