"""Speed, measured against what it could be: variants interleaved in one process, warm-up left out."""

import copy
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from rich.table import Table
from torch import Tensor

from sepconv import InputError, runs
from sepconv.classifier import ImageClassifier
from sepconv.config import BenchmarkConfig
from sepconv.datasets import Dataset, ImageData, load
from sepconv.measure import WARM_UP, Stopwatch, describe_device, synchronize
from sepconv.recipe import build_optimizer, build_schedule, resolve_precision
from sepconv.terminal import CONSOLE
from sepconv.training import checkpoints, describe_images, find_device, make_trainer
from sepconv.transforms import augment


def loop(config: BenchmarkConfig, overrides: list[str]) -> dict[str, Any]:
    """Training images/s of our loop and of a bare PyTorch one: same images, network, recipe, precision.

    The bare loop is what one would write by hand over tensors in memory: no Lightning, no log, no checkpoint. Both
    train for `config.steps` steps a round, in turns, and a round's rate is over all its steps but the first ones.

    Returns:
        Rates of each round, and the ratios ours / bare of each round with their median and quartiles.

    Raises:
        InputError: for a configuration or data that cannot be used, or too few steps.
    """
    device = find_device(config.trainer)
    L.seed_everything(config.seed, verbose=False)
    dataset = load(config.data)
    steps = len(ImageData(dataset, config.recipe.batch_size, drop_last=True).train_dataloader())
    if not WARM_UP < config.steps <= steps:
        raise InputError(
            f"steps={config.steps} is out of range: an epoch of {dataset.name} has from {WARM_UP + 1} to {steps}"
        )
    precision = resolve_precision(config.recipe.precision, device)
    classifier = ImageClassifier(config.model, asdict(config.recipe), describe_images(dataset))
    bare = BareLoop(copy.deepcopy(classifier), dataset.to(device), precision, config)
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(config.rounds):
        rates["bare"].append(bare.round(config.steps))
        rates["ours"].append(our_round(config, classifier, dataset, precision))
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["bare"], strict=True)]
    return {
        "suite": "loop",
        "model": config.model,
        "data": dataset.name,
        "batch_size": config.recipe.batch_size,
        "precision": precision,
        "steps": config.steps,
        "images_per_second": rates,
        "ratio": {"rounds": ratios, "median": statistics.median(ratios), "quartiles": quartiles(ratios)},
    }


class BareLoop:
    """Trains with nothing but torch: the same images, in the same order, to the same weights as our trainer."""

    def __init__(self, classifier: ImageClassifier, dataset: Dataset, precision: str, config: BenchmarkConfig) -> None:
        self.classifier, self.dataset, self.recipe = classifier.to(dataset.pixels.device), dataset, config.recipe
        self.seed = config.seed
        if self.recipe.channels_last:
            classifier.net.to(memory_format=torch.channels_last)
        self.autocast = precision == "bf16-mixed"

    def round(self, steps: int) -> float:
        """Images a second over `steps` steps but the first ones."""
        device, batch_size = self.dataset.pixels.device, self.recipe.batch_size
        self.generator = torch.Generator(device).manual_seed(self.seed)
        self.optimizer = build_optimizer(self.classifier.net, self.recipe.optimizer)
        self.scheduler = build_schedule(self.optimizer, self.recipe, steps)
        self.classifier.train()
        rows = self.dataset.train
        order = rows[torch.randperm(len(rows), generator=self.generator, device=device)].split(batch_size)
        for step, batch in enumerate(order[:steps]):
            self.step(batch)
            if step + 1 == WARM_UP:
                synchronize(device)
                started = time.perf_counter()
        synchronize(device)
        return (steps - WARM_UP) * batch_size / (time.perf_counter() - started)

    def step(self, rows: Tensor) -> None:
        images, labels = self.dataset[rows]
        with torch.autocast(images.device.type, torch.bfloat16) if self.autocast else nullcontext():
            logits = self.classifier(augment(images, self.recipe.augment, self.generator, self.classifier.fill))
            loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()


def our_round(config: BenchmarkConfig, classifier: ImageClassifier, dataset: Dataset, precision: str) -> float:
    """Images a second of our trainer over one epoch of `config.steps` steps but the first ones, logs and all."""
    stopwatch = Stopwatch(time.time())
    data = ImageData(dataset, config.recipe.batch_size, drop_last=True, seed=config.seed)
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
        trainer_config = replace(config.trainer, limit_batches=config.steps)
        make_trainer(trainer_config, precision, [stopwatch, *checkpoints(Path(folder))], logger, epochs=1).fit(
            classifier, data
        )
    # between() leaves out the first step, which no mark precedes
    return config.recipe.batch_size / statistics.mean(stopwatch.steps["train"][WARM_UP - 1 :])


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
    rounds = f"{len(ratio['rounds'])} rounds, quartiles {low:.3f} to {high:.3f}"
    CONSOLE.print(f"ours / bare: median {ratio['median']:.3f} of {rounds}")
    try:
        folder = Path(config.output).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{config.suite}-{record['data']}-{config.model['name']}-{record['device']['kind']}.json"
        path.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to {config.output} ({error.strerror}): choose another output=") from error
    CONSOLE.print(f"recorded in {path}", soft_wrap=True)
    return record
