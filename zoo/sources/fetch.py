"""Fetches a published file by its address. The only place that speaks HTTP outside object storage.

Takes an address from the literal tables of `zoo.sources`, never one from a request. Gives a verified file in the cache
folder. Next: `zoo.sources.doors`.
"""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from zoo.atomic_file import make_directories, replaced_file, storage_error
from zoo.errors import DataLoss, Unavailable

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0  # of silence


class SourceUnavailable(Unavailable):
    """Published weights that can't be had from here and now."""


class DamagedDownload(DataLoss):
    """What came isn't what is published under that address."""


def fetch(url: str, *, folder: Path, checksum: str | None, on_bytes: Callable[[int], None] | None = None) -> Path:
    """Downloads `url` into `folder`, unless the file is there already and right.

    Args:
        checksum: `md5:<hex>` or `sha256:<hex>` as published; None where nobody publishes one.
        on_bytes: called with the count of each piece.
    Returns:
        the file; nothing is ever seen under its name that isn't whole and verified.
    Raises:
        SourceUnavailable: no answer, or no such file. DamagedDownload: cut short, or another checksum. StorageFull
        and other errors of the disk.
    """
    path = folder / re.sub(r"[^A-Za-z0-9._-]", "_", url.partition("://")[2])
    if path.is_file() and (checksum is None or _file_checksum(path, checksum) == checksum):
        return path
    make_directories(folder)
    digest = _hasher(checksum)
    try:
        with _answer(url) as answer, replaced_file(path) as file:
            announced = answer.headers.get("Content-Length")
            received = 0
            while piece := _piece(answer, url):
                file.write(piece)
                digest.update(piece)
                received += len(piece)
                if on_bytes is not None:
                    on_bytes(len(piece))
            _check(url, received, announced, checksum, digest.hexdigest())
    except OSError as error:
        raise storage_error(error, "store a download", path) from error
    return path


def _answer(url: str) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "modelzoo"})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        raise SourceUnavailable(f"{url} answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise SourceUnavailable(f"no answer from {urlsplit(url).netloc}: {reason}") from None
    return answer


def _piece(answer: IO[bytes], url: str) -> bytes:
    try:
        return answer.read(_CHUNK)
    except (OSError, HTTPException) as error:
        raise SourceUnavailable(f"the download of {url} broke off: {error}") from None


def _check(url: str, received: int, announced: str | None, checksum: str | None, digest: str) -> None:
    if announced is not None and announced.isdigit() and received != int(announced):
        raise DamagedDownload(f"{url}: {received} bytes came of {announced}")
    if checksum is not None and digest != checksum.partition(":")[2]:
        raise DamagedDownload(f"{url}: {checksum} is published, what came has {checksum.partition(':')[0]}:{digest}")


def _hasher(checksum: str | None) -> Any:
    """An md5 only tells damage; it is what Keras publishes for most of its files."""
    if checksum is not None and checksum.startswith("md5:"):
        return hashlib.md5(usedforsecurity=False)
    return hashlib.sha256()


def _file_checksum(path: Path, like: str) -> str:
    digest = _hasher(like)
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return f"{like.partition(':')[0]}:{digest.hexdigest()}"
