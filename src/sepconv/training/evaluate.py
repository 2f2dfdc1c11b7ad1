"""A recorded run's network, loaded and evaluated again."""

import math
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from sepconv import InputError, terminal
from sepconv.config import EvaluateConfig, SourceConfig, TrainConfig, TrainerConfig
from sepconv.data.datasets import Dataset, load
from sepconv.data.module import ImageData
from sepconv.devices import find_device, resolve_precision
from sepconv.training import runs
from sepconv.training.classifier import ImageClassifier
from sepconv.training.trainer import make_trainer


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Evaluates a run's checkpoint on the test set again: `accuracy` and `recorded`, shares of 1.

    Raises InputError for a path that is no run, or whose data are not there.
    """
    run, _, classifier, dataset = load_run(config.run, config.checkpoint, config.data)
    recorded = runs.read_result(run).test_accuracy if (run / "result.json").exists() else float("nan")
    accuracy = measure_accuracy(classifier, dataset, config.trainer)
    table = Table(title=f"{run}, {config.checkpoint} checkpoint", title_justify="left")
    for heading in ("test accuracy", "recorded (best checkpoint)", "test images"):
        table.add_column(heading, justify="right")
    table.add_row(f"{accuracy:.2%}", "-" if math.isnan(recorded) else f"{recorded:.2%}", f"{len(dataset.test):,}")
    terminal.CONSOLE.print(table)
    return {"accuracy": accuracy, "recorded": recorded}


def measure_accuracy(classifier: ImageClassifier, dataset: Dataset, config: TrainerConfig) -> float:
    """Share of the test images that are classified rightly, computed as at a run's end, but without other views."""
    device = find_device(config)
    precision = resolve_precision(classifier.recipe.precision, device)
    trainer = make_trainer(config, precision, [], False, epochs=1)
    tested = replace(dataset, validation=dataset.test)
    data = ImageData(tested, classifier.recipe, device, limit=config.limit_batches)
    figures = trainer.validate(classifier, data, verbose=False)[0]
    return round(figures["accuracy/validation"], 6)  # Lightning keeps it in float32


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

    Raises InputError where other code wrote it, whose network of that name had other weights.
    """
    try:
        return ImageClassifier.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    except RuntimeError as error:  # torch's answer to weights that do not fit
        raise InputError(
            f"{checkpoint} was made by other code, whose network had other weights: check out the commit in its run's "
            "result.json"
        ) from error
