"""FeatureFill: one run over images whose features the cache lacks.

Takes a backbone, images and the folders of their vectors. Gives full folders. Next: `finetune.data.features` gathers.

Threads read and decode ahead of the passes. Of several who fill a set at once each computes what nobody else has
claimed (`finetune.data.feature_claims`), and takes the others' vectors when they are written. Which images share a pass
then depends on who was faster; it changes no bits as long as passes have one size, as was measured on two backbones.
Where it did, nobody would notice: a vector is written once, and all read what is written.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from finetune.data.ahead import in_order, reading_threads
from finetune.data.feature_shards import ShardFolder
from finetune.data.feature_store import FeatureStore
from finetune.data.image_header import UnreadableImage
from finetune.data.preprocess import load_views, normalise
from finetune.data.source import BadRecord, ExampleSource
from zoo.errors import Cancelled, FailedPrecondition
from zoo.input_spec import InputSpec

_PROGRESS_SECONDS = 0.25
_SEND_SECONDS = 60.0  # so that a machine that is lost loses little of hours of passes
_ROOM_SECONDS = 60.0  # between two looks at the cap
_POLL = 0.1  # seconds between two looks at what others have written
_PATIENCE = 90.0  # seconds without a new vector from anybody, after which others' claims are passed over


class FillStopped(Cancelled):
    """Filling was asked to stop; what had been computed is kept."""


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
class _Decoded:
    """One image as a thread hands it over; `pixels` has the views that are ours to compute, `others` says whether
    somebody else computes any."""

    position: int
    digest: bytes | None
    pixels: tuple[tuple[int, np.ndarray], ...] = ()
    others: bool = False
    bad: BadRecord | None = None


class FeatureFill:
    """One run over the images: threads decode, this thread runs the passes and writes."""

    def __init__(
        self,
        backbone: FeatureBackbone,
        source: ExampleSource,
        folders: Sequence[ShardFolder],
        *,
        max_pixels: int,
        batch_size: int,
        dtype: str,
        shared: FeatureStore | None,
        make_room: Callable[[], None],
    ) -> None:
        """`make_room` is called before, after and now and then."""
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
        self._dtype = np.dtype(dtype)
        self._make_room = make_room
        self._room_made = time.monotonic()
        self._batch: list[tuple[int, bytes, np.ndarray]] = []
        self._awaited: list[int] = []  # positions of images that others compute
        self._claiming = True
        self._bad: dict[int, BadRecord] = {}
        self.digests: list[bytes | None] = []  # by position in what was asked for
        self.computed = 0

    @property
    def bad(self) -> list[BadRecord]:
        return [self._bad[position] for position in sorted(self._bad)]

    def run(self, indices: Sequence[int], on_progress: Callable[[int, int], None], stop: Callable[[], bool]) -> None:
        self.digests = [None] * len(indices)
        self._make_room()
        try:
            positions: Sequence[int] = range(len(indices))
            while positions:
                self._awaited = []
                self._round(indices, positions, on_progress, stop)
                positions = self._left(indices, on_progress, stop)
        finally:  # whatever ended it, Ctrl-C included
            try:
                self._write()
            finally:
                for folder in self._folders:
                    folder.release()
                if self.computed:
                    self._send()
                self._sender.shutdown(wait=True)
        if self.computed or self._shared is not None:
            self._make_room()
        on_progress(len(indices), len(indices))

    def _round(
        self,
        indices: Sequence[int],
        positions: Sequence[int],
        on_progress: Callable[[int, int], None],
        stop: Callable[[], bool],
    ) -> None:
        told = 0.0
        before = len(indices) - len(positions)
        for done, decoded in enumerate(self._decoded(indices, positions), start=before):
            if stop():
                raise FillStopped(f"stopped after {done} of {len(indices)} images")
            self._take(decoded)
            if time.monotonic() - told > _PROGRESS_SECONDS:
                on_progress(done + 1 - len(self._awaited), len(indices))
                told = time.monotonic()
        self._pass()
        self._write()

    def _left(
        self, indices: Sequence[int], on_progress: Callable[[int, int], None], stop: Callable[[], bool]
    ) -> list[int]:
        """Waits until others have written what they claimed. Returns the positions of what they left, being gone or
        hanging: it is ours then."""
        since, vectors = time.monotonic(), -1
        while self._awaited:
            for folder in self._folders:
                folder.reload()
            awaited = {position: self.digests[position] for position in self._awaited}
            left = [position for position, digest in awaited.items() if digest and self._lacking(digest)]
            if not left:
                break
            if (found := sum(map(len, self._folders))) != vectors:
                since, vectors = time.monotonic(), found
            if time.monotonic() - since > _PATIENCE:
                self._claiming = False
                return left
            if any(self._may_be_claimed(awaited[position]) for position in left):
                return left
            if stop():
                raise FillStopped(f"stopped after {len(indices) - len(left)} of {len(indices)} images")
            on_progress(len(indices) - len(left), len(indices))
            time.sleep(_POLL)
        return []

    def _send(self) -> None:
        """In a thread of its own: an upload delays no pass."""
        if self._shared is not None:
            self._sent = time.monotonic()
            for folder in self._folders:
                self._sender.submit(self._shared.send, folder)

    def _decoded(self, indices: Sequence[int], positions: Sequence[int]) -> Iterator[_Decoded]:
        """In the order of `positions`; a bounded number is ahead of the taker."""
        threads = reading_threads(self._source.location)
        ahead = max(2 * threads, 3 * self._batch_size // len(self._folders))
        pairs = ((position, indices[position]) for position in positions)
        yield from in_order(self._decode, pairs, threads=threads, ahead=ahead, name="decode")

    def _decode(self, pair: tuple[int, int]) -> _Decoded:
        position, index = pair
        ours, digest = list[int](), b""
        try:
            data = self._source.read(index)
            digest = hashlib.sha256(data).digest()
            lacking = self._lacking(digest)
            if lacking and not self._lacking_is_known:
                self._fetch()
                lacking = self._lacking(digest)
            ours = [view for view in lacking if not self._claiming or self._folders[view].claim(digest)]
            others = bool(set(self._lacking(digest)) - set(ours))
            if not ours:
                return _Decoded(position=position, digest=digest, others=others)
            pixels = load_views(data, self._backbone.input_spec, views=ours, max_pixels=self._max_pixels)
            pairs = tuple(zip(ours, pixels, strict=True))
            return _Decoded(position=position, digest=digest, pixels=pairs, others=others)
        except UnreadableImage as error:
            self._unclaim(ours, digest)
            bad = BadRecord(id=self._source.examples[index].id, reason=error.message)
            return _Decoded(position=position, digest=None, bad=bad)

    def _lacking(self, digest: bytes) -> list[int]:
        return [view for view, folder in enumerate(self._folders) if digest not in folder]

    def _may_be_claimed(self, digest: bytes | None) -> bool:
        return digest is not None and any(self._folders[view].may_be_claimed(digest) for view in self._lacking(digest))

    def _unclaim(self, views: Sequence[int], digest: bytes) -> None:
        """Of an image that can't be decoded: the same bytes under another name must find that out, too."""
        for view in views:
            self._folders[view].release([digest])

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
        self.digests[decoded.position] = decoded.digest
        if decoded.bad is not None:
            self._bad[decoded.position] = decoded.bad
        if decoded.digest is None:
            return
        if decoded.others:
            self._awaited.append(decoded.position)
        for view, pixels_HWC in decoded.pixels:
            self._batch.append((view, decoded.digest, pixels_HWC))
            if len(self._batch) == self._batch_size:
                self._pass()

    def _write(self) -> None:
        for folder in self._folders:
            folder.write()

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
        self._require_finite(feature_BD[: len(batch)])
        for (view, digest, _), feature_D in zip(batch, feature_BD, strict=False):
            self._folders[view].add(digest, feature_D)
        self.computed += len(batch)
        if time.monotonic() - self._sent > _SEND_SECONDS:
            self._send()
        if time.monotonic() - self._room_made > _ROOM_SECONDS:
            self._make_room()
            self._room_made = time.monotonic()

    def _require_finite(self, feature_BD: np.ndarray) -> None:
        if not np.isfinite(feature_BD).all():
            raise UnusableFeatures(
                "the backbone gave features that are not finite (NaN or infinite): its weights do not fit its input",
                hint="zoo verify REF",
            )
        most = np.abs(feature_BD).max()
        if self._dtype.kind == "f" and most > np.finfo(self._dtype).max:
            raise UnusableFeatures(
                f"the backbone gave a feature of {most:g}, {self._dtype} goes to {np.finfo(self._dtype).max:g}",
                hint="--set data.features=float32",
            )
