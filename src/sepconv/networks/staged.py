"""A network whose table stands in its configuration: a stem, then stages, each of blocks of one form.

A block is plain (MobileNet's, Howard et al., arXiv 1704.04861, figure 3; with `conv` dense one standard convolution) or
an inverted residual, where `expansion` is given (Sandler et al., arXiv 1801.04381, table 1; with squeeze-excite Howard
et al., arXiv 1905.02244, figure 4; with the depthwise convolution first Liu et al., arXiv 2201.03545, figure 4).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from sepconv.config import MOST
from sepconv.config.read import read
from sepconv.config.rules import check, check_choice, checked, number
from sepconv.networks.blocks import ConvNormActivation, Residual, inverted_residual, sequential
from sepconv.networks.options import Shape, find_kind, head, make_resize

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {"relu": nn.ReLU, "hardswish": nn.Hardswish}


def check_kernel(key: str, value: int) -> None:
    """Raises InputError for an even kernel, which shrinks the map."""
    check(1 <= value <= 63 and value % 2 == 1, key, value, "an odd number from 1 to 63")


@dataclass(kw_only=True)
class Stage:
    """A row of the table: so many blocks, of which the first has the stride."""

    channels: int = number(least=1, most=MOST)
    blocks: int = number(1, least=1, most=64)
    stride: int = number(1, least=1, most=64)
    kernel_size: int = checked(check_kernel, 3)
    expansion: float | None = number(None, least=1, most=64)  # of an inverted residual; null: a plain block
    squeeze: bool = False  # squeeze-excite, in inverted residuals
    depthwise_first: bool = False  # the depthwise convolution before the expansion, in inverted residuals


def staged(
    shape: Shape, classes: int, *, stem: int, stem_stride: int, stages: list[dict[str, Any]], conv: str,
    residual: bool, activation: str, resolution: float,
) -> nn.Sequential:  # fmt: skip
    """The network of `stages`.

    Args:
        stem: channels of the first layer, a 3 x 3 convolution.
        stages: of each, the fields of Stage.
        residual: add the input to the output of each plain block that keeps its shape, too.
        activation: relu or hardswish.
    """
    check(1 <= stem <= MOST, "model.stem", stem, f"1 to {MOST}")
    check(1 <= stem_stride <= 64, "model.stem_stride", stem_stride, "1 to 64")
    check(len(stages) >= 1, "model.stages", stages, "one or more")
    check_choice("model.activation", activation, *ACTIVATIONS)
    function = ACTIVATIONS[activation]
    first_layer = ConvNormActivation(shape[0], stem, stride=stem_stride, activation_layer=function)
    kind, blocks, channels = find_kind(conv), nn.Sequential(), stem
    for place, row in enumerate(stages):
        stage = read(Stage, row, prefix=(prefix := f"model.stages[{place}]."))
        for key in ("squeeze", "depthwise_first"):
            option = getattr(stage, key)
            check(not option or stage.expansion is not None, f"{prefix}{key}", option, "not without expansion")
        for stride in [stage.stride] + [1] * (stage.blocks - 1):
            block: nn.Module
            if stage.expansion is None:
                block = kind.block(channels, stage.channels, stage.kernel_size, stride, activation_layer=function)
                same = stride == 1 and channels == stage.channels
                block = Residual(block) if residual and same else block
            else:
                expanded = round(stage.expansion * channels)
                block = inverted_residual(channels, stage.channels, expanded, stage.kernel_size, stride, stage.squeeze,
                                          activation_layer=function, step=kind.step,
                                          depthwise_first=stage.depthwise_first)  # fmt: skip
            blocks.append(block)
            channels = stage.channels
    return sequential(resize=make_resize(shape, resolution), stem=first_layer, blocks=blocks, **head(channels, classes))
