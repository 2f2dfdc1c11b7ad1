"""`docs/records.md`: every figure that is kept in `benchmarks/`, with what it was measured on and how.

A JSON file there is the record of one call of `scripts/benchmark.py`; a file `*-runs.csv` lists trained runs, as
`scripts/compare.py` writes them. The page has no other source, so the same records give the same page.
"""

import csv
import importlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sepconv import InputError
from sepconv.benchmark import writing
from sepconv.config.keys import RecordsConfig
from sepconv.reading import MOST_JSON, of_its_kind, read_json, read_text
from sepconv.study.compare import name_hardware
from sepconv.study.statistics import MARGIN, Difference, Estimate, write_p
from sepconv.tables import Column, Table
from sepconv.terminal import CONSOLE
from sepconv.text import code_block, escape_markdown
from sepconv.training.runs import PLACES

Row = dict[str, str]  # of a file of runs: values by column
Record = dict[str, Any]

COMMON = ("network", "commit", "device", "torch", "precision", "configuration", "dirty")  # to the runs of a row
UNSAID = {"overrides": "[]", "configuration": "", "dirty": ""}  # in files from before runs recorded these
OF_A_RUN = ("seed=", *PLACES)  # options that do not tell networks apart
VIEWS = "test_accuracy_tta"  # the test with several views of each image
COMMIT = 7  # characters of a commit's hash that are shown

INTRODUCTION = """\
The figures that are kept in `benchmarks/`. `python scripts/records.py` writes this page from the files there alone, and
each table names its file. Accuracies are means over n seeds, with 95 % intervals (Student's t). Times and rates are
medians over turns, with the first and third quartile in brackets. Compare times within one table only: what stands
there took turns on one machine."""

TRAININGS = """\
Test accuracies of trained networks, with their parameters and multiply-accumulates (MACs). The test images are used
once, at the end of each training. Parameters are without the running statistics of batch norms. A row is one network by
one configuration at one commit. Its name has the options of the command line only where another network of the file has
the same name; where the file has them for each run, they are given beside it. The reference is `baseline`, where it was
trained at the same commit, or, where all rows are of one network, the last of them. The difference from it is given in
percentage points, paired by seed, with its 95 % interval and the p-value of the paired t-test; then the p-value of two
one-sided tests, which is small where the two differ by less than 0.1 point. The files do not say what else ran on the
machine, so no times are given, nor how the settings were chosen: that, and where the test accuracy was in view, is in
the experiments' files in `configs/experiment/`."""


def write(config: RecordsConfig) -> None:
    """Writes `records.md` into `config.output`, from the files in `config.records`.

    Raises:
        InputError: there is no such folder, a file is not a record of its kind, or `config.output` cannot be written.
    """
    records, folder = Path(config.records), Path(config.output)
    if not records.is_dir():
        raise InputError(f"records={config.records} is not there: give the folder of the records, such as benchmarks")
    text = page(records, folder)
    with writing(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "records.md").write_text(text, encoding="utf-8")
    CONSOLE.print(f"page in {folder.resolve()}/records.md", soft_wrap=True)


def page(records: Path, folder: Path) -> str:
    """The text of `records.md` in `folder`."""
    headings = {"runs": ("Trainings", TRAININGS), **SUITES, "other": ("Other files", "Of a kind not known here:")}
    parts: dict[str, list[str]] = {kind: [] for kind in headings}
    for path in sorted(path for path in records.iterdir() if path.is_file()):
        address = quote(os.fsencode(os.path.relpath(path.resolve(), folder.resolve())))
        source = f"[{escape_markdown(path.name)}]({address})"
        with of_its_kind(path):
            record = read_json(path) if path.suffix == ".json" else None
            if path.name.endswith("-runs.csv"):
                groups = group_runs(list(csv.DictReader(read_text(path, MOST_JSON).splitlines())))
                title = escape_markdown(path.name.removesuffix("-runs.csv"))
                parts["runs"] += [f"### {title}", "", *training_lines(groups, source)]
            elif isinstance(record, dict) and record.get("suite") in SUITES:
                table = importlib.import_module(f"sepconv.benchmark.{record['suite']}").table(record)
                parts[record["suite"]] += [*origin(record, source), *table.filled().markdown(), ""]
            else:
                parts["other"] += [f"- {source}"]
    lines = ["# Records", "", INTRODUCTION, ""]
    for kind, content in parts.items():
        if content:
            title, introduction = headings[kind]
            lines += [f"## {title}", "", introduction, "", *content]
    return "\n".join(lines).rstrip() + "\n"


@dataclass(frozen=True)
class Group:
    """The runs of one network at one commit, on one kind of hardware."""

    label: str
    runs: list[Row]

    @property
    def source(self) -> Row:
        """What the runs were made with, and when."""
        run = self.runs[0]
        days = sorted(
            "-".join(day) for run in self.runs for day in re.findall(r"(\d{4})(\d\d)(\d\d)-\d{6}", run["run"])
        )
        return {
            "data": run["data"],
            "precision": run["precision"],
            "hardware": run["device"],
            "torch": run["torch"],
            "date": " to ".join(dict.fromkeys([*days[:1], *days[-1:]])),
            "commit": run["commit"][:COMMIT] + ", with changes that are not committed" * (run["dirty"] == "True"),
        }

    @property
    def options(self) -> str:
        """What the runs had on the command line; nothing where they do not say."""
        return " ".join(o for o in json.loads(self.runs[0]["overrides"]) if not o.startswith(OF_A_RUN))

    def accuracies(self, test: str = "test_accuracy") -> dict[int, float]:
        """By seed, shares of 1; none where the runs have no such `test`."""
        return {int(run["seed"]): float(run[test]) for run in self.runs if run.get(test)}

    def estimate(self, test: str = "test_accuracy") -> Estimate:
        return Estimate.of(list(self.accuracies(test).values()))

    def difference(self, groups: list["Group"]) -> Difference | None:
        """From the reference among `groups`, over the seeds that both have; None without one."""
        one_network = len({group.label.partition(" (")[0] for group in groups}) == 1
        references = [group for group in groups if group.label == "baseline"] or groups[-1:] * one_network
        for group in references:
            if group is not self and group.runs[0]["commit"] == self.runs[0]["commit"]:
                pair = self.accuracies(), group.accuracies()
                if seeds := sorted(pair[0].keys() & pair[1].keys()):
                    return Difference.between(*([values[seed] for seed in seeds] for values in pair))
        return None


def group_runs(runs: list[Row]) -> list[Group]:
    """The runs of a file by network and by what they were made with, from the fewest parameters.

    Raises ValueError where there are none.
    """
    if not runs:
        raise ValueError("it lists no runs")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for run in (UNSAID | run for run in runs):
        groups.setdefault(tuple(run[column] for column in COMMON), []).append(run)
    return sorted(
        (Group(label, members) for (label, *_), members in groups.items()),
        key=lambda group: (int(group.runs[0]["parameters"]), group.label),
    )


def training_lines(groups: list[Group], source: str) -> list[str]:
    """A line with what all groups have in common, and a table with a row for each."""
    first = groups[0].source
    common = {key: value for key, value in first.items() if all(group.source[key] == value for group in groups)}

    def of_source(key: str) -> Column:
        return Column(key, lambda group: group.source[key], left=True)

    columns = [
        Column("network", lambda group: group.label),
        Column("options", lambda group: group.options, left=True),
        Column("n", lambda group: str(len(group.runs))),
        Column("test accuracy", lambda group: group.estimate().percent()),
        Column(
            "with test-time views", lambda group: group.estimate(VIEWS).percent() if group.accuracies(VIEWS) else ""
        ),
        Column("parameters", lambda group: f"{int(group.runs[0]['parameters']):,}"),
        Column("MACs", lambda group: f"{int(group.runs[0]['macs']):,}"),
        Column("minus the reference, p", lambda group: d.points() if (d := group.difference(groups)) else ""),
        Column("equal, p", lambda group: write_p(d.equivalence(MARGIN)) if (d := group.difference(groups)) else ""),
        *(of_source(key) for key in first if key not in common),
    ]
    facts = (f"{key} {value}" if key in ("torch", "commit") else value for key, value in common.items())
    text = escape_markdown("; ".join(facts))
    return [f"{source}: {text}", "", *Table("", columns, groups).filled().markdown(), ""]


def origin(record: Record, source: str) -> list[str]:
    """What a suite was measured on, when, at which commit and by which command."""
    state = ", with changes that are not committed" if record["git"]["dirty"] else ""
    facts = [record.get("data"), record.get("precision"), name_hardware(record["device"]),
             f"torch {record['versions']['torch']}", record["date"],
             f"commit {record['git']['sha'][:COMMIT]}{state}"]  # fmt: skip
    text = escape_markdown("; ".join(filter(None, facts)))
    return [f"{source}: {text}", "", *code_block(record["command"]), ""]


# of each suite: the title of its section, and what was measured
SUITES = {
    "networks": (
        "Separable networks and their dense twins",
        "How many times as fast a separable network is as its dense twin, which has the same blocks, depth and widths: "
        "the ratio of their images/s, pair by pair of turns. Above 1 the separable network is faster. Where a record "
        "has them, the last columns set a measured step of each, separable and dense, over predictions: the sum of the "
        "times that its kernels take alone; that and what is between them (Python, torch's dispatch, the loss), found "
        "with a batch of 2 images; the least time by the machine's peaks of bandwidth and arithmetic.",
    ),
    "cpu_layers": (
        "Layers on a CPU",
        "The layers of `src/sepconv/networks/cpu.py`, and blocks and networks by the fused kernels of "
        "`src/sepconv/networks/fused` (`model.kernels=auto`), beside torch's own, which compute the same: the "
        "milliseconds of a call, and how many times as fast they are.",
    ),
    "cpu_kernels": (
        "Kernels on a CPU",
        "The fused kernels of a separable block by themselves: their shortest time, the bytes of their passes over "
        "maps a second, and shares of the machine's measured peaks: of bandwidth (of a working set as large), and of "
        "arithmetic.",
    ),
    "peers": (
        "Training to a test accuracy",
        "Our trainings (`experiment=`) beside other programs on the same images: `keras` is a network after the "
        "Keras MNIST example, with a hidden layer of 64 units and without dropout, which Keras trains in batches of 32 "
        "for 5 epochs (the example has 128 and 15), `template` the same network in a Lightning template, as long; "
        "`keras_fast` and `keras_torch` (Keras on TensorFlow and on torch) and `template_fast` are the same as fast as "
        "they go: batches of 128, "
        "bf16, images in memory, a learning rate that falls. These and `pytorch`, the MNIST example of PyTorch with a"
        " network of its own, train for as few epochs as reached the target in validation. `bare` is the first of our"
        " trainings as a PyTorch loop that does not validate. A fit is the training from its start to its end, "
        "validation included. Times as fast as Keras are split into how many times fewer images are seen, "
        "and how many times as many a second; those as fast as the peers are against the fastest of them whose mean "
        "validation accuracy reaches the target. How ours were chosen is in their files in `configs/experiment/`, the"
        " peers in `configs/suite/peers.yaml`.",
    ),
    "time_to_accuracy": (
        "Warm and cold starts",
        "A training in a process that has trained before (warm), and in a new one (cold), whose time is from the start "
        "of the process to its end. The last ratio is of the time to the first training step and of that which "
        "`import lightning` alone takes.",
    ),
    "loop": (
        "The training loop",
        "Images/s of our training, with Lightning, logging and checkpoints, over those of a bare PyTorch loop on the "
        "same tensors. At 1 they cost no time.",
    ),
}
