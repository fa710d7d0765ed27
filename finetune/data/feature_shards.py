"""Shards: feature vectors on disk, found again by the digest of their image.

Takes (digest, vector) pairs. Gives them back memory-mapped. Next: `finetune.data.features`.

A folder holds one set of vectors that are comparable: one backbone, one way to preprocess, one view. Its files are
NumPy arrays of (digest, feature) records, each written whole under a temporary name, synced and renamed to the SHA-256
of its bytes, and never changed afterwards. So any number of processes may fill one folder. What one of them writes is
never written by another (`finetune.data.feature_claims`), so that all that read a vector read the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.feature_claims import claims_of
from zoo.atomic_file import TEMPORARY, fsync_directory, replaced_file, storage_error, temporary_file

_LOG = logging.getLogger(__name__)
_ROWS = 512  # written at once
_SECONDS = 15.0  # or after this long, so that a kill loses little
_HASHED = re.compile(r"[0-9a-f]{64}")
_STALE = 24 * 3600.0  # seconds after which an unfinished file belongs to nobody


def num_records(file: Path) -> int:
    """How many vectors a shard holds; 0 for a damaged one, which the next job that opens it removes."""
    try:
        return len(np.lib.format.open_memmap(file, mode="r"))
    except ValueError:
        return 0


class ShardFolder:
    """One set of vectors of `dim` values. One thread adds and writes, others may claim and look meanwhile; as many
    processes as like."""

    def __init__(self, path: Path, *, dim: int, key: Mapping[str, Any], dtype: str = "float32") -> None:
        """`key` says what the vectors are; it is written beside them as key.json. `dtype`: float32 or float16."""
        self.path = path
        self._dtype = np.dtype([("digest", "u1", (32,)), ("feature", np.dtype(dtype).newbyteorder("<"), (dim,))])
        self._key = key
        self._waiting: list[tuple[bytes, np.ndarray]] = []
        self._last_write = time.monotonic()
        self._shards: dict[str, np.ndarray] = {}  # by file name
        self._places: dict[bytes, tuple[str, int]] = {}
        self._arrived: dict[str, tuple[int, str]] = {}  # by file name: what orders the files
        self._looked = -1
        self._reloading = threading.Lock()
        self._claims = claims_of(path)
        self._claimed: set[bytes] = set()
        self.reload()

    def __contains__(self, digest: bytes) -> bool:
        """Whether the vector is on disk; those added since and not yet written are not."""
        return digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    def claim(self, digest: bytes) -> bool:
        """Whether the vector is ours to compute now, until it is written or released. False also where it is there."""
        if not self._claims.take(digest):
            return False
        self.reload_if_changed()  # its last owner may have written it since we looked
        if digest in self._places:
            self._claims.give_back([digest])
            return False
        self._claimed.add(digest)
        return True

    def may_be_claimed(self, digest: bytes) -> bool:
        return self._claims.is_free(digest)

    def release(self, digests: Collection[bytes] | None = None) -> None:
        """Gives back claims; None: all of them."""
        given = set(self._claimed if digests is None else digests)
        self._claims.give_back(given)
        self._claimed -= given

    def reload(self) -> None:
        """Looks again at what there is. A vector found twice is taken from the file that came first.

        Other threads may look meanwhile: what the folder knows only grows, or is swapped whole.
        """
        with self._reloading:
            self._looked = self._changed_at()
            names = {file.name for file in self.path.glob("*.npy")}
            nothing_gone = self._shards.keys() <= names
            shards, places = (self._shards, self._places) if nothing_gone else ({}, {})
            for name in sorted(names - shards.keys()):
                records = self._opened(self.path / name)
                if records is None:
                    continue
                shards[name] = records
                for row, digest in enumerate(np.ascontiguousarray(records["digest"])):
                    other = places.setdefault(digest.tobytes(), (name, row))
                    if self._arrived[name] < self._arrived[other[0]]:
                        places[digest.tobytes()] = (name, row)
            self._shards, self._places = shards, places

    def reload_if_changed(self) -> None:
        """A cheap look first: whether files came or went since the last one."""
        if self._changed_at() != self._looked:
            self.reload()

    def _changed_at(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except OSError:  # it isn't there yet, or can't be there; who writes is told why
            return 0

    def _opened(self, file: Path) -> np.ndarray | None:
        try:
            self._arrived[file.name] = (file.stat().st_mtime_ns, file.name)
            records: np.ndarray = np.lib.format.open_memmap(file, mode="r")
            if records.dtype != self._dtype or records.ndim != 1:
                raise ValueError(f"it holds {records.dtype}, not {self._dtype}")
        except FileNotFoundError:
            return None  # cleared by another process since it was listed
        except (ValueError, EOFError) as error:
            # Only a damaged disk or a stranger's hand makes such a file; the vectors can be computed again.
            _LOG.warning("removing the damaged feature file %s: %s", file, error)
            file.unlink(missing_ok=True)
            return None
        except OSError as error:
            raise storage_error(error, "read", file) from error
        return records

    def add(self, digest: bytes, feature_D: np.ndarray) -> None:
        """Keeps one vector to be written with others. Raises what `write` raises."""
        self._waiting.append((digest, feature_D))
        if len(self._waiting) >= _ROWS or time.monotonic() - self._last_write > _SECONDS:
            self.write()

    def write(self) -> None:
        """Writes what was added. Raises NoSpace (the disk is full), NoAccess; what was written before stays good."""
        waiting, self._waiting = dict(self._waiting), []
        self._last_write = time.monotonic()
        if not waiting:
            return
        self.write_key()
        with self._claims.one_writer():
            self.reload()
            new = {digest: feature_D for digest, feature_D in waiting.items() if digest not in self._places}
            if new:
                self._write(new)
        self.release(waiting.keys())
        self._remove_stale()

    def _write(self, vectors: Mapping[bytes, np.ndarray]) -> None:
        records = np.empty(len(vectors), self._dtype)
        for row, (digest, feature_D) in enumerate(vectors.items()):
            records[row] = np.frombuffer(digest, np.uint8), feature_D
        data = io.BytesIO()
        np.lib.format.write_array(data, records, allow_pickle=False)
        path = self.path / f"{hashlib.sha256(data.getbuffer()).hexdigest()}.npy"
        try:
            with temporary_file(self.path) as (file, temporary):
                file.write(data.getbuffer())
                file.flush()
                os.fsync(file.fileno())
                self._put_in_place(temporary, path)
        except OSError as error:
            raise storage_error(error, "write", path) from error

    def take_in(self, temporary: Path, name: str) -> None:
        """Gives a whole and synced file that came from elsewhere its name in the folder. Raises OSError."""
        with self._claims.one_writer():
            self._put_in_place(temporary, self.path / name)

    def _put_in_place(self, temporary: Path, path: Path) -> None:
        """By one writer at a time: its time says that it came after all that are there."""
        now = max([time.time_ns(), *(arrived + 1 for arrived, _ in list(self._arrived.values()))])
        os.utime(temporary, ns=(now, now))
        temporary.replace(path)
        fsync_directory(path.parent)

    def write_key(self) -> None:
        """Writes key.json where it isn't there. Raises as `write`."""
        key_file = self.path / "key.json"
        if not key_file.exists():
            with replaced_file(key_file) as file:
                file.write(json.dumps(self._key, indent=1, sort_keys=True).encode())

    def named_by_bytes(self, file: Path) -> Path:
        """The file under the name that it would be written with now; earlier versions named shards at random."""
        if _HASHED.fullmatch(file.stem):
            return file
        with file.open("rb") as opened:
            named = file.with_name(f"{hashlib.file_digest(opened, 'sha256').hexdigest()}.npy")
        return file.replace(named)

    def count_in(self, digests: Iterable[bytes | None], files: Collection[Path]) -> int:
        """How many of the vectors lie in these files of the folder."""
        chosen = {file.name for file in files if file.parent == self.path}
        places = (self._places.get(digest) for digest in digests if digest is not None)
        return sum(place is not None and place[0] in chosen for place in places)

    def _remove_stale(self) -> None:
        oldest = time.time() - _STALE
        for file in self.path.glob(f"{TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                if file.stat().st_mtime < oldest:
                    file.unlink()

    def gather(self, digests: Iterable[bytes | None], into_ND: np.ndarray) -> list[int]:
        """Copies vectors into the rows of `into_ND`; None leaves its row. Returns the rows that are not on disk."""
        missing: list[int] = []
        by_shard: dict[str, list[tuple[int, int]]] = {}
        for row, digest in enumerate(digests):
            if digest is None:
                continue
            place = self._places.get(digest)
            if place is None:
                missing.append(row)
            else:
                by_shard.setdefault(place[0], []).append((row, place[1]))
        for shard, pairs in by_shard.items():
            rows, places = np.array(pairs).T
            into_ND[rows] = self._shards[shard]["feature"][places]
        return missing
