"""Runs made up for the tests of what reads them: a finished run's configuration and figures, as its files have them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from conftest import REPOSITORY
from hydra import compose, initialize_config_dir

from sepconv.config.keys import TrainConfig
from sepconv.config.read import read
from sepconv.reading import write_yaml

CPU = {"kind": "cpu", "name": "AMD EPYC", "threads": 2}
MACS = {"baseline": 2_528_000, "separable": 1_718_240, "tiny": 90_000}


def configuration(*overrides: str) -> dict[str, Any]:
    """The configuration of a run with these arguments, as config.yaml has it."""
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return asdict(read(TrainConfig, compose("train", ["data=mnist", *overrides])))


def figures(model: str = "separable", seed: int = 0, accuracy: float = 0.99, split: int = 0) -> dict[str, Any]:
    """A run's figures, as result.json has them."""
    return {
        "model": model, "data": "mnist", "seed": seed, "parameters": MACS[model] // 20, "macs": MACS[model],
        "test_accuracy": accuracy, "test_accuracy_tta": None, "val_accuracy": accuracy, "test_loss": 0.1,
        "classes": list("0123456789"),
        "images": {"train": 55_000, "validation": 5_000, "test": 10_000},
        "digests": {"train": f"train {split}", "validation": f"validation {split}", "test": "test"},
        "batch_size": 128, "epochs": 2, "fit_seconds": 60.0 + seed, "dashboard_seconds": 0.1,
        "history": [
            {"epoch": 1, "seconds": 30.0 + seed, "val_loss": 0.1, "val_accuracy": accuracy - 0.01},
            {"epoch": 2, "seconds": 60.0 + seed, "val_loss": 0.1, "val_accuracy": accuracy},
        ],
        "seconds_to_first_step": 5.0, "train_images_per_second": MACS[model] / 400, "eval_images_per_second": 30_000.0,
        "test_seconds": 0.5, "precision": "bf16-mixed", "step": "eager", "device": CPU,
        "overrides": [], "configuration": "0" * 16, "git": {"sha": "0123", "dirty": False}, "git_later": [],
        "versions": {"torch": "2.15.0", "cuda": None}, "separated_from": None,
    }  # fmt: skip


def write_run(path: Path, config: dict[str, Any], overrides: list[str], result: dict[str, Any] | None = None) -> Path:
    """Writes a run's directory; one that is not finished without a `result`."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(write_yaml(config))
    (path / "overrides.yaml").write_text(write_yaml(overrides))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    return path


class Ended:
    """A process that has ended with this status."""

    def __init__(self, status: int = 0) -> None:
        self.returncode = status

    def poll(self) -> int:
        return self.returncode


def write_predictions(run: Path, wrong: list[int], labels: list[int]) -> None:
    """Writes what a run predicted of images of these classes: another class for the images `wrong`."""
    predicted = np.array(labels, np.uint8)
    predicted[wrong] = (predicted[wrong] + 1) % 10
    np.save(run / "predictions.npy", np.array([predicted, labels], np.uint8))
