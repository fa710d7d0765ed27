"""Which keys of a store hold the logs of models: `/` in a name is stored as `%2F`, so that a name is one segment.

Takes names and sequence numbers, or keys found in a bucket that others write too. Gives the other. Next:
`zoo.model_logs`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from zoo.names import InvalidName, check_model_name, key_segment

MODELS = "models/"
_KEY = re.compile(r"models/(?P<folder>[^/]+)/(?P<kind>log|snapshot)/(?P<seq>[0-9]{20})\.json\Z")


@dataclass(frozen=True, kw_only=True)
class LogKey:
    name: str
    kind: Literal["log", "snapshot"]
    seq: int


def model_prefix(name: str) -> str:
    return f"{MODELS}{key_segment(name)}/"


def log_prefix(name: str) -> str:
    return f"{model_prefix(name)}log/"


def event_key(name: str, seq: int) -> str:
    return f"{log_prefix(name)}{seq:020}.json"


def snapshot_prefix(name: str) -> str:
    return f"{model_prefix(name)}snapshot/"


def snapshot_key(name: str, seq: int) -> str:
    return f"{snapshot_prefix(name)}{seq:020}.json"


def name_of_folder(folder: str) -> str | None:
    """The model whose keys lie below `models/<folder>/`; None when no model's do."""
    name = folder.replace("%2F", "/")
    try:
        check_model_name(name)
    except InvalidName:
        return None
    return name if key_segment(name) == folder else None


def parse_log_key(key: str) -> LogKey | None:
    """What a key below `models/` is; None for one that isn't of a log."""
    match = _KEY.match(key)
    name = name_of_folder(match["folder"]) if match else None
    seq = int(match["seq"]) if match else 0
    if match is None or name is None or seq < 1:
        return None
    return LogKey(name=name, kind="log" if match["kind"] == "log" else "snapshot", seq=seq)
