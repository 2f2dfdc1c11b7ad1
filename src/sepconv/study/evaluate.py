"""A run's checkpoint, or an exported file, evaluated again on the test set."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from sepconv import terminal
from sepconv.config import REPOSITORY
from sepconv.config.keys import EvaluateConfig, SourceConfig
from sepconv.data.datasets import Dataset, load
from sepconv.data.module import evaluation_batch
from sepconv.deployment.formats import ExportedFile, read_file
from sepconv.devices import find_device
from sepconv.tables import Column, Table
from sepconv.training import runs
from sepconv.training.recorded import check_same_images, load_run, measure_accuracy


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
