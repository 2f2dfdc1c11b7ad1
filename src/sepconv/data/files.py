"""Files and folders that a user names, opened without surprises."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from sepconv import InputError
from sepconv.text import printable


def unreadable(path: object, error: OSError) -> InputError:
    """The error for a file or directory that cannot be read."""
    return InputError(f"{printable(path)} cannot be read ({error.strerror})")


def expand(path: str) -> Path:
    """`path` with the home directory that a leading ~ stands for. Raises InputError where that is no path."""
    if "\0" in path:
        raise InputError(f"{printable(path)} is no path")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{printable(path)}: {error}") from error


def open_file(path: str | Path) -> BinaryIO:
    """Opens a regular file to be read. Raises OSError for any other: to read a pipe or a device may never end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no regular file")
    return os.fdopen(descriptor, "rb")
