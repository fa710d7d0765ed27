"""Which texts are keys. Every store asks here first, so that all of them refuse the same ones."""

from __future__ import annotations

import re
import unicodedata

from zoo.atomic_file import TEMPORARY
from zoo.errors import InvalidArgument
from zoo.store.object_store import InvalidKey

MAX_KEY = 1000  # characters
MAX_SEGMENT = 255  # bytes in UTF-8: what a local file system takes as a name
_PLAIN = re.compile(r"[A-Za-z0-9_%-][A-Za-z0-9_%.-]{0,254}\Z")


def check_key(key: str) -> str:
    """Returns `key` when it is one; raises InvalidKey otherwise. The rules are those of `zoo.store.object_store`."""
    if not key:
        raise InvalidKey("an object's key cannot be empty")
    fault = _fault(key, key.split("/"))
    if fault:
        raise InvalidKey(f"object key {key[:300]!r}: {fault}", key=repr(key[:300]))
    return key


def check_prefix(prefix: str) -> str:
    """Returns `prefix` when keys can begin with it; raises InvalidKey otherwise. It may be empty or end in `/`."""
    *folders, last = prefix.split("/")
    fault = _fault(prefix, folders) or (segment_fault(last) if last not in ("", ".", "..") else None)
    if fault:
        raise InvalidKey(f"key prefix {prefix[:300]!r}: {fault}", key=repr(prefix[:300]))
    return prefix


def check_folder(prefix: str) -> str:
    """Returns `prefix` when it names a folder of keys: empty, or ending in `/`; raises InvalidKey otherwise."""
    if prefix and not prefix.endswith("/"):
        raise InvalidKey(f"key prefix {prefix[:300]!r} is no folder: it must be empty or end in '/'", key=prefix[:300])
    return check_prefix(prefix)


def check_range(key: str, start: int, length: int | None) -> None:
    """Raises InvalidArgument when no object can have the bytes from `start` on, `length` of them (None: all)."""
    if start < 0 or (length is not None and length < 0):
        raise InvalidArgument(f"object {key!r}: a range of start {start} and length {length} cannot be read")


def _fault(key: str, segments: list[str]) -> str | None:
    if len(key) > MAX_KEY:
        return f"{len(key)} characters, at most {MAX_KEY} are allowed"
    return next((fault for fault in map(segment_fault, segments) if fault), None)


def segment_fault(segment: str) -> str | None:
    """Why `segment` can be no part of a key, or None when it can."""
    if _PLAIN.match(segment):  # nearly all are, and listings ask for every one
        return None
    if segment in ("", ".", ".."):
        return f"a segment is {segment!r}; none may be empty, '.' or '..'"
    if "\\" in segment or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in segment):
        return "a backslash or a control character in it; neither is allowed"
    if any(0xD800 <= ord(c) <= 0xDFFF for c in segment):
        return "half of a surrogate pair in it, which UTF-8 has no bytes for"
    if unicodedata.normalize("NFC", segment) != segment:
        return "not in Unicode's normal form C, so that what looks like one key could be two"
    if len(segment.encode()) > MAX_SEGMENT:
        return f"a segment of {len(segment.encode())} bytes, at most {MAX_SEGMENT} are allowed"
    if segment.startswith(TEMPORARY):
        return f"a segment begins with {TEMPORARY!r}, which stores keep for unfinished files"
    return None
