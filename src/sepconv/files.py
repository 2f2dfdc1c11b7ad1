"""Files that are whole or not there, or opened without surprises; folders that one process writes at a time."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from sepconv import InputError
from sepconv.text import printable


def write(path: Path, data: bytes | str) -> None:
    """Writes a file so that, wherever the process or the machine stops, the one before or this one is there, whole.

    Raises InputError where it cannot be written: a full disk, a folder that is gone or not ours.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data.encode(errors="surrogateescape") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        if os.name == "posix":  # the new name, too, is then on the disk
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise InputError(f"cannot write {path} ({error.strerror})") from error


def make_folder(folder: Path, keys: str = "output=") -> None:
    """Makes a folder where there is none. Raises InputError, which names the `keys` of others, where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}): choose another {keys}") from error


class Held(InputError):
    """Another process holds a folder."""


@contextmanager
def lock(folder: Path, work: str) -> Iterator[None]:
    """Holds `folder` for this process, until it ends in whatever way.

    Raises Held where another process holds it, for `work`: trained, say; InputError where it cannot be written to.
    """
    try:
        with FileLock(folder / ".lock", blocking=False):
            yield
    except Timeout as error:
        raise Held(f"{folder} is being {work} by another process: wait for it, or stop it") from error
    except PermissionError as error:
        if error.filename != str(folder / ".lock"):
            raise
        raise InputError(f"cannot write to {folder} ({error.strerror})") from error


def unreadable(path: object, error: OSError) -> InputError:
    """The error for a file or directory that cannot be read."""
    return InputError(f"{printable(path)} cannot be read ({error.strerror})")


def open_file(path: str | Path) -> BinaryIO:
    """Opens a regular file to be read. Raises OSError for any other: to read a pipe or a device may never end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no regular file")
    return os.fdopen(descriptor, "rb")
