"""Standard output and error that can fail without ending the work: a result does not depend on who reads along."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Outlet(io.FileIO):
    """A file descriptor that takes everything; what cannot be written is lost, and `failure` says why."""

    failure: OSError | None = None

    def write(self, data: "io.ReadableBuffer") -> int:  # type: ignore[name-defined]
        size = memoryview(data).nbytes
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return size


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within it, printing never fails: characters that the terminal does not have are escaped, what a full disk or a
    reader that has gone does not take is lost.

    Ends the program with status 2 and a line where standard output was lost, but for a reader (`| head`) that is gone.
    """
    fill_descriptors()
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    outlets = {name: open_outlet(stream) for name, stream in streams.items()}
    for name, outlet in outlets.items():
        setattr(sys, name, outlet)
    try:
        yield
        sys.stdout.flush()
        failure = getattr(getattr(sys.stdout.buffer, "raw", None), "failure", None)
        if failure is not None and failure.errno != errno.EPIPE:
            sys.stderr.write(
                f"error: standard output took no more ({failure.strerror}): what followed was not printed\n"
            )
            raise SystemExit(2)
    finally:
        for name, outlet in outlets.items():
            outlet.flush()
            setattr(sys, name, streams[name])


def open_outlet(stream: TextIO | None) -> TextIO:
    """What is written to in place of `stream`; nothing is where it is closed."""
    try:
        assert stream is not None
        stream.flush()
        outlet = Outlet(stream.fileno(), "w", closefd=False)
    except (AssertionError, OSError, ValueError):  # closed, or no file
        return open(os.devnull, "w")
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream is sys.stderr or outlet.isatty(),
    )


def fill_descriptors() -> None:
    """Opens 0, 1 and 2 where they are closed: the next file would get their number, and what libraries print."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
