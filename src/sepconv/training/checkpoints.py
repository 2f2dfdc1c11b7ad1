"""Checkpoints: written whole, checked when they are read, and when they are made."""

import io
import time
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from sepconv import InputError, files


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads a checkpoint here.

    Its own way writes to the system's temporary folder first, whose disk may be full and from where a file is copied:
    stopped then, it leaves half a checkpoint in the place of a whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        archive = io.BytesIO()
        torch.save(checkpoint, archive)
        files.write(Path(path), archive.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return load(Path(path), map_location)


def load(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's values, loaded without running code of its.

    Raises InputError where the file is missing, is none of ours, or does not have its own checksums: torch itself does
    not check them, and loads other weights.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file")
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # stored as they are; packed ones could be of any size
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise zipfile.BadZipFile("packed parts")
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} differs from its checksum")
        checkpoint = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
        kinds = {"hyper_parameters": dict, "state_dict": dict}
        if not isinstance(checkpoint, dict) or any(not isinstance(checkpoint.get(k), t) for k, t in kinds.items()):
            raise ValueError("no network in it")
    except Exception as error:  # what its parsers raise for a file of another kind can be anything
        reason = str(error).split("\n")[0] if isinstance(error, zipfile.BadZipFile | ValueError | OSError) else ""
        name = reason or type(error).__name__
        raise InputError(f"{path} is damaged or no checkpoint of ours ({name}): it cannot be loaded") from error
    return checkpoint


class Checkpoint(ModelCheckpoint):
    """A file in the run's directory, wherever that is when the run is resumed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return path and str(Path(str(self.dirpath), Path(path).name))

        paths = {key: here(path) for key, path in state_dict.items() if key.endswith("_path")}
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": models, "dirpath": self.dirpath})


class BestCheckpoint(Checkpoint):
    """Keeps the weights of the best validation accuracy's epoch: of equal ones the latest, which has trained longest.

    They are without the optimizer's state, which takes up to twice as much: from here nothing is resumed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder, "best", monitor="accuracy/validation", mode="max", enable_version_counter=False,
            save_weights_only=True,
        )  # fmt: skip

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        return current == self.best_model_score or super().check_monitor_top_k(trainer, current)


class LastCheckpoint(Checkpoint):
    """Keeps the latest state: of every epoch's end and, within long epochs, of every `interval` seconds."""

    def __init__(self, folder: Path, interval: float) -> None:
        super().__init__(folder, "last", enable_version_counter=False)  # not save_last: only when the best is
        self.path, self.interval = folder / "last.ckpt", interval
        self.written = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.written = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches:  # its state follows after validation
            return
        # by all processes of a training together
        if trainer.strategy.reduce_boolean_decision(time.monotonic() - self.written >= self.interval, all=False):
            trainer.save_checkpoint(self.path)
            self.written = time.monotonic()


def make_checkpoints(folder: Path, interval: float) -> tuple[BestCheckpoint, LastCheckpoint]:
    """What writes best.ckpt and last.ckpt; in this order, so that the last knows the best."""
    return BestCheckpoint(folder), LastCheckpoint(folder, interval)
