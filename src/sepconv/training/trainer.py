"""Lightning's trainer as this project sets it up."""

import os
import sys

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from sepconv import terminal
from sepconv.config import TrainerConfig
from sepconv.devices import find_device, keep_freed_memory


def make_trainer(
    config: TrainerConfig,
    precision: str,
    callbacks: list[Callback],
    logger: TensorBoardLogger | bool,
    epochs: int,
) -> L.Trainer:
    """Lightning's trainer on the one device that `config` means."""
    terminal.quiet()
    keep_freed_memory()
    # Lightning sets it for processes that fork, which ours do not; where there is no GPU it has torch's optimizers
    # look for NVIDIA's library at every step, for 0.15 ms
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    bar = sys.stdout.isatty() and not terminal.CONSOLE.quiet
    return L.Trainer(
        accelerator={"cuda": "gpu"}.get(kind := find_device(config).type, kind),
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        deterministic=config.deterministic,
        benchmark=not config.deterministic,  # cuDNN tries its algorithms at the first of each shape
        detect_anomaly=config.detect_anomaly,
        callbacks=callbacks + ([TQDMProgressBar(refresh_rate=20)] if bar else []),
        logger=logger,
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        enable_checkpointing=bool(logger),
    )
