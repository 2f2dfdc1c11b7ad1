"""A run from its configuration to its recorded figures, and a recorded run evaluated again."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from rich.table import Table
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sepconv import InputError, terminal
from sepconv.config import EvaluateConfig, RecipeConfig, SourceConfig, TrainConfig, TrainerConfig, flatten
from sepconv.costs import counting
from sepconv.data.datasets import Dataset, load
from sepconv.data.module import ImageData
from sepconv.devices import (
    describe_device,
    find_device,
    keep_freed_memory,
    peak_memory,
    reset_peak_memory,
    resolve_precision,
)
from sepconv.training import runs
from sepconv.training.classifier import ImageClassifier
from sepconv.training.dashboard import Dashboard
from sepconv.training.recipe import build_optimizer, stem
from sepconv.training.step import resolve_step
from sepconv.training.stopwatch import Stopwatch

# a run in TensorBoard's HPARAMS: the same columns for all, few enough for its parallel coordinates
CHOICES = ("epochs", "batch_size", "optimizer.name", "optimizer.lr", "optimizer.weight_decay", "label_smoothing")
HPARAMS = ("test_accuracy", "val_accuracy", "parameters", "macs", "train_images_per_second", "fit_seconds")


def train(
    config: TrainConfig, overrides: list[str], started: float, dataset: Dataset | None = None
) -> tuple[Path, dict[str, Any]]:
    """Trains, validates and tests one network, and records the run in its directory.

    Args:
        overrides: the command's arguments, for the record.
        started: when the job began, in seconds since the epoch.
        dataset: what `config.data` describes, where it is loaded already.

    Returns:
        The run's directory, and what its `result.json` holds.

    Raises:
        InputError: for a configuration or data that cannot be used, or a loss that diverges.
    """
    checkpoint = origin = None
    if config.resume is not None:
        run, config, overrides = reopen(config, overrides)
        checkpoint = runs.read_checkpoint(run, "last", config)
    elif config.weights is not None:
        config, origin = adopt(config, overrides)
    device = find_device(config.trainer)
    L.seed_everything(config.seed, verbose=False)
    reset_peak_memory()
    dataset = dataset or load(config.data)
    data = ImageData(dataset, config.recipe, config.seed, config.trainer.limit_batches)
    if checkpoint is not None:  # not made anew: it may know its images from the run that its weights came from
        classifier = load_classifier(checkpoint)
    else:
        images = describe_images(dataset)
        if origin is not None:
            images = check_images(origin, images, config)
        classifier = make_classifier(config.model, config.recipe, dataset, images)
        if origin is not None:
            classifier.take(origin)
    # now, so that what cannot be trained leaves no run behind
    check_trainable(classifier, data)
    optimizer = build_optimizer(classifier.trained, config.recipe.optimizer)
    classifier.form = resolve_step(config.trainer, device, optimizer)
    if checkpoint is None:
        run = runs.create(config)
        runs.write_config(run, config, overrides)
    parameters, macs = counting.parameters(classifier.net), counting.macs(classifier.net, dataset.shape)
    precision = resolve_precision(config.recipe.precision, device)
    stopwatch = Stopwatch(started)
    best, last = checkpoints(run / "checkpoints")
    logger = TensorBoardLogger(run, name="", version="", default_hp_metric=False)
    with terminal.logged(run):
        dashboard = Dashboard(logger.experiment, dataset)
        callbacks = [stopwatch, best, last, dashboard]
        trainer = make_trainer(config.trainer, precision, callbacks, logger, config.recipe.epochs)
        terminal.introduce(config, dataset, data.steps, parameters, macs, precision, describe_device(device), run)
        logger.log_metrics({"cost/parameters": parameters, "cost/macs": macs}, step=0)
        try:
            trainer.fit(classifier, data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # Lightning's answer to a keyboard interrupt
            continues = (run / "checkpoints/last.ckpt").exists()
            raise KeyboardInterrupt(f"resume={run} continues" if continues else f"{run} is not complete") from None
        # now: to load the best checkpoint takes the stopwatch back to it
        fit_seconds, history = stopwatch.fit_seconds, stopwatch.history
        tested = trainer.test(classifier, data, ckpt_path=best.best_model_path, weights_only=True, verbose=False)[0]
    assert best.best_model_score is not None
    result = describe_run(config, dataset, parameters, macs, stopwatch, tested) | {
        "val_accuracy": round(float(best.best_model_score), 6),
        "epochs": config.recipe.epochs,
        "fit_seconds": fit_seconds,
        "history": history,
        "dashboard_seconds": dashboard.seconds,
        "train_images_per_second": stopwatch.images_per_second("train"),
        "precision": precision,
        "step": classifier.form,
        "command": runs.command_line("train", overrides),
    }
    record(run, config, result, logger)
    terminal.conclude(result, run)
    return run, result


def check_trainable(classifier: ImageClassifier, data: ImageData) -> None:
    """Raises InputError for a first convolution that cannot be whitened, and batches of one image for batch norms."""
    if any(stem(net).groups > 1 for net in classifier.unwhitened):
        raise InputError("recipe.whiten needs a standard first convolution, not a depthwise one: give recipe.whiten=0")
    smallest = classifier.count_hardest(data.count % data.batch_size or data.batch_size)
    if smallest < 2 and any(isinstance(layer, _BatchNorm) for net in classifier.trained for layer in net.modules()):
        raise InputError(
            f"recipe.batch_size={data.batch_size} makes a batch of one image, from which batch norms learn nothing: "
            "give 2 or more, or recipe.drop_last=true where it is the last one"
        )


def describe_run(
    config: TrainConfig,
    dataset: Dataset,
    parameters: int,
    macs: int,
    stopwatch: Stopwatch,
    tested: Mapping[str, float],
) -> dict[str, Any]:
    """The figures of a run that do not depend on how its weights came about; `tested` are the trainer's of the test."""
    device = find_device(config.trainer)
    return {
        "model": config.model["name"],
        "data": config.data.name,
        "seed": config.seed,
        "parameters": parameters,
        "macs": macs,
        "test_accuracy": round(tested["accuracy/test"], 6),  # Lightning keeps it in float32
        "test_loss": tested["loss/test"],
        "test_accuracy_tta": round(tested["accuracy/test_tta"], 6) if "accuracy/test_tta" in tested else None,
        "images": {part: len(getattr(dataset, part)) for part in ("train", "validation", "test")},
        "batch_size": config.recipe.batch_size,
        "seconds_to_first_step": stopwatch.seconds_to_first_step,
        "eval_images_per_second": stopwatch.images_per_second("eval"),
        "test_seconds": stopwatch.test_seconds,
        "peak_memory_bytes": peak_memory(device),
        "device": describe_device(device),
        "git": runs.git_state(),
        "versions": runs.versions(),
    }


def record(run: Path, config: TrainConfig, result: dict[str, Any], logger: TensorBoardLogger) -> None:
    """Writes a finished run's figures: to TensorBoard's HPARAMS, then to `result.json`."""
    metrics = {f"result/{name}": result[name] for name in HPARAMS if result[name] is not None}
    asked = flatten({"recipe": asdict(config.recipe)})
    options = ", ".join(f"{key}={value}" for key, value in config.model.items() if key != "name")
    shown = {"data": config.data.name, "model": config.model["name"], "options": options, "seed": config.seed}
    logger.log_hyperparams(shown | {name: asked.get(f"recipe.{name}", 0.0) for name in CHOICES}, metrics)
    logger.finalize("success")
    runs.write_result(run, result)


def make_classifier(
    model: dict[str, Any], recipe: RecipeConfig, dataset: Dataset, images: dict[str, Any] | None = None
) -> ImageClassifier:
    """A new classifier of the images of `dataset`, on the CPU; its whitening filters come with the fit.

    Args:
        images: what it knows of them, if not what `describe_images` says.

    Raises InputError for a network that cannot be built.
    """
    return ImageClassifier(model, asdict(recipe), images or describe_images(dataset))


def describe_images(dataset: Dataset) -> dict[str, Any]:
    """What an ImageClassifier must know of its images, in plain values."""
    mean, deviation = dataset.statistics()
    return {"shape": list(dataset.shape), "classes": len(dataset.classes), "mean": mean, "deviation": deviation}


def adopt(config: TrainConfig, overrides: list[str]) -> tuple[TrainConfig, ImageClassifier]:
    """`config` with the network of the run `config.weights`, and that run's best checkpoint.

    The network comes with the normalisation of the pixels that its weights were trained on.

    Raises InputError for a path that is no run, and overrides that ask for another network or normalisation.
    """
    assert config.weights is not None
    run, recorded, _ = runs.read_config(config.weights)
    checkpoint = runs.read_checkpoint(run, "best", recorded)
    theirs = {"model": recorded.model, "recipe.normalize": recorded.recipe.normalize}
    for key, asked in {"model": config.model, "recipe.normalize": config.recipe.normalize}.items():
        given = [o for o in overrides if re.match(rf"[+~]*({re.escape(key)}[=.]|experiment=)", o)]
        if given and asked != theirs[key]:
            raise InputError(f"weights={run} comes with {key}={theirs[key]}: drop {' '.join(given)}")
    if config.recipe.whiten and not recorded.recipe.whiten:
        raise InputError(f"weights={run} comes with a trained first convolution: give recipe.whiten=0")
    recipe = replace(config.recipe, normalize=recorded.recipe.normalize)
    return replace(config, model=recorded.model, recipe=recipe, weights=str(run)), load_classifier(checkpoint)


def check_images(origin: ImageClassifier, images: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """What `origin` knows of its images. Raises InputError where the data set's, `images`, do not fit its network."""
    known: dict[str, Any] = origin.hparams["images"]

    def kind(images: dict[str, Any]) -> str:
        channels, height, width = images["shape"]
        return f"{height} x {width} x {channels} images of {images['classes']} classes"

    if kind(images) != kind(known):
        raise InputError(f"weights={config.weights} takes {kind(known)}; data={config.data.name} has {kind(images)}")
    return known


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


def checkpoints(folder: Path) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """What writes best.ckpt and, after every epoch, last.ckpt; in this order, so that the last knows the best."""
    best = BestCheckpoint(folder, "best", monitor="accuracy/validation", mode="max", enable_version_counter=False)
    # not save_last, which saves only when the best is
    return best, Checkpoint(folder, "last", enable_version_counter=False)


def reopen(config: TrainConfig, overrides: list[str]) -> tuple[Path, TrainConfig, list[str]]:
    """The directory, configuration and overrides of the run `config.resume`, on this command's trainer and data root.

    Raises InputError for a path that is no run, a run that is complete, and overrides that would change it.
    """
    assert config.resume is not None
    kept = ("resume=", "data.root=", "trainer=", "trainer.")
    changes = [o for o in overrides if not o.startswith(kept) or o.startswith("trainer.limit_batches=")]
    if changes:
        raise InputError(f"resume= continues a run as it was configured: drop {' '.join(changes)}")
    run, recorded, asked = runs.read_config(config.resume)
    if (run / "result.json").exists():
        raise InputError(f"{run} is complete: there is nothing to resume")
    if any(o.startswith("trainer") for o in overrides):
        trainer = replace(config.trainer, limit_batches=recorded.trainer.limit_batches)
        recorded = replace(recorded, trainer=trainer)
    if any(o.startswith("data.root=") for o in overrides):
        recorded = replace(recorded, data=replace(recorded.data, root=config.data.root))
    return run, recorded, asked


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Evaluates a run's checkpoint on the test set again: `accuracy` and `recorded`, shares of 1.

    Raises InputError for a path that is no run, or whose data are not there.
    """
    run, _, classifier, dataset = load_run(config.run, config.checkpoint, config.data)
    result = runs.read_result(run) if (run / "result.json").exists() else {}
    accuracy = measure_accuracy(classifier, dataset, config.trainer)
    table = Table(title=f"{run}, {config.checkpoint} checkpoint", title_justify="left")
    table.add_column("test accuracy", justify="right")
    table.add_column("recorded (best checkpoint)", justify="right")
    table.add_column("test images", justify="right")
    before = result.get("test_accuracy")
    table.add_row(f"{accuracy:.2%}", "-" if before is None else f"{before:.2%}", f"{len(dataset.test):,}")
    terminal.CONSOLE.print(table)
    return {"accuracy": accuracy, "recorded": before if before is not None else float("nan")}


def measure_accuracy(classifier: ImageClassifier, dataset: Dataset, config: TrainerConfig) -> float:
    """Share of the test images that are classified rightly, computed as at a run's end, but without other views."""
    precision = resolve_precision(classifier.recipe.precision, find_device(config))
    trainer = make_trainer(config, precision, [], False, epochs=1)
    data = ImageData(replace(dataset, validation=dataset.test), classifier.recipe, limit=config.limit_batches)
    tested = trainer.validate(classifier, data, verbose=False)[0]
    return round(tested["accuracy/validation"], 6)  # Lightning keeps it in float32


def load_run(
    directory: str, checkpoint: str, source: SourceConfig
) -> tuple[Path, TrainConfig, ImageClassifier, Dataset]:
    """A run's directory, configuration (its data where they are now), classifier from a checkpoint, and data set.

    Raises InputError for a path that is no run, or whose data are not there.
    """
    run, recorded, _ = runs.read_config(directory)
    path = runs.read_checkpoint(run, checkpoint, recorded)
    if source.root is not None:
        recorded = replace(recorded, data=replace(recorded.data, root=source.root))
    dataset = load(recorded.data)
    return run, recorded, load_classifier(path), dataset


def load_classifier(checkpoint: Path) -> ImageClassifier:
    """The classifier of a checkpoint, on the CPU.

    Raises InputError where other code made it, whose network of that name had other weights.
    """
    try:
        return ImageClassifier.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    except RuntimeError as error:  # torch's answer to weights that do not fit
        raise InputError(
            f"{checkpoint} was made by other code, whose network had other weights: check out the commit in its run's "
            "result.json"
        ) from error


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
    shown = sys.stdout.isatty() and not terminal.CONSOLE.quiet
    return L.Trainer(
        accelerator={"cuda": "gpu"}.get(kind := find_device(config).type, kind),
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        deterministic=config.deterministic,
        benchmark=not config.deterministic,  # cuDNN tries its algorithms at the first of each shape
        detect_anomaly=config.detect_anomaly,
        callbacks=callbacks + ([TQDMProgressBar(refresh_rate=20)] if shown else []),
        logger=logger,
        enable_progress_bar=shown,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        enable_checkpointing=bool(logger),
    )
