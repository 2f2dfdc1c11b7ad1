"""Speed, measured against what it could be: variants interleaved in one process, warm-up left out."""

import copy
import json
import math
import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.table import Table
from torch import Tensor

from sepconv import InputError, runs
from sepconv.classifier import ImageClassifier
from sepconv.config import BenchmarkConfig
from sepconv.datasets import Dataset, ImageData, load
from sepconv.measure import Stopwatch, describe_device, synchronize
from sepconv.recipe import build_optimizer, build_schedule, resolve_precision
from sepconv.terminal import CONSOLE
from sepconv.training import checkpoints, describe_images, find_device, make_trainer
from sepconv.transforms import augment

WARM_UP = 10  # steps left out of a round's rate


def loop(config: BenchmarkConfig, overrides: list[str]) -> dict[str, Any]:
    """Training images/s of our loop and of a bare PyTorch one: same images, network, recipe, precision.

    The bare loop is what one would write by hand over tensors in memory: no Lightning, no log, no checkpoint. The
    two take turns every few steps, so that what else the machine does meets both, in `config.rounds` trainings of
    `config.steps` steps.

    Returns:
        Rates of each turn, and the ratios ours / bare of each pair of turns with their median and quartiles.

    Raises:
        InputError: for a configuration or data that cannot be used, or too few steps.
    """
    device = find_device(config.trainer)
    L.seed_everything(config.seed, verbose=False)
    dataset = load(config.data)
    steps = ImageData(dataset, config.recipe.batch_size, drop_last=True).steps
    if not WARM_UP < config.steps <= steps:
        raise InputError(
            f"steps={config.steps} is out of range: an epoch of {dataset.name} has from {WARM_UP + 1} to {steps}"
        )
    precision = resolve_precision(config.recipe.precision, device)
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(config.rounds):
        classifier = ImageClassifier(config.model, asdict(config.recipe), describe_images(dataset))
        turns = Turns(BareLoop(copy.deepcopy(classifier), dataset.to(device), precision, config))
        train(classifier, dataset, precision, config, turns)
        for name, measured in turns.rates.items():
            rates[name] += measured
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["bare"], strict=True)]
    return {
        "suite": "loop",
        "model": config.model,
        "data": dataset.name,
        "batch_size": config.recipe.batch_size,
        "precision": precision,
        "steps": config.steps,
        "images_per_second": rates,
        "ratio": {"turns": ratios, "median": statistics.median(ratios), "quartiles": quartiles(ratios)},
    }


class BareLoop:
    """Trains with nothing but torch: the same images, in the same order, to the same weights as our trainer."""

    def __init__(self, classifier: ImageClassifier, dataset: Dataset, precision: str, config: BenchmarkConfig) -> None:
        device = dataset.pixels.device
        self.classifier, self.dataset, self.recipe = classifier.to(device).train(), dataset, config.recipe
        if self.recipe.channels_last:
            classifier.net.to(memory_format=torch.channels_last)
        self.autocast = precision == "bf16-mixed"
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.optimizer = build_optimizer(classifier.net, self.recipe.optimizer)
        self.scheduler = build_schedule(self.optimizer, self.recipe, config.steps)
        order = torch.randperm(len(dataset.train), generator=self.generator, device=device)
        self.batches = iter(dataset.train[order].split(self.recipe.batch_size))

    def run(self, steps: int) -> None:
        """Makes the next `steps` steps."""
        for rows in islice(self.batches, steps):
            self.step(rows)

    def step(self, rows: Tensor) -> None:
        images, labels = self.dataset[rows]
        with torch.autocast(images.device.type, torch.bfloat16) if self.autocast else nullcontext():
            logits = self.classifier(augment(images, self.recipe.augment, self.generator, self.classifier.fill))
            loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()


class Turns(Callback):
    """Has the bare loop make as many steps after each group of ours, and times both: images a second of each turn."""

    def __init__(self, bare: BareLoop) -> None:
        self.bare = bare
        self.rates: dict[str, list[float]] = {"bare": [], "ours": []}
        self.steps = 0

    def clock(self) -> float:
        synchronize(self.bare.dataset.pixels.device)
        return time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started = self.clock()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        steps = math.ceil(len(batch) / self.bare.recipe.batch_size)
        ended = self.clock()
        self.bare.run(steps)
        bare_ended = self.clock()
        if self.steps >= WARM_UP:
            self.rates["ours"].append(len(batch) / (ended - self.started))
            self.rates["bare"].append(len(batch) / (bare_ended - ended))
        self.steps += steps
        self.started = self.clock()


def train(
    classifier: ImageClassifier, dataset: Dataset, precision: str, config: BenchmarkConfig, callback: Callback
) -> None:
    """One epoch of `config.steps` steps of our trainer, logs, checkpoints and all."""
    data = ImageData(dataset, config.recipe.batch_size, drop_last=True, seed=config.seed, limit=config.steps)
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
        callbacks = [Stopwatch(time.time()), *checkpoints(Path(folder)), callback]
        make_trainer(config.trainer, precision, callbacks, logger, epochs=1).fit(classifier, data)


def quartiles(values: list[float]) -> list[float]:
    """The first and third quartile."""
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


SUITES = {"loop": loop}


def benchmark(config: BenchmarkConfig, overrides: list[str]) -> dict[str, Any]:
    """Runs `config.suite`, prints its figures, and writes them with hardware and versions under `config.output`."""
    record = SUITES[config.suite](config, overrides)
    record |= {
        "device": describe_device(find_device(config.trainer)),
        "date": time.strftime("%Y-%m-%d"),
        "command": runs.command_line("benchmark", overrides),
        "git": runs.git_state(),
        "versions": runs.versions(),
    }
    title = f"{config.suite}: {config.model['name']} on {record['data']}, batches of {record['batch_size']}"
    table = Table(title=f"{title}, {record['precision']}", title_justify="left")
    for column in ("", "median images/s", "lowest", "highest"):
        table.add_column(column, justify="right")
    for name, rates in record["images_per_second"].items():
        table.add_row(name, *(f"{value:,.0f}" for value in (statistics.median(rates), min(rates), max(rates))))
    ratio = record["ratio"]
    low, high = ratio["quartiles"]
    CONSOLE.print(table)
    turns = f"{len(ratio['turns'])} turns, quartiles {low:.3f} to {high:.3f}"
    CONSOLE.print(f"ours / bare: median {ratio['median']:.3f} of {turns}")
    try:
        folder = Path(config.output).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        kind = record["device"]["kind"]
        name = f"{config.suite}-{record['data']}-{config.model['name']}-{record['batch_size']}-{kind}.json"
        path = folder / name
        path.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to {config.output} ({error.strerror}): choose another output=") from error
    CONSOLE.print(f"recorded in {path}", soft_wrap=True)
    return record
