"""What the trials have in common: their number, and trainings in processes that can be stopped."""

import contextlib
import json
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sepconv.config import REPOSITORY
from sepconv.training import checkpoints

# a server that has imported what a training needs, from which each training is forked within milliseconds
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["sepconv.training.train", "sepconv.cli", "sklearn.datasets", "hydra"])

# small, but with all that there is to lose: several epochs, states within them, flips to remember, views of the test
ARGUMENTS = ["trainer=cpu", "trainer.checkpoint_seconds=0", "recipe.epochs=3", "recipe.batch_size=100",
             "recipe.augment.flip=true", "recipe.augment.alternate=true", "recipe.tta=mirror", "model=tiny",
             "seed=5"]  # fmt: skip
COMPARED = ("test_accuracy", "test_accuracy_tta", "test_loss", "val_accuracy", "digests", "classes", "images")


def trials(count: int) -> int:
    """`count`, or what TRIALS in the environment says, for a quick look."""
    return min(count, int(os.environ.get("TRIALS", count)))


def run_script(name: str, arguments: list[str], log: Path, prepare: Callable[[], None] | None) -> None:
    """`scripts/NAME.py` in this process, its output in `log`."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if prepare:
        prepare()
    script = str(REPOSITORY / "scripts" / f"{name}.py")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


class Script:
    """A command in a process of its own."""

    def __init__(self, name: str, arguments: list[str], log: Path, prepare: Callable[[], None] | None = None) -> None:
        log.write_text("")
        self.log = log
        self.process = PROCESSES.Process(target=run_script, args=(name, arguments, log, prepare))
        self.process.start()

    def stop(self, after: float, number: int) -> None:
        """Sends it the signal `number` after so many seconds, if it still runs."""
        self.process.join(after)
        if self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                assert self.process.pid is not None
                os.kill(self.process.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """Its exit status, or the negative number of the signal that ended it."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"it hangs: {self.output}")
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text()


def find_run(folder: Path) -> Path | None:
    """The run in the folder `runs` of a trial, if its directory came to be one."""
    runs = [path.parent for path in folder.glob("*/*/*/config.yaml")]
    assert len(runs) < 2
    return runs[0] if runs else None


def describe(run: Path) -> dict[str, Any]:
    """All that a finished run must have in common with one that was never stopped: its weights and figures."""
    result = json.loads((run / "result.json").read_text())
    weights = {name: checkpoints.load(run / f"checkpoints/{name}.ckpt")["state_dict"] for name in ("best", "last")}
    bits = {
        f"{name} {key}": tensor.numpy().tobytes() for name, state in weights.items() for key, tensor in state.items()
    }
    history = [(epoch["epoch"], epoch["val_loss"], epoch["val_accuracy"]) for epoch in result["history"]]
    return {key: result[key] for key in COMPARED} | bits | {"history": history}


def check_whole(run: Path) -> None:
    """Whatever lies there can be read: no half of a checkpoint or a result."""
    for path in (run / "checkpoints").glob("*.ckpt"):
        checkpoints.load(path)
    if (run / "result.json").exists():
        json.loads((run / "result.json").read_text())


def train(folder: Path) -> tuple[Path, float]:
    """The run of ARGUMENTS that nothing stops, and its seconds, once the server of processes is there."""
    assert Script("train", ["--help"], folder / "help.log").wait() == 0
    started = time.time()
    script = Script("train", [*ARGUMENTS, f"runs={folder / 'whole'}"], folder / "whole.log")
    assert script.wait() == 0, script.output
    run = find_run(folder / "whole")
    assert run is not None
    return run, time.time() - started


def finish(folder: Path) -> Path:
    """Resumes the run in `folder`'s `runs`, or starts it where there is none: its directory, once it is complete."""
    run = find_run(folder / "runs")
    if run is None or not (run / "result.json").exists():
        arguments = [f"resume={run}"] if run else [*ARGUMENTS, f"runs={folder / 'runs'}"]
        script = Script("train", arguments, folder / "finish.log")
        assert script.wait() == 0, script.output
    run = find_run(folder / "runs")
    assert run is not None
    return run
