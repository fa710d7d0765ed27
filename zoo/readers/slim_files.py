"""Which files a TensorFlow checkpoint of variables by name consists of, however the user names it.

Takes a V1 file, a V2 prefix, one of its files, a folder or a `checkpoint` state file. Gives SlimFiles. Next:
`zoo.readers.slim`, which reads them.

V2 is `<prefix>.index` and `<prefix>.data-00000-of-0000N`; V1 is one table, or `<prefix>-00000-of-0000N`. A `.meta`
file beside them is a graph, which nobody needs.
"""

from __future__ import annotations

import ast
import difflib
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from zoo.readers.checkpoint import DamagedCheckpoint, MissingCheckpointFile, NotACheckpoint

STATE_FILE = "checkpoint"
_MAX_STATE_BYTES = 1 << 20
_DATA = re.compile(r"(?P<prefix>.+)\.data-(?P<number>\d{5})-of-(?P<count>\d{5})")
_SHARD = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_ANY_SHARD = re.compile(r"-\?{5}-of-\d{5}$")
_NEWEST = re.compile(r"""^\s*model_checkpoint_path:\s*(".*"|'.*')\s*$""", re.MULTILINE)
_TABLE_END = bytes.fromhex("57fb808b247547db")  # the last bytes of every table, V1 checkpoints and V2 indices alike
_TABLE_START = b"\0\0"  # the first key is empty


class SeveralCheckpoints(NotACheckpoint):
    """A folder with more than one checkpoint, and nothing that says which is meant."""


@dataclass(frozen=True, kw_only=True)
class SlimFiles:
    """`files` is all that holds the checkpoint, in a fixed order; their names begin with `prefix`."""

    version: int
    prefix: Path
    files: tuple[Path, ...]

    @property
    def pattern(self) -> str:
        """What TensorFlow's reader wants to be given."""
        shards = self.version == 1 and self.files[0] != self.prefix
        return f"{self.prefix}-?????-of-?????" if shards else str(self.prefix)

    @contextmanager
    def plainly_named(self) -> Iterator[SlimFiles]:
        """The same by other names, if need be: TensorFlow takes `[`, `*`, `?` and `\\` in any path for a pattern."""
        if not set("[*?\\") & set(str(self.prefix)):
            yield self
            return
        with tempfile.TemporaryDirectory(prefix="zoo-slim-") as folder:
            links = [Path(folder) / f"c{path.name.removeprefix(self.prefix.name)}" for path in self.files]
            for link, path in zip(links, self.files, strict=True):
                link.symlink_to(path.resolve())
            yield SlimFiles(version=self.version, prefix=Path(folder) / "c", files=tuple(links))


def find_files(source: Path) -> SlimFiles:
    """Every file of the checkpoint that `source` names; all of them exist.

    Raises MissingCheckpointFile, naming the missing ones; SeveralCheckpoints; NotACheckpoint; DamagedCheckpoint.
    """
    if source.is_dir():
        state = source / STATE_FILE
        return _newest(state) if state.is_file() else _only_one(source)
    if not source.is_file():
        return _of_prefix(source)
    name = source.name
    if name == STATE_FILE or _is_state(source):
        return _newest(source)
    if name.endswith((".index", ".meta")):
        return _of_prefix(source.with_suffix(""))
    part = _DATA.fullmatch(name) or _SHARD.fullmatch(name)
    return _of_prefix(source.with_name(part["prefix"])) if part else _single(source)


def _of_prefix(prefix: Path) -> SlimFiles:
    prefix = prefix.with_name(_ANY_SHARD.sub("", prefix.name))  # as a state file names a V1 checkpoint in shards
    index = prefix.with_name(prefix.name + ".index")
    data = _numbered(prefix, _DATA)
    if index.is_file():
        return _version_2(prefix, index, data)
    if prefix.is_file():
        return _single(prefix)
    if data:
        raise MissingCheckpointFile(
            f"{prefix} has {len(data)} data shards but no index: {index.name} is missing",
            hint=_renamed(prefix, "index"),
        )
    shards = _numbered(prefix, _SHARD)
    if shards:
        return SlimFiles(version=1, prefix=prefix, files=_complete(prefix, shards))
    near = difflib.get_close_matches(prefix.name, _prefixes(prefix.parent), n=3, cutoff=0.3)
    raise MissingCheckpointFile(
        f"there is no TensorFlow checkpoint at {prefix}: neither the file nor {index.name}",
        hint=f"in {prefix.parent} there is {', '.join(near)}" if near else None,
        path=str(prefix),
    )


def _version_2(prefix: Path, index: Path, data: dict[Path, re.Match[str]]) -> SlimFiles:
    if not data:
        raise MissingCheckpointFile(
            f"{prefix} has an index but no data: {prefix.name}.data-00000-of-00001 or the like is missing",
            hint=_renamed(prefix, "data"),
        )
    return SlimFiles(version=2, prefix=prefix, files=(index, *_complete(prefix, data)))


def _single(path: Path) -> SlimFiles:
    with path.open("rb") as file:
        start = file.read(len(_TABLE_START))
        file.seek(max(0, path.stat().st_size - len(_TABLE_END)))
        end = file.read()
    if end == _TABLE_END:
        return SlimFiles(version=1, prefix=path, files=(path,))
    if start == _TABLE_START or path.suffix.startswith(".ckpt"):
        raise DamagedCheckpoint(
            f"{path} is cut short: it has {path.stat().st_size} bytes and doesn't end as a TensorFlow checkpoint does"
        )
    raise NotACheckpoint(
        f"{path} is no TensorFlow checkpoint of variables: neither a V1 file nor a part of a V2 one",
        hint="for other formats: zoo import keras, torch, safetensors, tfjs or hub",
    )


def _numbered(prefix: Path, pattern: re.Pattern[str]) -> dict[Path, re.Match[str]]:
    if not prefix.parent.is_dir():
        return {}
    found = {path: pattern.fullmatch(path.name) for path in sorted(prefix.parent.iterdir())}
    return {path: match for path, match in found.items() if match and match["prefix"] == prefix.name and path.is_file()}


def _complete(prefix: Path, shards: dict[Path, re.Match[str]]) -> tuple[Path, ...]:
    """The shards by number, when they are all there."""
    counts = sorted({match["count"] for match in shards.values()})
    if len(counts) > 1:
        raise DamagedCheckpoint(
            f"{prefix}: shards of different checkpoints lie together: some are of {' and some of '.join(counts)}"
        )
    count, here = int(counts[0]), {int(match["number"]) for match in shards.values()}
    last = next(reversed(shards))
    names = [re.sub(r"\d{5}-of-\d{5}$", f"{number:05}-of-{count:05}", last.name) for number in range(count)]
    missing = [name for number, name in enumerate(names) if number not in here]
    if missing:
        raise MissingCheckpointFile(
            f"{prefix}: {len(missing)} of {count} shards are missing: {', '.join(missing[:8])}",
            missing=",".join(missing)[:500],
        )
    return tuple(prefix.with_name(name) for name in names)


def _renamed(prefix: Path, lacking: str) -> str | None:
    """A half of another checkpoint in the same folder that has no other half: somebody renamed one file only."""
    names = [path.name for path in prefix.parent.iterdir()]
    indices = {name.removesuffix(".index") for name in names if name.endswith(".index")}
    data = {match["prefix"]: name for name in names if (match := _DATA.fullmatch(name))}
    if lacking == "data":
        alone = [name for of, name in sorted(data.items()) if of not in indices]
    else:
        alone = [f"{of}.index" for of in sorted(indices - set(data))]
    if not alone:
        return None
    return f"{', '.join(alone[:3])} lies there without its other half: was only one of the files renamed?"


def _is_state(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"model_checkpoint_path")


def _newest(state: Path) -> SlimFiles:
    """What a state file calls the newest checkpoint. It may hold the path of another machine: then the same name in the
    state file's folder is meant, and nowhere else."""
    if state.stat().st_size > _MAX_STATE_BYTES:
        raise NotACheckpoint(f"{state} has {state.stat().st_size} bytes, a checkpoint state file has a few hundred")
    try:
        found = _NEWEST.search(state.read_bytes().decode())
        # Protobuf's text format escapes bytes as C does, and so as Python does.
        named = ast.literal_eval(f"b{found[1]}").decode() if found else ""
    except (ValueError, SyntaxError):
        named = ""
    if not named or "\0" in named:
        raise NotACheckpoint(f"{state} is no checkpoint state file: it has no readable model_checkpoint_path")
    folder, windows = state.parent, PureWindowsPath(named)  # which knows both kinds of slashes
    inside = folder / named  # of an absolute path, that path
    below = not windows.drive and "\\" not in named and inside.resolve().is_relative_to(folder.resolve())
    prefix = inside if below else folder / windows.name
    try:
        return _of_prefix(prefix)
    except MissingCheckpointFile as error:
        raise MissingCheckpointFile(
            f"{state} names {named!r} as the newest checkpoint: {error.message}", hint=error.hint
        ) from None


def _only_one(folder: Path) -> SlimFiles:
    prefixes = _prefixes(folder)
    if not prefixes:
        raise MissingCheckpointFile(
            f"{folder} holds no TensorFlow checkpoint: no {STATE_FILE} file, no .index, no .data and no V1 file"
        )
    if len(prefixes) > 1:
        raise SeveralCheckpoints(
            f"{folder} holds {len(prefixes)} checkpoints and no {STATE_FILE} file that says which is the newest: "
            f"{', '.join(prefixes[:20])}",
            hint=f"name one: {folder / prefixes[-1]}",
        )
    return _of_prefix(folder / prefixes[0])


def _prefixes(folder: Path) -> list[str]:
    """Every checkpoint of a folder, whole or not."""
    if not folder.is_dir():
        return []
    return sorted(dict.fromkeys(_prefixes_of(path for path in folder.iterdir() if path.is_file())))


def _prefixes_of(paths: Iterable[Path]) -> Iterable[str]:
    for path in paths:
        if path.name.endswith(".index"):
            yield path.name.removesuffix(".index")
        elif part := _DATA.fullmatch(path.name):
            yield part["prefix"]
        elif _ends_as_table(path):
            part = _SHARD.fullmatch(path.name)
            yield part["prefix"] if part else path.name


def _ends_as_table(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_TABLE_END)))
        return file.read() == _TABLE_END
