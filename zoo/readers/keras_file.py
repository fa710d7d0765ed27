"""Reads whatever Keras saves: legacy `.h5`, Keras 3's `.weights.h5`, `.keras`. The content tells which, not the name.

Takes a file, or the folder of an unpacked `.keras`. Gives a ForeignCheckpoint with the names `<layer>/<weight>`, as in
`conv2d_3/kernel`. Next: `zoo.readers.keras_process`, which is how `zoo.importer` gets here.

A model's configuration, where there is one, is read as data and never deserialised: it tells layers' names and what the
head is. One that holds code is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.readers import keras_legacy, keras_v3
from zoo.readers.checkpoint import (
    DamagedCheckpoint,
    DenseLayer,
    ForeignCheckpoint,
    NotACheckpoint,
    existing_file,
)
from zoo.readers.keras_archive import CONFIG, WEIGHTS, Parts, opened_archive, opened_folder
from zoo.readers.keras_h5 import opened_h5
from zoo.readers.keras_topology import model_layers, refuse_code, topology_facts
from zoo.readers.keras_v3 import NamedValues

PREDICTIONS = "predictions"  # what Keras Applications name their classifier, a dense layer with softmax


def read(source: Path) -> ForeignCheckpoint:
    """Reads every weight.

    Raises:
        MissingCheckpointFile;
        NotACheckpoint: another format, quantised weights, or layers that the file doesn't tell apart;
        DamagedCheckpoint: cut short, or parts that contradict each other;
        UnsafeCheckpoint: code in the configuration (a Lambda layer), links, names that lead out of the archive, claims
            of more memory than the file backs.
    """
    if source.is_dir() and (source / CONFIG).is_file():
        parts = opened_folder(source)
        return _read_v3((source / CONFIG, parts.weights), parts, str(parts.weights))
    path = existing_file(source, what="a Keras file", suffixes=(".keras", ".h5", ".hdf5"))
    with path.open("rb") as file:
        begins = file.read(8)
    if not begins:
        raise DamagedCheckpoint(f"{path} is empty (0 bytes)")
    if begins.startswith(b"PK"):
        with opened_archive(path) as parts:
            return _read_v3((path,), parts, f"{path}: {WEIGHTS}")
    if begins.startswith(b"{"):
        raise NotACheckpoint(
            f"{path} is JSON: a configuration alone, or the index of sharded weights, which are not read",
            hint="save the weights in one piece: model.save_weights('model.weights.h5')",
        )
    return _read_h5(path)


def _read_v3(files: tuple[Path, ...], parts: Parts, label: str) -> ForeignCheckpoint:
    refuse_code(parts.config, str(files[0]))
    with opened_h5(parts.weights, label) as h5:
        found = keras_v3.read_values(h5, model_layers(parts.config))
    found.aside |= dict.fromkeys(parts.others, "a layer's file beside the weights, such as a vocabulary")
    return _checkpoint(files, found, parts.config)


def _read_h5(path: Path) -> ForeignCheckpoint:
    config = None
    with opened_h5(path, str(path)) as h5:
        if keras_legacy.is_legacy(h5):
            config = keras_legacy.configuration(h5)
            refuse_code(config, str(path))
            found = keras_legacy.read_values(h5, config)
        elif any(name in h5.root for name in keras_v3.ROOTS):
            found = keras_v3.read_values(h5, ())
        else:
            raise NotACheckpoint(
                f"{path} holds no weights of Keras: neither the attribute layer_names nor a group "
                f"{keras_v3.ROOTS[0]!r}; its groups are {', '.join(h5.root) or 'none'}"
            )
    return _checkpoint((path,), found, config)


def _checkpoint(files: tuple[Path, ...], found: NamedValues, config: Any) -> ForeignCheckpoint:
    import numpy as np

    if not found.values:
        raise NotACheckpoint(f"{files[0]} holds no weights")
    dense, epsilons = topology_facts(config)
    if config is None and f"{PREDICTIONS}/kernel" in found.values:
        dense = (DenseLayer(name=PREDICTIONS, activation="softmax"),)
    widened = {
        name: value.type
        for name, value in found.values.items()
        if value.array.dtype.kind == "f" and value.type != "float32"
    }
    return ForeignCheckpoint(
        files=files,
        tensors={
            name: value.array.astype(np.float32, copy=False) if name in widened else value.array
            for name, value in found.values.items()
        },
        frameworks=("keras",),
        widened=widened,
        dense=dense,
        batch_norm_epsilons=epsilons,
        aside=found.aside,
        notes=found.notes,
    )
