"""Speed, measured against what it could be: variants take turns in one call, and warm-up is left out."""

import importlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sepconv import InputError
from sepconv.config import BenchmarkConfig
from sepconv.devices import describe_device, find_device
from sepconv.terminal import CONSOLE
from sepconv.training import runs

# the record's file of each suite, a module here, whose `measure` makes the record and whose `table` shows it
FILES = {
    "cpu_layers": "cpu_layers-{device[kind]}.json",
    "loop": "loop-{data}-{model[name]}-{batch_size}-{device[kind]}.json",
    "networks": "networks-{data}-{device[kind]}.json",
    "peers": "peers-{data}-{device[kind]}.json",
    "time_to_accuracy": "time_to_accuracy-{data}-{training}-{device[kind]}.json",
}


def benchmark(config: BenchmarkConfig, overrides: list[str]) -> dict[str, Any]:
    """Runs `config.suite`, prints its figures, and writes them with hardware and versions under `config.output`."""
    suite = importlib.import_module(f"sepconv.benchmark.{config.suite}")
    folder = Path(config.output).expanduser()
    with writing(config.output):
        folder.mkdir(parents=True, exist_ok=True)  # before what takes long
    record = suite.measure(config) | {
        "device": describe_device(find_device(config.trainer)),
        "date": time.strftime("%Y-%m-%d"),
        "command": runs.command_line("benchmark", overrides),
        "git": runs.git_state(),
        "versions": runs.versions(),
    }
    suite.table(record).filled().show(CONSOLE)
    if record["git"]["dirty"]:
        CONSOLE.print("of code that is not committed", soft_wrap=True)
    path = folder / FILES[config.suite].format(**record)
    with writing(config.output):
        path.write_text(json.dumps(record, indent=2) + "\n")
    CONSOLE.print(f"recorded in {path}", soft_wrap=True)
    if failed := record.get("failed"):
        raise InputError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
    return record


@contextmanager
def writing(output: str) -> Iterator[None]:
    """Raises InputError where the folder `output` takes no record."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {output} ({error.strerror}): choose another output=") from error
