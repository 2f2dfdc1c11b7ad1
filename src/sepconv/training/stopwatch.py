"""How long training takes, as a whole and between the groups of steps that its loop makes."""

import statistics
import time
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from sepconv.devices import synchronize

WARM_UP = 10  # intervals left out of the throughput, at most half of what there is


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
