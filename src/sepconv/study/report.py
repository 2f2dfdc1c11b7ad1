"""What `scripts/compare.py` prints and writes: tables, plots, and a page that opens from disk."""

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from sepconv import files
from sepconv.config.keys import CompareConfig
from sepconv.study.compare import COSTS, Comparison, Network, Section, name_hardware
from sepconv.study.page import render_page
from sepconv.study.plots import Picture, draw_section
from sepconv.study.statistics import write_p
from sepconv.tables import Column, Table, as_csv
from sepconv.terminal import CONSOLE, track
from sepconv.text import code_span, escape_markdown
from sepconv.training.runs import PLACES, name_code

LISTED = 10  # images, at most, that a line lists
SIDE_BY_SIDE = 4  # networks, at most, that the terminal shows as columns
COST_NAMES = {"parameters": "parameters", "macs": "MACs", "train_images_per_second": "images/s", "fit_seconds": "fit"}
LEGEND = (
    "Accuracy: mean over n seeds with 95 % interval. Difference: paired by seed, in percentage points, with its "
    "p-value, uncorrected for the number of comparisons. Where runs kept what they predicted, these are by a bootstrap "
    "crossed over seeds and test images, and hold for other seeds and other such images; else by Student's t over "
    "seeds, for these images alone. Right more, less often: on how many test images a network is right for more, or "
    "for fewer, of the seeds that both have than the network it is set against. Times and rates: medians over seeds. "
    "Time to a target: until the validation accuracy after an epoch first reached it; where target= does not give it, "
    "it is chosen after the fact, as what all these runs reached. Front: no network is better in both accuracy and "
    "that cost."
)

Pictures = dict[str, dict[str, Picture]]  # by data set and name


def report_comparison(comparison: Comparison, config: CompareConfig, overrides: list[str]) -> None:
    """Prints the comparison, and writes it to `config.output`: tables and pages, then both pages with plots.

    Raises InputError where the folder cannot be written.
    """
    for section in comparison.sections:
        table = section_table(section)
        (table.transposed() if len(table.records) <= SIDE_BY_SIDE else table).show(CONSOLE)
        for note in section.notes:
            CONSOLE.print(f"note: {note}", soft_wrap=True)
    for line in left_out(comparison):
        CONSOLE.print(line, soft_wrap=True)
    folder = Path(config.output)
    options = [o for o in overrides if not o.startswith("runs=")]
    command = shlex.join(["python", "scripts/compare.py", *config.runs, *options])
    files.make_folder(folder)
    files.write(folder / "networks.csv", as_csv(list(network_records(comparison))))
    files.write(folder / "runs.csv", as_csv(run_records(comparison)))
    for section in comparison.sections:
        if records := image_records(section):
            files.write(folder / f"{section.data}-images.csv", as_csv(records))
    write_pages(comparison, {section.data: {} for section in comparison.sections}, folder, command)
    sections = track(comparison.sections, "pictures: data set")
    drawn = {section.data: draw_section(section) for section in sections}
    for data, pictures in drawn.items():
        for name, picture in pictures.items():
            files.write(folder / f"{data}-{name}.png", picture.png)
    write_pages(comparison, drawn, folder, command)
    CONSOLE.print(f"report in {folder.resolve()}/report.html", soft_wrap=True)


def write_pages(comparison: Comparison, pictures: Pictures, folder: Path, command: str) -> None:
    """Writes report.md and report.html, with `pictures`."""
    files.write(folder / "report.md", markdown(comparison, pictures, command))
    files.write(folder / "report.html", page(comparison, pictures, folder, command))


def section_table(section: Section) -> Table:
    """The table of `section`, a network a row."""

    def figure(heading: str, key: str, text: Callable[[float], str] = "{:,.0f}".format) -> Column:
        def cell(network: Network) -> str:
            value = section.figure(network, key)
            return "-" if value is None else text(value)

        return Column(heading, cell)

    def target_time(network: Network) -> str:
        seconds = section.figure(network, "target_seconds")
        if seconds is not None:
            return f"{seconds:,.1f} s"
        trainings = len(network.histories)
        return f"{network.reached} of {trainings} runs" if section.timed and trainings else "-"

    images = section.images
    sizes = f"{images['train']:,} train, {images['validation']:,} validation, {images['test']:,} test images"
    title = f"{section.data}: {sizes}" + (f"; {section.hardware[0]}" if section.timed else "")
    columns = [
        Column("network", lambda network: network.label),
        Column("n", lambda network: str(len(network.runs))),
        Column("test accuracy", lambda network: network.accuracy.percent()),
        Column(f"minus {section.reference.label}", difference_points),
        Column("p", lambda network: write_p(network.difference.p) if network.difference else "-"),
        Column("right more, less often", contrast_counts),
        figure("parameters", "parameters"),
        figure("MACs", "macs"),
        figure("images/s", "train_images_per_second"),
        figure("fit", "fit_seconds", "{:,.1f} s".format),
        Column(f"to {section.target:.1%} of validation", target_time),
        Column("on the front of", lambda network: ", ".join(COST_NAMES[c] for c in network.front) or "-", left=True),
    ]
    return Table(title, columns, section.networks)


def difference_points(network: Network) -> str:
    """What a network has over the reference, and over how many seeds, where that is not over all of its own."""
    if network.difference is None:
        return "-"
    estimate = network.difference.estimate
    return estimate.points() + ("" if estimate.n == len(network.runs) else f" (n = {estimate.n})")


def contrast_counts(network: Network) -> str:
    """On how many images a network is right more often than the reference, and on how many less often."""
    if network.contrast is None:
        return "-"
    return ", ".join(f"{len(network.contrast.images(more)):,}" for more in (True, False))


def contrast_lines(section: Section) -> Iterator[str]:
    """On which images each network differs most from the reference: their places in the test set, from 0."""
    for network in section.networks:
        if network.contrast is not None:
            for words, more in (("more", True), ("less", False)):
                if images := network.contrast.images(more):
                    places = ", ".join(map(str, images[:LISTED])) + (", ..." if images[LISTED:] else "")
                    yield (f"{network.label} is right {words} often than {section.reference.label} on {len(images):,} "
                           f"test images: {places}")  # fmt: skip


def image_records(section: Section) -> list[dict[str, Any]]:
    """A record a test image that not all runs are right about: of each network, of how many runs it is."""
    networks = [
        (network.label, np.array(list(network.right.values()))) for network in section.networks if network.right
    ]
    if section.labels is None or not networks:
        return []
    missed = ~np.all([right.all(0) for _, right in networks], 0)
    return [
        {
            "image": int(image),
            "class": section.runs[0][1].result.classes[section.labels[image]],
            **{f"{label}: right of {len(right)}": int(right[:, image].sum()) for label, right in networks},
        }
        for image in np.flatnonzero(missed)
    ]


def left_out(comparison: Comparison) -> Iterator[str]:
    """What was not compared, by name."""
    for path in comparison.unfinished:
        yield f"unfinished, left out: {path}"
    for path in comparison.missing:
        yield f"missing, left out: {path}"
    for path in comparison.duplicates:
        yield f"left out for a later run of the same configuration and seed: {path}"


def markdown(comparison: Comparison, pictures: Pictures, command: str) -> str:
    """The report as Markdown."""
    lines = ["# Comparison", "", f"{code_span(command)}, {time.strftime('%Y-%m-%d')}", ""]
    for section in comparison.sections:
        table, data = section_table(section), section.data
        lines += [f"## {escape_markdown(table.title)}", "", *table.markdown(), ""]
        lines += [f"- {escape_markdown(note)}" for note in (*section.notes, *contrast_lines(section))] + [""]
        lines += [f"![{name} on {data}]({data}-{name}.png)" for name in pictures[data]] + [""]
    lines += [LEGEND, "", *(f"- {escape_markdown(line)}" for line in left_out(comparison))]
    return "\n".join(lines).rstrip() + "\n"


def network_records(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A record a network, in full precision."""
    keys = (*COSTS, "eval_images_per_second")
    for section in comparison.sections:
        for network in section.networks:
            accuracy, difference = network.accuracy, network.difference
            paired = difference.estimate if difference else None
            yield {
                "data": section.data,
                "network": network.label,
                "n": accuracy.n,
                "seeds": " ".join(map(str, network.runs)),
                "test_accuracy": accuracy.mean,
                "low": accuracy.low,
                "high": accuracy.high,
                "interval": "seeds" if network.right is None else "seeds and images",
                **{key: section.figure(network, key) for key in keys},
                "target": section.target,
                "reached_target": network.reached,
                "target_seconds": section.figure(network, "target_seconds"),
                "reference": section.reference.label,
                "pairs": paired and paired.n,
                "difference": paired and paired.mean,
                "difference_low": paired and paired.low,
                "difference_high": paired and paired.high,
                "p": difference and difference.p,
                "difference_interval": difference and ("seeds and images" if network.contrast else "seeds"),
                **{
                    f"right_{word}_often": network.contrast and len(network.contrast.images(word == "more"))
                    for word in ("more", "less")
                },
                "front": " ".join(network.front),
            }


def run_records(comparison: Comparison) -> list[dict[str, Any]]:
    """A record a run, as it recorded itself: what ran is in its overrides, `configuration` and code.

    Where files lie on one machine is left out: of `run` all but the data, the network and its own name, and PLACES.
    """
    keys = ["val_accuracy", "test_accuracy", "test_accuracy_tta", "parameters", "macs", "fit_seconds",
            "train_images_per_second", "eval_images_per_second", "precision"]  # fmt: skip
    return [
        {
            "data": section.data,
            "network": network.label,
            "seed": run.config.seed,
            "run": "/".join([run.file.record.run, run.path.name] if run.file else run.path.resolve().parts[-3:]),
            "overrides": json.dumps([o for o in run.result.overrides if not o.startswith(PLACES)], ensure_ascii=False),
            "configuration": run.result.configuration,
            **{key: getattr(run.result, key) for key in keys},
            "device": name_hardware(run.result.device),
            "torch": run.result.versions["torch"],
            "commit": run.result.git["sha"],
            "dirty": run.result.git["dirty"],
            "resumed_by": " ".join(map(name_code, run.result.git_later)),
        }
        for section in comparison.sections
        for network, run in section.runs
    ]


def page(comparison: Comparison, pictures: Pictures, folder: Path, command: str) -> str:
    """The report as one HTML page: plots within, tables that sort, links to each run's configuration."""

    def relative(path: Path) -> str:
        return quote(os.fsencode(os.path.relpath(path, os.path.realpath(folder))))

    sections = [
        (section, section_table(section), [Markup(picture.svg) for picture in pictures[section.data].values()])
        for section in comparison.sections
    ]
    return render_page(
        "report.html",
        command=command,
        date=time.strftime("%Y-%m-%d"),
        legend=LEGEND,
        sections=sections,
        relative=relative,
        environment=environment_values,
        contrasts=contrast_lines,
        left_out=list(left_out(comparison)),
    )


def environment_values(section: Section) -> dict[str, str]:
    """What the runs of `section` were made with: of each name, the values that they have."""
    values: dict[str, dict[str, None]] = {}
    for _, run in section.runs:
        codes = {"commit": " ".join(map(name_code, (run.result.git, *run.result.git_later)))}
        for name, value in (run.result.versions | codes).items():
            if value is not None:
                values.setdefault(name, {})[str(value)] = None
    return {"hardware": "; ".join(section.hardware)} | {name: ", ".join(texts) for name, texts in values.items()}
