"""A recorded run's network, loaded from a checkpoint and measured on the test images."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepconv import InputError
from sepconv.config import PARTS
from sepconv.config.keys import CostConfig, SourceConfig, TrainConfig, TrainerConfig
from sepconv.config.read import complete
from sepconv.data.datasets import Dataset, load
from sepconv.data.module import ImageData
from sepconv.devices import find_device, resolve_precision
from sepconv.text import printable
from sepconv.training import checkpoints, runs
from sepconv.training.classifier import ImageClassifier, check_description, describe_images, explain_difference
from sepconv.training.trainer import make_trainer


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


def take_network(config: CostConfig, overrides: list[str]) -> CostConfig:
    """`config` with the network of `config.run` and, where it names no others, the shape and classes of its images.

    Raises InputError for a path that is no run, and where `overrides` name another network or other images.
    """
    for override in filter(re.compile(r"[+~]*(model|data)\b").match, overrides):
        raise InputError(f"run={config.run} has its own network and images: leave {override} out")
    run, recorded, _ = runs.read_config(str(config.run))
    images = load_classifier(run, "best", recorded).hparams["images"]
    shape, classes = config.shape or images["shape"], config.classes or len(images["classes"])
    return replace(config, model=recorded.model, shape=shape, classes=classes)


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
