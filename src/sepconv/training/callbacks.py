"""What goes along with a training: its clock, the look at its losses, its checkpoints."""

import logging
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from sepconv import InputError
from sepconv.devices import synchronize

log = logging.getLogger(__name__)

WARM_UP = 10  # intervals left out of the throughput, at most half of what there is
CHECK_EVERY = 100  # steps between looks at the loss: a look waits for the device


class Stopwatch(Callback):
    """Times training, as a whole and between the groups of steps that the loop makes, without waiting for the device.

    Args:
        started: when the job began, in seconds since the epoch.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.seconds_to_first_step: float | None = None  # from the job's start to the end of its first step
        self.intervals: dict[str, list[tuple[int, float]]] = {"train": [], "eval": []}  # images, seconds
        self.moments: list[float] = []
        self.events: list[torch.cuda.Event] = []
        self.images: list[int] = []  # between each mark and the one before
        self.test_seconds = 0.0  # of the test, all of its views
        self.before = 0.0  # seconds of training before a resume
        self.history: list[dict[str, float]] = []  # of each epoch: seconds of training so far, and how it validates
        self.fit_started = 0.0

    @property
    def fit_seconds(self) -> float:
        """Seconds of training so far: whitening, steps, validation, checkpoints; what came before a resume included."""
        return self.before + time.perf_counter() - self.fit_started

    def state_dict(self) -> dict[str, Any]:
        return {"fit_seconds": self.fit_seconds, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self.history = state_dict["fit_seconds"], state_dict["history"]

    def clear(self) -> None:
        """Forgets the marks."""
        self.moments, self.events, self.images = [], [], []

    def mark(self, device: torch.device, images: int = 0) -> None:
        """Notes the moment, of the device's queue on CUDA, else the clock's, and the images since the last mark."""
        self.images.append(images)
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.events.append(event)
        else:
            self.moments.append(time.perf_counter())

    def between(self) -> list[tuple[int, float]]:
        """Images and seconds from each mark to the next."""
        if self.events:
            self.events[-1].synchronize()
            seconds = [a.elapsed_time(b) / 1000 for a, b in pairwise(self.events)]
        else:
            seconds = [b - a for a, b in pairwise(self.moments)]
        return list(zip(self.images[1:], seconds, strict=True))

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.fit_started = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.optimizers[0].register_step_post_hook(lambda *_: self.note_step(module.device))

    def note_step(self, device: torch.device) -> None:
        """Notes the moment at which the first step is done."""
        if self.seconds_to_first_step is None:
            synchronize(device)
            self.seconds_to_first_step = time.time() - self.started

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.clear()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: torch.Tensor, batch_idx: int
    ) -> None:
        self.mark(batch.device, len(batch))
        if batch_idx + 1 == trainer.num_training_batches:  # before validation, whose batches come between
            intervals = self.between()
            self.intervals["train"] += intervals
            if intervals:
                module.log("images_per_second/train", median_rate(intervals), on_step=False, on_epoch=True)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        metrics = {
            f"val_{name}": float(trainer.callback_metrics[f"{name}/validation"]) for name in ("loss", "accuracy")
        }
        self.history.append({"epoch": trainer.current_epoch + 1, "seconds": self.fit_seconds, **metrics})

    def on_test_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.clear()
        self.mark(module.device)
        self.test_started = time.perf_counter()

    def on_test_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: torch.Tensor, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self.mark(batch.device, len(batch))

    def on_test_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.intervals["eval"] += self.between()  # waits for the device
        self.test_seconds = time.perf_counter() - self.test_started

    def images_per_second(self, part: str) -> float | None:
        """The median rate of `part` (train, eval), the first intervals left out; None where there are none."""
        intervals = self.intervals[part]
        warm = intervals[min(WARM_UP, len(intervals) // 2) :]
        return median_rate(warm) if warm else None


def median_rate(intervals: list[tuple[int, float]]) -> float:
    """Images a second, the median over intervals of (images, seconds)."""
    return statistics.median(images / seconds for images, seconds in intervals)


class Diverged(InputError):
    """The training loss became NaN or infinite."""


class Monitor(Callback):
    """Logs training's loss, accuracy and learning rate, and ends a training that diverges.

    A step does not wait for it: figures stay on the device until an epoch's end, or until the next look at the loss.

    Raises:
        Diverged: from the hooks, before the epoch's validation, so that no checkpoint of a diverged network is written.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.outputs: list[dict[str, Any]] = []  # of each group of steps: loss, hits, rate, and images, last step
        self.checked = 0  # steps whose loss was looked at

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        self.outputs.append(outputs | {"images": len(batch), "step": module.global_step})
        steps = sum(len(output["loss"]) for output in self.outputs)
        if steps - self.checked < CHECK_EVERY and batch_idx + 1 < trainer.num_training_batches:
            return
        losses = torch.cat([output["loss"] for output in self.outputs])
        finite = losses[self.checked :].isfinite()
        if not finite.all():
            bad = self.checked + int(finite.int().argmin()) + 1
            raise Diverged(
                f"the loss became {float(losses[bad - 1])} in epoch {trainer.current_epoch + 1}, step {bad}: "
                "lower recipe.optimizer.lr; the last checkpoint written is from before"
            )
        self.checked = steps

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        losses = [output["loss"].double().mean().item() for output in self.outputs]
        hits = [output["hits"].sum().item() for output in self.outputs]
        images = [output["images"] for output in self.outputs]
        if isinstance(trainer.logger, TensorBoardLogger):
            writer = trainer.logger.experiment
            for output, loss, right in zip(self.outputs, losses, hits, strict=True):
                writer.add_scalar("loss/train", loss, output["step"])
                writer.add_scalar("accuracy/train", right / output["images"], output["step"])
                writer.add_scalar("learning_rate", output["rate"], output["step"])
        log.info(
            "epoch %d: train loss %.4f, accuracy %.4f; validation accuracy %.4f",
            trainer.current_epoch + 1,
            sum(loss * count for loss, count in zip(losses, images, strict=True)) / sum(images),
            sum(hits) / sum(images),
            trainer.callback_metrics["accuracy/validation"],
        )


class Checkpoint(ModelCheckpoint):
    """A file in the run's directory, wherever that is when the run is resumed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return path and str(Path(str(self.dirpath), Path(path).name))

        paths = {key: here(path) for key, path in state_dict.items() if key.endswith("_path")}
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": models, "dirpath": self.dirpath})


class BestCheckpoint(Checkpoint):
    """Keeps the epoch of the best validation accuracy: of equal ones the latest, which has trained longest."""

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        return current == self.best_model_score or super().check_monitor_top_k(trainer, current)


def make_checkpoints(folder: Path) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """What writes best.ckpt and, after every epoch, last.ckpt; in this order, so that the last knows the best."""
    best = BestCheckpoint(folder, "best", monitor="accuracy/validation", mode="max", enable_version_counter=False)
    # not save_last, which saves only when the best is
    return best, Checkpoint(folder, "last", enable_version_counter=False)
