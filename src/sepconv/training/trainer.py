"""Lightning's trainer as this project sets it up."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from sepconv import InputError, Stopped, terminal
from sepconv.config.keys import TrainerConfig
from sepconv.devices import find_device, name_accelerator, prepare_memory
from sepconv.training.callbacks import TrainingProgress
from sepconv.training.checkpoints import CheckpointFiles
from sepconv.training.norms import synchronize_norms
from sepconv.training.processes import EndAtOnce, Group

# A run on one device is one process. Lightning takes a rank from the environment, where a cluster's starter gives each
# of the processes that it starts one, and has those after the first write nothing.
rank_zero_only.rank = 0  # type: ignore[attr-defined]


def make_trainer(
    config: TrainerConfig,
    precision: str,
    callbacks: list[Callback],
    logger: TensorBoardLogger | bool,
    epochs: int,
    group: Group | None = None,
) -> L.Trainer:
    """Lightning's trainer on the one device that `config` means, or on that of each process of `group`."""
    terminal.quiet()
    prepare_memory()
    # Lightning sets it for processes that fork, which ours do not; where there is no GPU it has torch's optimizers
    # look for NVIDIA's library at every step, for 0.15 ms
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    options: dict[str, Any] = {"accelerator": name_accelerator(config), "devices": 1}
    plugins: list[Any] = [LightningEnvironment()]
    if group is not None:
        options, plugins = group.options, [group.environment, synchronize_norms(group.ranks, find_device(config))]
        callbacks = [*callbacks, EndAtOnce()]
    return L.Trainer(
        **options,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        deterministic=config.deterministic,
        benchmark=not config.deterministic,  # cuDNN tries its algorithms at the first of each shape
        detect_anomaly=config.detect_anomaly,
        callbacks=[*callbacks, TrainingProgress()],
        plugins=[*plugins, CheckpointFiles()],
        logger=logger,
        enable_progress_bar=False,  # TrainingProgress is there where nobody looks at a terminal, too
        enable_model_summary=False,
        num_sanity_val_steps=0,
        enable_checkpointing=bool(logger),
    )


@contextmanager
def stoppable(kept: Callable[[], str]) -> Iterator[None]:
    """Says what is `kept` where a signal or the disk ends the work within it: Lightning answers a signal by SystemExit.

    Raises Stopped, and InputError for the disk.
    """
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as stop:
        cause = stop if isinstance(stop, KeyboardInterrupt) else stop.__context__
        if not isinstance(cause, KeyboardInterrupt):
            raise
        raise Stopped(kept(), cause.status if isinstance(cause, Stopped) else 130) from None
    except OSError as error:
        raise InputError(f"{error.filename or 'a file'}: {error.strerror}; {kept()}") from error
