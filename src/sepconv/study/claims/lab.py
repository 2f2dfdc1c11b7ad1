"""The networks that claims are tested on: built, matched in cost, and trained or found among the runs of before."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sepconv import InputError, networks, terminal
from sepconv.config.keys import Augment, ClaimsConfig, TrainConfig
from sepconv.costs import counting
from sepconv.costs.closed_forms import Cost
from sepconv.data.datasets import Dataset
from sepconv.data.module import count_images
from sepconv.devices import find_device
from sepconv.study.claims.finding import Accuracies
from sepconv.study.compare import Run, find_runs
from sepconv.training import runs
from sepconv.training.runs import Result
from sepconv.training.train import train

log = logging.getLogger(__name__)


def separable_model(**options: Any) -> dict[str, Any]:
    """The configuration of the network that most claims are tested on, with options."""
    return {"name": "separable", "width": 1.0, "resolution": 1.0, "depth": 1, "residual": False, "stem": "standard",
            "conv": "separable"} | options  # fmt: skip


class Lab:
    """Trains on the data of a configuration, a seed at a time, and remembers.

    Runs that it finds are used, and stopped ones continued, where they are of these images and of this very code: of a
    commit that has the same sources and configurations, with no changes since.
    """

    def __init__(self, config: ClaimsConfig, dataset: Dataset) -> None:
        self.config, self.dataset = config, dataset
        self.device = find_device(config.trainer)
        self.cost_by_model: dict[str, Cost] = {}
        there = Path(config.runs).is_dir()
        finished, unfinished, _ = find_runs([config.runs]) if there else ([], [], [])
        digests = dataset.digests()
        self.code = runs.current_code()
        self.code_hash = runs.hash_code(self.code)  # None: not committed, so that no other's is the same
        of_these_images = [run for run in finished if self.same_images(run, digests)]
        of_this_code = [run for run in of_these_images if self.same_code([run.result.git, *run.result.git_later])]
        if of_these_images:
            same, others = len(of_this_code), len(of_these_images) - len(of_this_code)
            terminal.CONSOLE.print(
                f"finished runs in {config.runs}: {same} of this code, used again; {others} of other code, or of code "
                "that is not committed, whose networks are trained anew",
                soft_wrap=True,
            )
        # by what their figures depend on
        self.runs = {runs.identity(run.config): run for run in of_this_code}
        self.stopped = {runs.identity(runs.read_config(path)[1]): path for path in unfinished
                        if self.same_code(runs.read_code(path))}  # fmt: skip
        self.used: dict[tuple[str, int], Run] = {}  # since it was last emptied

    def same_images(self, run: Run, digests: dict[str, str]) -> bool:
        """Whether a run had the images of these digests, but for a claim that trains on fewer of them."""
        parts = ["validation", "test"] + ["train"] * (run.config.data.train == self.config.data.train)
        return all(run.result.digests[part] == digests[part] for part in parts)

    def same_code(self, codes: list[dict[str, Any]]) -> bool:
        """Whether a run was made by this code, in all its parts."""
        return self.code_hash is not None and {runs.hash_code(code) for code in codes} == {self.code_hash}

    def train(
        self, model: dict[str, Any], seed: int, size: int | None = None, plain: bool = False, epochs: int | None = None
    ) -> Run:
        """A run of `model`.

        Args:
            size: of the training images so many, over as many steps; None: all.
            plain: with nothing against overfitting.
            epochs: None: those of the recipe.
        """
        recipe, data = self.config.recipe, self.config.data
        recipe = replace(recipe, epochs=epochs or recipe.epochs)
        if size is not None:
            steps = math.ceil(count_images(self.dataset, recipe) / recipe.batch_size)  # of an epoch
            data, batch_size = replace(data, train=size), min(recipe.batch_size, size)
            recipe = replace(recipe, batch_size=batch_size, epoch_images=steps * batch_size)
        if plain:
            optimizer = without_weight_decay(recipe.optimizer)
            recipe = replace(recipe, augment=Augment(), label_smoothing=0.0, optimizer=optimizer)
        config = TrainConfig(data=data, model=model, recipe=recipe, trainer=self.config.trainer, seed=seed,
                             runs=self.config.runs)  # fmt: skip
        key = runs.identity(config)
        if key not in self.runs:
            with terminal.hushed():
                path, result = self.go_on(key) or train(config, [], time.time())
            self.runs[key] = Run(path, config, result)
            options = " ".join(f"{k}={v}" for k, v in model.items() if k != "name")
            part = ("" if size is None else f" on {size} images") + ("" if epochs is None else f" for {epochs} epochs")
            line = f"  {model['name']} {options} seed={seed}{part}: {result.test_accuracy:.2%}"
            terminal.CONSOLE.print(line, soft_wrap=True)
        self.used[key] = self.runs[key]
        return self.runs[key]

    def go_on(self, key: tuple[str, int]) -> tuple[Path, Result] | None:
        """The run of that identity that was stopped, continued; None where there is none that can be."""
        if (path := self.stopped.pop(key, None)) is None:
            return None
        try:
            _, config, _ = runs.read_config(path)
            return train(replace(config, resume=str(path)), [f"resume={path}"], time.time())
        except InputError as error:  # other images, a damaged checkpoint: a new run takes its place
            log.warning("%s is not continued: %s", path, error)
            return None

    def seeds(self, model: dict[str, Any], seeds: Sequence[int] | None = None) -> Iterator[int]:
        """The seeds that `model` is trained with, one after another, with how far they are."""
        return terminal.track(self.config.seeds if seeds is None else seeds, f"{model['name']}: seed")

    def accuracies(
        self, model: dict[str, Any], epochs: int | None = None, seeds: Sequence[int] | None = None
    ) -> Accuracies:
        """Test accuracy of `model` for each seed."""
        trainings = (self.train(model, seed, epochs=epochs) for seed in self.seeds(model, seeds))
        return Accuracies.of([run.right() for run in trainings])

    def build(self, model: dict[str, Any]) -> nn.Module:
        """A network with new weights for these images."""
        return networks.build(shape=self.dataset.shape, classes=len(self.dataset.classes), **model)

    def cost(self, model: dict[str, Any]) -> Cost:
        """Parameters and MACs of a network."""
        key = repr(model)
        if key not in self.cost_by_model:
            with torch.device("meta"):
                net = self.build(model)
            self.cost_by_model[key] = Cost(counting.parameters(net), counting.macs(net, self.dataset.shape))
        return self.cost_by_model[key]


def without_weight_decay(options: dict[str, Any]) -> dict[str, Any]:
    """`options` of an optimizer, and of `others` and `biases` in it, without weight decay."""
    inner = {key: without_weight_decay(value) for key, value in options.items() if isinstance(value, dict)}
    return options | {"weight_decay": 0.0} | inner
