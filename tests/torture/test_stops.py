"""Trainings that are stopped by all that stops trainings, then resumed."""

import functools
import os
import pathlib
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trials import ARGUMENTS, Script, check_whole, describe, find_run, finish, train, trials

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What the run must end with, and the seconds that it takes."""
    run, seconds = train(tmp_path_factory.mktemp("whole"))
    return describe(run), seconds


def begin(folder: Path, prepare: Callable[[], None] | None = None) -> Script:
    """The training of a trial, from its start or from where it was stopped."""
    run = find_run(folder / "runs")
    arguments = [f"resume={run}"] if run else [*ARGUMENTS, f"runs={folder / 'runs'}"]
    return Script("train", arguments, folder / "train.log", prepare)


def is_complete(folder: Path) -> bool:
    run = find_run(folder / "runs")
    if run:
        check_whole(run)
    return run is not None and (run / "result.json").exists()


def test_killed_at_any_moment(whole: tuple[dict[str, Any], float], tmp_path: Path, figures: dict[str, Any]) -> None:
    """A training that is killed (SIGKILL) at any moment is resumed to the same weights and figures, bit for bit."""
    expected, seconds = whole
    draw = random.Random(0)
    kills = runs = 0
    while kills < trials(50):
        folder = tmp_path / str(runs)
        folder.mkdir()
        runs += 1
        for _ in range(draw.randint(1, 4)):
            if is_complete(folder):
                break
            script = begin(folder)
            script.stop(draw.uniform(0, seconds), signal.SIGKILL)
            kills += script.wait() == -signal.SIGKILL
        assert describe(finish(folder)) == expected
    figures.update({"kills": kills, "trainings": runs, "resumed and identical": runs, "lost": 0})


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(call: str, number: int, moment: str) -> None:
    """Has this process killed at its call `number` of `call`: before it, after it or, of a write, in its middle."""
    counted = 0

    def killing(original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        nonlocal counted
        counted += 1
        if counted < number:
            return original(*arguments, **options)
        if moment == "before":
            kill()
        if moment == "within":
            file, data = original.__self__, bytes(arguments[0])  # type: ignore[attr-defined]
            file.write(data[: len(data) // 2])
            file.flush()
            kill()
        result = original(*arguments, **options)
        kill()
        return result

    if call in ("fsync", "replace", "mkdir"):
        setattr(os, call, functools.partial(killing, getattr(os, call)))
    else:
        opened = pathlib.Path.open

        class File:
            """An open file whose writes are counted."""

            def __init__(self, file: Any) -> None:
                self.file = file

            def __enter__(self) -> "File":
                return self

            def __exit__(self, *_: Any) -> None:
                self.file.close()

            def __getattr__(self, name: str) -> Any:
                attribute = getattr(self.file, name)
                return functools.partial(killing, attribute) if name == "write" else attribute

        def open_counted(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            file = opened(path, mode, *arguments, **options)
            return File(file) if path.suffix == ".part" else file

        pathlib.Path.open = open_counted  # type: ignore[method-assign,assignment]


MOMENTS = (("fsync", "before"), ("replace", "before"), ("replace", "after"), ("write", "within"))
CALLS = [(call, number, moment) for number in (1, 2, 3, 4, 12) for call, moment in MOMENTS]


def test_killed_at_a_system_call(
    whole: tuple[dict[str, Any], float], tmp_path: Path, figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that is killed while it writes (within a write, before it is on the disk, around its renaming), with its temporary folder on another disk, is resumed to the same weights and figures."""  # noqa: E501
    elsewhere = Path("/dev/shm")
    cases = CALLS[: trials(len(CALLS))]
    for place, case in enumerate(cases):
        folder = tmp_path / str(place)
        folder.mkdir()
        if elsewhere.is_dir():
            monkeypatch.setenv("TMPDIR", str(elsewhere))
        script = begin(folder, functools.partial(kill_at, *case))
        assert script.wait() == -signal.SIGKILL, (case, script.output)
        is_complete(folder)
        assert describe(finish(folder)) == whole[0], case
    figures.update({"kills": len(cases), "resumed and identical": len(cases), "lost": 0,
                    "temporary folder on another disk": "yes" if elsewhere.is_dir() else "no"})  # fmt: skip


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_stopped_by_a_signal(
    whole: tuple[dict[str, Any], float], tmp_path: Path, figures: dict[str, Any], number: int, status: int
) -> None:
    """A training that Ctrl-C (SIGINT, exit status 130) or SIGTERM (143) stops in any phase says in one line how it goes on, and goes on to the same weights and figures."""  # noqa: E501
    expected, seconds = whole
    draw = random.Random(number)
    counts: Counter[str] = Counter()
    for trial in range(trials(20)):
        folder = tmp_path / str(trial)
        folder.mkdir()
        script = begin(folder)
        script.stop(seconds * (trial + draw.random()) / trials(20), number)
        ended = script.wait()
        assert "Traceback" not in script.output or find_run(folder / "runs") is None, script.output
        run = find_run(folder / "runs")
        if ended == status and run:
            counts["stopped with its status"] += 1
            complete = (run / "result.json").exists()
            answer = f"{run} is complete" if complete else f"resume={run} continues"
            assert script.output.splitlines()[-1] == f"stopped: {answer}", script.output
        elif ended == 0:
            counts["was done before"] += 1
            assert is_complete(folder)
        else:
            counts["had not begun"] += 1
            assert run is None, (ended, script.output)
        assert describe(finish(folder)) == expected
    figures.update({"signals": trials(20), **counts, "lost": 0})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many bytes; skips where that is not allowed."""
    mounted: list[Path] = []

    def make(size: int) -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("to make a small disk takes the right to mount one")
        mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)])


def test_a_full_disk(
    whole: tuple[dict[str, Any], float], tmp_path: Path, figures: dict[str, Any], disk: Callable[[int], Path]
) -> None:
    """A training whose disk is full, at any point, ends with a line, or without what it could not draw; with room again it is resumed to the same weights and figures."""  # noqa: E501
    expected, _ = whole
    draw = random.Random(1)
    counts: Counter[str] = Counter()
    for _ in range(trials(20)):
        size = 4096 * draw.randint(1, 400)
        place = disk(size)
        folder = place / "trial"
        folder.mkdir()
        log = tmp_path / "train.log"
        script = Script("train", [*ARGUMENTS, f"runs={folder / 'runs'}"], log)
        ended = script.wait()
        assert "Traceback" not in script.output, script.output
        if ended:
            assert ended == 2, script.output
            assert len([line for line in script.output.splitlines() if line.startswith("error: ")]) == 1, script.output
        counts["complete all the same" if ended == 0 else "ended with a line"] += 1
        moved = tmp_path / f"room{sum(counts.values())}"
        shutil.copytree(folder, moved)
        assert describe(finish(moved)) == expected
    figures.update({"disks": trials(20), **counts, "resumed and identical": trials(20), "lost": 0})
