"""How long a training takes to a stated test accuracy, in a process that is warm and in one that starts afresh.

Warm trainings follow each other in this process, after one of a single epoch, which is left out with all that only a
first training pays: imports, compilation, first calls. Their seconds are `fit_seconds`: whitening, steps, validation
and checkpoints, not the loading of the data. A cold training is a process of its own with an empty compile cache, timed
from its start to its end, with everything in it.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from sepconv import InputError
from sepconv.arguments import training_arguments
from sepconv.benchmark.journal import Journal
from sepconv.config import REPOSITORY
from sepconv.config.keys import TimeToAccuracyConfig, TrainConfig, Training
from sepconv.data.datasets import Dataset, load
from sepconv.study.statistics import Estimate, spread, write_spread
from sepconv.tables import Column, Table
from sepconv.terminal import CONSOLE, Progress, hushed, track
from sepconv.training.runs import Result, read_result
from sepconv.training.train import train

TESTS = {"test_accuracy": "test accuracy", "test_accuracy_tta": "with test-time views"}
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # where torch.compile leaves what it made


def measure(config: TimeToAccuracyConfig, journal: Journal) -> dict[str, Any]:
    """Test accuracy and time of the configuration's training, warm (`config.rounds`) and cold (`config.cold_rounds`).

    Both have the seeds seed, seed + 1, ... A cold training takes turns with a process that does nothing but import
    Lightning, which is what its way to the first step is set against. The cold ones come first; after `config.seconds`
    no warm one begins but the first.

    Returns:
        Of the warm and of the cold runs what `judge_runs` gives; of the cold ones also the seconds of the process and
        to the first step, and of each pair of turns the ratio first step / import.

    Raises:
        InputError: for a configuration or data that cannot be used, or a loss that diverges.
    """
    started = time.perf_counter()
    training, dataset = configured(config), load(config.data)
    warm_up(training, dataset)
    overrides = training_arguments()
    cold: list[dict[str, Any]] = []
    for seed in track(range(config.seed, config.seed + config.cold_rounds), "benchmark: cold training"):
        cold.append(result := journal.part(f"cold, seed {seed}", partial(train_cold, [*overrides, f"seed={seed}"])))
        CONSOLE.print(f"cold, seed {seed}: {result['process_seconds']:.2f} s, {result['test_accuracy']:.2%}")
    warm: list[dict[str, Any]] = []
    for seed in track(range(config.seed, config.seed + config.rounds), "benchmark: warm training"):
        if warm and config.seconds is not None and time.perf_counter() - started > config.seconds:
            break
        warm.append(result := journal.part(f"warm, seed {seed}", partial(train_warm, training, dataset, seed)))
        CONSOLE.print(f"warm, seed {seed}: {result['fit_seconds']:.2f} s, {result['test_accuracy']:.2%}")
    processes, imports = ([result[key] for result in cold] for key in ("process_seconds", "import_seconds"))
    first_steps = [step for result in cold if (step := result["seconds_to_first_step"]) is not None]
    return {
        "suite": "time_to_accuracy",
        "training": HydraConfig.get().runtime.choices["experiment"] or config.model["name"],
        "model": config.model,
        "data": config.data.name,
        "recipe": asdict(config.recipe),
        **{key: warm[0][key] for key in ("images", "parameters", "macs", "precision")},
        "target": config.target,
        "seed": config.seed,
        "warm": judge_runs(warm, config.target),
        "cold": judge_runs(cold, config.target) | {"seconds": spread(processes)},
        "start": {
            "seconds_to_first_step": spread(first_steps),
            "import_lightning_seconds": spread(imports),
            "ratio": spread([first / whole for first, whole in zip(first_steps, imports, strict=True)]),
        },
    }


def configured(config: Training) -> TrainConfig:
    """The training that the configuration describes."""
    return TrainConfig(data=config.data, model=config.model, recipe=config.recipe, trainer=config.trainer,
                       seed=config.seed, runs="")  # fmt: skip


def warm_up(training: TrainConfig, dataset: Dataset) -> None:
    """One epoch of `training`, for what only the first training of a process pays."""
    with Progress("benchmark: warm-up", 1):
        train_quietly(replace(training, recipe=replace(training.recipe, epochs=1)), dataset)


def train_warm(training: TrainConfig, dataset: Dataset, seed: int) -> dict[str, Any]:
    """The figures of a training in this process."""
    return asdict(train_quietly(replace(training, seed=seed), dataset))


def train_cold(overrides: list[str]) -> dict[str, Any]:
    """The figures of a training in a process of its own, with the seconds of that and of one that imports Lightning."""
    result, seconds = train_afresh(overrides)
    return asdict(result) | {
        "process_seconds": seconds,
        "import_seconds": process_seconds(["-c", "import lightning"]),
    }


def train_quietly(training: TrainConfig, dataset: Dataset) -> Result:
    """The figures of a training here, on the images that it describes; its run is not kept."""
    with tempfile.TemporaryDirectory() as folder, hushed():
        _, result = train(replace(training, runs=folder), [], time.time(), dataset)
    return result


def train_afresh(overrides: list[str]) -> tuple[Result, float]:
    """The figures of scripts/train.py in a process with an empty compile cache, and the process's seconds."""
    with tempfile.TemporaryDirectory() as folder:
        script = str(REPOSITORY / "scripts" / "train.py")
        caches = {cache: f"{folder}/{cache}" for cache in CACHES}
        seconds = process_seconds([script, *overrides, f"runs={folder}/runs"], caches)
        (path,) = Path(folder, "runs").rglob("result.json")
        return read_result(path.parent), seconds


def process_seconds(arguments: list[str], environment: dict[str, str] | None = None) -> float:
    """Seconds of a Python process from its start to its end. Raises InputError for a mistake of the user's in it."""
    started = time.perf_counter()
    command = [sys.executable, *arguments]
    process = subprocess.run(command, env=os.environ | (environment or {}), capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if process.returncode == 2:  # as sepconv.cli ends a command
        raise InputError(process.stderr.strip().removeprefix("error: "))
    if process.returncode != 0:
        raise RuntimeError(f"python {' '.join(arguments)} ended with status {process.returncode}: {process.stderr}")
    return seconds


def judge_runs(results: list[dict[str, Any]], target: float) -> dict[str, Any]:
    """`judge` of `test_accuracy`, and of `test_accuracy_tta` where all runs were tested so; and `fit_seconds`."""
    kinds = [kind for kind in TESTS if all(result.get(kind) is not None for result in results)]
    accuracies = {kind: judge([result[kind] for result in results], target) for kind in kinds}
    return accuracies | {"fit_seconds": spread([result["fit_seconds"] for result in results])}


def judge(accuracies: list[float], target: float) -> dict[str, Any]:
    """Accuracies of each run, their mean with its 95 % interval, and which of them come to `target`."""
    estimate = Estimate.of(accuracies)
    successes = [accuracy >= target - 1e-9 for accuracy in accuracies]
    return {
        "turns": accuracies,
        **asdict(estimate),
        "share_at_target": sum(successes) / len(successes),
        "mean_reaches_target": estimate.mean >= target - 1e-9,
    }


def accuracy_columns(target: float) -> list[Column]:
    """Of a part of a record: mean accuracies with their intervals, and how many trainings came to `target`."""

    def write(kind: str) -> Callable[[dict[str, Any]], str]:
        keys = ("n", "mean", "low", "high")
        return lambda part: Estimate(*(part[kind][key] for key in keys)).percent() if kind in part else ""

    return [
        Column("n", lambda part: str(part["test_accuracy"]["n"])),
        *(Column(heading, write(kind)) for kind, heading in TESTS.items()),
        Column(f"trainings at {100 * target:g} %", lambda part: f"{part['test_accuracy']['share_at_target']:.0%}"),
    ]


def table(record: dict[str, Any]) -> Table:
    """A row for the warm runs and one for the cold ones."""
    warm, cold = ({"start": start, **record["start"], **record[start]} for start in ("warm", "cold"))

    def of_cold(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda part: write_spread(part[key]) if part["start"] == "cold" else ""

    columns = [
        Column("start", lambda part: part["start"]),
        *accuracy_columns(record["target"]),
        Column("fit (s)", lambda part: write_spread(part["fit_seconds"])),
        Column("process (s)", of_cold("seconds")),
        Column("to the first step (s)", of_cold("seconds_to_first_step")),
        Column('over "import lightning"', of_cold("ratio")),
    ]
    title = f"{record['training']} on {record['data']}, {record['precision']}, {record['parameters']:,} parameters"
    return Table(title, columns, [warm, cold])
