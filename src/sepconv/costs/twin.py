"""A network beside its dense twin: the same depth and widths, each separable convolution a standard one."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from torch import nn

from sepconv import networks
from sepconv.config.read import defaults
from sepconv.costs.counting import Layer, layers

SEPARABLE_OPTIONS = ("depth_multiplier", "widen")  # of networks: a standard convolution has no use for them


class Pair(NamedTuple):
    """A depthwise convolution, and the pointwise one that mixes its channels."""

    depthwise: Layer
    pointwise: Layer
    multiplier: int  # filters of the depthwise one on each channel, or on as many copies of it


@dataclass(frozen=True)
class BlockCosts:
    """What a block of a network costs, and the same block of its dense twin.

    The closed form is for a standard convolution in the place of both steps. The twin of an inverted residual has one
    in the place of the depthwise step alone, between as many channels, and its ratio is lower.
    """

    block: str  # the module's name
    parameters: int
    dense_parameters: int
    macs: int
    dense_macs: int
    closed_form: float | None  # as the function of that name gives it
    parameter_ratio: float
    mac_ratio: float


def dense_twin(model: dict[str, Any], shape: tuple[int, int, int], classes: int) -> nn.Module | None:
    """The network `model` (its name and options) with standard convolutions; None where it has no option for that."""
    options = defaults(model["name"])
    if "conv" not in options:
        return None
    plain = {key: options[key] for key in SEPARABLE_OPTIONS if key in options}
    return networks.build(shape=shape, classes=classes, **model | plain | {"conv": "dense"})


def separable_pairs(rows: Sequence[Layer]) -> list[Pair]:
    """Each depthwise convolution with the pointwise one that it feeds: norms, activations and gates may be between."""
    pairs = []
    for place, layer in enumerate(rows):
        if layer.kind == "depthwise":
            after = (other for other in rows[place + 1 :] if place in other.fed_by and other.kind == "pointwise")
            copies = rows[place - 1] if rows[place - 1].kind == "Repeat" else layer
            pairs += [Pair(layer, other, layer.output[1] // copies.input[1]) for other in after][:1]
    return pairs


def closed_form(pairs: Iterable[Pair]) -> float | None:
    """1/C_out + 1/K² (claim C4) times the depth multiplier; over several pairs the mean by dense MACs."""
    weights, ratios = [], []
    for depthwise, pointwise, multiplier in pairs:
        assert depthwise.kernel is not None
        window = math.prod(depthwise.kernel)
        weights.append(window * depthwise.output[1] // multiplier * math.prod(pointwise.output))
        ratios.append(multiplier * (Fraction(1, pointwise.output[1]) + Fraction(1, window)))
    return float(sum(w * r for w, r in zip(weights, ratios, strict=True)) / sum(weights)) if weights else None


def compare_blocks(net: nn.Module, twin: nn.Module, shape: tuple[int, int, int]) -> list[BlockCosts]:
    """The blocks in which `net` differs from its dense twin, then both in all, on one image of `shape`.

    A block is a module that both have, as small as can be while it holds its separable convolutions whole.
    """
    rows, dense_rows = layers(net, shape), layers(twin, shape)
    pairs = separable_pairs(rows)

    def within(path: str, some: Iterable[Layer]) -> list[Layer]:
        return [layer for layer in some if not path or (layer.name + ".").startswith(path + ".")]

    def cost(path: str, some: Iterable[Layer]) -> tuple[int, int]:
        inside = within(path, some)
        return sum(layer.parameters for layer in inside), sum(layer.macs for layer in inside)

    def pairs_within(path: str) -> list[Pair]:
        return [pair for pair in pairs if len(within(path, (pair.depthwise, pair.pointwise))) == 2]

    def blocks(path: str) -> list[str]:
        children, others = ([name for name, _ in n.get_submodule(path).named_children()] for n in (net, twin))
        paths = [f"{path}.{name}".lstrip(".") for name in children]
        changed = [inner for inner in paths if cost(inner, rows) != cost(inner, dense_rows)]
        if children != others or not changed or not all(pairs_within(inner) for inner in changed):
            return [path]
        return [block for inner in changed for block in blocks(inner)]

    costs = []
    for path in dict.fromkeys([*blocks(""), ""]):
        (parameters, macs), (dense_parameters, dense_macs) = cost(path, rows), cost(path, dense_rows)
        form, ratios = closed_form(pairs_within(path)), (parameters / dense_parameters, macs / dense_macs)
        costs.append(BlockCosts(path or "total", parameters, dense_parameters, macs, dense_macs, form, *ratios))
    return costs
