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
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sepconv import InputError
from sepconv.config import REPOSITORY, TrainConfig, complete, read

CODE = ("src", "scripts", "configs")


@dataclass(kw_only=True)
class Result:
    """A finished run's figures, as `result.json` has them. Accuracies are shares of 1."""

    model: str  # its name
    data: str
    seed: int
    parameters: int
    macs: int  # multiply-accumulates of one image's forward pass
    test_accuracy: float
    test_loss: float
    test_accuracy_tta: float | None = None  # by the mean logits of several views, where recipe.tta asks for them
    val_accuracy: float  # of the checkpoint that was tested
    images: dict[str, int]  # of each part: train, validation, test
    batch_size: int
    epochs: int
    fit_seconds: float  # whitening, steps, validation, checkpoints
    history: list[dict[str, Any]]  # of each epoch: its number, seconds of training so far, validation loss and accuracy
    dashboard_seconds: float
    seconds_to_first_step: float | None  # from the process's start; None where no step was left to do
    train_images_per_second: float | None  # None where the training was too short
    eval_images_per_second: float | None
    test_seconds: float  # of the whole test, all views
    peak_memory_bytes: int
    precision: str  # Lightning's name for it
    step: str | None = None  # the form of the training step; None where nothing was trained
    device: dict[str, Any]
    git: dict[str, Any]  # sha, and whether the code was changed since (dirty)
    versions: dict[str, str | None]
    command: str
    separated_from: str | None = None  # the run whose network scripts/separate.py separated


def create(config: TrainConfig, overrides: list[str]) -> Path:
    """Makes a new run directory under `config.runs`, with its configuration and the overrides that led to it.

    Raises InputError where it cannot be written.
    """
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
            OmegaConf.save(asdict(config), path / "config.yaml")
            OmegaConf.save(overrides, path / "overrides.yaml")
            return path.resolve()
    except OSError as error:
        raise InputError(f"cannot make a run directory in {parent} ({error.strerror}): choose another runs=") from error


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
    import torch  # here: compare.py does not wait for it

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


def write_result(run: Path, result: Result) -> None:
    """Writes `result.json` whole or not at all."""
    part = run / "result.json.part"
    part.write_text(json.dumps(asdict(result), indent=2) + "\n")
    os.replace(part, run / "result.json")


def read_result(run: Path) -> Result:
    """A complete run's figures. Raises InputError where there are none."""
    try:
        figures = json.loads((run / "result.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{run} has no readable result.json: the run is not complete") from error
    required = {field.name for field in fields(Result) if field.default is MISSING}
    if not isinstance(figures, dict) or not figures.keys() >= required:
        raise InputError(f"{run}/result.json is not a run's: it lacks {', '.join(sorted(required - set(figures)))}")
    return Result(**{field.name: figures[field.name] for field in fields(Result) if field.name in figures})


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
    import torch  # here: compare.py does not wait for it

    names = {"torchvision": "torchvision", "lightning": "lightning", "hydra": "hydra-core"}
    libraries = {name: importlib.metadata.version(package) for name, package in names.items()}
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **libraries,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }
