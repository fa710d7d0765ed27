"""The feature cache: what a frozen backbone makes of an image is computed once, for every job there will ever be.

Takes a Backbone, an ExampleSource and indices. Gives a FeatureArray. Next: `finetune.data.queue`.

A vector's key: backbone digest, InputSpec and preprocessing version, dtype, batch size, view; then the sha256 of the
image's encoded bytes. The batch size belongs to it because the last bits of a vector depend on it; so every pass has
the same size, the last one filled up with zeros. Images are read and decoded by threads ahead of the passes.

Any number of processes may fill a set at once: each computes what no other has claimed. In float16 a set takes half the
space and keeps 11 bits of each value, which are widened when they are fed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.data.feature_fill import FeatureBackbone, FeatureFill
from finetune.data.feature_room import feature_limit, hold, in_use, last_use, make_room
from finetune.data.feature_shards import ShardFolder, num_records
from finetune.data.feature_store import FeatureStore
from finetune.data.preprocess import PREPROCESS_VERSION
from finetune.data.source import BadRecord, ExampleSource
from zoo.atomic_file import storage_error
from zoo.cache import default_cache_root
from zoo.errors import Aborted, InvalidArgument

_LOG = logging.getLogger(__name__)
BATCH_SIZE = 32
FeatureDtype = Literal["float32", "float16"]
_MAPPED_FROM = 1 << 28  # bytes: larger arrays lie in a file without a name, whose pages the system may drop


class CacheCleared(Aborted):
    """Vectors vanished while they were being gathered."""


@dataclass(frozen=True, kw_only=True)
class FeatureArray:
    """`features` float32 or float16 [N, V, D]: row r is example `indices[r]`, view 0 the image itself. Large ones are
    memory-mapped.

    The rows of the images in `bad` (they could not be decoded) are zeros, and `rows_of` refuses them.
    """

    features: np.ndarray
    indices: tuple[int, ...]
    valid: np.ndarray  # bool [N]
    bad: list[BadRecord]
    computed: int  # vectors that were not in the cache
    fetched: int = 0  # vectors that came from the store, where another machine had computed them

    def rows_of(self, indices: Sequence[int]) -> np.ndarray:
        """int64: the rows of these examples. Raises InvalidArgument for one that is not here or was bad."""
        row_of = {index: row for row, index in enumerate(self.indices) if self.valid[row]}
        absent = [index for index in indices if index not in row_of]
        if absent:
            raise InvalidArgument(f"{len(absent)} examples have no features, the first is number {absent[0]}")
        return np.fromiter((row_of[index] for index in indices), np.int64, len(indices))


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One set of vectors in the cache. `in_use`: by a process that lives."""

    backbone: str
    view: int
    dtype: str
    vectors: int
    bytes: int
    last_use: datetime
    in_use: bool
    key: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            "view": self.view,
            "dtype": self.dtype,
            "vectors": self.vectors,
            "bytes": self.bytes,
            "last_use": self.last_use.isoformat(timespec="seconds"),
            "in_use": self.in_use,
            "key": self.key,
        }


class FeatureCache:
    """The cache below `root`, by default `features` in MODELZOO_CACHE or the user's cache folder.

    Safe to use from several processes at once.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        shared: FeatureStore | None = None,
        dtype: FeatureDtype = "float32",
        limit: int | None = None,
    ) -> None:
        """
        Args:
            shared: where other machines' vectors are looked for, and ours are sent to.
            dtype: of the vectors on disk and in a FeatureArray; sets of either are kept apart.
            limit: bytes, 0 for no cap; None: `feature_limit()`. What running processes use stays also above it.
        """
        self.root = default_cache_root() / "features" if root is None else root
        self._shared = shared
        self._dtype = dtype
        self._limit = feature_limit() if limit is None else limit

    def open_or_fill(
        self,
        *,
        backbone: FeatureBackbone,
        source: ExampleSource,
        indices: Sequence[int],
        views: int = 1,
        max_pixels: int,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        stop: Callable[[], bool] = lambda: False,
        batch_size: int = BATCH_SIZE,
    ) -> FeatureArray:
        """Features of `source.examples[i]` for i in `indices`, computing only what the cache does not have.

        View 1 is the mirror image, views from 2 on are random crops that depend on the image alone
        (finetune.data.preprocess.load_views). `on_progress(images done, of how many)` is called some times a second;
        where it raises, or `stop` says so, what is computed by then is kept. `backbone.feature_vector` is only called
        when something is missing.

        Raises FillStopped; NoSpace, NoAccess (the cache cannot be written); UnusableFeatures; CacheCleared.
        """
        folders = [self._folder(backbone, view, batch_size) for view in range(views)]
        shared = self._shared
        for folder in folders:
            hold(folder.path)
            folder.reload_if_changed()  # somebody may have removed it before we held it
        fill = FeatureFill(
            backbone, source, folders, max_pixels=max_pixels, batch_size=batch_size, dtype=self._dtype, shared=shared,
            make_room=self._make_room,
        )  # fmt: skip
        fill.run(indices, on_progress, stop)
        features_NVD = self._array((len(indices), views, backbone.feature_dim))
        for view, folder in enumerate(folders):
            folder.reload()
            missing = folder.gather(fill.digests, features_NVD[:, view])
            if missing:
                raise CacheCleared(
                    f"{len(missing)} of {len(indices)} feature vectors vanished from {folder.path} while they were "
                    "read; was the cache cleared?",
                    hint="run the same again",
                )
        return FeatureArray(
            features=features_NVD,
            indices=tuple(indices),
            valid=np.array([digest is not None for digest in fill.digests], bool),
            bad=fill.bad,
            computed=fill.computed,
            fetched=sum(folder.count_in(fill.digests, shared.fetched) for folder in folders) if shared else 0,
        )

    def list(self) -> list[CacheEntry]:
        """What is cached, by backbone, dtype and view."""
        entries = []
        for key_file in sorted(self.root.glob("*/key.json")):
            with suppress(FileNotFoundError):  # removed while we look
                entries.append(_entry(key_file))
        return sorted(entries, key=lambda entry: (entry.backbone, entry.dtype, entry.view))

    def clear(self) -> int:
        """Deletes every cached vector; returns the bytes freed. Running jobs keep what they have opened."""
        freed = sum(entry.bytes for entry in self.list())
        for path in list(self.root.glob("[!.]*")):  # the locks stay: somebody may hold one
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except FileNotFoundError:
                continue  # somebody else clears, too
            except OSError as error:
                raise storage_error(error, "clear", path) from error
        return freed

    def _make_room(self) -> None:
        try:
            make_room(self.root, self._limit)
        except OSError as error:  # somebody else's sets, or a disk that is only read: no reason not to train
            _LOG.warning("%s", storage_error(error, "make room in", self.root))

    def _array(self, shape: tuple[int, ...]) -> np.ndarray:
        """Zeros; in memory where the disk is full, or may not be written. (Room is made for the whole file first: else
        a disk that fills up would kill the process when it writes to a page.)"""
        size = int(np.prod(shape)) * np.dtype(self._dtype).itemsize
        if size < _MAPPED_FROM:
            return np.zeros(shape, self._dtype)
        try:
            with tempfile.TemporaryFile(dir=self.root) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, np.dtype(self._dtype), "r+", shape=shape)
        except OSError as error:
            _LOG.warning("%d bytes of features are kept in memory: %s", size, storage_error(error, "use", self.root))
            return np.zeros(shape, self._dtype)

    def _folder(self, backbone: FeatureBackbone, view: int, batch_size: int) -> ShardFolder:
        key = {
            "backbone": backbone.digest,
            "input_spec": backbone.input_spec.model_dump(mode="json"),
            "preprocess": PREPROCESS_VERSION,
            "dtype": self._dtype,
            "batch_size": batch_size,
            "view": view,
            "feature_dim": backbone.feature_dim,
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return ShardFolder(self.root / name, dim=backbone.feature_dim, key=key, dtype=self._dtype)


def _entry(key_file: Path) -> CacheEntry:
    key, folder = json.loads(key_file.read_bytes()), key_file.parent
    shards = list(folder.glob("*.npy"))
    return CacheEntry(
        backbone=key["backbone"],
        view=key["view"],
        dtype=key["dtype"],
        vectors=sum(num_records(file) for file in shards),
        bytes=sum(file.stat().st_size for file in shards),
        last_use=datetime.fromtimestamp(last_use(folder), UTC),
        in_use=in_use(folder),
        key=key,
    )
