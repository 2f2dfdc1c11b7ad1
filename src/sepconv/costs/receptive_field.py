"""The theoretical receptive field: which part of an image the kernels, strides and paddings before a map span.

Every operation of a network takes the fields of its inputs to that of its output.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

# Operations that take each element of the map by itself, in evaluation, beside those that torch tags as pointwise:
# which activations it tags depends on its version.
ELEMENTWISE = {
    aten.native_batch_norm, aten.hardtanh_, aten.hardswish, aten.hardswish_, aten.hardsigmoid_, aten.elu_, aten.celu_,
    aten.selu_, aten.leaky_relu, aten.leaky_relu_, aten.gelu_, aten.mish_, aten.threshold_, aten._prelu_kernel,
    aten.log_sigmoid_forward,
}  # fmt: skip
# those that take each position by itself
PER_POSITION = {*ELEMENTWISE, aten.cat, aten.split, aten.channel_shuffle, aten.native_channel_shuffle}
VIEWS = {aten.view, aten._unsafe_view, aten.reshape, aten.slice, aten.alias, aten.detach}
POOLS = {aten.max_pool2d_with_indices, aten.avg_pool2d}
BILINEAR = {aten.upsample_bilinear2d, aten._upsample_bilinear2d_aa}
ROUNDING = 1e-9  # of a pixel: a resize has ends that are no whole numbers in floating point


@dataclass(frozen=True)
class Extent:
    """What a map's positions see along one axis of the image, in pixels.

    Position i sees the pixels from `first + i * jump` to `last + i * jump`, both included; those outside the image
    are padding. Infinite ends stand for the whole image.
    """

    first: float
    last: float
    jump: float

    @property
    def size(self) -> float:
        """The most pixels that a position sees; infinite where it sees every one."""
        return math.inf if math.isinf(self.last - self.first) else math.floor(self.last - self.first + ROUNDING) + 1

    def pixels(self, position: int, side: int) -> tuple[int, int]:
        """First and last pixel, both included, that `position` sees of an image of `side` pixels."""
        shift = position * self.jump
        first, last = self.first + shift - ROUNDING, self.last + shift + ROUNDING
        return math.ceil(max(0, first)), math.floor(min(side - 1, last))

    def through(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> "Extent":
        """After a window of `kernel` positions slides over the map."""
        first = self.first - padding * self.jump
        return Extent(first, self.last + (dilation * (kernel - 1) - padding) * self.jump, self.jump * stride)

    def whole(self) -> "Extent":
        """After an operation that mixes all positions."""
        return Extent(-math.inf, math.inf, self.jump)


Field = tuple[Extent, Extent]  # along the height and the width

IMAGE: Field = (Extent(0, 0, 1), Extent(0, 0, 1))


def sliding_windows(operation: Any, arguments: dict[str, Any]) -> list[tuple[int, int, int, int]] | None:
    """Kernel, stride, padding and dilation along height and width of a 2-D convolution or pooling, else None.

    `operation` is an aten operation (overload packet), `arguments` are its arguments by name.
    """
    if operation is aten.convolution and arguments["weight"].ndim == 4 and not arguments["transposed"]:
        kernel = arguments["weight"].shape[2:]
    elif operation in POOLS:
        kernel = arguments["kernel_size"]
    else:
        return None
    stride, padding, dilation = arguments["stride"] or kernel, arguments["padding"], arguments.get("dilation", [1])
    # torch gives one number for both axes, or one each
    return [(kernel[i % len(kernel)], stride[i % len(stride)], padding[i % len(padding)], dilation[i % len(dilation)])
            for i in range(2)]  # fmt: skip


def output_field(
    operation: Any, pointwise: bool, arguments: dict[str, Any], maps: list[tuple[Tensor, Field]], out: Tensor
) -> Field:
    """The field of an operation's output. One that is not known here is taken to mix all positions.

    Args:
        operation, arguments: as of `sliding_windows`.
        pointwise: whether torch says that the operation works element by element.
        maps: those arguments that depend on the image (B, C, H, W), and their fields.
    """
    source, field = maps[0]
    sides = source.shape[-2:]
    windows = sliding_windows(operation, arguments)
    if windows is not None and len(maps) == 1:
        # a pooling over the whole map sees the whole image, even the rim that a stride has left out
        fields = [
            extent.whole() if operation in POOLS and window[0] >= side else extent.through(*window)
            for extent, window, side in zip(field, windows, sides, strict=True)
        ]
        return fields[0], fields[1]
    if out.ndim == source.ndim == 4:
        if operation is aten.slice and (axis := arguments["dim"] % 4 - 2) >= 0:
            start, step = arguments.get("start") or 0, arguments.get("step", 1)
            start = max(start + sides[axis], 0) if start < 0 else start
            sliced = field[axis].through(1, step, padding=-start)
            return (sliced, field[1]) if axis == 0 else (field[0], sliced)
        if pointwise or operation in PER_POSITION or (operation in VIEWS and out.shape[-2:] == sides):
            return union(maps, out)
        if operation is aten.constant_pad_nd:  # from the last dimension on; those of channels move no position
            left, _, top, _ = [*arguments["pad"], 0, 0, 0, 0][:4]
            return field[0].through(1, padding=top), field[1].through(1, padding=left)
        if operation in BILINEAR and not arguments["align_corners"]:
            antialias = operation is aten._upsample_bilinear2d_aa
            vertical, horizontal = (side / new for side, new in zip(sides, out.shape[-2:], strict=True))
            return resized(field[0], vertical, antialias), resized(field[1], horizontal, antialias)
    elif max(out.ndim, source.ndim) > 4 and out.shape[-2:] == sides and keeps_sides(operation, arguments):
        return field  # channels are grouped, shuffled or ungrouped
    return field[0].whole(), field[1].whole()


def keeps_sides(operation: Any, arguments: dict[str, Any]) -> bool:
    """Whether an operation on a map with its channels in groups, (B, groups, C, H, W), leaves height and width."""
    if operation is aten.transpose:
        return {arguments["dim0"], arguments["dim1"]} == {1, 2}
    return operation in VIEWS or operation is aten.clone


def union(maps: list[tuple[Tensor, Field]], out: Tensor) -> Field:
    """The smallest field that holds those of all `maps`, position by position: the largest over all paths.

    A map of one position beside larger ones (a squeeze-and-excitation's gate) is seen by every position, and stands
    for the whole image; so do maps with different jumps.
    """
    extents = []
    for axis in range(2):
        full = [field[axis] for tensor, field in maps if tensor.shape[axis - 2] == out.shape[axis - 2]]
        if len(full) < len(maps) or len({extent.jump for extent in full}) > 1:
            extents.append((full or [maps[0][1][axis]])[0].whole())
        else:
            first, last = min(extent.first for extent in full), max(extent.last for extent in full)
            extents.append(Extent(first, last, full[0].jump))
    return extents[0], extents[1]


def resized(extent: Extent, scale: float, antialias: bool) -> Extent:
    """After a bilinear resize to 1/`scale` of the map's side; antialiased, a smaller map averages over more pixels."""
    reach = max(scale, 1) if antialias else 1
    first, last = (((scale - 1) / 2 + sign * reach) * extent.jump for sign in (-1, 1))
    return Extent(extent.first + first, extent.last + last, extent.jump * scale)
