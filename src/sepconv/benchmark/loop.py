"""Speed, measured against what it could be: variants interleaved in one process, warm-up left out."""

import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
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

from sepconv import InputError, cost, runs
from sepconv.classifier import ImageClassifier
from sepconv.config import BenchmarkConfig
from sepconv.datasets import Dataset, ImageData, load
from sepconv.measure import Stopwatch, describe_device, synchronize
from sepconv.recipe import build_optimizer, build_schedule, resolve_precision
from sepconv.terminal import CONSOLE
from sepconv.training import checkpoints, describe_images, find_device, make_trainer
from sepconv.transforms import augment

WARM_UP = 10  # steps left out of a round's rate
TURN = 0.5  # seconds, at least, of a turn of suite=networks


def loop(config: BenchmarkConfig) -> dict[str, Any]:
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
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.optimizer = build_optimizer(classifier.net, self.recipe.optimizer)
        self.scheduler = build_schedule(self.optimizer, self.recipe, config.steps)
        order = torch.randperm(len(dataset.train), generator=self.generator, device=device)
        self.batches = iter(dataset.train[order].split(self.recipe.batch_size))

    def run(self, steps: int) -> None:
        """Makes the next `steps` steps."""
        for rows in islice(self.batches, steps):
            self.step(rows)

    def classify(self, rows: Tensor) -> Tensor:
        """Logits in evaluation."""
        self.classifier.eval()
        images, _ = self.dataset[rows]
        with torch.inference_mode(), self.autocast():
            return self.classifier(images)

    def step(self, rows: Tensor) -> None:
        """One training step."""
        images, labels = self.dataset[rows]
        with self.autocast():
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


def loop_table(record: dict[str, Any]) -> Table:
    """Rates of both loops, and their ratio."""
    ratio = record["ratio"]
    low, high = ratio["quartiles"]
    title = f"{record['model']['name']} on {record['data']}, batches of {record['batch_size']}, {record['precision']}"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = (
        f"ours / bare: median {ratio['median']:.3f} of {len(ratio['turns'])} turns, quartiles {low:.3f} to {high:.3f}"
    )
    for column in ("", "median images/s", "lowest", "highest"):
        table.add_column(column, justify="right")
    for name, rates in record["images_per_second"].items():
        table.add_row(name, *(f"{value:,.0f}" for value in (statistics.median(rates), min(rates), max(rates))))
    return table


def networks(config: BenchmarkConfig) -> dict[str, Any]:
    """Images/s of `config.networks` and of their dense twins, in training and in evaluation, over batch sizes.

    Training is the bare loop's step with the recipe. The two take turns, `config.rounds` each of TURN seconds or more,
    after one that is left out.

    Returns:
        For each network and batch size: MACs, rates of each turn, and ratios separable / dense of each pair of turns.

    Raises:
        InputError: for a configuration or data that cannot be used, or a network without a twin.
    """
    device = find_device(config.trainer)
    dataset = load(config.data)
    images = describe_images(dataset)
    dataset = dataset.to(device)
    precision = resolve_precision(config.recipe.precision, device)
    rows = []
    for name in config.networks:
        for batch_size in config.batch_sizes:
            if batch_size > len(dataset.train):
                raise InputError(
                    f"batch_sizes has {batch_size}: {dataset.name} has {len(dataset.train)} images to train on"
                )
            row: dict[str, Any] = {"network": name, "batch_size": batch_size}
            loops, macs = {}, {}
            for conv in ("separable", "dense"):
                L.seed_everything(config.seed, verbose=False)
                classifier = ImageClassifier({"name": name, "conv": conv}, asdict(config.recipe), images)
                macs[conv] = cost.macs(classifier.net, dataset.shape)
                loops[conv] = BareLoop(classifier, dataset, precision, config)
            row["macs"] = macs
            batch = dataset.train[:batch_size]
            for part, step in (("training", BareLoop.step), ("evaluation", BareLoop.classify)):
                rates: dict[str, list[float]] = {conv: [] for conv in loops}
                for turn in range(config.rounds + 1):
                    for conv, bare in loops.items():
                        rate = batch_size * rate_of(partial(step, bare, batch), device)
                        if turn > 0:
                            rates[conv].append(rate)
                ratios = [a / b for a, b in zip(rates["separable"], rates["dense"], strict=True)]
                row[part] = {"images_per_second": rates, "median": statistics.median(ratios),
                             "quartiles": quartiles(ratios)}  # fmt: skip
            rows.append(row)
            times = ", ".join(f"{part} {row[part]['median']:.2f}" for part in ("training", "evaluation"))
            CONSOLE.print(f"{name}, batches of {batch_size}: separable over dense, {times}", soft_wrap=True)
    return {"suite": "networks", "data": dataset.name, "precision": precision, "networks": rows}


def rate_of(call: Callable[[], Any], device: torch.device) -> float:
    """How often a second `call` runs, over TURN seconds or one call, whichever is longer."""
    calls = 0
    synchronize(device)
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < TURN:
        call()
        calls += 1
        synchronize(device)
    return calls / elapsed


def networks_table(record: dict[str, Any]) -> Table:
    """A row a network and batch size."""
    table = Table(title=f"separable and dense on {record['data']}, {record['precision']}", title_justify="left")
    for column in ("network", "batch", "times fewer\nMACs", "train\nimages/s", "times the\ndense rate",
                   "eval\nimages/s", "times the\ndense rate"):  # fmt: skip
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in record["networks"]:
        cells = [row["network"], str(row["batch_size"]), f"{row['macs']['dense'] / row['macs']['separable']:.2f}"]
        for part in ("training", "evaluation"):
            rates = row[part]["images_per_second"]["separable"]
            cells += [f"{statistics.median(rates):,.0f}", f"{row[part]['median']:.2f}"]
        table.add_row(*cells)
    return table


# of each suite: what measures it, what shows it, and what names its record's file
SUITES: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., Table], tuple[str, ...]]] = {
    "loop": (loop, loop_table, ("data", "network", "batch_size")),
    "networks": (networks, networks_table, ("data",)),
}


def benchmark(config: BenchmarkConfig, overrides: list[str]) -> dict[str, Any]:
    """Runs `config.suite`, prints its figures, and writes them with hardware and versions under `config.output`."""
    measure, show, keys = SUITES[config.suite]
    record = measure(config)
    record |= {
        "device": describe_device(find_device(config.trainer)),
        "date": time.strftime("%Y-%m-%d"),
        "command": runs.command_line("benchmark", overrides),
        "git": runs.git_state(),
        "versions": runs.versions(),
    }
    CONSOLE.print(show(record))
    try:
        folder = Path(config.output).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        named = {"network": config.model["name"], **record}
        path = folder / (
            "-".join([config.suite, *(str(named[key]) for key in keys), record["device"]["kind"]]) + ".json"
        )
        path.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to {config.output} ({error.strerror}): choose another output=") from error
    CONSOLE.print(f"recorded in {path}", soft_wrap=True)
    return record
