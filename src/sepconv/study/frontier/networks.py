"""The networks of a frontier: each kind, at the widths that come nearest to the sizes."""

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from sepconv import networks
from sepconv.config.keys import FrontierConfig
from sepconv.config.rules import check, check_choice
from sepconv.costs import counting
from sepconv.study.frontier.record import Network

# the options of each kind's networks, beside their width
KINDS: dict[str, dict[str, Any]] = {
    "separable": {"conv": "separable"},
    "dense": {"conv": "dense"},
    "deep_separable": {"conv": "separable", "depth": 2, "residual": True},
    "deep_dense": {"conv": "dense", "depth": 2, "residual": True},
}
WIDTHS = [i / 32 for i in range(1, 257)]
NEAR = 1.25  # a network has at most so many times the parameters aimed at, and at least the inverse


def plan(config: FrontierConfig, shape: tuple[int, int, int], classes: int) -> list[Network]:
    """The networks for images of `shape` (channels, height, width): from small ones to large ones, each kind in turn,
    then those of the middle size, trained twice as long.

    Raises InputError for an unknown kind, and a size that no kind has.
    """
    kinds = config.kinds or list(KINDS)
    for kind in kinds:
        check_choice("kinds", kind, *KINDS)

    @cache
    def parameters(kind: str, width: float) -> int:
        return counting.parameters(build(kind, width, shape, classes))

    def fit(kind: str, size: int, epochs: int) -> list[Network]:
        nearest = nearest_width(lambda width: parameters(kind, width), size)
        count = parameters(kind, nearest)
        if not 1 / NEAR <= count / size <= NEAR:
            return []
        macs = counting.macs(build(kind, nearest, shape, classes), shape)
        return [Network(kind=kind, size=size, epochs=epochs, width=nearest, parameters=count, macs=macs)]

    sizes, epochs = sorted(config.sizes), config.recipe.epochs
    lengths = [*((size, epochs) for size in sizes), (sizes[len(sizes) // 2], 2 * epochs)]
    fitted = {length: [network for kind in kinds for network in fit(kind, *length)] for length in lengths}
    for (size, _), found in fitted.items():
        check(bool(found), "sizes", size, "parameters that the network of some width has")
    return [network for found in fitted.values() for network in found]


def nearest_width(parameters: Callable[[float], int], size: int) -> float:
    """Of WIDTHS the one at which a network has, by ratio, most nearly `size` parameters; `parameters`: at a width."""
    place = bisect_left(WIDTHS, size, key=parameters)
    return min(WIDTHS[max(0, place - 1) : place + 1], key=lambda width: abs(math.log(parameters(width) / size)))


def build(kind: str, width: float, shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    """A network of shapes alone."""
    with torch.device("meta"):
        return networks.build("separable", shape, classes, width=width, **KINDS[kind])


def options(network: Network) -> dict[str, Any]:
    """A network's options of `model=separable`, where they are not the defaults."""
    return {"width": network.width, **KINDS[network.kind]}
