"""What a command shows on the terminal: what it found, how far it is; and a run's log."""

import contextlib
import logging
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.text import Text
from tqdm import tqdm

from sepconv.text import printable

T = TypeVar("T")

BAR = "{desc} {n_fmt} of {total_fmt} |{bar}| {elapsed}{postfix}"
# a line that tells how far a work is, which is none of an error
PROGRESS_LINE = re.compile(r"(?!error: )[a-z][^:]*: \D*[\d,]+ of [\d,]+([,;] .*)?")
REFRESHED = 1.0  # seconds between changes of a bar
# where there is none: seconds until the first line, from one line to the next, and of a work that gets none
FIRST, EVERY, SHORT = 10.0, 60.0, 5.0


class Output(Console):
    """Standard output, on which a bar makes way for a line.

    Text is shown as it is: brackets are no markup, and what a terminal would obey is an escape.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        with tqdm.external_write_mode(sys.stdout) if ACTIVE else contextlib.nullcontext():
            super().print(*objects, **options)


CONSOLE = Output(highlight=False, markup=False, emoji=False)


class Progress:
    """How far a long work is: by a bar on a terminal, elsewhere by a line on standard error, a minute after the last.

    To be entered, and told by `reach` how much is done. One within another is shown with it, in one line; one that
    begins while the console is quiet is not shown.

    Args:
        what: is done, as it stands before "3 of 9": "training: step", say.
        total: how many there are, where that is known.
        done: how many of them were done before.
    """

    def __init__(self, what: str, total: int | None = None, done: int = 0) -> None:
        self.what, self.total, self.first, self.done, self.detail = what, total, done, done, ""
        self.started = time.monotonic()
        self.bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        if not CONSOLE.quiet:
            if interactive():
                self.bar = tqdm(desc=self.what, total=self.total, initial=self.first, leave=False, file=sys.stderr,
                                bar_format=BAR, dynamic_ncols=True, delay=REFRESHED)  # fmt: skip
            ACTIVE.append(self)
            if len(ACTIVE) == 1:
                TICKER.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self in ACTIVE:
            ACTIVE.remove(self)
            if not ACTIVE:
                TICKER.stop()
            if self.bar is not None:
                self.bar.clear()
                self.bar.close()

    def reach(self, done: int, detail: str = "") -> None:
        """So many are `done` by now; `detail` says more of where the work is."""
        self.done, self.detail = done, detail

    def refresh(self) -> None:
        """Draws the bar anew."""
        if self.bar is None:
            return
        self.bar.n = self.done
        self.bar.set_postfix_str(", ".join(filter(None, [self.left(), self.detail])), refresh=False)
        self.bar.refresh()

    def left(self) -> str:
        """The time left, at the pace until now; nothing where that cannot be told."""
        done, seconds = self.done - self.first, time.monotonic() - self.started
        if self.total is None or done <= 0:
            return ""
        return f"{duration(seconds / done * max(0, self.total - self.done))} left"

    def __str__(self) -> str:
        count = f"{self.what} {self.done:,}" + ("" if self.total is None else f" of {self.total:,}")
        return ", ".join(filter(None, [count, self.detail, self.left()]))


class Ticker:
    """Shows all that is under way, from a thread of its own: one step of the work may take long."""

    due = 0.0  # the moment of the next line, by the monotonic clock

    def start(self) -> None:
        if self.due == 0:
            self.due = time.monotonic() + FIRST
        self.stopped = threading.Event()
        threading.Thread(target=self.run, args=[self.stopped], daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()

    def run(self, stopped: threading.Event) -> None:
        drawn = interactive()
        while not stopped.wait(REFRESHED if drawn else max(SHORT, self.due - time.monotonic())):
            with contextlib.suppress(OSError, ValueError):  # a closed terminal
                if drawn:
                    for progress in list(ACTIVE):
                        progress.refresh()
                else:
                    print("; ".join(map(str, ACTIVE)), file=sys.stderr, flush=True)
                    self.due = time.monotonic() + EVERY


ACTIVE: list[Progress] = []  # what is under way, from the outermost
TICKER = Ticker()


def track(sequence: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items of `sequence`, one after another, with a Progress of `what` that counts those done.

    Args:
        total: their number, where `sequence` does not know it.
    """
    if total is None and isinstance(sequence, Sized):
        total = len(sequence)
    with Progress(what, total) as progress:
        for done, item in enumerate(sequence, 1):
            yield item
            progress.reach(done)


def clear() -> None:
    """Takes what is under way off the terminal, where an error has ended it."""
    for progress in reversed(ACTIVE[:]):
        progress.__exit__()


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def interactive() -> bool:
    """Whether bars are shown: standard error is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


def epochs(count: int) -> str:
    """So many epochs, in words."""
    return f"{count} epoch{'s' * (count != 1)}"


@contextmanager
def logged(run: Path) -> Iterator[None]:
    """Sends the log to the run's `train.log`; our own lines to standard error too, warnings alone where it is quiet."""
    logging.captureWarnings(True)
    logging.getLogger().setLevel(logging.INFO)
    file = RunLog(run / "train.log", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    screen = ScreenLog()
    screen.setFormatter(PlainFormatter())
    screen.setLevel(logging.WARNING if CONSOLE.quiet else logging.INFO)
    handlers: dict[logging.Logger, logging.Handler] = {logging.getLogger(): file, logging.getLogger("sepconv"): screen}
    for logger, handler in handlers.items():
        logger.addHandler(handler)
    excepthook, threading.excepthook = threading.excepthook, note_thread
    try:
        yield
    finally:
        threading.excepthook = excepthook
        for logger, handler in handlers.items():
            logger.removeHandler(handler)
        with contextlib.suppress(OSError):
            file.close()


class PlainFormatter(logging.Formatter):
    """Lines of text that is only read, whatever names are in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().formatMessage(record).split("\n")))


class ScreenLog(logging.StreamHandler[Any]):
    """Lines on standard error, for which a bar makes way."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(sys.stderr) if ACTIVE else contextlib.nullcontext():
            super().emit(record)


class RunLog(logging.FileHandler):
    """A run's log: a full disk costs lines of it, not the training."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def note_thread(error: threading.ExceptHookArgs) -> None:
    """Logs what ended a thread, such as TensorBoard's writer; the next to give it work is told too."""
    logging.getLogger().error("%s: %s", error.thread and error.thread.name, error.exc_value)


@contextmanager
def kept(what: str) -> Iterator[None]:
    """Within it, an error of any kind costs `what` is written, a picture say, and a line in the log; nothing more."""
    try:
        yield
    except Exception as error:
        reason = printable(" ".join(str(error).split()))
        logging.getLogger(__name__).warning("%s could not be written (%s: %s)", what, type(error).__name__, reason)


@contextmanager
def hushed() -> Iterator[None]:
    """Keeps what a training says of itself off the terminal."""
    before, CONSOLE.quiet = CONSOLE.quiet, True
    try:
        yield
    finally:
        CONSOLE.quiet = before


def quiet() -> None:
    """Keeps what Lightning says of itself off the terminal; a run's log has it."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for category in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module="lightning")
