"""Trainings by scripts/train.py, each in a process of its own, which are found again and continued by their runs."""

import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sepconv import InputError
from sepconv.config import REPOSITORY
from sepconv.config.keys import TrainConfig
from sepconv.study.compare import Run, list_runs, read_run
from sepconv.training import runs

log = logging.getLogger(__name__)

Key = tuple[str, int]  # of a run: the hash of its configuration, its seed

POLL = 0.5  # seconds between looks at trainings that are under way
DIVERGED = "the loss became"  # is in the line of a training that diverged


@dataclass
class Process:
    """A training that is under way."""

    process: "subprocess.Popen[bytes] | None"  # None where it has ended without us
    errors: IO[bytes]  # its standard error

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def send(self, number: int) -> None:
        """Sends it a signal."""
        if self.process is not None:
            self.process.send_signal(number)

    def wait(self) -> None:
        """Returns when it has ended."""
        if self.process is not None:
            self.process.wait()

    def last_line(self) -> str:
        """The last line of what it said to standard error."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def start(arguments: list[str]) -> Process:
    """Starts scripts/train.py on one thread, in a group of its own: a signal at the terminal is for this process."""
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - for the process; a pipe could fill
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )  # fmt: skip
    return Process(process, errors)


class Trainings:
    """The trainings whose runs lie in `folder`, by the code of this hash, from first to last."""

    def __init__(self, folder: Path, code: str | None) -> None:
        self.folder, self.code = folder, code
        self.finished: dict[Key, Run] = {}
        self.stopped: dict[Key, Path] = {}
        self.known: set[Path] = set()  # directories of runs that are not read again

    def scan(self) -> None:
        """Reads the runs that have been begun or finished since the last time."""
        self.stopped = {}
        for path in list_runs(self.folder) if self.folder.is_dir() else []:
            if path in self.known:
                continue
            try:
                if (path / "result.json").exists():
                    run = read_run(path)
                    self.known.add(path)
                    run.right()  # it must tell
                    if {runs.hash_code(code) for code in (run.result.git, *run.result.git_later)} == {self.code}:
                        self.finished.setdefault(runs.identity(run.config), run)
                else:
                    _, config, _ = runs.read_config(path)
                    self.stopped[runs.identity(config)] = path
            except InputError as error:
                self.known.add(path)
                log.warning("%s is left out: %s", path, error)

    def find(self, config: TrainConfig) -> Run | None:
        """The finished run of a configuration, as it was when the folder was last read."""
        return self.finished.get(runs.identity(config))

    def begin(self, config: TrainConfig, arguments: list[str]) -> Process:
        """Starts the training that `config` describes and `arguments` make, or continues its run that was stopped.

        What a process of before began may still be under way: that is waited for.
        """
        self.scan()
        if (stopped := self.stopped.get(runs.identity(config))) is None:
            return start([*arguments, f"runs={self.folder}"])
        while is_locked(stopped):
            time.sleep(POLL)
        self.scan()
        return start([f"resume={stopped}"]) if self.find(config) is None else Process(None, io.BytesIO())


def stop(processes: Collection[Process]) -> None:
    """Ends trainings so that they can be continued."""
    for each in processes:
        each.send(signal.SIGTERM)
    for each in processes:
        each.wait()


def is_locked(run: Path) -> bool:
    """Whether another process trains a run."""
    try:
        with runs.lock(run):
            return False
    except InputError:
        return True
