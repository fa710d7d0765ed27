"""Reads Keras' legacy HDF5 weights (`.h5`), the files of Keras Applications among them.

Takes an `.h5` file. Gives a ForeignCheckpoint. Next: `zoo.importer`.

Layout: a group a layer; the root's (or `model_weights`') attribute `layer_names` lists them, each group's
`weight_names` its datasets, such as `conv2d_1/kernel:0`. Nothing else of the file is looked at: a model's
configuration, where there is one, is never deserialised. HDF5 lets a file point at other files; that is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from zoo.readers.checkpoint import (
    DamagedCheckpoint,
    DenseLayer,
    ForeignCheckpoint,
    NotACheckpoint,
    UnsafeCheckpoint,
    existing_file,
    widen,
)

PREDICTIONS = "predictions"  # what Keras Applications name their classifier, a dense layer with softmax


def read(source: Path) -> ForeignCheckpoint:
    """Raises MissingCheckpointFile, NotACheckpoint, DamagedCheckpoint, UnsafeCheckpoint."""
    import h5py

    path = existing_file(source, what="a Keras .h5 weights file", suffixes=(".h5", ".hdf5"))
    if not h5py.is_hdf5(path):
        raise NotACheckpoint(f"{path} is not an HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            stored = _weights(path, file)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # what h5py raises of damaged files
        raise DamagedCheckpoint(f"{path} cannot be read as HDF5: {error}") from None
    tensors, widened = widen(stored)
    dense = (DenseLayer(name=PREDICTIONS, activation="softmax"),) if f"{PREDICTIONS}/kernel" in tensors else ()
    return ForeignCheckpoint(files=(path,), tensors=tensors, frameworks=("keras",), widened=widened, dense=dense)


def _weights(path: Path, file: Any) -> dict[str, np.ndarray]:
    root = file if _names(file, "layer_names") or "model_weights" not in file else _group(path, file, "model_weights")
    if not _names(root, "layer_names"):
        raise NotACheckpoint(
            f"{path} holds no legacy Keras weights: no attribute layer_names; "
            f"its groups are {', '.join(file) or 'none'}"
        )
    tensors: dict[str, np.ndarray] = {}
    for layer in _names(root, "layer_names"):
        group = _group(path, root, layer)
        for name in _names(group, "weight_names"):
            canonical = _canonical(layer, name)
            if canonical in tensors:
                raise DamagedCheckpoint(f"{path}: two weights are named {canonical!r}")
            tensors[canonical] = _dataset(path, group, name)
    return tensors


def _names(group: Any, attribute: str) -> list[str]:
    """An attribute that lists names; Keras cuts lists above HDF5's 64 kB into `<attribute>0`, `<attribute>1`, …"""
    keys = [attribute] if attribute in group.attrs else []
    if not keys:
        keys = [f"{attribute}{n}" for n in range(len(group.attrs)) if f"{attribute}{n}" in group.attrs]
    values = [name for key in keys for name in np.ravel(group.attrs[key])]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in values]


def _canonical(layer: str, name: str) -> str:
    """`layer/kernel`, whether the file says `layer/kernel:0`, `scope/layer/kernel:0` or `kernel`."""
    return f"{layer}/{name.removesuffix(':0').rsplit('/', 1)[-1]}"


def _group(path: Path, parent: Any, name: str) -> Any:
    import h5py

    _refuse_links(path, parent, name)
    group = parent.get(name)
    if not isinstance(group, h5py.Group):
        raise DamagedCheckpoint(f"{path}: layer {name!r} is listed and not there")
    return group


def _dataset(path: Path, group: Any, name: str) -> np.ndarray:
    import h5py

    _refuse_links(path, group, name)
    dataset = group.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise DamagedCheckpoint(f"{path}: weight {name!r} is listed and not there")
    if dataset.external or dataset.is_virtual:
        raise UnsafeCheckpoint(f"{path}: the bytes of weight {name!r} lie in another file")
    if dataset.dtype.kind not in "fiub":
        raise NotACheckpoint(f"{path}: weight {name!r} has the type {dataset.dtype}, expected numbers")
    stored = dataset.nbytes if dataset.chunks is None else dataset.id.get_storage_size()
    if dataset.nbytes > max(1 << 20, 1000 * max(stored, 1)):  # never more than compression could give
        raise UnsafeCheckpoint(f"{path}: weight {name!r} claims {dataset.nbytes} bytes of {stored} stored ones")
    value = np.asarray(dataset[()])
    return value.astype(value.dtype.newbyteorder("="))  # HDF5 keeps either byte order


def _refuse_links(path: Path, parent: Any, name: str) -> None:
    """Raises UnsafeCheckpoint when a step on the way to `name` isn't a plain link."""
    import h5py

    at = parent
    for step in name.split("/"):
        link = at.get(step, getlink=True) if isinstance(at, h5py.Group) and step in at else None
        if link is not None and not isinstance(link, h5py.HardLink):
            raise UnsafeCheckpoint(f"{path}: {name!r} is a link to elsewhere, not a weight")
        at = at.get(step) if isinstance(at, h5py.Group) else None
        if at is None:
            return
