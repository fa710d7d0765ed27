"""The feature cache: what a frozen backbone makes of an image is computed once, for every job there will ever be.

Takes a Backbone, an ExampleSource and indices. Gives a FeatureArray. Next: `finetune.data.queue`.

A vector's key: backbone digest, InputSpec and preprocessing version, dtype, batch size, view; then the sha256 of the
image's encoded bytes. The batch size belongs to it because the last bits of a vector depend on it; so every pass has
the same size, the last one filled up with zeros. Images are read and decoded by threads ahead of the passes.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune.data.feature_shards import ShardFolder, num_records
from finetune.data.feature_store import FeatureStore
from finetune.data.image_header import UnreadableImage
from finetune.data.preprocess import PREPROCESS_VERSION, load_views, normalise
from finetune.data.source import BadRecord, ExampleSource
from zoo.atomic_file import storage_error
from zoo.cache import default_cache_root
from zoo.errors import Aborted, Cancelled, FailedPrecondition, InvalidArgument
from zoo.input_spec import InputSpec

BATCH_SIZE = 32
_DTYPE = "float32"
_PROGRESS_SECONDS = 0.25
_SEND_SECONDS = 60.0  # so that a machine that is lost loses little of hours of passes


class FillStopped(Cancelled):
    """Filling was asked to stop; what had been computed is kept."""


class CacheCleared(Aborted):
    """Vectors vanished while they were being gathered."""


class UnusableFeatures(FailedPrecondition):
    """The backbone gives values that are not finite, or of another shape than it says."""


class FeatureBackbone(Protocol):
    """What the cache needs of a Backbone (finetune.models.backbone)."""

    @property
    def digest(self) -> str: ...

    @property
    def input_spec(self) -> InputSpec: ...

    @property
    def feature_dim(self) -> int: ...

    def feature_vector(self, image_BHWC: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class FeatureArray:
    """`features` float32 [N, V, D]: row r is example `indices[r]`, view 0 the image itself.

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
    """One set of vectors in the cache."""

    backbone: str
    view: int
    vectors: int
    bytes: int
    key: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"backbone": self.backbone, "view": self.view, "vectors": self.vectors, "bytes": self.bytes} | {
            "key": self.key
        }


class FeatureCache:
    """The cache below `root`, by default `features` in MODELZOO_CACHE or the user's cache folder.

    Safe to use from several processes at once.
    """

    def __init__(self, root: Path | None = None, *, shared: FeatureStore | None = None) -> None:
        """`shared`: where other machines' vectors are looked for, and ours are sent to."""
        self.root = default_cache_root() / "features" if root is None else root
        self._shared = shared

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
        fill = _Fill(backbone, source, folders, max_pixels=max_pixels, batch_size=batch_size, shared=shared)
        fill.run(indices, on_progress, stop)
        features_NVD = np.zeros((len(indices), views, backbone.feature_dim), np.float32)
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
        """What is cached, by backbone and view."""
        entries = []
        for key_file in sorted(self.root.glob("*/key.json")):
            key = json.loads(key_file.read_bytes())
            shards = list(key_file.parent.glob("*.npy"))
            entries.append(
                CacheEntry(
                    backbone=key["backbone"],
                    view=key["view"],
                    vectors=sum(num_records(file) for file in shards),
                    bytes=sum(file.stat().st_size for file in shards),
                    key=key,
                )
            )
        return sorted(entries, key=lambda entry: (entry.backbone, entry.view))

    def clear(self) -> int:
        """Deletes every cached vector; returns the bytes freed. Running jobs keep what they have opened."""
        freed = sum(entry.bytes for entry in self.list())
        try:
            shutil.rmtree(self.root)
        except FileNotFoundError:
            return freed
        except OSError as error:
            raise storage_error(error, "clear", self.root) from error
        return freed

    def _folder(self, backbone: FeatureBackbone, view: int, batch_size: int) -> ShardFolder:
        key = {
            "backbone": backbone.digest,
            "input_spec": backbone.input_spec.model_dump(mode="json"),
            "preprocess": PREPROCESS_VERSION,
            "dtype": _DTYPE,
            "batch_size": batch_size,
            "view": view,
            "feature_dim": backbone.feature_dim,
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return ShardFolder(self.root / name, dim=backbone.feature_dim, key=key)


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """One image as a thread hands it over; `pixels` has the views that the cache lacks."""

    index: int
    digest: bytes | None
    pixels: tuple[tuple[int, np.ndarray], ...] = ()
    bad: BadRecord | None = None


class _Fill:
    """One run over the images: threads decode, this thread runs the passes and writes."""

    def __init__(
        self,
        backbone: FeatureBackbone,
        source: ExampleSource,
        folders: Sequence[ShardFolder],
        *,
        max_pixels: int,
        batch_size: int,
        shared: FeatureStore | None,
    ) -> None:
        self._backbone = backbone
        self._shared = shared
        self._asked = threading.Lock()
        self._lacking_is_known = shared is None  # else the store is asked when the first vector is lacking
        self._sender = ThreadPoolExecutor(max_workers=1, thread_name_prefix="send-features")
        self._sent = time.monotonic()
        self._source = source
        self._folders = folders
        self._max_pixels = max_pixels
        self._batch_size = batch_size
        self._batch: list[tuple[int, bytes, np.ndarray]] = []
        self._seen: set[tuple[int, bytes]] = set()
        self.digests: list[bytes | None] = []
        self.bad: list[BadRecord] = []
        self.computed = 0

    def run(self, indices: Sequence[int], on_progress: Callable[[int, int], None], stop: Callable[[], bool]) -> None:
        told = 0.0
        try:
            for decoded in self._decoded(indices):
                if stop():
                    raise FillStopped(f"stopped after {len(self.digests)} of {len(indices)} images")
                self._take(decoded)
                if time.monotonic() - told > _PROGRESS_SECONDS:
                    on_progress(len(self.digests), len(indices))
                    told = time.monotonic()
            self._pass()
        finally:  # whatever ended it, Ctrl-C included
            for folder in self._folders:
                folder.write()
            if self.computed:
                self._send()
            self._sender.shutdown(wait=True)
        on_progress(len(indices), len(indices))

    def _send(self) -> None:
        """In a thread of its own: an upload delays no pass."""
        if self._shared is not None:
            self._sent = time.monotonic()
            for folder in self._folders:
                self._sender.submit(self._shared.send, folder)

    def _decoded(self, indices: Sequence[int]) -> Iterator[_Decoded]:
        """In the order of `indices`; a bounded number is ahead of the taker."""
        workers = os.cpu_count() or 1
        ahead = max(2 * workers, 3 * self._batch_size // len(self._folders))
        waiting: collections.deque[Future[_Decoded]] = collections.deque()
        left = iter(indices)
        pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode")
        try:
            waiting.extend(pool.submit(self._decode, index) for index in itertools.islice(left, ahead))
            while waiting:
                decoded = waiting.popleft().result()
                waiting.extend(pool.submit(self._decode, index) for index in itertools.islice(left, 1))
                yield decoded
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, index: int) -> _Decoded:
        try:
            data = self._source.read(index)
            digest = hashlib.sha256(data).digest()
            lacking = self._lacking(digest)
            if lacking and not self._lacking_is_known:
                self._fetch()
                lacking = self._lacking(digest)
            if not lacking:
                return _Decoded(index=index, digest=digest)
            pixels = load_views(data, self._backbone.input_spec, views=lacking, max_pixels=self._max_pixels)
            return _Decoded(index=index, digest=digest, pixels=tuple(zip(lacking, pixels, strict=True)))
        except UnreadableImage as error:
            return _Decoded(
                index=index, digest=None, bad=BadRecord(id=self._source.examples[index].id, reason=error.message)
            )

    def _lacking(self, digest: bytes) -> list[int]:
        return [view for view, folder in enumerate(self._folders) if digest not in folder]

    def _fetch(self) -> None:
        """Once, by the first thread that lacks something; the others wait for it. `reload` swaps what a folder knows in
        one go, so that threads may look meanwhile."""
        with self._asked:
            if not self._lacking_is_known and self._shared is not None:
                for folder in self._folders:
                    self._shared.fetch(folder)
                    folder.reload()
            self._lacking_is_known = True

    def _take(self, decoded: _Decoded) -> None:
        self.digests.append(decoded.digest)
        if decoded.bad is not None:
            self.bad.append(decoded.bad)
        if decoded.digest is None:
            return
        for view, pixels_HWC in decoded.pixels:
            if (view, decoded.digest) in self._seen:
                continue  # the same bytes under another name
            self._seen.add((view, decoded.digest))
            self._batch.append((view, decoded.digest, pixels_HWC))
            if len(self._batch) == self._batch_size:
                self._pass()

    def _pass(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        spec = self._backbone.input_spec
        image_BHWC = np.zeros((self._batch_size, spec.height, spec.width, 3), np.float32)
        image_BHWC[: len(batch)] = normalise(np.stack([pixels_HWC for _, _, pixels_HWC in batch]), spec)
        feature_BD = np.asarray(self._backbone.feature_vector(image_BHWC), np.float32)
        if feature_BD.shape != (self._batch_size, self._backbone.feature_dim):
            raise UnusableFeatures(
                f"the backbone gave features of shape {feature_BD.shape}, expected "
                f"{(self._batch_size, self._backbone.feature_dim)}"
            )
        if not np.isfinite(feature_BD[: len(batch)]).all():
            raise UnusableFeatures(
                "the backbone gave features that are not finite (NaN or infinite): its weights do not fit its input",
                hint="zoo verify REF",
            )
        for (view, digest, _), feature_D in zip(batch, feature_BD, strict=False):
            self._folders[view].add(digest, feature_D)
        self.computed += len(batch)
        if time.monotonic() - self._sent > _SEND_SECONDS:
            self._send()
