"""What `scripts/separate.py` writes and prints: its networks as JSON, CSV, a plot and a table."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sepconv import files
from sepconv.study.plots import AXIS_LABELS, WORST, accuracy_by_error, finish, make_panel, plain_log
from sepconv.tables import Column, Table, as_csv
from sepconv.terminal import CONSOLE, epochs, kept

Ranks = dict[str, int]  # of each separated layer, by name; a layer that is not in it stays as it is


def label(ranks: Ranks, layers: Iterable[str]) -> str:
    """The ranks of a network with `layers` to separate, in a few characters; - for a layer that is as it was."""
    values = [ranks.get(name) for name in layers]
    if not ranks:
        return "original"
    if len(set(values)) == 1:
        return str(values[0])
    if len(values) <= 4:
        return ", ".join("-" if value is None else str(value) for value in values)
    return f"{min(ranks.values())} to {max(ranks.values())}" + (", -" if None in values else "")


def write_report(run: Path, report: dict[str, Any]) -> None:
    """Writes the networks of the report into the run's directory: as CSV and as a plot."""
    networks = report["networks"]
    rows = [row | {"ranks": " ".join(f"{name}:{rank}" for name, rank in row["ranks"].items())} for row in networks]
    files.write(run / "separation.csv", as_csv(rows))
    with kept("separation.png"):
        plot(report).savefig(run / "separation.png", dpi=150)


def plot(report: dict[str, Any]) -> Figure:
    """Validation accuracy against MACs, before and after fine-tuning; its axis is logarithmic in the errors."""
    figure, axes = make_panel(7, 4.5)
    original, *separated = report["networks"]
    chosen = report["networks"][report["chosen"]]
    separated.sort(key=lambda row: row["macs"])

    def draw(rows: list[dict[str, Any]], key: str, name: str, style: str, size: int) -> None:
        if points := [(row["macs"], 100 * max(WORST, 1 - row[key])) for row in rows if row[key] is not None]:
            axes.plot(*zip(*points, strict=True), style, markersize=size, label=name)

    draw(separated, "accuracy", "separated", "o-", 4)
    draw(separated, "finetuned_accuracy", f"and fine-tuned for {epochs(report['finetune_epochs'])}", "s-", 4)
    reached = "accuracy" if chosen["finetuned_accuracy"] is None else "finetuned_accuracy"
    draw([chosen], reached, f"recorded: rank {label(chosen['ranks'], report['layers'])}", "k*", 12)
    draw([original], "accuracy", "original", "kD", 6)
    axes.axhline(100 * max(WORST, 1 - original["accuracy"]), color="k", linewidth=0.8, linestyle=":")
    title = f"{report['model']['name']} on {report['data']}, method={report['method']}"
    axes.set(xlabel=AXIS_LABELS["macs"], ylabel="validation accuracy (%)", title=title)
    plain_log(axes)
    accuracy_by_error(axes)
    finish(axes)
    return figure


def print_report(run: Path, report: dict[str, Any]) -> None:
    """Prints the table of networks, and the test accuracy of the finished ones."""
    CONSOLE.print()
    tabulate(report).show(CONSOLE)
    tested = ", ".join(f"{name} {accuracy:.2%}" for name, accuracy in report["test_accuracy"].items())
    if "finetuned" in report["test_accuracy"]:  # so a gain is of the training too
        tested += f" (trained {epochs(report['finetune_epochs'])} more than the original)"
    CONSOLE.print(f"test accuracy: {tested}", soft_wrap=True)
    CONSOLE.print(f"recorded in {run}", soft_wrap=True)
    if "finetuned_run" in report:
        CONSOLE.print(f"fine-tuned in {report['finetuned_run']}", soft_wrap=True)


def tabulate(report: dict[str, Any]) -> Table:
    """A row for each network, the one that is recorded with a star."""
    layers, networks = list(report["layers"]), report["networks"]
    ranks = f"ranks of {', '.join(layers)}" if 1 < len(layers) <= 4 else f"{len(layers)} layers"
    columns = [
        Column("rank", lambda row: label(row["ranks"], layers) + " *" * (row is networks[report["chosen"]])),
        Column("weight error", lambda row: percent(row["weight_error"]) if row["ranks"] else "-"),
        Column("logit error", lambda row: percent(row["logit_error"]) if row["ranks"] else "-"),
        Column("parameters", lambda row: f"{row['parameters']:,}"),
        Column("MACs", lambda row: f"{row['macs']:,}"),
        Column("of all", lambda row: f"{row['macs'] / networks[0]['macs']:.1%}"),
        Column("images/s", lambda row: f"{row['images_per_second']:,.0f}"),
        Column("validation", lambda row: f"{row['accuracy']:.2%}"),
    ]
    if report["finetune_epochs"] > 0:
        accuracy = "finetuned_accuracy"
        more = epochs(report["finetune_epochs"])  # than the original was trained
        columns += [Column(f"after {more} more", lambda row: "-" if row[accuracy] is None else f"{row[accuracy]:.2%}")]
    title = f"{report['model']['name']} on {report['data']}, method={report['method']}, {ranks}; * is recorded"
    return Table(title, columns, networks)


def percent(share: float) -> str:
    """A share in percent; its order of magnitude where that would be 0.0."""
    return f"{share:.1%}" if share == 0 or share >= 5e-4 else f"{share:.0e}"
