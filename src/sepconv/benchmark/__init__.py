"""Speed, measured against what it could be: variants take turns in one call, and warm-up is left out."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from sepconv import InputError
from sepconv.benchmark import loop, networks, peers, time_to_accuracy
from sepconv.config import BenchmarkConfig
from sepconv.devices import describe_device, find_device
from sepconv.tables import print_whole
from sepconv.terminal import CONSOLE
from sepconv.training import runs

# of each suite: what measures it, what shows it, and what names its record's file
SUITES: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., Table], tuple[str, ...]]] = {
    "loop": (loop.measure, loop.table, ("data", "network", "batch_size")),
    "networks": (networks.measure, networks.table, ("data",)),
    "time_to_accuracy": (time_to_accuracy.measure, time_to_accuracy.table, ("data", "training")),
    "peers": (peers.measure, peers.table, ("data",)),
}


def benchmark(config: BenchmarkConfig, overrides: list[str]) -> dict[str, Any]:
    """Runs `config.suite`, prints its figures, and writes them with hardware and versions under `config.output`."""
    measure, show, keys = SUITES[config.suite]
    folder = Path(config.output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before what takes long
    except OSError as error:
        raise unwritable(config, error) from error
    record = measure(config)
    record |= {
        "device": describe_device(find_device(config.trainer)),
        "date": time.strftime("%Y-%m-%d"),
        "command": runs.command_line("benchmark", overrides),
        "git": runs.git_state(),
        "versions": runs.versions(),
    }
    print_whole(CONSOLE, show(record))
    if record["git"]["dirty"]:
        CONSOLE.print("of code that is not committed", soft_wrap=True)
    named = {"network": config.model["name"], **record}
    path = folder / ("-".join([config.suite, *(str(named[key]) for key in keys), record["device"]["kind"]]) + ".json")
    try:
        path.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise unwritable(config, error) from error
    CONSOLE.print(f"recorded in {path}", soft_wrap=True)
    if failed := record.get("failed"):
        raise InputError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
    return record


def unwritable(config: BenchmarkConfig, error: OSError) -> InputError:
    """The error for a folder that takes no record."""
    return InputError(f"cannot write to {config.output} ({error.strerror}): choose another output=")
