"""What a run shows on the terminal, and its log."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

CONSOLE = Console(highlight=False)


def epochs(count: int) -> str:
    """So many epochs, in words."""
    return f"{count} epoch{'s' * (count != 1)}"


@contextmanager
def logged(run: Path) -> Iterator[None]:
    """Sends the log to the run's `train.log`; our own lines go to standard error too, where no bar is shown."""
    logging.captureWarnings(True)
    logging.getLogger().setLevel(logging.INFO)
    file = logging.FileHandler(run / "train.log")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: dict[logging.Logger, logging.Handler] = {logging.getLogger(): file}
    if not (sys.stdout.isatty() or CONSOLE.quiet):
        handlers[logging.getLogger("sepconv")] = logging.StreamHandler()
    for logger, handler in handlers.items():
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, handler in handlers.items():
            logger.removeHandler(handler)
        file.close()


@contextmanager
def hushed() -> Iterator[None]:
    """Keeps what a training says of itself off the terminal."""
    CONSOLE.quiet = True
    try:
        yield
    finally:
        CONSOLE.quiet = False


def quiet() -> None:
    """Keeps what Lightning says of itself off the terminal; a run's log has it."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for category in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module="lightning")
