"""The findings of `scripts/claims.py`: a JSON file for each data set, and `claims.md`, written from all of them."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sepconv import terminal
from sepconv.benchmark.records import COMMIT
from sepconv.devices import describe_device
from sepconv.reading import of_its_kind, read_json
from sepconv.study.claims.finding import Accuracies, Cell, Finding, conclude, find_cases, judge, read_cell, write_cell
from sepconv.study.claims.lab import Lab
from sepconv.study.compare import Run, name_hardware
from sepconv.tables import markdown_table
from sepconv.training import runs

INTRODUCTION = (
    "What is said of depthwise separable convolution, put to the test by `python scripts/claims.py`, which wrote this "
    "page from the raw values in `claims/`. Intervals are 95 %, p-values in tables of one test each. Those of "
    "accuracies are by a bootstrap crossed over paired seeds and test images; those of losses and of weights' errors, "
    "and of accuracies where it says so, by Student's t over paired seeds alone. Verdicts are by p-values that Holm's "
    "method corrects for all claims that are tested on a data set: true or false where a difference has p < 0.05, "
    "equal where two one-sided tests exclude one of 0.1 point or more at p < 0.05, else *not shown*. They hold for "
    "trainings of the length given with them, and on digits where no data set is named."
)


# what the findings come to, for reading out; in brackets the claims that a sentence rests on
KNOWN = """\
What is known, in ten sentences:

1. A standard convolution does two things in one step, finding patterns in space and mixing channels; a depthwise
   separable one has a step for each: a filter for each channel, then a mixture of the channels at each position (C1 to
   C3).
2. With 3 x 3 filters and hundreds of channels that takes 8 to 9 times fewer weights and multiplications; with few
   output channels the gain is smaller (C4, C5).
3. Where few channels come in, as in the first layer, a separable layer saves little time: a reason to begin with a
   standard one (C8).
4. With many channels it is faster on the CPU measured, but at most widths by less than it saves in multiplications
   (C12).
5. A stack of separable layers has the same theoretical receptive field as a stack of dense ones with filters of the
   same size: the mixing adds nothing (C11).
6. On digits, a separable network of 49 layers is trained in 20 epochs only with residual connections (C9).
7. A separable network has fewer weights than its dense twin, but on digits does not overfit less: where a difference is
   shown, it overfits more. What it saves is storage (C10).
8. For the same weights a separable network can be deeper; on digits no gain from that is shown (C7).
9. Filters that training finds on digits are not each a column times a row (rank 1): replaced by such and not trained
   further, they cost accuracy, though a network of such filters can be trained from scratch (C13).
10. Which kind of layer is better depends on what is scarce, weights, multiplications or time, and is answered by
    networks of equal cost: on MNIST a separable network is not shown to be more accurate than a narrower dense one of
    as many weights, and at some sizes it is less so ([the frontier](frontier/mnist.md))."""


def make_record(finding: Finding, lab: Lab, seconds: float, overrides: list[str]) -> dict[str, Any]:
    """A finding in raw values, and what it rests on: the runs that `lab` used, the machine, the code, the command."""
    return {
        **asdict(replace(finding, plot=None)),
        "plot": False,  # until it is drawn
        "scale": lab.config.scale,
        "seeds": len({run.config.seed for run in lab.used.values()}) or None,
        "epochs": lab.config.recipe.epochs if lab.used else None,
        "runs": [describe_run(run) for run in lab.used.values()],
        "git": lab.code,
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d"),
        "device": name_hardware(describe_device(lab.device)),
        "torch": str(torch.__version__),
        "command": runs.command_line("claims", overrides),
    }


def describe_run(run: Run) -> dict[str, Any]:
    """What a record has of a run: which network, by which code, and what it came to."""
    keys = ("seed", "configuration", "test_accuracy", "git", "git_later")
    return {
        "model": run.config.model,
        "train_images": run.result.images["train"],
        **{key: getattr(run.result, key) for key in keys},
    }


def claims_page(folder: Path, sentences: dict[str, str]) -> str:
    """`claims.md` from the findings in `folder`/claims, of one data set or several, and each claim's sentence.

    Raises InputError for a file that is no record of findings.
    """
    by_data: dict[str, dict[str, Written]] = {}
    for path in sorted((folder / "claims").glob("*.json")):
        with of_its_kind(path):
            by_data[path.stem] = write_findings(read_json(path))
    lines, rows = [], []
    for name, sentence in sentences.items():
        findings = {data: records[name] for data, records in by_data.items() if name in records}
        verdicts = [f"{data}{finding.trainings}: {finding.verdict}" for data, finding in findings.items()]
        texts = {verdict.partition(": ")[2] for verdict in verdicts}
        verdicts = list(texts) if len(texts) == 1 else verdicts  # one for all data sets where they agree
        rows.append([f"[{name}](#{name.lower()})", sentence, "<br>".join(verdicts) or "not yet measured"])
        lines += [f"## {name}", "", sentence, ""]
        for data, finding in findings.items():
            lines += [f"**{data}**: {finding.verdict}.", "", *finding.lines, ""]
            if finding.plot:
                lines += [f"![{name} on {data}](claims/{data}-{name}.png)", ""]
    overview = markdown_table(["", "claim", "verdict"], rows)
    return "\n".join(["# The claims, tested", "", KNOWN, "", INTRODUCTION, "", *overview, "", *lines]).rstrip() + "\n"


def write_findings(records: dict[str, dict[str, Any]]) -> dict[str, "Written"]:
    """The findings on a data set in words, by claim: all their cases are a family."""
    rows = {name: [[read_cell(cell) for cell in row] for row in record["rows"]] for name, record in records.items()}
    cases = {(name, case): pair for name in rows for case, pair in find_cases(rows[name]).items()}
    verdicts: dict[str, dict[str, str]] = {name: {} for name in rows}
    for (name, case), verdict in judge(cases).items():
        verdicts[name][case] = verdict
    return {name: Written(record, rows[name], verdicts[name]) for name, record in records.items()}


def knows_seeds_alone(rows: list[list[Cell]]) -> bool:
    """Whether rows have accuracies, and it is not known of which images."""
    cells = [cell for row in rows for cell in row]
    return any(isinstance(cell, list) for cell in cells) and not any(isinstance(cell, Accuracies) for cell in cells)


class Written:
    """A finding in words, from its record, the rows of that, and the verdict of each of its cases."""

    def __init__(self, record: dict[str, Any], rows: list[list[Cell]], verdicts: dict[str, str]) -> None:
        self.plot: bool = record["plot"]
        self.verdict = conclude(record["verdict"], verdicts)
        # how many trainings it rests on, nothing where on none; of what length, where the table does not say so
        seeds = len({run["seed"] for run in record["runs"]})
        self.trainings = f", n = {seeds} seeds" if seeds else ""
        if seeds and "epochs" not in record["headings"]:
            self.trainings += f", {terminal.epochs(record['epochs'])}"
        codes = [code for run in record["runs"] for code in (run["git"], *run["git_later"])]
        commits = ", ".join(dict.fromkeys(runs.name_code(code, COMMIT) for code in [record["git"], *codes]))
        alone = " Intervals are by seeds alone." if knows_seeds_alone(rows) else ""
        self.lines = [
            f"{record['how']}{alone} {record['device']}, torch {record['torch']}, {record['date']}, commit "
            f"{commits}{self.trainings}; `{record['command']}`", "",
            *markdown_table(record["headings"], [[write_cell(cell) for cell in row] for row in rows]),
        ]  # fmt: skip
