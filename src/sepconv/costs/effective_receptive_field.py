"""The effective receptive field: the part of the theoretical one that the gradient comes from (arXiv 1701.04128)."""

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sepconv.costs.counting import Layer
from sepconv.terminal import track

MASS = 0.95  # share of the squared gradient that the effective receptive field holds


def spatial_layers(layers: Iterable[Layer]) -> list[Layer]:
    """The convolutions and poolings that combine positions, and leave more than one."""
    return [
        layer for layer in layers
        if layer.call is None and layer.kernel is not None and max(layer.kernel) > 1 and max(layer.output[2:]) > 1
    ]  # fmt: skip


def gradient_maps(
    net: nn.Module, layers: Iterable[Layer], inputs: int = 16, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Where the gradient of the central position of each spatial layer's output comes from, in evaluation.

    The channels at that position are summed with random signs, the input is Gaussian noise, and the gradient's square
    is averaged over `inputs` and the input's channels: its variance, which is Gaussian in theory.

    Args:
        layers: `counting.layers` of the network, for one image; what they are for another network does not fit.

    Returns:
        For each layer's name, (H, W) of the image, the sum 1; all zeros where no gradient arrives. Of a layer that runs
        several times, as its last run sees it.
    """
    layers = list(layers)
    net = copy.deepcopy(net).to(device).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(inputs, *layers[0].input[1:], generator=generator).to(device).requires_grad_()
    sums: dict[str, Tensor] = {}

    def sum_centre(name: str, out: Tensor) -> None:
        signs = torch.randint(2, (inputs, out.shape[1]), generator=generator).to(out) * 2 - 1
        # here, not later: an activation in place may follow
        sums[name] = (out[:, :, out.shape[2] // 2, out.shape[3] // 2] * signs).sum()

    for name in dict.fromkeys(layer.name for layer in spatial_layers(layers)):
        net.get_submodule(name).register_forward_hook(lambda module, args, out, name=name: sum_centre(name, out))
    net(images)
    maps = {}
    for name, value in track(sums.items(), "receptive field: layer"):
        (gradient,) = torch.autograd.grad(value, images, retain_graph=True)
        square = gradient.cpu().double().square().mean((0, 1))
        maps[name] = square / square.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return maps


def central_window(layer: Layer, sides: Sequence[int]) -> list[tuple[int, int]]:
    """First and last pixel, along height and width, that the central position of a layer's output sees in theory."""
    axes = zip(layer.sees, layer.output[2:], sides, strict=True)
    return [extent.pixels(positions // 2, side) for extent, positions, side in axes]


def effective_side(mass: Tensor, layer: Layer) -> int:
    """Side in pixels of the smallest square that holds MASS of a gradient map (H, W) that is not all zeros.

    Its centre is that of the window that the layer's central position sees in theory, padding left out of account.
    """
    distances = []
    for extent, positions, side in zip(layer.sees, layer.output[2:], mass.shape, strict=True):
        whole = math.isinf(extent.size)
        centre = (side - 1) / 2 if whole else (extent.first + extent.last) / 2 + positions // 2 * extent.jump
        distances.append((torch.arange(side, dtype=torch.float64) - centre).abs())
    distance = torch.maximum(distances[0][:, None], distances[1][None, :]).flatten()
    order = distance.argsort()
    reached = mass.flatten()[order].cumsum(0) >= MASS * mass.sum() - 1e-12
    return round(2 * distance[order][reached][0].item()) + 1
