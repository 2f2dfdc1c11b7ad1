"""Our training loop against a bare PyTorch one."""

import copy
import math
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from sepconv.benchmark.journal import Journal
from sepconv.config.keys import LoopConfig, TrainerConfig
from sepconv.config.rules import check
from sepconv.data.datasets import Dataset, load
from sepconv.data.module import ImageData
from sepconv.devices import find_device, prepare_memory, resolve_precision, synchronize
from sepconv.study.statistics import spread, write_spread
from sepconv.tables import Column, Table
from sepconv.terminal import track
from sepconv.training.callbacks import Monitor, Stopwatch
from sepconv.training.checkpoints import make_checkpoints
from sepconv.training.classifier import ImageClassifier
from sepconv.training.recipe import build_optimizer, build_schedule
from sepconv.training.step import TrainingStep, resolve_step
from sepconv.training.train import make_classifier
from sepconv.training.trainer import make_trainer
from sepconv.training.whitening import Whitening, find_stem, whiten

WARM_UP = 10  # steps left out of a round's rate


def measure(config: LoopConfig, journal: Journal) -> dict[str, Any]:
    """Training images/s of our loop and of a bare PyTorch one: same images, network, recipe, precision.

    The bare loop is what one would write by hand over tensors in memory: no Lightning, no log, no checkpoint. The
    two take turns every few steps, so that what else the machine does meets both, in `config.rounds` trainings of an
    epoch of `config.steps` steps.

    Returns:
        Rates of each turn, and the ratios ours / bare of each pair of turns with their median and quartiles.

    Raises:
        InputError: for a configuration or data that cannot be used, or too few steps.
    """
    device = find_device(config.trainer)
    dataset = load(config.data)
    check(config.steps > WARM_UP, "steps", config.steps, f"{WARM_UP + 1} or more, as the first {WARM_UP} are left out")
    recipe = replace(config.recipe, drop_last=True, epoch_images=config.steps * config.recipe.batch_size)
    precision = resolve_precision(config.recipe.precision, device)
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    measure_round = partial(run_round, replace(config, recipe=recipe), dataset, precision)
    for turn in track(range(config.rounds), "benchmark: round"):
        measured = journal.part(f"round {turn}", partial(measure_round, turn))
        for name in rates:
            rates[name] += measured[name]
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["bare"], strict=True)]
    return {
        "suite": "loop",
        "model": config.model,
        "data": dataset.name,
        "batch_size": config.recipe.batch_size,
        "precision": precision,
        "step": measured["step"],
        "steps": config.steps,
        "images_per_second": rates,
        "ratio": spread(ratios),
    }


def run_round(config: LoopConfig, dataset: Dataset, precision: str, turn: int) -> dict[str, Any]:
    """The rates of both loops in a training, and the form of their step."""
    L.seed_everything(config.seed + turn, verbose=False)
    classifier = make_classifier(config.model, config.recipe, dataset)
    copied = copy.deepcopy(classifier)
    if config.recipe.whiten:
        whiten(copied, dataset)
    bare = BareLoop(copied, dataset, precision, config.steps, config.seed, config.trainer)
    turns = Turns(bare)
    train(classifier, dataset, precision, config, turns)
    return {**turns.rates, "step": bare.form}


class BareLoop:
    """Trains with nothing but torch: the same images, in the same order, to the same weights as our trainer.

    Args:
        classifier: trained in place, by its recipe; whitened, where the recipe says so.
        steps: of the whole training, which the learning rate's schedule is over.
        seed: draws the order of the images and the augmentation.
        trainer: says the device and the form of the step.
    """

    def __init__(self, classifier: ImageClassifier, dataset: Dataset, precision: str, steps: int, seed: int,
                 trainer: TrainerConfig) -> None:  # fmt: skip
        prepare_memory()  # as our trainer does, which sets this flag too
        torch.backends.cudnn.benchmark = not trainer.deterministic
        device, recipe = find_device(trainer), classifier.recipe
        self.classifier = classifier.to(device).train()
        classifier.setup("fit")
        if recipe.whiten:
            find_stem(classifier.net).requires_grad_(False)
        self.data = ImageData(dataset, recipe, device, seed)
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
        optimizer = build_optimizer(classifier.net, recipe.optimizer)
        self.scheduler = build_schedule(optimizer, recipe, steps)
        self.form = resolve_step(trainer, device, optimizer)
        self.update = TrainingStep(
            classifier.net, classifier.normalize, classifier.fill, self.data, recipe, optimizer, self.form, precision
        )
        groups = chain.from_iterable(repeat(self.data.train_dataloader()))
        self.batches = chain.from_iterable(rows.split(recipe.batch_size) for rows in groups)

    def run(self, steps: int) -> None:
        """Makes the next `steps` steps."""
        for rows in islice(self.batches, steps):
            self.step(rows)

    def step(self, rows: Tensor) -> None:
        """One training step."""
        self.update(rows)
        self.scheduler.step()

    def classify(self, rows: Tensor) -> Tensor:
        """Logits in evaluation."""
        self.classifier.eval()
        images, _ = self.data.dataset[rows]
        with torch.inference_mode(), self.autocast():
            return self.classifier(images)


class Turns(Callback):
    """Has the bare loop make as many steps after each group of ours, and times both: images a second of each turn."""

    def __init__(self, bare: BareLoop) -> None:
        self.bare = bare
        self.rates: dict[str, list[float]] = {"bare": [], "ours": []}
        self.steps = 0

    def clock(self) -> float:
        synchronize(self.bare.data.dataset.pixels.device)
        return time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started = self.clock()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        steps = math.ceil(len(batch) / self.bare.data.batch_size)
        ended = self.clock()
        self.bare.run(steps)
        bare_ended = self.clock()
        if self.steps >= WARM_UP:
            self.rates["ours"].append(len(batch) / (ended - self.started))
            self.rates["bare"].append(len(batch) / (bare_ended - ended))
        self.steps += steps
        self.started = self.clock()


def train(
    classifier: ImageClassifier, dataset: Dataset, precision: str, config: LoopConfig, callback: Callback
) -> None:
    """One epoch of `config.steps` steps of our trainer, logs, checkpoints and all."""
    device = find_device(config.trainer)
    classifier.form = resolve_step(config.trainer, device, build_optimizer(classifier.net, classifier.recipe.optimizer))
    data = ImageData(dataset, classifier.recipe, device, config.seed, limit=config.steps)
    whitening = [Whitening(fresh=True)] if classifier.recipe.whiten else []
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
        checkpoints = make_checkpoints(Path(folder), config.trainer.checkpoint_seconds)
        callbacks = [Stopwatch(time.time()), *whitening, Monitor(), *checkpoints, callback]
        make_trainer(config.trainer, precision, callbacks, logger, epochs=1).fit(classifier, data)


def table(record: dict[str, Any]) -> Table:
    """Rates of both loops, and their ratio, pair by pair of turns."""
    rates = record["images_per_second"]
    columns = [
        Column("network", lambda record: record["model"]["name"]),
        Column("batch size", lambda record: str(record["batch_size"])),
        Column("ours, images/s", lambda record: f"{statistics.median(rates['ours']):,.0f}"),
        Column("bare, images/s", lambda record: f"{statistics.median(rates['bare']):,.0f}"),
        Column("ours / bare", lambda record: write_spread(record["ratio"], 3)),
        Column("turns", lambda record: str(len(record["ratio"]["turns"]))),
    ]
    return Table(f"{record['data']}, {record['precision']}", columns, [record])
