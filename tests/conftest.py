import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import sepconv.cli  # noqa: F401 - registers the resolver that the configurations use
from sepconv.config import REPOSITORY
from sepconv.config.keys import DataConfig
from sepconv.config.read import read

REAL_DATA = REPOSITORY.parent / "shared" / "data"

# options that make the large networks quick to test
SLIM: dict[str, dict[str, Any]] = {
    "mobilenet_v1": {"width": 0.25},
    "mobilenet_v2": {"width": 0.25},
    "mobilenet_v3_small": {"width": 0.25},
    "xception": {"width": 0.125},
    "resnet": {"depth": 14},
    "airbench": {"width": 0.125},
    "staged": {
        "stages": [
            {"channels": 8},
            {"channels": 12, "stride": 2, "blocks": 2},
            {"channels": 12, "kernel_size": 5, "expansion": 2.5, "squeeze": True},
            {"channels": 12, "expansion": 1, "depthwise_first": True},
        ],
        "residual": True,
        "activation": "hardswish",
    },
}


@dataclass
class Outcome:
    status: int
    out: str
    err: str


def script(name: str, *arguments: object) -> None:
    """Runs a script of `scripts/` in this process, for fixtures of a whole module."""
    path = str(REPOSITORY / "scripts" / f"{name}.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a script of `scripts/` with command-line arguments, as `python scripts/<name>.py ...` would."""

    def run(name: str, *arguments: object) -> Outcome:
        script = str(REPOSITORY / "scripts" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capfd.readouterr()
        status = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        return Outcome(status, *capfd.readouterr())

    return run


@pytest.fixture
def train(command: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Path]:
    """Trains with `train.py` on the CPU into a folder of the test, and gives the run's directory."""

    def run(*arguments: object) -> Path:
        before = set(tmp_path.glob("runs/*/*/*"))
        outcome = command("train", "trainer=cpu", f"runs={tmp_path / 'runs'}", *arguments)
        assert outcome.status == 0, outcome.err
        (made,) = set(tmp_path.glob("runs/*/*/*")) - before
        return made

    return run


def refused(outcome: Outcome, *words: str) -> None:
    """Asserts one line on standard error that has these words, an exit status, and no traceback."""
    lines = outcome.err.strip().splitlines()
    assert outcome.status == 2, outcome
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


def data_config(name: str, **changes: object) -> DataConfig:
    """The data configuration `configs/data/<name>.yaml`, with changes."""
    return read(DataConfig, OmegaConf.merge(OmegaConf.load(REPOSITORY / f"configs/data/{name}.yaml"), changes))  # type: ignore[arg-type]


def real(name: str) -> DataConfig:
    """The configuration of real data that are at hand; skips the test where they are not."""
    if not REAL_DATA.exists():
        pytest.skip(f"no real data in {REAL_DATA}")
    return data_config(name, root=str(REAL_DATA), download=False)


@pytest.fixture(autouse=True)
def _quiet_cuda(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


os.environ.setdefault("COLUMNS", "160")  # tables are not folded
