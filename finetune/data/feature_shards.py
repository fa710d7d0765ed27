"""Shards: feature vectors on disk, found again by the digest of their image.

Takes (digest, vector) pairs. Gives them back memory-mapped. Next: `finetune.data.features`.

A folder holds one set of vectors that are comparable: one backbone, one way to preprocess, one view. Its files are
NumPy arrays of (digest, feature) records, each written whole under a temporary name, synced and renamed to the SHA-256
of its bytes, and never changed afterwards. So any number of processes may fill one folder: the worst that two can do is
to compute the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import re
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.atomic_file import TEMPORARY, replaced_file, storage_error

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
    """One set of vectors of `dim` values. Not shared between threads; as many processes as like."""

    def __init__(self, path: Path, *, dim: int, key: Mapping[str, Any]) -> None:
        """`key` says what the vectors are; it is written beside them as key.json."""
        self.path = path
        self._dtype = np.dtype([("digest", "u1", (32,)), ("feature", "<f4", (dim,))])
        self._key = key
        self._waiting: list[tuple[bytes, np.ndarray]] = []
        self._last_write = time.monotonic()
        self._shards: list[np.ndarray] = []
        self._files: list[Path] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self.reload()

    def __contains__(self, digest: bytes) -> bool:
        """Whether the vector is on disk; those added since and not yet written are not."""
        return digest in self._places

    def reload(self) -> None:
        """Looks again at what there is. A vector found twice is taken from the file whose name comes first."""
        shards: list[np.ndarray] = []
        files: list[Path] = []
        places: dict[bytes, tuple[int, int]] = {}
        for file in sorted(self.path.glob("*.npy")):
            records = self._opened(file)
            if records is None:
                continue
            for row, digest in enumerate(np.ascontiguousarray(records["digest"])):
                places.setdefault(digest.tobytes(), (len(shards), row))
            shards.append(records)
            files.append(file)
        self._shards, self._files, self._places = shards, files, places

    def _opened(self, file: Path) -> np.ndarray | None:
        try:
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
        waiting, self._waiting = self._waiting, []
        self._last_write = time.monotonic()
        if not waiting:
            return
        records = np.empty(len(waiting), self._dtype)
        for row, (digest, feature_D) in enumerate(waiting):
            records[row] = np.frombuffer(digest, np.uint8), feature_D
        self.write_key()
        data = io.BytesIO()
        np.lib.format.write_array(data, records, allow_pickle=False)
        with replaced_file(self.path / f"{hashlib.sha256(data.getbuffer()).hexdigest()}.npy") as file:
            file.write(data.getbuffer())
        self._remove_stale()

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
        chosen = {shard for shard, file in enumerate(self._files) if file in files}
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
        by_shard: dict[int, list[tuple[int, int]]] = {}
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
