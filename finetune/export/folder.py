"""An export's folder: whole or not there. And what lies in it beside the model.

Takes the folder that the user named. Gives a temporary sibling to write to, which becomes that folder when all is well.
Next: `finetune.export.export`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.atomic_file import TEMPORARY, NotADirectory, fsync_directory, make_directories, storage_error
from zoo.errors import FailedPrecondition


class FolderTaken(FailedPrecondition):
    """The folder has something in it, which an export would mix with."""


def check_free(folder: Path) -> None:
    """Raises FolderTaken, NotADirectory; NoAccess and the like when it can't be looked at."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise NotADirectory(f"{folder} is a file, or lies below one; an export is a folder", path=str(folder)) from None
    except OSError as error:
        raise storage_error(error, "read", folder) from error
    if names:
        raise _taken(folder, names)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `folder` when the block ends well and is removed when it doesn't.

    A process that is killed leaves `.tmp-…` beside it, never a part of an export under its name. Raises FolderTaken
    (also when somebody else was faster), and the errors of `storage_error`.
    """
    folder = folder.resolve()
    check_free(folder)
    temporary = folder.parent / f"{TEMPORARY}{folder.name[:100]}-{secrets.token_hex(8)}"
    try:
        make_directories(folder.parent)
        temporary.mkdir()
    except OSError as error:
        raise storage_error(error, "make", temporary) from error
    try:
        yield temporary
        _sync(temporary)
        temporary.rename(folder)  # takes the place of an empty folder, and of nothing else
        fsync_directory(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.is_dir():
            raise _taken(folder, sorted(path.name for path in folder.iterdir())) from None
        raise storage_error(error, "write", folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # there no more when all went well


def listed(folder: Path) -> list[dict[str, str | int]]:
    """Every file below `folder` with its size and digest, by path."""
    found: list[dict[str, str | int]] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(folder).as_posix()
        found.append({"path": name, "bytes": path.stat().st_size, "digest": f"sha256:{digest}"})
    return found


def _sync(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _taken(folder: Path, names: list[str]) -> FolderTaken:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return FolderTaken(
        f"{folder} isn't empty: it has {', '.join(names[:3])}{more}",
        hint="name a folder that isn't there yet",
        path=str(folder),
    )
