"""Trials that take minutes (`make torture`), and the page that says what they found: docs/promises.md.

A trial's docstring is the promise; what it puts into `figures` is what was counted. A trial that fails takes its
figures off the page.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from sepconv import files
from sepconv.config import REPOSITORY
from sepconv.config.keys import TrainerConfig
from sepconv.devices import describe_device, find_device
from sepconv.training.runs import git_state

RECORD = REPOSITORY / "docs/promises.json"
HEAD = """# What it promises

Each promise is a trial, so far on CPUs alone: run one by its command, or all by `make torture`. The figures are of the
last time that it held. This page is written by the trials.
"""


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What a trial counts, in words and numbers; kept for the page if it passes, together with where and when."""
    counted: dict[str, Any] = {}
    started = time.time()
    git = git_state()
    yield counted
    if "TRIALS" in os.environ:  # a part of them, to try the trial itself
        return
    passed = request.node.stash.get(PASSED, False)
    with filelock.FileLock(Path(tempfile.gettempdir()) / "sepconv-promises.lock"):
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        name = request.node.nodeid
        record.pop(name, None)
        if passed:
            record[name] = {
                "promise": " ".join((request.function.__doc__ or "").split()),
                "figures": counted,
                "seconds": round(time.time() - started),
                "date": time.strftime("%Y-%m-%d"),
                "device": describe_device(find_device(TrainerConfig(accelerator="cpu"))),
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "git": git,
            }
        files.write(RECORD, json.dumps(dict(sorted(record.items())), indent=2) + "\n")
        files.write(RECORD.with_suffix(".md"), write_page(record))


def write_page(record: dict[str, Any]) -> str:
    """docs/promises.md."""
    parts = [HEAD]
    for name, entry in sorted(record.items()):
        counts = "; ".join(f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}"
                           for key, value in entry["figures"].items())  # fmt: skip
        commit = f"{str(entry['git']['sha'])[:7]}{', with changes' * bool(entry['git']['dirty'])}"
        where = f"{entry['device']['name']}, Python {entry['python']}, torch {entry['torch']}"
        case = name.partition("[")[2].rstrip("]")
        parts += [
            f"- **{entry['promise']}**{f' ({case})' if case else ''}",
            f"  {counts}. {entry['seconds']} s on {where}; {entry['date']}, commit {commit}.",
            f"  `python -m pytest '{name}'`",
            "",
        ]
    return "\n".join(parts).rstrip() + "\n"


PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report
