"""What a run measures of itself: time, throughput, memory, and on what."""

import contextlib
import ctypes
import platform
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

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


def interleaved_rates(networks: Sequence[nn.Module], images: torch.Tensor, precision: str, rounds: int) -> list[float]:
    """Images a second of each network's forward pass over `images` (B, C, H, W), on their device.

    The networks take turns, so that what else the machine does meets all of them; medians over `rounds`.

    Args:
        precision: Lightning's name for it, as in `sepconv.recipe.resolve_precision`.
    """
    device = images.device
    seconds: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        for turn in range(rounds + 1):
            for net, times in zip(networks, seconds, strict=True):
                net.to(device).eval()
                synchronize(device)
                started = time.perf_counter()
                net(images)
                synchronize(device)
                if turn > 0:  # the first one warms up
                    times.append(time.perf_counter() - started)
    return [len(images) / statistics.median(times) for times in seconds]


def synchronize(device: torch.device) -> None:
    """Waits for `device` to finish its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory() -> None:
    """Starts a new peak, where the system lets it: on CUDA, and for the process on Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # not Linux: the peak is then the process's
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: what torch allocated at most on a CUDA device; else the most that the process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Has glibc, where the process runs on it, keep large blocks that are freed, for the next of their size.

    By default it gives them back to the system, which hands them out again a page at a time and zeroed: for the Keras
    example's network on 2 cores that was half of the time of an evaluation in batches of 500, and a tenth of a step's.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**30)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on `device`."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def describe_device(device: torch.device) -> dict[str, Any]:
    """The kind (cuda, mps, cpu), name and, for a CPU, number of threads of `device`."""
    if device.type == "cuda":
        return {"kind": "cuda", "name": torch.cuda.get_device_name(device)}
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    if device.type == "cpu":
        return {"kind": "cpu", "name": name, "threads": torch.get_num_threads()}
    return {"kind": device.type, "name": name}
