"""The run directory: what a run writes, and how it is read back.

runs/<data>/<model>/<date-time>-seed<k>/
    config.yaml             the resolved configuration
    overrides.yaml          what was asked for on the command line
    code.yaml               the code at its start, then each other that it was resumed by
    checkpoints/            best.ckpt (by validation accuracy) and last.ckpt, loadable with weights_only=True
    events.out.tfevents.*   TensorBoard
    train.log
    predictions.npy         of each test image, its class as predicted and as it is
    result.json             the figures, once the run is complete
    separation.*            where scripts/separate.py made it: its report as JSON, CSV and PNG
"""

import hashlib
import importlib.metadata
import io
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf.errors import OmegaConfBaseException

from sepconv import InputError, files
from sepconv.config import CHECKOUT
from sepconv.config.keys import TrainConfig
from sepconv.config.read import complete, flatten, read
from sepconv.config.rules import check_name, checked, number
from sepconv.reading import check_each, check_fields, describe, fits, read_json, read_yaml, write_yaml
from sepconv.text import shorten

log = logging.getLogger(__name__)

CODE = ("src", "scripts", "configs")
PREDICTIONS = "predictions.npy"
PLACES = ("runs=", "data.root=")  # options that say where files lie on one machine
ROUNDED = 2e-6  # an accuracy's digits in a record
LARGEST = 1e15  # of a time, a size or a rate: a finite number that can be drawn


@dataclass(kw_only=True)
class Epoch:
    """An epoch of a training: how long training had taken by its end, and how it validated."""

    epoch: int = number(least=1)  # its number
    seconds: float = number(least=0, most=LARGEST)
    val_loss: float
    val_accuracy: float = number(least=0, most=1)


@dataclass(kw_only=True)
class Images:
    """How many images of each part were used."""

    train: int = number(least=1)  # in an epoch
    validation: int = number(least=1)
    test: int = number(least=1)


@dataclass(kw_only=True)
class Digests:
    """What tells the images of each part, as `sepconv.data.datasets.Dataset.digests` gives it."""

    train: str
    validation: str
    test: str


@dataclass(kw_only=True)
class Device:
    """What a run ran on."""

    kind: str
    name: str
    threads: int | None = number(None, least=1)
    count: int = number(1, least=1)  # how many of them


@dataclass(kw_only=True)
class Code:
    """The code that a run is of."""

    sha: str | None  # of its commit
    dirty: bool | None  # whether it was changed since


@dataclass(kw_only=True)
class Libraries:
    """The version that a record must have, of all that compute."""

    torch: str


@dataclass(kw_only=True)
class Result:
    """A finished run's figures, as `result.json` has them. Accuracies are shares of 1."""

    model: str = checked(check_name)  # its name
    data: str = checked(check_name)
    seed: int = number(least=0, below=2**32)
    parameters: int = number(least=1)  # frozen ones too; the running statistics of batch norms are not among them
    macs: int = number(least=1)  # multiply-accumulates of one image's forward pass
    test_accuracy: float = number(least=0, most=1)
    test_loss: float
    # by the mean logits of several views, where recipe.tta asks for them
    test_accuracy_tta: float | None = number(None, least=0, most=1)
    # of the checkpoint that was tested, the largest of all epochs: higher than other images would give it
    val_accuracy: float = number(least=0, most=1)
    classes: list[str]  # names of the images' classes
    images: dict[str, int] = checked(partial(check_fields, Images))
    digests: dict[str, str] = checked(partial(check_fields, Digests))
    batch_size: int = number(least=1)
    epochs: int = number(least=0)
    fit_seconds: float = number(least=0, most=LARGEST)  # whitening, steps, validation, checkpoints
    history: list[dict[str, Any]] = checked(partial(check_each, Epoch))  # of each epoch; none of what was not trained
    dashboard_seconds: float = number(least=0, most=LARGEST)
    # from the process's start; None where no step was left to do
    seconds_to_first_step: float | None = number(least=0, most=LARGEST)
    train_images_per_second: float | None = number(above=0, most=LARGEST)  # None where the training was too short
    eval_images_per_second: float | None = number(above=0, most=LARGEST)
    test_seconds: float = number(least=0, most=LARGEST)  # of the whole test, all views
    precision: str  # Lightning's name for it
    step: str | None = None  # the form of the training step; None where nothing was trained
    device: dict[str, Any] = checked(partial(check_fields, Device))
    overrides: list[str]  # of the command line, as `overrides.yaml` has them
    configuration: str  # `fingerprint` of what they, and the files in `configs/` then, came to
    git: dict[str, Any] = checked(partial(check_fields, Code))  # at its start, before the first step
    git_later: list[dict[str, Any]] = checked(partial(check_each, Code), [])  # other code that it was resumed by
    versions: dict[str, str | None] = checked(partial(check_fields, Libraries))
    separated_from: str | None = None  # the run whose network scripts/separate.py separated


def create(config: TrainConfig, overrides: list[str], code: dict[str, Any]) -> Path:
    """Makes a new run directory under `config.runs`: its configuration, the overrides that led to it, and the `code`.

    Raises InputError where it cannot be written.
    """
    parent = Path(config.runs) / config.data.name / config.model["name"]
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
            try:
                (path / "checkpoints").mkdir()
                files.write(path / "overrides.yaml", write_yaml(overrides))
                files.write(path / "config.yaml", write_yaml(asdict(config)))
                write_code(path, [code])
            except BaseException:  # a signal, too: what nobody knows of is not left behind
                shutil.rmtree(path, ignore_errors=True)
                raise
            return path.resolve()
    except OSError as error:
        raise InputError(f"cannot make a run directory in {parent} ({error.strerror}): choose another runs=") from error


@contextmanager
def lock(run: str | Path) -> Iterator[None]:
    """Holds a run for this process. Raises InputError for a path that is no run, and Held where another has it."""
    path, _, _ = read_config(run)
    with files.lock(path, "trained"):
        yield


def read_config(run: str | Path) -> tuple[Path, TrainConfig, list[str]]:
    """The directory, configuration and overrides of a run.

    Raises InputError for a path that is no run, and for a record that is damaged, or has more than plain values.
    """
    path = Path(os.path.realpath(run))
    if not os.path.isfile(path / "config.yaml"):
        raise InputError(f"{path} is no run: give a directory that train.py made, with a config.yaml in it")
    recorded = read_yaml(path / "config.yaml")
    try:
        if not isinstance(recorded, dict):
            raise ValueError("no keys in it")
        config = read(TrainConfig, recorded)
        config = replace(config, model=complete(config.model))
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{path}/config.yaml is not a run's configuration: {shorten(str(error), 300)}") from error
    overrides = read_yaml(path / "overrides.yaml") if os.path.lexists(path / "overrides.yaml") else []
    if not fits(overrides, list[str]):
        raise InputError(f"{path}/overrides.yaml is not {describe(list[str])}, a run's arguments")
    return path, config, overrides


def fingerprint(config: TrainConfig) -> str:
    """A hash (SHA-256, its first 16 digits) of all settings that a run's figures depend on, but for its seed.

    Left out are `seed`, so that the runs of one network have the same, and what says where things lie or how often they
    are kept: `runs`, `resume`, `data.root`, `data.download` and `trainer.checkpoint_seconds`; `trainer.devices` where
    there is one. Of `weights` the name of the run's directory is taken.
    """
    settings = asdict(config) | {"model": complete(config.model)}
    for part, key in (("data", "root"), ("data", "download"), ("trainer", "checkpoint_seconds")):
        del settings[part][key]
    if config.trainer.devices == 1:  # as runs of before there could be several
        del settings["trainer"]["devices"]
    chosen = {key: settings[key] for key in ("data", "model", "recipe", "trainer")}
    chosen["weights"] = config.weights and Path(config.weights).name
    values = {key: int(value) if isinstance(value, float) and value.is_integer() else value  # 1.0 is 1
              for key, value in flatten(chosen).items()}  # fmt: skip
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def identity(config: TrainConfig) -> tuple[str, int]:
    """What a run's figures depend on but for its code: the `fingerprint` of its settings, and its seed."""
    return fingerprint(config), config.seed


def find_run(config: TrainConfig, code: dict[str, Any]) -> Path | None:
    """The latest run of `config` in its folder that was made by `code`, of those that are complete, if any is.

    What cannot be read, or was made by other code in any part of it, is passed over. Code that was not committed may
    have changed since: a warning says so.
    """
    parent, found = Path(config.runs) / config.data.name / config.model["name"], []
    for path in sorted(parent.glob(f"*-seed{config.seed}*/config.yaml"), reverse=True):
        try:
            run, recorded, _ = read_config(path.parent)
            same = identity(recorded) == identity(config) and all(same_code(code, each) for each in read_code(run))
        except InputError as error:
            log.warning("%s is passed over: %s", path.parent, error)
            continue
        if same:
            found.append(run)
    if found and code["dirty"] is not False:
        log.warning("%s: its code was not committed, and may have changed since", found[0].name)
    return next((run for run in found if (run / "result.json").exists()), found[0] if found else None)


def read_code(run: Path) -> list[dict[str, Any]]:
    """The code that a run was begun by, then each other that it was resumed by; unknown where it does not say.

    Raises InputError for a record that is damaged.
    """
    if not os.path.lexists(run / "code.yaml"):
        return [asdict(Code(sha=None, dirty=None))]
    states = read_yaml(run / "code.yaml")
    if not isinstance(states, list) or not states:
        raise InputError(f"{run}/code.yaml is not a list of the code of a run")
    try:
        check_each(Code, "code", states)
    except InputError as error:
        raise InputError(f"{run}/code.yaml is not a run's: {error}") from error
    return states


def write_code(run: Path, states: list[dict[str, Any]]) -> None:
    """Writes what `read_code` reads."""
    files.write(run / "code.yaml", write_yaml(states))


def add_code(run: Path, code: dict[str, Any]) -> None:
    """Notes that a run goes on by `code`, where that is not what it has been trained by last."""
    states = read_code(run)
    if states[-1] != code:
        write_code(run, [*states, code])


def provenance(run: Path) -> dict[str, Any]:
    """How a run's figures came about, as its directory has it, for its Result."""
    _, config, overrides = read_config(run)
    first, *later = read_code(run)
    return {"overrides": overrides, "configuration": fingerprint(config), "git": first, "git_later": later}


def write_result(run: Path, result: Result) -> None:
    """Writes `result.json`."""
    files.write(run / "result.json", json.dumps(asdict(result), indent=2) + "\n")


def read_result(run: Path) -> Result:
    """A complete run's figures. Raises InputError where there are none, or a figure is not what it can be."""
    figures = read_json(run / "result.json")
    try:
        check_fields(Result, "", figures)
    except InputError as error:
        reason = shorten(str(error), 300)
        raise InputError(
            f"{run}/result.json is not a run's: {reason}; leave that run out, or train it again"
        ) from error
    return Result(**{field.name: figures[field.name] for field in fields(Result) if field.name in figures})


def write_predictions(run: Path, predictions: NDArray[np.integer[Any]], classes: int) -> None:
    """Writes `predictions.npy`: of each test image its class as predicted and as it is, (2, N), a byte each or two."""
    file = io.BytesIO()
    np.save(file, predictions.astype(np.min_scalar_type(classes - 1)))
    files.write(run / PREDICTIONS, file.getvalue())


def read_predictions(run: Path, result: Result) -> NDArray[np.integer[Any]] | None:
    """Of each test image of a complete run its class as predicted and as it is, (2, N); None where it kept none.

    Raises InputError where they are not of those images and classes, or do not have the accuracy of `result`.
    """
    path, classes, images = run / PREDICTIONS, len(result.classes), result.images["test"]
    if not os.path.lexists(path):
        return None
    kind = np.min_scalar_type(classes - 1)
    shape, size = (2, images), 2 * images * kind.itemsize
    try:
        with files.open_file(path) as file:
            if os.fstat(file.fileno()).st_size > size + 2**16:
                raise ValueError(f"it has more than the {size:,} bytes expected")
            array = np.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray) or (array.shape, array.dtype) != (shape, kind):
            raise ValueError(f"it has no {kind} of the shape {shape}")
        if array.max() >= classes:
            raise ValueError(f"class {array.max()} is out of range: {classes} classes")
        accuracy = float((array[0] == array[1]).mean())
        if abs(accuracy - result.test_accuracy) > ROUNDED:
            raise ValueError(f"they are right about {accuracy:.4%}, and result.json has {result.test_accuracy:.4%}")
    except Exception as error:  # numpy's, of a header that is wrong, are of many kinds
        reason = shorten(" ".join(str(error).split()) or type(error).__name__, 200)
        raise InputError(f"{path} is not the run's: {reason}; train it again, or remove that file") from error
    return array


def command_line(script: str, overrides: list[str]) -> str:
    """The command that ran, for a shell in the repository."""
    return shlex.join(["python", f"scripts/{script}.py", *overrides])


def git_state(checkout: Path | None = CHECKOUT, paths: Sequence[str] = CODE) -> dict[str, Any]:
    """The commit of a checkout, by default ours, and whether its `paths` were changed since; nulls where there is none.

    Args:
        paths: by default what a run depends on, not the records that it leaves; none for the whole checkout.
    """

    status = git(checkout, "status", "--porcelain", "--", *paths)
    return {"sha": git(checkout, "rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def git(checkout: Path | None, *arguments: str) -> str | None:
    """What git answers of a checkout; None where it fails, or the package was installed without one."""
    if checkout is None:
        return None
    try:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def hash_code(code: dict[str, Any]) -> str | None:
    """A hash of CODE as `code` names it; None where it was not committed, or no such commit is known here.

    Commits that differ in other files only, such as records, have the same.
    """
    return None if code["dirty"] is not False else hash_trees(str(code["sha"]))


@cache
def hash_trees(sha: str) -> str | None:
    if not re.fullmatch("[0-9a-f]{7,64}", sha):
        return None
    trees = git(CHECKOUT, "rev-parse", *(f"{sha}:{folder}" for folder in CODE))
    return None if trees is None else hashlib.sha256(trees.encode()).hexdigest()[:16]


def name_code(code: dict[str, Any], digits: int = 64) -> str:
    """A commit, in so many digits, and whether it was changed."""
    return f"{(code['sha'] or 'unknown')[:digits]}{' (changed)' * bool(code['dirty'])}"


@cache
def first_state() -> dict[str, Any]:
    """`git_state` at its first call in this process: of the code that it has imported, which does not change later."""
    return git_state()


def current_code() -> dict[str, Any]:
    """The code that runs: `first_state`, which is dirty where the checkout has another now.

    To be asked for when a process begins, and again before each training: what another commits meanwhile is no part of
    the code that was imported, but may be of the configurations that are read.
    """
    first, now = first_state(), git_state()
    return first if same_code(now, first) else first | {"dirty": True}


def same_code(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states of the code are one, as far as they tell: changes that were not committed look the same."""
    return one == other or (hash_code(one) is not None and hash_code(one) == hash_code(other))


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
