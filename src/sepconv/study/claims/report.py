"""The findings of `scripts/claims.py`: a JSON file for each data set, and `claims.md`, written from all of them."""

import time
from pathlib import Path
from typing import Any

import torch

from sepconv import terminal
from sepconv.devices import describe_device
from sepconv.reading import read_json
from sepconv.study.claims.finding import Finding
from sepconv.study.claims.lab import Lab
from sepconv.study.compare import name_hardware
from sepconv.tables import markdown_table
from sepconv.training import runs

INTRODUCTION = (
    "What is said of depthwise separable convolution, put to the test by `python scripts/claims.py`, which wrote "
    "this page. Intervals are 95 % by Student's t over paired seeds; p-values are of paired t-tests, one at a "
    "time. A claim is called true only where its interval leaves out 0, and *not shown* where it does not. A "
    "verdict holds for trainings of the length given with it."
)


def make_record(finding: Finding, lab: Lab, seconds: float, overrides: list[str]) -> dict[str, Any]:
    """A finding, and what it rests on: the runs that `lab` used, the machine, the command."""
    return {
        **vars(finding),
        "plot": False,  # until it is drawn
        "scale": lab.config.scale,
        "seeds": len(lab.config.seeds) if lab.used else None,
        "epochs": lab.config.recipe.epochs if lab.used else None,
        "commits": sorted({str(run.result.git["sha"]) for run in lab.used}),
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d"),
        "device": name_hardware(describe_device(lab.device)),
        "torch": str(torch.__version__),
        "command": runs.command_line("claims", overrides),
    }


def claims_page(folder: Path, sentences: dict[str, str]) -> str:
    """`claims.md` from the findings in `folder`/claims, of one data set or several, and each claim's sentence."""
    by_data = {path.stem: read_json(path) for path in sorted((folder / "claims").glob("*.json"))}
    lines, rows = [], []
    for name, sentence in sentences.items():
        findings = {data: records[name] for data, records in by_data.items() if name in records}
        verdicts = [f"{data}{trainings(finding)}: {finding['verdict']}" for data, finding in findings.items()]
        texts = {verdict.partition(": ")[2] for verdict in verdicts}
        verdicts = list(texts) if len(texts) == 1 else verdicts  # one for all data sets where they agree
        rows.append([f"[{name}](#{name.lower()})", sentence, "<br>".join(verdicts) or "not yet measured"])
        lines += [f"## {name}", "", sentence, ""]
        for data, finding in findings.items():
            lines += [
                f"**{data}**: {finding['verdict']}.", "",
                f"{finding['how']} {finding['device']}, torch {finding['torch']}, {finding['date']}"
                f"{trainings(finding)}; `{finding['command']}`", "",
                *markdown_table(finding["headings"], finding["rows"]), "",
            ]  # fmt: skip
            if finding["plot"]:
                lines += [f"![{name} on {data}](claims/{data}-{name}.png)", ""]
    overview = markdown_table(["", "claim", "verdict"], rows)
    return "\n".join(["# The claims, tested", "", INTRODUCTION, "", *overview, "", *lines]).rstrip() + "\n"


def trainings(finding: dict[str, Any]) -> str:
    """How many trainings of what length a finding rests on; nothing where it rests on none."""
    seeds = finding["seeds"]
    return "" if seeds is None else f", n = {seeds} seeds, {terminal.epochs(finding['epochs'])}"
