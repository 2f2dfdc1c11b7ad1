"""How far a long work is: bars on a terminal, lines elsewhere, and nothing where nobody is to be told."""

import contextlib
import os
import sys
import termios
import threading
import time
from collections.abc import Callable

import pytest
from conftest import Outcome

from sepconv import terminal
from sepconv.terminal import CONSOLE, Progress, duration, hushed, track


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars and lines come every twentieth of a second."""
    for name in ("REFRESHED", "FIRST", "EVERY", "SHORT"):
        monkeypatch.setattr(terminal, name, 0.05)
    monkeypatch.setattr(terminal, "TICKER", terminal.Ticker())


def work() -> None:
    for place in track(["a", "b"], "outer: network"):
        with Progress("inner: step", 40, done=10) as progress:
            for done in range(11, 41):
                time.sleep(0.01)
                progress.reach(done, "epoch 1 of 1")
        CONSOLE.print(f"finished {place}")


def test_lines(quick: None, capfd: pytest.CaptureFixture[str]) -> None:
    work()
    out, err = capfd.readouterr()
    assert out == "finished a\nfinished b\n"
    lines = err.splitlines()
    assert 4 <= len(lines) <= 20
    assert any(line.startswith("outer: network 0 of 2; inner: step ") for line in lines)
    assert any(line.startswith("outer: network 1 of 2, 0 s left; inner: step ") for line in lines)
    assert any(line.endswith("of 40, epoch 1 of 1, 0 s left") for line in lines)


def test_no_lines(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a short work, and of one that is hushed."""
    work()
    with monkeypatch.context() as patch, hushed():
        for name in ("FIRST", "EVERY", "SHORT"):
            patch.setattr(terminal, name, 0.05)
        work()
    assert capfd.readouterr() == ("finished a\nfinished b\n", "")


def test_bars(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are cleared before a line is printed, and at the end, also where an error ends the work."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 90))
    parts: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(master, 4096):
                parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        patch.setattr(sys, "stdout", screen)
        work()
        for _ in track(range(2), "failing: step"):
            time.sleep(0.2)
            break
        held = track(range(2), "stopped: step")
        next(held)
        time.sleep(0.2)
        terminal.clear()
        screen.write("error: a line\n")
    reader.join()
    os.close(master)
    shown = b"".join(parts).decode().replace("\r", "\n")
    assert "outer: network 0 of 2 |" in shown
    assert "| 00:00, 0 s left, epoch 1 of 1" in shown
    lines = [line.strip() for line in shown.splitlines()]
    for line in ("finished a", "finished b", "error: a line"):
        assert line in lines
    assert not terminal.ACTIVE


def test_a_training_says_how_far_it_is(quick: None, command: Callable[..., Outcome], tmp_path: str) -> None:
    outcome = command("train", "trainer=cpu", "recipe.epochs=2", f"runs={tmp_path}")
    assert outcome.status == 0, outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("training: step ")]
    assert any(" of 20, epoch 2 of 2, validation accuracy" in line for line in lines)


def test_durations() -> None:
    assert [duration(s) for s in (0, 99, 100, 3599, 12000)] == ["0 s", "99 s", "2 min", "1 h 0 min", "3 h 20 min"]
