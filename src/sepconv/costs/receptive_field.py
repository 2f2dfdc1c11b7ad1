"""The receptive field: which part of an image a position of a feature map depends on, in theory and in effect.

In theory it is the window that kernels, strides and paddings span; in effect, the part of that window that the
gradient comes from (Luo et al. 2016, arXiv 1701.04128).
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sepconv.costs.counting import Layer

aten = torch.ops.aten

MASS = 0.95  # share of the squared gradient that the effective receptive field holds

# Operations that take each position of the map by itself, beside those that torch tags as pointwise.
PER_POSITION = {
    aten.native_batch_norm, aten.hardswish, aten.hardswish_, aten.cat, aten.split, aten.channel_shuffle,
    aten.native_channel_shuffle,
}  # fmt: skip
SHAPES = {aten.view, aten._unsafe_view, aten.reshape, aten.slice, aten.alias, aten.detach}
POOLS = {aten.max_pool2d_with_indices, aten.avg_pool2d}
ROUNDING = 1e-9  # of a pixel: a resize has ends that are no whole numbers in floating point
BILINEAR = {aten.upsample_bilinear2d, aten._upsample_bilinear2d_aa}


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


def windows(operation: Any, arguments: dict[str, Any]) -> list[tuple[int, int, int, int]] | None:
    """Kernel, stride, padding and dilation along height and width of a 2-D convolution or pooling, else None.

    Args:
        operation: an aten operation (overload packet).
        arguments: its arguments by name.
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


def follow(operation: Any, pointwise: bool, arguments: dict[str, Any], maps: list[tuple[Tensor, Field]],
           out: Tensor) -> Field:  # fmt: skip
    """The field of an operation's output. One that is not known here is taken to mix all positions.

    Args:
        operation: an aten operation (overload packet).
        pointwise: whether torch says that it works element by element.
        arguments: its arguments by name.
        maps: those arguments that depend on the image (B, C, H, W), and their fields.
    """
    source, field = maps[0]
    sides = source.shape[-2:]
    slides = windows(operation, arguments)
    if slides is not None and len(maps) == 1:
        # a pooling over the whole map sees the whole image, even the rim that a stride has left out
        fields = [
            extent.whole() if operation in POOLS and slide[0] >= side else extent.through(*slide)
            for extent, slide, side in zip(field, slides, sides, strict=True)
        ]
        return fields[0], fields[1]
    if out.ndim == source.ndim == 4:
        if operation is aten.slice and (axis := arguments["dim"] % 4 - 2) >= 0:
            start, step = arguments.get("start") or 0, arguments.get("step", 1)
            start = max(start + sides[axis], 0) if start < 0 else start
            sliced = field[axis].through(1, step, padding=-start)
            return (sliced, field[1]) if axis == 0 else (field[0], sliced)
        if pointwise or operation in PER_POSITION or (operation in SHAPES and out.shape[-2:] == sides):
            return union(maps, out)
        if operation is aten.constant_pad_nd:  # from the last dimension on; those of channels move no position
            left, _, top, _ = [*arguments["pad"], 0, 0, 0, 0][:4]
            return field[0].through(1, padding=top), field[1].through(1, padding=left)
        if operation in BILINEAR and not arguments["align_corners"]:
            antialias = operation is aten._upsample_bilinear2d_aa
            vertical, horizontal = (
                resized(extent, side / new, antialias)
                for extent, side, new in zip(field, sides, out.shape[-2:], strict=True)
            )
            return vertical, horizontal
    elif max(out.ndim, source.ndim) > 4 and out.shape[-2:] == sides and keeps_sides(operation, arguments):
        return field  # channels are grouped, shuffled or ungrouped
    return field[0].whole(), field[1].whole()


def keeps_sides(operation: Any, arguments: dict[str, Any]) -> bool:
    """Whether an operation on a map with its channels in groups, (B, groups, C, H, W), leaves height and width."""
    if operation is aten.transpose:
        return {arguments["dim0"], arguments["dim1"]} == {1, 2}
    return operation in SHAPES or operation is aten.clone


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
    centre = (scale - 1) / 2
    return Extent(
        extent.first + (centre - reach) * extent.jump,
        extent.last + (centre + reach) * extent.jump,
        extent.jump * scale,
    )


def spatial(layers: Iterable["Layer"]) -> list["Layer"]:
    """The convolutions and poolings that combine positions, and leave more than one."""
    return [
        layer for layer in layers
        if layer.call is None and layer.kernel is not None and max(layer.kernel) > 1 and max(layer.output[2:]) > 1
    ]  # fmt: skip


def effective(
    net: nn.Module, layers: Iterable["Layer"], inputs: int = 16, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Where the gradient of the central position of each spatial layer's output comes from, in evaluation.

    The channels at that position are summed with random signs, the input is Gaussian noise, and the gradient's square
    is averaged over `inputs` and the input's channels: its variance, which is Gaussian in theory.

    Args:
        layers: `cost.layers` of the network, for one image; what they are for another network does not fit.

    Returns:
        For each layer's name, (H, W) of the image, the sum 1; all zeros where no gradient arrives. Of a layer that runs
        several times, as its last run sees it.
    """
    layers = list(layers)
    chosen = spatial(layers)
    net = copy.deepcopy(net).to(device).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(inputs, *layers[0].input[1:], generator=generator).to(device).requires_grad_()
    sums: dict[str, Tensor] = {}

    def sum_centre(name: str, out: Tensor) -> None:
        signs = torch.randint(2, (inputs, out.shape[1]), generator=generator).to(out) * 2 - 1
        # here, not later: an activation in place may follow
        sums[name] = (out[:, :, out.shape[2] // 2, out.shape[3] // 2] * signs).sum()

    for name in dict.fromkeys(layer.name for layer in chosen):
        module = net.get_submodule(name)
        module.register_forward_hook(lambda module, args, out, name=name: sum_centre(name, out))
    net(images)
    maps = {}
    for name, value in sums.items():
        (gradient,) = torch.autograd.grad(value, images, retain_graph=True)
        square = gradient.double().square().mean((0, 1)).cpu()
        maps[name] = square / square.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return maps


def central_window(layer: "Layer", sides: Sequence[int]) -> list[tuple[int, int]]:
    """First and last pixel, along height and width, that the central position of a layer's output sees in theory."""
    return [
        extent.pixels(positions // 2, side)
        for extent, positions, side in zip(layer.sees, layer.output[2:], sides, strict=True)
    ]


def effective_side(mass: Tensor, layer: "Layer") -> int:
    """Side in pixels of the smallest square that holds MASS of an effective receptive field, (H, W).

    Its centre is that of the window that the layer's central position sees in theory, padding left out of account.
    """
    distances = []
    for extent, positions, side in zip(layer.sees, layer.output[2:], mass.shape, strict=True):
        centre = (
            (side - 1) / 2
            if math.isinf(extent.size)
            else (extent.first + extent.last) / 2 + positions // 2 * extent.jump
        )
        distances.append((torch.arange(side, dtype=torch.float64) - centre).abs())
    distance = torch.maximum(distances[0][:, None], distances[1][None, :]).flatten()
    order = distance.argsort()
    reached = mass.flatten()[order].cumsum(0) >= MASS * mass.sum() - 1e-12
    return round(2 * distance[order][reached][0].item()) + 1


def draw(maps: dict[str, Tensor], layers: Iterable["Layer"]) -> "Figure":
    """A picture per layer: its effective receptive field, and around it the theoretical one."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows = {layer.name: layer for layer in layers}
    columns = min(6, len(maps))
    height = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.7 * height), layout="constrained")
    panels = figure.subplots(height, columns, squeeze=False).flat
    for panel in panels:
        panel.set_axis_off()
    for panel, (name, mass) in zip(figure.axes, maps.items(), strict=False):
        layer = rows[name]
        (top, bottom), (left, right) = central_window(layer, mass.shape)
        panel.imshow(mass.sqrt().numpy(), cmap="magma")  # the gradient's magnitude: the rim shows too
        panel.add_patch(
            Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, fill=False, edgecolor="cyan")
        )
        title = f"{name}\n{layer.kind} {layer.kernel[0]} x {layer.kernel[1]}" if layer.kernel else name
        panel.set_title(f"{title}\n{describe(layer)}, effective {effective_side(mass, layer)}", fontsize=7)
    figure.suptitle(
        f"Effective receptive field (side of a square with {MASS:.0%} of the squared gradient), theoretical one framed",
        fontsize=9,
    )
    return figure


def describe(layer: "Layer") -> str:
    """The side of the theoretical receptive field in words."""
    size = layer.sees[0].size
    return "theory: all" if math.isinf(size) else f"theory {size:.0f}"
