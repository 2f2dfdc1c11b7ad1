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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from sepconv import InputError, files
from sepconv.config import REPOSITORY
from sepconv.config.keys import TrainConfig
from sepconv.study.compare import Run, list_runs, read_run
from sepconv.terminal import CONSOLE, PROGRESS_LINE
from sepconv.training import checkpoints, runs

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

    def failure(self) -> str:
        """Why it, which has ended, left no run that counts, in a line."""
        status = 0 if self.process is None else self.process.returncode
        if status == 0:
            return "its run is not of these settings, these images and this code"
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return next((line for line in reversed(lines) if not PROGRESS_LINE.fullmatch(line)), f"exit status {status}")


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
    """The trainings whose runs lie in `folder`, of those that were trained by one code, from first to last.

    Args:
        code: its hash. None is any code that is not committed: changes to it are not told apart.
        digests: of the images, which a run's configuration does not tell.
    """

    def __init__(self, folder: Path, code: str | None, digests: dict[str, str]) -> None:
        self.folder, self.code, self.digests = folder, code, digests
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
                    of_this_code = self.same_code([run.result.git, *run.result.git_later])
                    if of_this_code and run.result.digests == self.digests:
                        self.finished.setdefault(runs.identity(run.config), run)
                else:
                    _, config, _ = runs.read_config(path)
                    if self.same_code(runs.read_code(path)):
                        self.stopped[runs.identity(config)] = path
            except InputError as error:
                self.known.add(path)
                log.warning("%s is left out: %s", path, error)

    def same_code(self, codes: list[dict[str, Any]]) -> bool:
        """Whether a run was trained by this code in all its parts."""
        return {runs.hash_code(code) for code in codes} == {self.code}

    def same_images(self, run: Path) -> bool:
        """Whether a stopped run can go on with these images, for all that its last checkpoint knows of its own."""
        try:
            settings: dict[str, Any] = checkpoints.load(run / "checkpoints/last.ckpt")["hyper_parameters"]
            return bool(settings["images"]["digests"] == self.digests)
        except (InputError, LookupError, TypeError):  # there is none, or its training says what is wrong with it
            return True

    def find(self, config: TrainConfig) -> Run | None:
        """The finished run of a configuration, as it was when the folder was last read."""
        return self.finished.get(runs.identity(config))

    def begin(self, config: TrainConfig, arguments: list[str]) -> Process:
        """Starts the training that `config` describes and `arguments` make, or continues its run that was stopped.

        What a process of before began may still be under way: that is waited for. A run goes on with the images of
        this command's data.root, wherever they lay before.
        """
        self.scan()
        if (stopped := self.stopped.get(runs.identity(config))) is not None:
            if is_locked(stopped):
                CONSOLE.print(f"waits for {stopped}, which another process trains", soft_wrap=True)
            while is_locked(stopped):
                time.sleep(POLL)
            self.scan()
        if self.find(config) is not None:
            return Process(None, io.BytesIO())
        if stopped is None or not self.same_images(stopped):
            return start([*arguments, f"runs={self.folder}"])
        return start([f"resume={stopped}", f"data.root={config.data.root}"])

    def wake(self) -> None:
        """Continues trainings that a process of before halted and did not live to continue. The folder must be ours."""
        for process in psutil.process_iter(["cmdline", "status"]):
            arguments = process.info["cmdline"] or []
            ours = any(f"{each}/".startswith((f"runs={self.folder}/", f"resume={self.folder}/")) for each in arguments)
            if ours and process.info["status"] == psutil.STATUS_STOPPED:
                with suppress(psutil.Error):
                    process.resume()


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
    except files.Held:
        return True
