"""What a network costs, and whether that is within a budget, before anything is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sepconv import InputError, networks
from sepconv.config import COSTS
from sepconv.config.keys import SearchConfig
from sepconv.costs import counting
from sepconv.costs.peak_memory import live_bytes, live_maps
from sepconv.deployment.formats import run_onnx, to_onnx, write_onnx
from sepconv.deployment.speed import time_batch
from sepconv.training.classifier import ImageClassifier

# the costs that there are budgets for, in words
WORDS = dict(zip(COSTS, ("parameters", "MACs an image", "bytes of int8 maps", "ms an image"), strict=True))
MEASURED = "latency_ms"  # takes seconds to find out
TURNS = 5  # of a latency's measurement


@dataclass(frozen=True)
class Budget:
    """The most that a network may cost, by cost."""

    limits: dict[str, float]

    @classmethod
    def of(cls, config: SearchConfig) -> "Budget":
        """Raises InputError where there is none."""
        values = (config.parameters, config.macs, config.peak_bytes, config.latency_ms)
        limits = dict(zip(COSTS, values, strict=True))
        budget = cls({name: float(limit) for name, limit in limits.items() if limit is not None})
        if not budget.limits:
            raise InputError(f"give a budget, such as parameters=78666: one or more of {', '.join(COSTS)}")
        return budget

    def excess(self, costs: dict[str, float]) -> dict[str, float]:
        """By what part of each limit it is surpassed, below 0 by what it is not; of the costs that are known."""
        return {name: costs[name] / limit - 1 for name, limit in self.limits.items() if name in costs}

    @property
    def is_counted(self) -> bool:
        """Whether there is a limit on what is known without measuring."""
        return any(name != MEASURED for name in self.limits)


def count(model: dict[str, Any], shape: tuple[int, int, int], classes: int) -> dict[str, float]:
    """What is known of a network without measuring, for one image of `shape`; maps as they live in int8."""
    with torch.device("meta"):
        net = networks.build(shape=shape, classes=classes, **model)
    layers = counting.layers(net, shape)
    peak = max(live_bytes(maps, "int8") for maps in live_maps(layers, (1, *shape)))
    macs = sum(layer.macs for layer in layers)
    return {"parameters": counting.parameters(net), "macs": macs, "peak_bytes": peak}


def measure_latency(classifier: ImageClassifier) -> float:
    """Milliseconds of one image on one thread, by the classifier's file in ONNX: the median over TURNS."""
    run: Callable[[Any], Any] = run_onnx(write_onnx(to_onnx(classifier)), 1)
    channels, height, width = classifier.hparams["images"]["shape"]
    pixels = np.random.default_rng(0).integers(0, 256, (1, channels, height, width), np.uint8)
    return 1e3 * float(np.median([time_batch(run, pixels) for _ in range(TURNS)]))
