"""How fast the networks of a frontier are: measured once all are trained, while nothing else runs.

The trainings themselves are not timed: they run beside each other, and over several days on several machines.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
from torch import Tensor

from sepconv.benchmark.loop import BareLoop
from sepconv.benchmark.networks import take_turns
from sepconv.config.keys import FrontierConfig
from sepconv.data.datasets import Dataset
from sepconv.data.module import count_images
from sepconv.devices import describe_device, find_device, resolve_precision
from sepconv.study.compare import name_hardware
from sepconv.study.frontier.networks import options
from sepconv.study.frontier.record import Network, Speed
from sepconv.terminal import CONSOLE
from sepconv.training import runs
from sepconv.training.classifier import describe_images
from sepconv.training.train import make_classifier


def measure(config: FrontierConfig, networks: list[Network], dataset: Dataset) -> list[Speed]:
    """The speed of each of `networks`, however long they are trained: `config.rounds` turns, in training and then in
    evaluation.

    Training is the bare loop's step with the study's recipe, evaluation is of as many images at a time; both on all of
    the device's threads.
    """
    device, recipe = find_device(config.trainer), config.recipe
    precision = resolve_precision(recipe.precision, device)
    epoch = count_images(dataset, recipe)
    resident, images = dataset.to(device), describe_images(dataset)
    constant = replace(recipe, schedule="constant")  # turns last as long as they do: no schedule has an end to go to
    loops: dict[tuple[str, int], BareLoop] = {}
    for network in networks:
        if (network.kind, network.size) not in loops:
            L.seed_everything(config.tuning_seed, verbose=False)
            classifier = make_classifier({"name": "separable", **options(network)}, constant, resident, images)
            loop = BareLoop(classifier, resident, precision, 1, config.tuning_seed, config.trainer)
            loops[network.kind, network.size] = loop
    batch = resident.train[: recipe.batch_size]
    CONSOLE.print(f"measures how fast {len(loops)} networks are: let nothing else run", soft_wrap=True)

    def measure_rates(call: Callable[[BareLoop, Tensor], Any]) -> dict[tuple[str, int], list[float]]:
        turns = take_turns({key: partial(call, loop, batch) for key, loop in loops.items()}, config.rounds, device)
        return {key: [len(batch) * rate for rate in turn] for key, turn in turns.items()}

    training, evaluation = measure_rates(BareLoop.step), measure_rates(BareLoop.classify)
    code = runs.current_code()
    return [
        Speed(
            kind=kind, size=size, images=epoch, training=training[kind, size], evaluation=evaluation[kind, size],
            device=name_hardware(describe_device(device)), torch=runs.versions()["torch"] or "", precision=precision,
            commit=code["sha"], dirty=code["dirty"], date=time.strftime("%Y-%m-%d"),
        )
        for kind, size in loops
    ]  # fmt: skip
