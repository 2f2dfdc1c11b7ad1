"""The pictures of `scripts/cost.py`: a machine's roofline, and receptive fields."""

import math
from collections.abc import Iterable

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from sepconv import InputError
from sepconv.costs.counting import Layer
from sepconv.costs.effective_receptive_field import MASS, central_window, effective_side
from sepconv.costs.roofline import Machine
from sepconv.text import shorten


def draw_roofline(machine: Machine, layers: list[Layer], seconds: list[float], dtype: str) -> Figure:
    """The roofline with each layer that does arithmetic on it, and predicted against measured `seconds` of each."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    name = shorten(machine.device["name"], 80)
    figure.suptitle(f"{name}, forward pass in {dtype}, batch of {layers[0].input[0]}", parse_math=False)
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    colours = {kind: f"C{place}" if place < 10 else "grey" for place, kind in enumerate(kinds)}

    intensities = [layer.intensity(dtype) for layer in layers if layer.macs]
    lowest, highest = min([*intensities, 0.1]), max([*intensities, 2 * machine.flops[dtype] / machine.bandwidth])
    for name, peak in machine.flops.items():
        ridge = peak / machine.bandwidth
        left.plot([lowest, ridge, max(highest, ridge)], [lowest * machine.bandwidth, peak, peak], color="black",
                  linestyle="-" if name == dtype else ":", label=f"{name}: {peak / 1e9:,.0f} GFLOP/s")  # fmt: skip
    predicted = [machine.seconds(layer, dtype) for layer in layers]
    for kind in kinds:
        rows = [row for row in zip(layers, predicted, seconds, strict=True) if row[0].kind == kind]
        if rates := [(layer.intensity(dtype), 2 * layer.macs / time) for layer, _, time in rows if layer.macs]:
            left.scatter(*zip(*rates, strict=True), s=16, color=colours[kind], label=kind)
        right.scatter([row[1] for row in rows], [row[2] for row in rows], s=16, color=colours[kind], label=kind)
    ends = [min(predicted), max(*predicted, *seconds)]
    right.plot(ends, ends, color="black", linewidth=1, label="measured as predicted")
    left.set(xlabel="FLOP per byte", ylabel="FLOP per second", title=f"{machine.bandwidth / 1e9:,.1f} GB/s copied")
    right.set(xlabel="predicted seconds", ylabel="measured seconds", title="Time of each layer")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.legend(fontsize=8)
    return figure


def draw_receptive_fields(maps: dict[str, Tensor], layers: Iterable[Layer]) -> Figure:
    """A picture per layer: its gradient map, and around it the theoretical receptive field.

    `maps` are those that `effective_receptive_field.gradient_maps` gives for `layers`.
    """
    by_name = {layer.name: layer for layer in layers}
    columns = min(6, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel in panels:
        panel.set_axis_off()
    for panel, (name, mass) in zip(figure.axes, maps.items(), strict=False):
        layer = by_name[name]
        (top, bottom), (left, right) = central_window(layer, mass.shape)
        panel.imshow(mass.sqrt().numpy(), cmap="magma")  # the gradient's magnitude: the rim shows too
        width, height = right - left + 1, bottom - top + 1
        panel.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor="cyan"))
        title = f"{name}\n{layer.kind} {layer.kernel[0]} x {layer.kernel[1]}" if layer.kernel else name
        size = layer.sees[0].size
        theory = "theory: all" if math.isinf(size) else f"theory {size:.0f}"
        effective = effective_side(mass, layer) if mass.any() else "none"
        panel.set_title(f"{title}\n{theory}, effective {effective}", fontsize=7, parse_math=False)
    share = f"side of a square with {MASS:.0%} of the squared gradient"
    figure.suptitle(f"Effective receptive field ({share}), theoretical one framed", fontsize=9)
    return figure


def save(figure: Figure, path: str, key: str) -> None:
    """Writes the picture that `key` asks for. Raises InputError where its file cannot be written."""
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"cannot write {key}={path} ({error.strerror}): choose another file") from error
