"""A user's own pictures, classified by a run's network or by an exported file."""

import glob
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sepconv import InputError
from sepconv.config.keys import PredictConfig
from sepconv.data.folder import entries, ignored
from sepconv.data.images import ENDINGS
from sepconv.data.pictures import Preparation
from sepconv.deployment import formats
from sepconv.deployment.formats import ExportedFile
from sepconv.tables import Column, Table, as_csv
from sepconv.terminal import CONSOLE, Progress
from sepconv.text import printable
from sepconv.training import runs
from sepconv.training.recorded import load_classifier

BATCH = 128  # images that are in memory at once


@dataclass(frozen=True)
class Network:
    """What classifies."""

    name: str
    data: str  # name of the data set that it was trained on
    shape: Sequence[int]  # channels, height, width of an image
    classes: Sequence[str]
    classify: Callable[[Tensor], Tensor]  # images, uint8 (B, C, H, W), to logits (B, classes)

    @torch.no_grad()
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Those of images (B, C, H, W): (B, classes)."""
        return np.asarray(self.classify(torch.from_numpy(pixels)).double().softmax(1).numpy())


@dataclass(frozen=True)
class Prediction:
    """What a network says of a picture."""

    image: str  # its path
    classes: Sequence[str]  # names
    probabilities: NDArray[np.float64]  # (classes,)
    changes: list[str]  # of the picture, before it was classified

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` most probable classes, or all, and their probabilities, from the most probable."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[place], round(float(self.probabilities[place]), 6)) for place in order]


def predict(config: PredictConfig) -> None:
    """Classifies the pictures that `config` names, and prints what they are.

    Raises InputError for a path that is not there, for what is no run and no exported file, and, once all others are
    printed, where some pictures cannot be read, each of which has a line on standard error.
    """
    paths = find_images(config.images)
    if config.file is not None:
        network = file_network(formats.read_file(config.file))
    else:
        assert config.run is not None
        network = run_network(config.run)
    prepare = Preparation(network.data, network.shape, config.crop, config.polarity)
    predictions, errors = classify_all(network, prepare, paths)
    if predictions:
        if config.format == "table":
            CONSOLE.print(f"{network.name}; {prepare}", soft_wrap=True)
        show(predictions, config.format, min(config.top, len(network.classes)))
    if errors:
        sys.stdout.flush()
        sys.stderr.writelines(f"error: {error}\n" for error in errors)
        raise InputError(f"{len(errors):,} of {len(paths):,} images could not be read")


def find_images(places: Iterable[str]) -> list[str]:
    """The paths of image files: those named, and those in folders and by patterns whose names have one of ENDINGS.

    Those of a folder and the folders within it are sorted by path; hidden ones, and links to folders, are left out.

    Raises InputError for a path that is not there, one without images, and a folder that cannot be read.
    """
    found: dict[str, None] = {}  # in order, each once
    for place in places:
        if os.path.isdir(place):
            images = sorted(walk(place))
        elif os.path.lexists(place):
            images = [place]
        else:
            matches = sorted(glob.glob(place, recursive=True))
            if not matches:
                raise InputError(f"{place} is not there: give image files, folders of them, or patterns")
            folders = [sorted(walk(match)) if os.path.isdir(match) else [match] for match in matches]
            images = [path for each in folders for path in each if path.lower().endswith(ENDINGS)]
        if not images:
            raise InputError(f"{place} has no images, files that end in {', '.join(ENDINGS)}")
        found |= dict.fromkeys(images)
    return list(found)


def walk(folder: str) -> Iterator[str]:
    """The image files in a folder and in those within it."""
    for entry in entries(folder):
        if ignored(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        elif entry.name.lower().endswith(ENDINGS) and not os.path.isdir(entry.path):
            yield entry.path


def run_network(run: str | Path) -> Network:
    """The network of a run's best checkpoint, on the CPU. Raises InputError for what is no run."""
    path, recorded, _ = runs.read_config(run)
    classifier = load_classifier(path, "best", recorded).eval()
    images = classifier.hparams["images"]
    return Network(f"{path}, best checkpoint", recorded.data.name, images["shape"], images["classes"], classifier)


def file_network(file: ExportedFile, threads: int | None = None) -> Network:
    """That of an exported file, on so many threads of the CPU; by default as many as there are cores.

    Raises InputError for a file that does not run.
    """
    run, record = file.run(threads), file.record
    name = f"{file.path}, {record.name}"
    return Network(name, record.config.data.name, record.shape, record.classes,
                   lambda images: formats.classify(run, images))  # fmt: skip


def classify_all(network: Network, prepare: Preparation, paths: Sequence[str]) -> tuple[list[Prediction], list[str]]:
    """What a network says of the pictures that can be read, and, in a line each, why others cannot."""
    predictions: list[Prediction] = []
    errors: list[str] = []
    with Progress("classifying: image", len(paths)) as progress:
        for start in range(0, len(paths), BATCH):
            pictures = []
            for place, path in enumerate(paths[start : start + BATCH], start):
                try:
                    pictures.append((path, *prepare(path)))
                except InputError as error:
                    errors.append(str(error))
                progress.reach(place + 1)
            if pictures:
                probabilities = network.probabilities(np.stack([pixels for _, pixels, _ in pictures]))
                predictions += [Prediction(path, network.classes, row, changes)
                                for (path, _, changes), row in zip(pictures, probabilities, strict=True)]  # fmt: skip
    return predictions, errors


def show(predictions: Sequence[Prediction], form: str, top: int) -> None:
    """Prints predictions as a table, JSON or CSV; `top`: classes of each in a table or CSV."""
    if form == "json":
        print(json.dumps([as_json(each) for each in predictions], indent=2))
    elif form == "csv":
        print(as_csv([as_row(each, top) for each in predictions]), end="")
    else:
        Table("", columns(top), predictions).show(CONSOLE)


def as_json(prediction: Prediction) -> dict[str, Any]:
    """A prediction as plain values, with the probabilities of all classes."""
    ((name, probability),) = prediction.top(1)
    probabilities = {each: round(float(p), 6) for each, p in
                     zip(prediction.classes, prediction.probabilities, strict=True)}  # fmt: skip
    return {
        "image": prediction.image, "class": name, "probability": probability, "probabilities": probabilities,
        "changes": prediction.changes,
    }  # fmt: skip


def as_row(prediction: Prediction, top: int) -> dict[str, Any]:
    """A prediction as a row of CSV."""
    row: dict[str, Any] = {"image": prediction.image}
    for place, (name, probability) in enumerate(prediction.top(top), 1):
        end = f"_{place}" if place > 1 else ""
        row |= {f"class{end}": name, f"probability{end}": probability}
    return row | {"changes": ", ".join(prediction.changes)}


def columns(top: int) -> list[Column]:
    """The columns of a table of predictions, with so many classes of each."""
    shown = [Column("image", lambda each: printable(each.image))]
    for place in range(top):
        heading = "class" if place == 0 else f"class {place + 1}"
        shown += [
            Column(heading, lambda each, place=place: each.top(top)[place][0], left=True),  # type: ignore[misc]
            Column("probability", lambda each, place=place: f"{each.top(top)[place][1]:.2%}"),  # type: ignore[misc]
        ]
    return [*shown, Column("changes", lambda each: ", ".join(each.changes), left=True)]
