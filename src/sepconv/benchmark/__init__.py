"""Speed, measured against what it could be: variants take turns in one call, and warm-up is left out."""

import hashlib
import importlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sepconv import InputError, files
from sepconv.benchmark.journal import Journal
from sepconv.config.keys import BenchmarkConfig
from sepconv.devices import describe_device, find_device
from sepconv.terminal import CONSOLE
from sepconv.training import runs
from sepconv.training.trainer import stoppable

# the record's file of each suite, a module here, whose `measure` makes the record and whose `table` shows it
FILES = {
    "cpu_kernels": "cpu_kernels-threads-{device[threads]}.json",
    "cpu_layers": "cpu_layers-threads-{device[threads]}.json",
    "loop": "loop-{data}-{model[name]}-{batch_size}-{device[kind]}.json",
    "networks": "networks-{data}-{device[kind]}.json",
    "peers": "peers-{data}-{device[kind]}.json",
    "time_to_accuracy": "time_to_accuracy-{data}-{training}-{device[kind]}.json",
}


def benchmark(config: BenchmarkConfig, overrides: list[str]) -> dict[str, Any]:
    """Runs `config.suite`, writes its figures with hardware and versions under `config.output`, and prints them.

    What is measured is kept there at once: the same command, where it was stopped, goes on from there.
    """
    suite = importlib.import_module(f"sepconv.benchmark.{config.suite}")
    folder = Path(config.output)
    with writing(config.output):
        folder.mkdir(parents=True, exist_ok=True)  # before what takes long
    provenance: dict[str, Any] = {
        "device": describe_device(find_device(config.trainer)),
        "command": runs.command_line("benchmark", overrides),
        "git": runs.current_code(),
        "versions": runs.versions(),
    }
    name = hashlib.sha256(provenance["command"].encode(errors="surrogateescape")).hexdigest()[:8]
    journal = Journal(folder / f"{config.suite}-{name}.unfinished", provenance)
    if journal.parts:
        CONSOLE.print(f"goes on from what {journal.path} has", soft_wrap=True)
    with stoppable(lambda: "what is measured is kept, and the same command goes on from there"):
        record = suite.measure(config, journal) | provenance | {"date": time.strftime("%Y-%m-%d")}
        record["git"] = runs.current_code()  # dirty, where it changed under the processes that were started
    path = folder / FILES[config.suite].format(**record)
    files.write(path, json.dumps(record, indent=2) + "\n")
    journal.close()
    suite.table(record).filled().show(CONSOLE)
    if record["git"]["dirty"]:
        CONSOLE.print("of code that is not committed", soft_wrap=True)
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
