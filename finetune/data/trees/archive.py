"""A FileTree in a .zip or an uncompressed .tar, read without unpacking: only the index is kept.

Takes Ranges of the archive. Gives names and bytes. Members are read by their place in the file, so that any number of
threads read at once. What a careless unpacker would write elsewhere (`../`, absolute names, links) is a bad record.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from finetune.data.source import BadRecord
from finetune.data.trees.ranges import RangedFile, Ranges
from finetune.data.trees.tree import MalformedData, NoData, Walk, hidden, unreadable
from zoo.errors import ZooError

ARCHIVES = (".zip", ".tar")
_BUFFER = 1 << 20
_MAX_MEMBER = 1 << 30  # bytes of one image, unpacked
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of name and extra field


class Member(NamedTuple):
    """Where a file lies. `start`: of its data in a tar, of its local header in a zip."""

    start: int
    stored: int  # bytes in the archive
    size: int  # bytes unpacked
    deflated: bool
    crc: int | None


@dataclass(frozen=True)
class ArchiveTree:
    archive: Ranges
    below: str  # the folder in the archive that is the root, "" for all of it
    members: dict[str, Member]
    bad: tuple[BadRecord, ...]
    hidden: int
    folders: frozenset[str] = field(default_factory=frozenset)

    @property
    def url(self) -> str:
        return f"{self.archive.url}/{self.below}" if self.below else self.archive.url

    def walk(self, below: str = "") -> Walk:
        return Walk(lambda walk: self._names(walk, f"{below}/" if below else ""))

    def has(self, name: str) -> bool:
        return name in self.members

    def has_folder(self, name: str) -> bool:
        return name in self.folders

    def read(self, name: str) -> bytes:
        member = self.members.get(name)
        if member is None:
            raise unreadable(name, f"it is not in {self.url}")
        try:
            return _read(self.archive, member)
        except (OSError, ValueError, zlib.error, ZooError) as error:
            raise unreadable(name, error) from None

    def ranges(self, name: str) -> Ranges:
        member = self.members.get(name)
        if member is None:
            raise NoData(f"{self.url} has no {name}")
        if member.deflated:
            raise MalformedData(f"{self.url}/{name} is compressed, so that it can't be read in parts; store it")
        start = member.start if member.crc is None else member.start + _header_size(self.archive, member)
        return _MemberRanges(self.archive, f"{self.url}/{name}", start, member.size)

    def read_index(self, name: str) -> bytes:
        member = self.members.get(name)
        if member is None:
            raise NoData(f"{self.url} has no {name}")
        try:
            return _read(self.archive, member)
        except (ValueError, zlib.error) as error:
            raise MalformedData(f"{self.url}/{name} is damaged: {error}") from None

    def _names(self, walk: Walk, prefix: str) -> Iterator[str]:
        walk.bad.extend(record for record in self.bad if record.id.startswith(prefix))
        walk.hidden = self.hidden
        yield from (name for name in self.members if name.startswith(prefix))


class _MemberRanges:
    """A part of an archive that is a file of its own."""

    def __init__(self, ranges: Ranges, url: str, start: int, size: int) -> None:
        self._ranges, self._start = ranges, start
        self.url, self.size, self.changed = url, size, ranges.changed

    def at(self, start: int, length: int) -> bytes:
        return self._ranges.at(self._start + start, max(0, min(length, self.size - start)))


def _header_size(ranges: Ranges, member: Member) -> int:
    block = ranges.at(member.start, _LOCAL_HEADER.size)
    _, name_length, extra_length = _LOCAL_HEADER.unpack(block)
    return _LOCAL_HEADER.size + int(name_length) + int(extra_length)


def open_archive(ranges: Ranges, below: str) -> ArchiveTree:
    """Raises MalformedData: no archive, damaged, or compressed as a whole; NoData: no such folder in it."""
    try:
        listed = list(_zip(ranges) if ranges.url.endswith(".zip") else _tar(ranges))
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, struct.error, NotImplementedError) as error:
        hint = "a .tar.gz can't be read at places: unpack it, or make a .zip or .tar of it"
        raise MalformedData(f"{ranges.url} can't be read as an archive: {error}", hint=hint) from None
    members: dict[str, Member] = {}
    bad: list[BadRecord] = []
    passed = 0
    prefix = f"{below}/" if below else ""
    for name, member, fault in listed:
        if not name.startswith(prefix):
            continue
        own = name.removeprefix(prefix)
        if any(hidden(part) for part in own.split("/") if part not in ("..", ".")):
            passed += 1
        elif fault or own in members or member is None:
            bad.append(BadRecord(id=own, reason=fault or "the archive has a second file of this name"))
        else:
            members[own] = member
    if not members:
        raise NoData(f"{ranges.url} holds no files{f' below {below}/' if below else ''}")
    return ArchiveTree(ranges, below, members, tuple(bad), passed, _folders(members))


def _folders(members: dict[str, Member]) -> frozenset[str]:
    found: set[str] = set()
    for name in members:
        parent = name.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return frozenset(found)


def _zip(ranges: Ranges) -> Iterator[tuple[str, Member | None, str | None]]:
    with zipfile.ZipFile(io.BufferedReader(RangedFile(ranges), _BUFFER)) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            fault = _fault(info.filename, info.file_size)
            if info.flag_bits & 1:
                fault = "it is encrypted"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                fault = f"it is compressed by method {info.compress_type}; stored and deflated can be read"
            elif (info.external_attr >> 28) == 0xA:
                fault = "it is a link"
            deflated = info.compress_type == zipfile.ZIP_DEFLATED
            yield (
                info.filename,
                Member(info.header_offset, info.compress_size, info.file_size, deflated, info.CRC),
                fault,
            )


def _tar(ranges: Ranges) -> Iterator[tuple[str, Member | None, str | None]]:
    with tarfile.open(fileobj=io.BufferedReader(RangedFile(ranges), _BUFFER), mode="r:") as archive:
        for info in archive:
            archive.members.clear()  # type: ignore[attr-defined] # else it keeps every header
            if info.isdir():
                continue
            name = info.name.removeprefix("./")
            if not info.isfile():
                yield name, None, "it is a link, or no ordinary file"
                continue
            if info.offset_data + info.size > ranges.size:
                raise tarfile.ReadError(f"cut short: {name!r} should end at byte {info.offset_data + info.size}")
            yield name, Member(info.offset_data, info.size, info.size, False, None), _fault(name, info.size)
        if ranges.at(archive.offset, 512) != bytes(512):  # tarfile takes the end of the file for the archive's
            raise tarfile.ReadError(f"cut short: nothing marks its end at byte {archive.offset}")


def _fault(name: str, size: int) -> str | None:
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
        return "its name leads out of the archive"
    return f"{size} bytes are too many for an image" if size > _MAX_MEMBER else None


def _read(ranges: Ranges, member: Member) -> bytes:
    if member.crc is None:
        data = ranges.at(member.start, member.stored)
        if len(data) != member.size:
            raise ValueError(f"{len(data)} bytes of {member.size} are there")
        return data
    # The header repeats the name and has an extra field of its own length: ask for a little more than the data.
    block = ranges.at(member.start, _LOCAL_HEADER.size + 512 + member.stored)
    if len(block) < _LOCAL_HEADER.size:
        raise ValueError("the archive ends before it")
    signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(block)
    if signature != b"PK\x03\x04":
        raise ValueError("the archive's index points at something else")
    begin = _LOCAL_HEADER.size + name_length + extra_length
    packed = block[begin : begin + member.stored]
    if len(packed) < member.stored:
        packed = ranges.at(member.start + begin, member.stored)
    data = packed if not member.deflated else zlib.decompressobj(-15).decompress(packed, member.size + 1)
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise ValueError(f"damaged: {len(data)} bytes of {member.size}, or another checksum")
    return data
