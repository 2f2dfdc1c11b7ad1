"""Files that are whole or not there, and folders that one process writes at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sepconv import InputError


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


@contextmanager
def lock(folder: Path, work: str) -> Iterator[None]:
    """Holds `folder` for this process, until it ends in whatever way.

    Raises InputError where another process holds it, for `work`: trained, say.
    """
    try:
        with FileLock(folder / ".lock", blocking=False):
            yield
    except Timeout as error:
        raise InputError(f"{folder} is being {work} by another process: wait for it, or stop it") from error
    except PermissionError as error:
        if error.filename != str(folder / ".lock"):
            raise
        raise InputError(f"cannot write to {folder} ({error.strerror})") from error
