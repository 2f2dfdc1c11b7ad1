"""What `scripts/compare.py` prints and writes: tables, plots, and a page that opens from disk."""

import csv
import math
import os
import shlex
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich import box
from rich.console import Console
from rich.table import Table

from sepconv import InputError
from sepconv.config import CompareConfig
from sepconv.study.compare import COSTS, HEADLINE, TIMES, Comparison, Difference, Estimate, Network, Section, describe
from sepconv.tables import markdown_table, print_whole

STYLE = "petroff10"  # colours that the colour-blind tell apart (Petroff, arXiv 2107.02270); markers differ too
MARKERS = "osD^vPX*<>"
BESIDE = 4  # networks shown side by side on the terminal
COST_NAMES = {"parameters": "parameters", "macs": "MACs", "train_images_per_second": "images/s", "fit_seconds": "fit"}


Figures = dict[str, list[tuple[str, Figure]]]  # by data set: names and figures


def report(comparison: Comparison, config: CompareConfig, overrides: list[str]) -> None:
    """Prints the comparison, and writes it to `config.output`: report.html, report.md, tables and plots.

    Raises InputError where the folder cannot be written.
    """
    console = Console(highlight=False)
    for section in comparison.sections:
        print_section(console, section)
    for text in left_out(comparison):
        console.print(text, soft_wrap=True)
    folder = Path(config.output).expanduser()
    options = [o for o in overrides if not o.startswith("runs=")]
    command = shlex.join(["python", "scripts/compare.py", *config.runs, *options])
    figures = {section.data: plots(section) for section in comparison.sections}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files(comparison, figures, folder, command):
            (folder / name).write_text(text)
        for section in comparison.sections:
            for name, figure in figures[section.data]:
                figure.savefig(folder / f"{section.data}-{name}.png", dpi=150)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}): choose another output=") from error
    console.print(f"report in {folder.resolve()}/report.html", soft_wrap=True)


def files(comparison: Comparison, figures: Figures, folder: Path, command: str) -> Iterator[tuple[str, str]]:
    """Names and texts of what is written beside the plots."""
    yield "report.html", page(comparison, figures, folder, command)
    yield "report.md", markdown(comparison, figures, command)
    yield "networks.csv", as_csv(network_records(comparison))
    yield "runs.csv", as_csv(run_records(comparison))


# heading, and a network's cell, of the tables for reading
Column = tuple[str, Callable[[Section, Network], str]]


def figure_column(heading: str, key: str, text: Callable[[float], str]) -> Column:
    def cell(section: Section, network: Network) -> str:
        value = section.figure(network, key)
        return "-" if value is None else text(value)

    return heading, cell


def columns(section: Section) -> list[Column]:
    """The table of `section`, from left to right."""
    whole = "{:,.0f}".format
    return [
        ("network", lambda _, network: network.label),
        ("n", lambda _, network: str(len(network.runs))),
        ("test accuracy", lambda _, network: percent(network.accuracy)),
        (f"less {section.reference.label}", lambda _, network: points(network)),
        ("p", lambda _, network: p_value(network.difference)),
        figure_column("parameters", "parameters", whole),
        figure_column("MACs", "macs", whole),
        figure_column("images/s", "train_images_per_second", whole),
        figure_column("fit", "fit_seconds", "{:,.1f} s".format),
        (f"to {section.target:.1%}", target_time),
        figure_column("memory", "peak_memory_bytes", lambda size: f"{size / 2**20:,.0f} MiB"),
        ("on the front of", lambda _, network: ", ".join(COST_NAMES[cost] for cost in network.front) or "-"),
    ]


def percent(estimate: Estimate) -> str:
    """A mean accuracy with its interval, in percent."""
    if estimate.high is None:
        return f"{100 * estimate.mean:.2f} %"
    return f"{100 * estimate.mean:.2f} ± {100 * (estimate.high - estimate.mean):.2f} %"


def points(network: Network) -> str:
    """What a network has over the reference, with its interval, in percentage points."""
    if network.difference is None:
        return "-"
    pairs = network.difference.estimate.n
    return signed(network.difference.estimate) + ("" if pairs == len(network.runs) else f" (n = {pairs})")


def signed(estimate: Estimate) -> str:
    """A mean difference with its interval, in percentage points."""
    interval = "" if estimate.high is None else f" ± {100 * (estimate.high - estimate.mean):.2f}"
    return f"{100 * estimate.mean:+.2f}{interval}"


def p_value(difference: Difference | None) -> str:
    if difference is None or difference.p is None:
        return "-"
    return "< 0.0001" if difference.p < 1e-4 else f"{difference.p:.4f}"


def target_time(section: Section, network: Network) -> str:
    seconds = section.figure(network, "target_seconds")
    if seconds is not None:
        return f"{seconds:,.1f} s"
    return f"{network.reached} of {network.telling} runs" if section.timed and network.telling else "-"


LEGEND = (
    "Accuracy: mean over n seeds with 95 % interval (Student's t). Difference: paired by seed, in percentage points, "
    "with the p-value of its t-test, uncorrected for the number of comparisons. Times, rates and memory: medians over "
    "seeds. Time to a target: until validation after an epoch first reached it. Front: no network is better in "
    "both accuracy and that cost."
)


def title(section: Section) -> str:
    images = section.images
    sizes = f"{images['train']:,} train, {images['validation']:,} validation, {images['test']:,} test images"
    return f"{section.data}: {sizes}" + (f"; {section.hardware[0]}" if section.timed else "")


def left_out(comparison: Comparison) -> Iterator[str]:
    """What was not compared, by name."""
    for path in comparison.unfinished:
        yield f"unfinished, left out: {path}"
    for path in comparison.duplicates:
        yield f"left out for a later run of the same configuration and seed: {path}"


def print_section(console: Console, section: Section) -> None:
    """Prints the table of `section`: a few networks side by side, more of them one below the other."""
    table = Table(title=title(section), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown = columns(section)
    if len(section.networks) <= BESIDE:
        table.add_column("")
        for network in section.networks:
            table.add_column(network.label, justify="right")
        for heading, cell in shown[1:]:
            table.add_row(heading, *(cell(section, network) for network in section.networks))
        console.print(table)
    else:
        for heading, _ in shown:
            table.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
        for network in section.networks:
            table.add_row(*(cell(section, network) for _, cell in shown))
        print_whole(console, table)
    for note in section.notes:
        console.print(f"note: {note}", soft_wrap=True)


def markdown(comparison: Comparison, figures: Figures, command: str) -> str:
    """The report as Markdown."""
    lines = ["# Comparison", "", f"`{command}`, {time.strftime('%Y-%m-%d')}", ""]
    for section in comparison.sections:
        lines += [f"## {title(section)}", "", *section_table(section), ""]
        lines += [f"- {note}" for note in section.notes] + [""]
        lines += [f"![{name} on {section.data}]({section.data}-{name}.png)" for name, _ in figures[section.data]] + [""]
    lines += [LEGEND, "", *(f"- {text}" for text in left_out(comparison))]
    return "\n".join(lines).rstrip() + "\n"


def section_table(section: Section) -> list[str]:
    """The lines of a section's table, in Markdown."""
    shown = columns(section)
    rows = [[cell(section, network) for _, cell in shown] for network in section.networks]
    return markdown_table([heading for heading, _ in shown], rows, ["---", *["---:"] * (len(shown) - 2), "---"])


def network_records(comparison: Comparison) -> list[dict[str, Any]]:
    """A record a network, in full precision."""
    records = []
    for section in comparison.sections:
        for network in section.networks:
            accuracy, difference = network.accuracy, network.difference
            paired = difference.estimate if difference else None
            records.append(
                {
                    "data": section.data,
                    "network": network.label,
                    "n": accuracy.n,
                    "seeds": " ".join(map(str, network.runs)),
                    HEADLINE: accuracy.mean,
                    "low": accuracy.low,
                    "high": accuracy.high,
                    **{key: section.figure(network, key) for key in COSTS},
                    "eval_images_per_second": section.figure(network, "eval_images_per_second"),
                    "peak_memory_bytes": section.figure(network, "peak_memory_bytes"),
                    "target": section.target,
                    "reached_target": network.reached,
                    "target_seconds": section.figure(network, "target_seconds"),
                    "reference": section.reference.label,
                    "pairs": paired and paired.n,
                    "difference": paired and paired.mean,
                    "difference_low": paired and paired.low,
                    "difference_high": paired and paired.high,
                    "p": difference and difference.p,
                    "front": " ".join(network.front),
                }
            )
    return records


def run_records(comparison: Comparison) -> list[dict[str, Any]]:
    """A record a run."""
    keys = ["val_accuracy", HEADLINE, "test_accuracy_tta", "parameters", "macs", "fit_seconds",
            "train_images_per_second", "eval_images_per_second", "peak_memory_bytes", "precision"]  # fmt: skip
    return [
        {"data": section.data, "network": network.label, "seed": seed, "run": os.path.relpath(run.path)}
        | {key: run.result.get(key) for key in keys}
        | {"device": describe(run.result["device"])}
        | {"torch": run.result["versions"].get("torch"), "commit": run.result["git"].get("sha")}
        for section in comparison.sections
        for network in section.networks
        for seed, run in network.runs.items()
    ]


def as_csv(records: list[dict[str, Any]]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def page(comparison: Comparison, figures: Figures, folder: Path, command: str) -> str:
    """The report as one HTML page: plots within, tables that sort, links to each run's configuration."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sepconv.study", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    sections = []
    for section in comparison.sections:
        shown = columns(section)
        every = [run for network in section.networks for run in network.runs.values()]
        states = [*(run.result["versions"] for run in every), *(run.result["git"] for run in every)]
        # of each name, the values that its runs have
        values: dict[str, dict[str, None]] = {}
        for name, value in [item for state in states for item in state.items() if item[1] is not None]:
            values.setdefault(name, {})[str(value)] = None
        sections.append(
            {
                "title": title(section),
                "headings": [heading for heading, _ in shown],
                "rows": [[cell(section, network) for _, cell in shown] for network in section.networks],
                "notes": section.notes,
                "plots": [svg(figure) for _, figure in figures[section.data]],
                "runs": [
                    {
                        "network": network.label,
                        "seed": seed,
                        "accuracy": f"{run.result[HEADLINE]:.2%}",
                        "fit": f"{run.result['fit_seconds']:.1f} s",
                        "config": os.path.relpath(run.path / "config.yaml", folder.resolve()),
                        "command": run.result["command"],
                    }
                    for network in section.networks
                    for seed, run in network.runs.items()
                ],
                "environment": {"hardware": "; ".join(section.hardware)}
                | {name: ", ".join(found) for name, found in values.items()},
            }
        )
    return environment.get_template("report.html").render(
        command=command, date=time.strftime("%Y-%m-%d"), legend=LEGEND, sections=sections,
        left_out=list(left_out(comparison)),
    )  # fmt: skip


def svg(figure: Figure) -> str:
    """A figure as an SVG element."""
    text = StringIO()
    # text stays text; the same input gives the same file
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sepconv"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def plots(section: Section) -> list[tuple[str, Figure]]:
    """Names and figures: accuracy against each cost, learning curves, throughput."""
    with style.context(STYLE):
        made = [("accuracy", plot_accuracy(section)), ("curves", plot_curves(section))]
        if section.timed:
            made.append(("throughput", plot_throughput(section)))
    return [(name, figure) for name, figure in made if figure is not None]


def looks(section: Section) -> list[tuple[Network, str, str, str]]:
    """Each network with its label in legends, colour and marker."""
    colors = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    return [
        (network, f"{network.label} (n = {len(network.runs)})", color, marker)
        for network, color, marker in zip(section.networks, cycle(colors), cycle(MARKERS), strict=False)
    ]


def plot_accuracy(section: Section) -> Figure:
    """Test accuracy against each cost, with 95 % intervals; a line joins the networks on the front."""
    axis_labels = {
        "parameters": "parameters",
        "macs": "MACs an image",
        "train_images_per_second": "images/s in training (median over seeds)",
        "fit_seconds": "seconds of training (median over seeds)",
    }
    costs = [cost for cost in COSTS if any(section.figure(network, cost) is not None for network in section.networks)]
    figure = Figure(figsize=(4.6 * min(2, len(costs)), 3.4 * ((len(costs) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(costs) + 1) // 2, min(2, len(costs)), squeeze=False).flatten()
    for axes, cost in zip(panels, costs, strict=False):
        for network, label, color, marker in looks(section):
            value, accuracy = section.figure(network, cost), network.accuracy
            if value is None:
                continue
            half = None if accuracy.high is None else 100 * (accuracy.high - accuracy.mean)
            axes.errorbar(value, 100 * accuracy.mean, half, fmt=marker, color=color, label=label, capsize=3)
        front = sorted(
            (section.figure(network, cost) or 0, 100 * network.accuracy.mean)
            for network in section.networks if cost in network.front
        )  # fmt: skip
        axes.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=0, label="Pareto front")
        axes.set(xlabel=axis_labels[cost], ylabel="test accuracy (%)")
        if cost in TIMES:
            axes.set_xlim(left=0)
        else:
            plain_log(axes)
        axes.grid(alpha=0.3)
    add_legend(figure, panels[0])
    figure.suptitle(f"{section.data}: test accuracy, mean and 95 % interval")
    return figure


def add_legend(figure: Figure, axes: Axes) -> None:
    """What is in `axes`, below all panels; the figure grows by the lines that it takes."""
    handles, names = axes.get_legend_handles_labels()
    names = [name if len(name) <= 80 else f"{name[:77]}..." for name in names]
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


def short(value: float) -> str:
    """A number in a few characters: 2.5 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def plot_curves(section: Section) -> Figure | None:
    """Validation accuracy against epochs and against seconds: the mean over seeds, and the range as a band."""
    known = [look for look in looks(section) if any(run.result.get("history") for run in look[0].runs.values())]
    if not known:
        return None
    figure = Figure(figsize=(9.2 if section.timed else 5, 3.4), layout="constrained")
    panels = figure.subplots(1, 2 if section.timed else 1, sharey=True, squeeze=False)[0]
    for network, label, color, marker in known:
        histories = [history for run in network.runs.values() if (history := run.result.get("history"))]
        epochs = [[epoch for epoch in column if epoch] for column in zip_longest(*histories)]
        errors = [[100 * max(1e-4, 1 - epoch["val_accuracy"]) for epoch in column] for column in epochs]
        against = [[column[0]["epoch"] for column in epochs]]
        if section.timed:
            against.append([statistics.median(epoch["seconds"] for epoch in column) for column in epochs])
        for axes, x in zip(panels, against, strict=True):
            mean = [statistics.fmean(column) for column in errors]
            axes.plot(x, mean, marker=marker, markersize=4, color=color, label=label)
            axes.fill_between(
                x, [min(c) for c in errors], [max(c) for c in errors], color=color, alpha=0.2, linewidth=0
            )
    for axes, text in zip(panels, ("epochs", "seconds of training (median over seeds)"), strict=False):
        axes.set(yscale="log", xlabel=text)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="validation accuracy (%)")
    panels[0].invert_yaxis()
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - error:g}"))
    panels[0].yaxis.set_minor_formatter(NullFormatter())
    add_legend(figure, panels[0])
    figure.suptitle(f"{section.data}: learning curves, mean and range over seeds")
    return figure


def plot_throughput(section: Section) -> Figure:
    """Images a second in training and in evaluation, the median over seeds; whiskers from the lowest to the highest."""
    figure = Figure(figsize=(8, 1.6 + 0.5 * len(section.networks)), layout="constrained")
    axes = figure.subplots()
    labels = [textwrap.fill(f"{network.label} (n = {len(network.runs)})", 36) for network in section.networks]
    for place, (key, name) in enumerate(
        (("train_images_per_second", "training"), ("eval_images_per_second", "evaluation"))
    ):
        for row, network in enumerate(section.networks):
            if values := network.values(key):
                middle = statistics.median(values)
                axes.barh(
                    row + 0.4 * place - 0.2, middle, 0.38, xerr=[[middle - min(values)], [max(values) - middle]],
                    color=f"C{place}", hatch="" if place == 0 else "//", edgecolor="white", capsize=3,
                    label=name if row == 0 else None,
                )  # fmt: skip
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(
        xlabel="images/s (median over seeds, lowest to highest)",
        title=f"{section.data}: throughput, {section.hardware[0]}",
    )
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    return figure
