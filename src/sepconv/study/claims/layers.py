"""Claims C8, C11 and C12, of layers by themselves: timed, and what they see of an image."""

import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from sepconv import InputError
from sepconv.costs import counting, passes, roofline
from sepconv.costs.effective_receptive_field import MASS, effective_side, gradient_maps, spatial_layers
from sepconv.costs.passes import Call
from sepconv.costs.roofline import OUT_CHANNELS, REPEATS
from sepconv.devices import describe_device
from sepconv.networks.blocks import ConvNormActivation, depthwise_separable
from sepconv.study.claims.finding import Cell, Finding, Number
from sepconv.study.claims.lab import Lab, separable_model
from sepconv.study.compare import name_hardware
from sepconv.study.plots import finish, make_panel
from sepconv.terminal import track

CHANNELS = (8, 16, 32, 64, 128, 256, 512)  # in and out, of the layers of claim C12
SIDE = 16  # of their maps
LARGE = 64  # side of the images of claim C11, which the receptive fields do not fill


def few_input_channels(lab: Lab) -> Finding:
    """With few input channels a separable layer has little advantage."""
    batch, dtype = (128, "bf16") if lab.device.type == "cuda" else (8, "fp32")
    rows: list[list[Cell]] = []
    gains, macs = {}, {}
    for row in roofline.sweep(lab.device, dtype, batch):
        channels = row["in_channels"]
        gains[channels] = row["standard_seconds"] / row["separable_seconds"]
        macs[channels] = row["standard_macs"] / row["separable_macs"]
        rows.append([channels, Number(macs[channels], ".2f"),
                     Number((row["standard_macs"] - row["separable_macs"]) / 1e6, ",.1f"),
                     Number(1e3 * row["standard_seconds"], ".2f"), Number(1e3 * row["separable_seconds"], ".2f"),
                     Number(gains[channels], ".2f")])  # fmt: skip
    few, many = (statistics.median(gains[c] for c in group) for group in ((1, 3), (64, 128, 256, 512)))
    title = f"3 x 3 to {OUT_CHANNELS} channels, {name_hardware(describe_device(lab.device))}, {dtype}"
    draw = partial(draw_gains, gains, macs, xlabel="input channels", ylabel="standard over separable", title=title)
    return Finding(
        f"One 3 x 3 layer of {roofline.SIDE} x {roofline.SIDE} positions to {OUT_CHANNELS} channels, "
        f"standard and separable, forward, {dtype}, batch {batch}, empty caches, medians of {REPEATS}.",
        ["C_in", "times fewer MACs", "million MACs saved", "standard ms", "separable ms", "times faster"], rows,
        ("true" if few < 0.5 * many else "false") + f" of time: {few:.2f} times as fast at 1 and 3 channels, "
        f"{many:.2f} from 64 on; false of the ratio of MACs, which C_in does not change",
        draw,
    )  # fmt: skip


def draw_gains(gains: dict[int, float], macs: dict[int, float], **options: str) -> Figure:
    """How many times as fast, and as few MACs, by channels."""
    figure, axes = make_panel(6, 4)
    axes.plot(list(gains), list(gains.values()), "o-", label="times faster")
    axes.plot(list(macs), list(macs.values()), "s--", label="times fewer MACs")
    axes.axhline(1, color="0.5", linewidth=1)
    axes.set(xscale="log", **options)
    finish(axes)
    return figure


def stacked_receptive_field(lab: Lab) -> Finding:
    """Stacked separable convolutions enlarge the receptive field."""
    torch.manual_seed(lab.config.seeds[0])
    shape = (lab.dataset.shape[0], LARGE, LARGE)
    net = lab.build(separable_model(depth=2)).eval()
    layers = counting.layers(net, shape)
    maps = gradient_maps(net, layers)
    spatial = [layer for layer in spatial_layers(layers) if layer.name in maps]
    theory = [min(layer.receptive_field(shape)) for layer in spatial]
    effective = [effective_side(maps[layer.name], layer) for layer in spatial]
    dense = counting.layers(lab.build(separable_model(depth=2, conv="dense")), shape)
    dense_theory = [min(layer.receptive_field(shape)) for layer in spatial_layers(dense)]

    def draw() -> Figure:
        figure, axes = make_panel(6, 4)
        depths = range(1, len(spatial) + 1)
        axes.plot(depths, theory, "o-", label="theoretical")
        axes.plot(depths, effective, "s--", label=f"effective, {MASS:.0%} of the gradient")
        axes.axhline(shape[1], color="0.5", linewidth=1, label="the image")
        axes.set(xlabel="3 x 3 layers", ylabel="side of the receptive field (pixels)")
        finish(axes)
        return figure

    grows = all(a < b for a, b in pairwise(theory)) and effective[-1] > effective[0]
    verdict = "true" if grows else "false"
    if dense_theory == theory:
        verdict += "; as much as dense layers of the same kernels do: pointwise steps add nothing"
    return Finding(
        f"The separable network, each block twice, with initial weights, on images of {LARGE} x {LARGE}: the "
        "theoretical receptive field from kernels and strides, the effective one from the gradient of the central "
        "output.",
        ["layer", "kind", "theoretical side", "effective side"],
        [[layer.name, layer.kind, Number(theory[i], "g"), effective[i]] for i, layer in enumerate(spatial)],
        verdict, draw,
    )  # fmt: skip


def speed_in_training(lab: Lab) -> Finding:
    """Separable convolution does not suit a GPU: two steps in series, and an intermediate map to move."""
    batch, dtype = (128, "bf16") if lab.device.type == "cuda" else (32, "fp32")
    machine = roofline.measure_machine(lab.device)
    rows: list[list[Cell]] = []
    gains, macs, shares = {}, {}, {}
    for channels in track(CHANNELS, "layers: width"):
        nets: dict[str, nn.Module] = {
            "dense": ConvNormActivation(channels, channels, norm_layer=None, activation_layer=None),
            "separable": depthwise_separable(channels, channels, norm_layer=None, activation_layer=None, between=False),
        }
        seconds, moved, moving, flops = {}, {}, {}, {}
        for name, net in nets.items():
            calls = training_calls(net, channels, batch, dtype, lab.device)
            training = training_pass(net, channels, batch, dtype, lab.device)
            seconds[name] = roofline.median_seconds(training, lab.device)
            flops[name], moved[name] = (sum(getattr(call, key) for call in calls) for key in ("flop", "moved"))
            moving[name] = sum(call.moved / machine.bandwidth_of(call.moved) for call in calls)
        gains[channels], macs[channels] = seconds["dense"] / seconds["separable"], flops["dense"] / flops["separable"]
        for name in nets:
            shares[f"{name}, {channels} channels, arithmetic"] = flops[name] / machine.flops[dtype] / seconds[name]
            shares[f"{name}, {channels} channels, bytes"] = moving[name] / seconds[name]
        of_peaks = (shares[f"{name}, {channels} channels, {of}"] for of in ("arithmetic", "bytes") for name in nets)
        ratios = gains[channels], macs[channels], moved["separable"] / moved["dense"]
        rows.append([channels, *(Number(1e3 * seconds[name], ".2f") for name in nets),
                     *(Number(ratio, ".2f") for ratio in ratios),
                     *(Number(share, ".0%") for share in of_peaks)])  # fmt: skip
    if wrong := roofline.above_peak(shares):
        raise InputError(wrong)
    draw = partial(draw_gains, gains, macs, yscale="log", xlabel="channels in and out", ylabel="dense over separable",
                   title=f"{machine.device['name']}, {dtype}, batch {batch}")  # fmt: skip
    slower = [c for c in CHANNELS if gains[c] < 1]
    faster = [c for c in CHANNELS if c > max(slower, default=0)]  # from where on it never is slower
    here = f"it is faster from {min(faster)} channels on" if faster else f"it is slower at {max(slower)} channels"
    widths = "" if all(gains[c] < macs[c] for c in CHANNELS) else " at most widths"
    here += f"{', slower below' if slower and faster else ''}, by less than its MACs are fewer{widths}"
    verdict = "not yet measured on this hardware (no GPU); on this CPU: " if lab.device.type != "cuda" else (
        f"true when there are {max(slower)} channels or fewer: " if slower else "false: ")  # fmt: skip
    return Finding(
        f"One 3 x 3 layer of {SIDE} x {SIDE} positions, dense and separable with nothing between its steps, forward "
        f"and backward, as within a network, {dtype}, batch {batch}, empty caches, medians of {REPEATS}; shares of the "
        f"machine's measured peaks ({machine.flops[dtype] / 1e9:,.0f} GFLOP/s; {machine.bandwidth / 1e9:,.1f} GB/s of "
        "memory, more of caches that hold a pass); bytes are those of the passes that the kernels make, by count.",
        ["channels", "dense ms", "separable ms", "times faster", "times fewer MACs", "bytes, separable over dense",
         "of peak, dense", "separable", "of bandwidth, dense", "separable"], rows, verdict + here, draw,
    )  # fmt: skip


def training_calls(net: nn.Module, channels: int, batch: int, dtype: str, device: torch.device) -> list[Call]:
    """What `training_pass` computes, call by call."""
    kernels = roofline.find_kernels(device, dtype)
    shape = (channels, SIDE, SIDE)
    return passes.list_calls(net, shape, batch, dtype, training=True, kernels=kernels, image_gradient=True)


def training_pass(net: nn.Module, channels: int, batch: int, dtype: str, device: torch.device) -> Callable[[], Any]:
    """A call of a layer's forward and backward pass, to its input's gradient and its weights'."""
    net, images = roofline.place(net, (channels, SIDE, SIDE), batch, device, dtype)
    images.requires_grad_()
    gradient = torch.randn_like(images)

    def call() -> None:
        with torch.enable_grad():
            torch.autograd.grad(net(images), [images, *net.parameters()], gradient)

    return call
