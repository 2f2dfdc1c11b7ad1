"""Trainings of airbench, which goes for 94 % on CIFAR-10 in the shortest time on one GPU.

Keller Jordan's script (https://github.com/KellerJordan/cifar10-airbench, described in arXiv 2404.00498) runs
unmodified from its own checkout, in a process of its own, which makes 200 trainings one after another and prints a row
an epoch. The first training, on which compilation falls, is left out; those after it are read as they are printed, and
once there are enough of them the process is ended.

The seconds are the script's, by CUDA events: whitening, training, and one evaluation of the test set with test-time
augmentation; not the evaluation after each epoch, and not the loading of the data.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torchvision.datasets import CIFAR10

from sepconv import InputError
from sepconv.config.keys import PeersConfig
from sepconv.data.datasets import Dataset
from sepconv.devices import find_device
from sepconv.training import runs

SOURCE = "https://github.com/KellerJordan/cifar10-airbench"
SCRIPT = "airbench94_muon.py"
IMAGES = 50_000  # of an epoch
FIGURES = {"batch_size": 2000, "parameters": 1_972_792, "precision": "fp16"}  # as its source has them: not printed


def check(config: PeersConfig) -> None:
    """Raises InputError unless the script is there, and can run on this device and on these images."""
    script = locate(config)
    if not script.is_file():
        reason = "airbench is not set" if config.airbench is None else f"{script} does not exist"
        raise InputError(f"{reason}: git clone {SOURCE} and give airbench=PATH, or leave it out of peers=")
    data = config.data
    if (data.name, data.train, data.image_size) != ("cifar10", None, None):
        raise InputError("the airbench peer trains on all of CIFAR-10 as it is: give data=cifar10, with neither "
                         "data.train nor data.image_size, or leave airbench out of peers=")  # fmt: skip
    if find_device(config.trainer).type != "cuda":
        raise InputError("the airbench peer needs CUDA: give trainer=gpu where there is one, or leave it out of peers=")


def locate(config: PeersConfig) -> Path:
    """The script's path."""
    return Path(config.airbench or "").resolve() / SCRIPT


def describe(config: PeersConfig) -> dict[str, Any]:
    """What shows that the script is as published: its SHA-256, the checkout's commit, and whether it was changed."""
    script = locate(config)
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    return {"source": SOURCE, "script": script.name, "sha256": digest, "git": runs.git_state(script.parent, [])}


def train(config: PeersConfig, dataset: Dataset, seed: int) -> Iterator[dict[str, Any]]:
    """`config.rounds` trainings by one process of the script, on its 50,000 images and seeds of its own.

    `dataset` and `seed` are therefore not used. Raises InputError where the script fails or ends before.
    """
    for figures in follow(locate(config), Path(config.data.root).resolve(), config.rounds):
        yield {**figures, **FIGURES, "images": figures["epochs"] * IMAGES}


def follow(script: Path, root: Path, count: int) -> Iterator[dict[str, Any]]:
    """What `script` prints of `count` trainings after its first, on CIFAR-10 in the folder `root`; then it is ended.

    It runs in a temporary folder that has the images where it looks for them, and takes what it writes.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        images = Path(folder, "cifar10", CIFAR10.base_folder)
        images.parent.mkdir()
        images.symlink_to(root / CIFAR10.base_folder)
        command = [sys.executable, "-u", str(script)]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            trainings = 0
            try:
                for trainings, figures in enumerate(islice(parse(process.stdout), count + 1)):
                    if trainings > 0:
                        yield figures
                if trainings == count:
                    return
                process.wait()
            finally:
                process.kill()
        errors.seek(0)
        reason = (errors.read().strip() or f"status {process.returncode}").splitlines()[-1]
        raise InputError(f"{script.name} ended after {trainings} of {count} trainings ({reason})")


def parse(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Epochs, seconds and test accuracies (shares of 1) of each training in a table as the script prints it.

    The table has a row an epoch, and one with `eval` in the epoch's place that ends a training; lines that are not of
    it are passed over. Raises InputError for a table with other columns or cells.
    """
    columns: list[str] = []
    epochs = 0
    for line in lines:
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip()[1:-1].split("|")]
        if "epoch" in cells:
            columns = cells
            continue
        try:
            row = dict(zip(columns, cells, strict=True))
            if row["epoch"] != "eval":
                epochs = int(row["epoch"]) + 1
                continue
            figures = {
                "epochs": epochs,
                "fit_seconds": float(row["time_seconds"]),
                "test_accuracy": float(row["val_acc"]),  # after the last epoch
                "test_accuracy_tta": float(row["tta_val_acc"]),
            }
        except (KeyError, ValueError) as error:
            raise InputError(f"airbench printed a row that does not fit its table: {line.strip()}") from error
        yield figures
