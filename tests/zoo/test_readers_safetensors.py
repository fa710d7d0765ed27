from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from zoo.errors import DataLoss, NotFound
from zoo.readers import READERS, UnknownKind, read_checkpoint
from zoo.readers.checkpoint import MissingCheckpointFile
from zoo.tensors import write_safetensors


def test_half_precisions_are_widened_exactly(tmp_path: Path) -> None:
    exact = np.array([1.5, -2.0, 0.0078125], np.float32)
    path = tmp_path / "a.safetensors"
    write_safetensors(
        path,
        {
            "half": exact.astype(np.float16),
            "brain": exact.astype(ml_dtypes.bfloat16),
            "plain": exact,
            "count": np.array([3], np.int64),
        },
    )
    found = read_checkpoint("safetensors", path)
    for name in ("half", "brain", "plain"):
        np.testing.assert_array_equal(found.tensors[name], exact, strict=True)
    assert found.tensors["count"].dtype == np.int64
    assert found.widened == {"half": "float16", "brain": "bfloat16"}


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.zeros(100, np.float32)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataLoss, match=r"a\.safetensors"):
        read_checkpoint("safetensors", path)


def test_a_folder_is_not_guessed_at(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(1, np.float32)})
    with pytest.raises(MissingCheckpointFile) as caught:
        read_checkpoint("safetensors", tmp_path)
    assert isinstance(caught.value, NotFound)
    assert "a.safetensors" in str(caught.value.hint)


def test_an_unknown_kind_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownKind, match=", ".join(sorted(READERS))):
        read_checkpoint("pickle", tmp_path)
