"""The pictures of a comparison, and the style of every picture of a study."""

import math
import statistics
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from itertools import cycle, zip_longest
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from sepconv import InputError
from sepconv.study.compare import COSTS, TIMES, Network, Section
from sepconv.terminal import kept
from sepconv.text import shorten, tell_apart

STYLE = "petroff10"  # colours that the colour-blind tell apart (Petroff, arXiv 2107.02270); markers differ too
# names are no mathematics; in an SVG, text stays text, and the same input gives the same file
SETTINGS: dict[str, Any] = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "sepconv"}
LONGEST, SHORTEST = 80, 12  # characters of a network's name, and of a class's
MARKERS = "osD^vPX*<>"
AXIS_LABELS = {
    "parameters": "parameters",
    "macs": "MACs an image",
    "train_images_per_second": "images/s in training (median over seeds)",
    "fit_seconds": "seconds of training (median over seeds)",
}
PICTURED = 6  # networks, at most, of which images are shown on which they differ from the reference
SHOWN = 8  # such images of each, at most, either way
WORST = 1e-4  # share of errors below which an axis that is logarithmic in them ends


@dataclass(frozen=True)
class Picture:
    """A figure that is drawn."""

    svg: str = field(repr=False)  # its element
    png: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.png


def draw_section(section: Section) -> dict[str, Picture]:
    """By name: accuracy against each cost, learning curves where there are some, throughput where it is compared, test
    images on which networks differ where these are known and at hand.

    One that cannot be drawn is left out, with a line.
    """
    drawings: dict[str, Callable[[Section], Figure]] = {"accuracy": draw_accuracy}
    if any(network.histories for network in section.networks):
        drawings["curves"] = draw_curves
    if section.timed:
        drawings["throughput"] = draw_throughput
    with kept(f"the picture of differences on {section.data}"):
        if any(network.contrast for network in section.networks) and (pixels := load_tested(section)) is not None:
            drawings["differences"] = partial(draw_differences, pixels=pixels)
    pictures = {}
    for name, draw in drawings.items():
        with kept(f"the picture of {name} on {section.data}"), style.context([STYLE, SETTINGS]):
            pictures[name] = render(draw(section))
    return pictures


def render(figure: Figure) -> Picture:
    """A figure as SVG and as PNG."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return Picture(as_svg(figure), png.getvalue())


def as_svg(figure: Figure) -> str:
    """A figure as an SVG element."""
    svg = BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    text = svg.getvalue().decode()
    return text[text.index("<svg") :]


def make_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one panel, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def finish(axes: Axes, grid: Literal["both", "x"] = "both", title: str | None = None) -> None:
    """A legend with its title, and a grid behind what is drawn."""
    axes.legend(title=title, frameon=False)
    axes.grid(axis=grid, alpha=0.3)


def looks(section: Section) -> list[tuple[Network, str, str, str]]:
    """Each network with its label in legends, colour and marker."""
    colors = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    styles = zip(section.networks, cycle(colors), cycle(MARKERS), strict=False)
    return [(network, f"{shorten(network.label, LONGEST)} (n = {len(network.runs)})", color, marker)
            for network, color, marker in styles]  # fmt: skip


def draw_accuracy(section: Section) -> Figure:
    """Test accuracy against each cost, with 95 % intervals; a line joins the networks on the front."""
    costs = [cost for cost in COSTS if any(section.figure(network, cost) is not None for network in section.networks)]
    columns, rows = min(2, len(costs)), (len(costs) + 1) // 2
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, cost in zip(panels, costs, strict=False):
        front = []
        for network, label, color, marker in looks(section):
            value, accuracy = section.figure(network, cost), network.accuracy
            if value is None:
                continue
            arms = [[100 * arm] for arm in accuracy.arms]
            axes.errorbar(value, 100 * accuracy.mean, arms, fmt=marker, color=color, label=label, capsize=3)
            if cost in network.front:
                front.append((value, 100 * accuracy.mean))
        axes.plot(*zip(*sorted(front), strict=True), color="0.6", linewidth=1, zorder=0, label="Pareto front")
        axes.set(xlabel=AXIS_LABELS[cost], ylabel="test accuracy (%)")
        if cost in TIMES:
            axes.set_xlim(left=0)
        else:
            plain_log(axes)
        axes.grid(alpha=0.3)
    add_legend(figure, panels[0])
    figure.suptitle(f"{section.data}: test accuracy, mean and 95 % interval")
    return figure


def draw_curves(section: Section) -> Figure:
    """Validation accuracy against epochs and against seconds: the mean over seeds, and the range as a band."""
    trained = [look for look in looks(section) if look[0].histories]
    x_labels = ["epochs", *([AXIS_LABELS["fit_seconds"]] if section.timed else [])]
    figure = Figure(figsize=(9.2 if section.timed else 5, 3.4), layout="constrained")
    panels = figure.subplots(1, len(x_labels), sharey=True, squeeze=False)[0]
    for network, label, color, marker in trained:
        epochs = [[epoch for epoch in column if epoch] for column in zip_longest(*network.histories)]
        errors = [[100 * max(WORST, 1 - epoch["val_accuracy"]) for epoch in column] for column in epochs]
        mean = [statistics.fmean(column) for column in errors]
        numbers = [column[0]["epoch"] for column in epochs]
        seconds = [statistics.median(epoch["seconds"] for epoch in column) for column in epochs]
        for axes, x in zip(panels, (numbers, seconds), strict=False):
            axes.plot(x, mean, marker=marker, markersize=4, color=color, label=label)
            axes.fill_between(x, *zip(*((min(c), max(c)) for c in errors), strict=True), color=color, alpha=0.2, lw=0)
    for axes, x_label in zip(panels, x_labels, strict=True):
        axes.set(xlabel=x_label)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="validation accuracy (%)")
    accuracy_by_error(panels[0])
    add_legend(figure, panels[0])
    figure.suptitle(f"{section.data}: learning curves, mean and range over seeds")
    return figure


def draw_throughput(section: Section) -> Figure:
    """Images a second in training and in evaluation, the median over seeds; whiskers from the lowest to the highest."""
    figure, axes = make_panel(8, 1.6 + 0.5 * len(section.networks))
    labels = [textwrap.fill(label, 36) for _, label, _, _ in looks(section)]
    for place, (part, name) in enumerate((("train", "training"), ("eval", "evaluation"))):
        rates = [network.values(f"{part}_images_per_second") for network in section.networks]
        known = {row: values for row, values in enumerate(rates) if values}
        for row, values in known.items():
            middle = statistics.median(values)
            axes.barh(
                row + 0.4 * place - 0.2, middle, 0.38, xerr=[[middle - min(values)], [max(values) - middle]],
                color=f"C{place}", hatch="" if place == 0 else "//", edgecolor="white", capsize=3,
                label=name if row == min(known) else None,
            )  # fmt: skip
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    title = f"{section.data}: throughput, {shorten(section.hardware[0], LONGEST)}"
    axes.set(xlabel="images/s (median over seeds, lowest to highest)", title=title)
    finish(axes, grid="x")
    return figure


def load_tested(section: Section) -> NDArray[np.uint8] | None:
    """The test images of `section`, (N, H, W, C), from where a run had them; None where they are not there now."""
    from sepconv.data.datasets import load  # here: it waits for torch

    configs = {run.config.data.root: run.config.data for _, run in section.runs}
    for config in configs.values():
        with suppress(InputError):
            dataset = load(replace(config, download=False))
            if dataset.digests()["test"] == section.runs[0][1].result.digests["test"]:
                pixels: NDArray[np.uint8] = dataset.pixels[dataset.test].numpy()
                return pixels
    return None


def draw_differences(section: Section, pixels: NDArray[np.uint8]) -> Figure:
    """Of `pixels`, (N, H, W, C), the images on which networks differ most from the reference, either way."""
    assert section.labels is not None
    reference = shorten(section.reference.label, LONGEST)
    classes = [shorten(name, SHORTEST) for name in tell_apart(section.runs[0][1].result.classes)]
    contrasts = [(network.label, network.contrast) for network in section.networks if network.contrast][:PICTURED]
    rows = [(label, contrast, words, contrast.images(more)) for label, contrast in contrasts
            for words, more in (("more", True), ("less", False))]  # fmt: skip
    figure = Figure(figsize=(9.2, 0.4 + 1.9 * len(rows)), layout="constrained")
    parts = figure.subfigures(len(rows), squeeze=False)[:, 0]
    for part, (label, contrast, words, images) in zip(parts, rows, strict=True):
        title = f"{shorten(label, LONGEST)} is right {words} often than {reference}: {len(images):,} images"
        part.suptitle(title, fontsize="small")
        panels = part.subplots(1, SHOWN)
        for axes in panels:
            axes.axis("off")
        for axes, image in zip(panels, images, strict=False):
            shown = pixels[image]
            axes.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=255)
            counts = f"{contrast.ours[image]} and {contrast.theirs[image]} of {contrast.seeds}"
            axes.set_title(f"{image}: {classes[section.labels[image]]}\n{counts}", fontsize="x-small")
    figure.suptitle(f"{section.data}: test images on which networks differ, and of how many seeds each is right")
    return figure


def add_legend(figure: Figure, axes: Axes) -> None:
    """What is in `axes`, below all panels; the figure grows by the lines that it takes."""
    handles, names = axes.get_legend_handles_labels()
    beside = 2 if max(map(len, names)) <= 40 else 1
    figure.set_figheight(figure.get_figheight() + 0.22 * math.ceil(len(names) / beside))
    figure.legend(handles, names, loc="outside lower center", ncols=beside, frameon=False)


def plain_log(axes: Axes) -> None:
    """A logarithmic x axis, with plain numbers on it."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(LogLocator(subs=tuple(range(1, 10))))
    axes.tick_params(axis="x", labelsize="small")


def accuracy_by_error(axes: Axes) -> None:
    """A y axis that is logarithmic in percent of errors, and reads as percent of accuracy."""
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - error:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    """A number in a few characters: 2.5 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
