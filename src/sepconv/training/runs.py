"""The run directory: what a run writes, and how it is read back.

runs/<data>/<model>/<date-time>-seed<k>/
    config.yaml             the resolved configuration
    overrides.yaml          what was asked for on the command line
    checkpoints/            best.ckpt (by validation accuracy) and last.ckpt, loadable with weights_only=True
    events.out.tfevents.*   TensorBoard
    train.log
    result.json             the figures, once the run is complete
    separation.*            where scripts/separate.py made it: its report as JSON, CSV and PNG
"""

import importlib.metadata
import json
import os
import pickle
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sepconv import InputError
from sepconv.config import REPOSITORY, TrainConfig, complete, read

CODE = ("src", "scripts", "configs")
FIGURES = {"test_accuracy", "fit_seconds", "images", "device", "precision", "command", "git", "versions"}


def create(config: TrainConfig) -> Path:
    """Makes a new run directory under `config.runs`. Raises InputError where it cannot be written."""
    parent = Path(config.runs).expanduser() / config.data.name / config.model["name"]
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{config.seed}"
    attempt = 1
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
            try:
                path.mkdir()
            except FileExistsError:  # another run of this second
                attempt += 1
                continue
            return path.resolve()
    except OSError as error:
        raise InputError(f"cannot make a run directory in {parent} ({error.strerror}): choose another runs=") from error


def write_config(run: Path, config: TrainConfig, overrides: list[str]) -> None:
    """Writes the resolved configuration and the overrides that led to it."""
    OmegaConf.save(asdict(config), run / "config.yaml")
    OmegaConf.save(overrides, run / "overrides.yaml")


def read_config(run: str | Path) -> tuple[Path, TrainConfig, list[str]]:
    """The directory, configuration and overrides of a run. Raises InputError for a path that is no run."""
    path = Path(run).expanduser().resolve()
    if not (path / "config.yaml").is_file():
        raise InputError(f"{path} is no run: give a directory that train.py made, with a config.yaml in it")
    try:
        recorded = OmegaConf.load(path / "config.yaml")
        if not isinstance(recorded, DictConfig):
            raise ValueError("no keys in it")
        config = read(TrainConfig, recorded)
        config = replace(config, model=complete(config.model))
        overrides = list(OmegaConf.load(path / "overrides.yaml")) if (path / "overrides.yaml").is_file() else []
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{path}/config.yaml is not a run's configuration: {' '.join(str(error).split())}") from error
    return path, config, overrides


def read_checkpoint(run: Path, name: str, config: TrainConfig) -> Path:
    """The path of a run's checkpoint `name` (best, last).

    Raises InputError where it is missing, cannot be loaded, or is of another network than `config` names.
    """
    path = run / "checkpoints" / f"{name}.ckpt"
    if not path.is_file():
        raise InputError(f"{run} has no checkpoint {name}.ckpt: it stopped before its first epoch's end")
    try:
        model = complete(torch.load(path, map_location="meta", weights_only=True)["hyper_parameters"]["model"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no checkpoint of ours ({type(error).__name__}): it cannot be loaded") from error
    if model != config.model:
        raise InputError(f"{path} holds another network than the run's config.yaml: {model}, not {config.model}")
    return path


def write_result(run: Path, result: dict[str, Any]) -> None:
    """Writes `result.json` whole or not at all."""
    part = run / "result.json.part"
    part.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(part, run / "result.json")


def read_result(run: Path) -> dict[str, Any]:
    """A complete run's figures. Raises InputError where there are none."""
    try:
        result = json.loads((run / "result.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{run} has no readable result.json: the run is not complete") from error
    if not isinstance(result, dict) or not result.keys() >= FIGURES:
        raise InputError(f"{run}/result.json is not a run's: it lacks {', '.join(sorted(FIGURES - set(result)))}")
    return result


def command_line(script: str, overrides: list[str]) -> str:
    """The command that ran, for a shell in the repository."""
    return shlex.join(["python", f"scripts/{script}.py", *overrides])


def git_state(checkout: Path = REPOSITORY, paths: Sequence[str] = CODE) -> dict[str, Any]:
    """The commit of a checkout, by default ours, and whether its `paths` were changed since; nulls without git.

    Args:
        paths: by default what a run depends on, not the records that it leaves; none for the whole checkout.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--", *paths)
    return {"sha": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def versions() -> dict[str, str | None]:
    """Versions of what computes: Python, the libraries, and CUDA where torch has it and a device is there."""
    names = {"torchvision": "torchvision", "lightning": "lightning", "hydra": "hydra-core"}
    found = {name: importlib.metadata.version(package) for name, package in names.items()}
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **found,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }
