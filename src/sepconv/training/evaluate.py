"""A recorded run's network, or the file of one, loaded and evaluated again."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sepconv import InputError, terminal
from sepconv.config import PARTS, REPOSITORY
from sepconv.config.keys import EvaluateConfig, SourceConfig, TrainConfig, TrainerConfig
from sepconv.config.read import complete
from sepconv.data.datasets import Dataset, load
from sepconv.data.module import ImageData, evaluation_batch
from sepconv.deployment.formats import ExportedFile, read_file
from sepconv.devices import find_device, resolve_precision
from sepconv.tables import Column, Table
from sepconv.text import printable
from sepconv.training import checkpoints, runs
from sepconv.training.classifier import ImageClassifier, check_description, describe_images, explain_difference
from sepconv.training.trainer import make_trainer


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Evaluates a run's checkpoint, or a file, on the test set again: `accuracy` and `recorded`, shares of 1.

    Raises InputError for a path that is no run or no exported file, or whose data are not there.
    """
    parts = () if config.other_images else ("test",)
    if config.file is not None:
        file = read_file(config.file)
        dataset = load_images(file, config.data, parts)
        name, recorded, whose = f"{file.path}, {file.record.name}", file.record.test_accuracy, "of the file"
        limit, batch = config.trainer.limit_batches, evaluation_batch(torch.device("cpu"), dataset.shape)
        images, labels = dataset[dataset.test[: limit and limit * batch]]
        accuracy, count = float((file.classify(images).argmax(1) == labels).double().mean()), len(labels)
    else:
        assert config.run is not None
        run, _, classifier, dataset = load_run(config.run, config.checkpoint, config.data, parts)
        name, whose = f"{run}, {config.checkpoint} checkpoint", "best checkpoint"
        recorded = runs.read_result(run).test_accuracy if (run / "result.json").exists() else float("nan")
        accuracy, count = measure_accuracy(classifier, dataset, config.trainer), len(dataset.test)
        if config.trainer.limit_batches is not None:
            batch = evaluation_batch(find_device(config.trainer), dataset.shape)
            count = min(count, config.trainer.limit_batches * batch)
    terminal.CONSOLE.print(name, soft_wrap=True)
    columns = [
        Column("test accuracy", lambda figure: f"{figure:.2%}"),
        Column(f"recorded ({whose})", lambda _: "-" if math.isnan(recorded) else f"{recorded:.2%}"),
        Column("test images", lambda _: f"{count:,}"),
    ]
    Table("", columns, [accuracy]).show(terminal.CONSOLE)
    return {"accuracy": accuracy, "recorded": recorded}


def load_images(file: ExportedFile, source: SourceConfig, parts: Sequence[str]) -> Dataset:
    """The data set that an exported file's run was trained on, from `source.root`, by default where data lie.

    Raises InputError where its files are not there, or `parts` of it are not the run's.
    """
    root = str(REPOSITORY / "data") if source.root is None else source.root
    dataset = load(replace(file.record.config.data, root=root))
    recorded = {"shape": file.record.shape, "classes": file.record.classes, "digests": file.record.result.digests}
    check_same_images(file.path, recorded, dataset, root, parts)
    return dataset


def measure_accuracy(classifier: ImageClassifier, dataset: Dataset, config: TrainerConfig) -> float:
    """Share of the test images that are classified rightly, computed as at a run's end, but without other views."""
    return round(float(measure_test(classifier, dataset, config)[0].mean()), 6)  # as a run's figures have it


def measure_test(
    classifier: ImageClassifier, dataset: Dataset, config: TrainerConfig
) -> tuple[NDArray[np.bool_], float]:
    """Which test images are, (N,), and the mean cross entropy, without label smoothing."""
    device = find_device(config)
    precision = resolve_precision(classifier.recipe.precision, device)
    trainer = make_trainer(config, precision, [], False, epochs=1)
    tested = replace(dataset, validation=dataset.test)
    data = ImageData(tested, classifier.recipe, device, limit=config.limit_batches)
    figures = trainer.validate(classifier, data, verbose=False)[0]
    return np.equal(*classifier.predictions.numpy()), figures["loss/validation"]


def load_run(
    directory: str, checkpoint: str, source: SourceConfig, parts: Sequence[str] = PARTS
) -> tuple[Path, TrainConfig, ImageClassifier, Dataset]:
    """A run's directory, configuration (its data where they are now), classifier from a checkpoint, and data set.

    Args:
        parts: of the data set that must have the images that the run had.

    Raises InputError for a path that is no run, or whose data are not there or not the same.
    """
    run, recorded, _ = runs.read_config(directory)
    classifier = load_classifier(run, checkpoint, recorded)
    if source.root is not None:
        recorded = replace(recorded, data=replace(recorded.data, root=source.root))
    dataset = load(recorded.data)
    check_same_images(run, classifier.hparams["images"], dataset, recorded.data.root, parts)
    return run, recorded, classifier, dataset


def check_same_images(
    run: Path, recorded: dict[str, Any], dataset: Dataset, root: str, parts: Sequence[str] = PARTS
) -> None:
    """Raises InputError unless `parts` of `dataset`, from `root`, have the classes and images that `run` had.

    Args:
        run: a run's directory or an exported file, for the error.
        recorded: its images, as `describe_images` gives them.
    """
    if difference := explain_difference(recorded, describe_images(dataset), parts):
        raise InputError(f"{root} does not hold the images of {run}: {difference}; give data.root=, where they are")


def load_classifier(run: Path, name: str, config: TrainConfig) -> ImageClassifier:
    """The classifier of a run's checkpoint `name` (best, last), on the CPU.

    Raises InputError where the checkpoint is missing, damaged, of another network than `config` names, or by other
    code, whose network of that name had other weights.
    """
    path = run / "checkpoints" / f"{name}.ckpt"
    if not path.exists():
        raise InputError(f"{run} has no checkpoint {name}.ckpt: it stopped before the first was written")
    checkpoint = checkpoints.load(path)
    options: dict[str, Any] = checkpoint["hyper_parameters"]
    try:
        model = complete(options["model"])
        if model != complete(config.model):
            raise InputError(f"another network than the run's config.yaml: {model}, not {config.model}")
        check_description(options["images"])
        classifier = ImageClassifier(options["model"], options["recipe"], options["images"])
    except InputError as error:
        raise InputError(f"{path} holds {printable(error)}") from error
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(
            f"{path} holds no network that can be built ({type(error).__name__}: {printable(error)})"
        ) from error
    try:
        classifier.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:  # torch's words for weights that do not fit
        raise InputError(
            f"{path} was made by other code, whose network had other weights: check out the commit in its run's "
            "code.yaml"
        ) from error
    return classifier
