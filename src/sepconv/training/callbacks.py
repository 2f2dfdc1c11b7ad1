"""What goes along with a training: its clock, and the look at its losses."""

import logging
import math
import statistics
import time
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from sepconv import InputError
from sepconv.devices import synchronize
from sepconv.terminal import Progress

log = logging.getLogger(__name__)

WARM_UP = 10  # intervals left out of the throughput, at most half of what there is
CHECK_EVERY = 100  # steps between looks at the loss: a look waits for the device


class Stopwatch(Callback):
    """Times training, as a whole and between the groups of steps that the loop makes.

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
        """Notes the moment, and the images since the last mark.

        It is that of the device's queue on CUDA, without a wait; else the clock's, once the device has done its work.
        """
        self.images.append(images)
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.events.append(event)
        else:
            synchronize(device)
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
        self.mark(batch.device, len(batch) * trainer.world_size)  # other processes have as many

    def on_test_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.intervals["eval"] += self.between()  # waits for CUDA, as the marks do for others
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
    """The loss, of training or of validation, a gradient or a weight became NaN or infinite."""


class Monitor(Callback):
    """Logs training's loss, accuracy and learning rate, and ends a training that diverges.

    A step does not wait for it: figures stay on the device until an epoch's end, or until the next look at the loss.

    Raises:
        Diverged: from the hooks, before a checkpoint of a diverged network is written.
    """

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []  # of each group of steps: loss, hits, rate, and images, last step
        self.checked = 0  # steps whose loss was looked at

    def state_dict(self) -> dict[str, Any]:
        return {"outputs": self.outputs, "checked": self.checked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.outputs, self.checked = state_dict["outputs"], state_dict["checked"]

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.outputs, self.checked = [], 0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        self.outputs.append(outputs | {"images": len(batch), "step": module.global_step})
        steps = sum(len(output["loss"]) for output in self.outputs)
        if steps - self.checked >= CHECK_EVERY or batch_idx + 1 == trainer.num_training_batches:
            self.look(trainer, module)

    def look(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Looks at the losses since the last look."""
        if not self.outputs:
            return
        # what came before a resume is on the CPU
        losses = torch.cat([output["loss"].to(module.device) for output in self.outputs])
        finite = losses[self.checked :].isfinite()
        if not finite.all():
            bad = self.checked + int(finite.int().argmin()) + 1
            raise diverged(float(losses[bad - 1]), f"in epoch {trainer.current_epoch + 1}, step {bad}")
        self.checked = len(losses)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.look(trainer, module)
        # the last step changed them after its loss was computed
        if not torch.stack([weight.isfinite().all() for weight in module.parameters()]).all():
            raise diverged(math.nan, f"in epoch {trainer.current_epoch + 1}, after step {self.checked}")

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        validated = float(trainer.callback_metrics["loss/validation"])
        if not math.isfinite(validated):
            raise diverged(validated, f"in the validation of epoch {trainer.current_epoch + 1}")
        losses = [output["loss"].cpu().double().mean().item() for output in self.outputs]
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
        self.outputs = []


def diverged(loss: float, where: str) -> Diverged:
    """The error for a loss that is not finite."""
    return Diverged(f"the loss became {loss} {where}: lower recipe.optimizer.lr; any checkpoint is from before")


class TrainingProgress(Callback):
    """Shows how far a training, a validation by itself or a test is: by a bar, or a line now and then."""

    progress: Progress | None = None

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self.progress = Progress(what, total, done)
        self.progress.__enter__()

    def reach(self, done: int, detail: str = "") -> None:
        if self.progress is not None:
            self.progress.reach(done, detail)

    def end(self) -> None:
        if self.progress is not None:
            self.progress.__exit__()
            self.progress = None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if self.progress is None:  # here it is known where a resumed training goes on
            self.steps = trainer.datamodule.steps  # type: ignore[attr-defined]  # of an epoch
            self.group = -(-self.steps // int(trainer.num_training_batches))  # steps between calls
            done = trainer.current_epoch * self.steps + batch_idx * self.group
            self.begin("training: step", (trainer.max_epochs or 1) * self.steps, done)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.current_epoch * self.steps + min(self.steps, (batch_idx + 1) * self.group)
        detail = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        if (accuracy := trainer.callback_metrics.get("accuracy/validation")) is not None:
            detail += f", validation accuracy {float(accuracy):.2%}"
        self.reach(done, detail)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.begin("evaluation: batch", sum(map(int, trainer.num_val_batches)))

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.reach(batch_idx + 1)

    def on_test_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.begin("test: batch", sum(map(int, trainer.num_test_batches)))

    def on_test_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self.reach(batch_idx + 1)

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self.end()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.end()
