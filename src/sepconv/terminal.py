"""What a run shows on the terminal, and its log."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sepconv.config import TrainConfig
from sepconv.data.datasets import Dataset

CONSOLE = Console(highlight=False)


def epochs(count: int) -> str:
    """So many epochs, in words."""
    return f"{count} epoch{'s' * (count != 1)}"


def introduce(
    config: TrainConfig, dataset: Dataset, steps: int, parameters: int, macs: int, precision: str,
    device: dict[str, Any], run: Path,
) -> None:  # fmt: skip
    """Prints what is trained on what."""
    channels, height, width = dataset.shape
    sizes = f"{len(dataset.train):,} train, {len(dataset.validation):,} validation, {len(dataset.test):,} test"
    recipe = config.recipe
    for name, value in {
        "network": f"{config.model['name']}: {parameters:,} parameters, {macs:,} MACs an image",
        "data": f"{dataset.name}: {sizes}; {height} x {width} x {channels}, {len(dataset.classes)} classes",
        "recipe": f"{recipe.optimizer['name']}, {recipe.schedule}, {epochs(recipe.epochs)} of {steps} batches of "
        f"{recipe.batch_size}, {precision}, seed {config.seed}",
        "device": ", ".join(str(value) for value in device.values()),
        "run": str(run),
    }.items():
        CONSOLE.print(f"[bold]{name:<8}[/] {value}", soft_wrap=True)


def conclude(result: dict[str, Any], run: Path) -> None:
    """Prints the closing table."""

    def rate(images_per_second: float | None) -> str:
        return "too short to measure" if images_per_second is None else f"{images_per_second:,.0f} images/s"

    first = result["seconds_to_first_step"]
    tta = {} if result["test_accuracy_tta"] is None else {"test, several views": f"{result['test_accuracy_tta']:.2%}"}
    title = f"{result['model']} on {result['data']}, seed {result['seed']}"
    table = Table("", title, show_edge=False, pad_edge=False)
    for name, value in {
        "test accuracy": f"{result['test_accuracy']:.2%} of {result['images']['test']:,} images",
        **tta,
        "validation": f"{result['val_accuracy']:.2%} of {result['images']['validation']:,}",
        "parameters": f"{result['parameters']:,}",
        "MACs": f"{result['macs']:,} an image",
        "training": rate(result["train_images_per_second"]),
        "evaluation": rate(result["eval_images_per_second"]),
        "fit": f"{result['fit_seconds']:.1f} s, {epochs(result['epochs'])}",
        "first step": "none was left to do" if first is None else f"{first:.1f} s after the start",
        "peak memory": f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB",
    }.items():
        table.add_row(name, value)
    CONSOLE.print()
    CONSOLE.print(table)
    CONSOLE.print(f"\nrecorded in {run}", soft_wrap=True)


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
