"""Our training against others of the same images: Keras, PyTorch's example, a Lightning template, airbench, a bare
PyTorch loop.

Keras and the template train a network after the Keras MNIST example (`configs/model/baseline.yaml`), PyTorch's example
its own. `config.peer_epochs` has how long each trains. Those in a fast form train in batches of 128, in bf16, at a
learning rate that falls to 0 from that of `config.peer_rates`.

- `keras`: that network in batches of 32, in fp32, by Keras on TensorFlow, on the CPU, each in a process of its own, in
  the environment that `make peers` makes; its seconds are those of `model.fit`
- `keras_fast`, `keras_torch`: its fast form, on TensorFlow; and on torch, in this environment
- `pytorch`: the MNIST example of github.com/pytorch/examples (`sepconv.benchmark.pytorch_example`)
- `airbench`: the script of its checkout (see `sepconv.benchmark.airbench`), on all 50,000 training images of CIFAR-10;
  its seconds have a test in them, so ours are set against them with our test's added
- `template`: DataLoader, torchvision's transforms and Lightning's automatic optimization, in batches of the
  configuration's recipe; its seconds are those of `Trainer.fit`, Lightning's set-up among them
- `template_fast`: its fast form, with its images in memory
- `bare`: the bare loop of suite=loop, the configuration's network and recipe: whitening and steps, no validation, no
  checkpoint, no log
- `ours`: the configuration's training, or those of `config.experiments`; its seconds are `fit_seconds`, with whitening,
  validation and checkpoints in them

All but PyTorch's example, which compiles nothing, have made some steps before the clock starts (the bare loop those of
our training of the same network), so that what is compiled, loaded or built at first use is. All but airbench and the
bare loop are validated after each epoch, within their seconds. Keras, PyTorch's example, airbench and the bare loop are
tested with their last weights, the template and ours with those that validated best. All but Keras and airbench run in
one process, which keeps the memory that they free (`sepconv.devices.prepare_memory`).
"""

import importlib.util
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra import compose
from hydra.errors import HydraException

from sepconv import InputError, networks
from sepconv.arguments import training_arguments
from sepconv.benchmark import airbench, pytorch_example, template
from sepconv.benchmark.journal import Journal
from sepconv.benchmark.loop import BareLoop
from sepconv.benchmark.time_to_accuracy import accuracy_columns, configured, judge_runs, train_quietly, warm_up
from sepconv.cli import explain_composition
from sepconv.config import REPOSITORY
from sepconv.config.keys import PeersConfig, TrainConfig
from sepconv.config.read import flatten, read
from sepconv.config.rules import check
from sepconv.costs import counting
from sepconv.data.datasets import Dataset, load
from sepconv.data.module import count_images, evaluation_batch
from sepconv.devices import find_device, prepare_memory, resolve_precision, synchronize
from sepconv.study.statistics import spread, write_spread
from sepconv.tables import Column, Table
from sepconv.terminal import CONSOLE, track
from sepconv.training.train import make_classifier
from sepconv.training.whitening import whiten

NETWORK = {"name": "baseline"}  # after the Keras MNIST example
KERAS = REPOSITORY / ".venv-peers"
TENSORFLOW = ("keras", "keras_fast")
FAST_BATCH = 128  # images of a step, in the fast forms
REFERENCES = ("keras", "airbench")  # peers that the others' times are set against

# a training: fit_seconds, test_accuracy, images, epochs, batch_size, parameters, precision; where it is validated,
# val_accuracy; where it has been tested with test-time augmentation too, test_accuracy_tta; of ours, test_seconds
Turn = dict[str, Any]


def measure(config: PeersConfig, journal: Journal) -> dict[str, Any]:
    """Fit seconds and test accuracy of `config.peers`, taking turns.

    Ours and the bare loop have `config.rounds` trainings, the others, which take longer, `config.peer_rounds`, spread
    evenly over the call; the seeds are seed, seed + 1, ... One epoch of each of ours, and of what the bare loop trains,
    comes first and is left out.
    airbench has its `config.rounds` trainings in one block, as one process makes them, halfway: half of the others'
    turns come before it and half after, and nothing else computes beside it.

    After `config.seconds` no turn begins but the first of a training, and airbench's block is cut short.

    Returns:
        For each training: its turns, images/s (those trained on, over fit seconds), what `time_to_accuracy.judge_runs`
        gives, and how many times its fit goes into that of Keras and of airbench (medians), and into the shortest of
        the peers' whose mean validation accuracy comes to `config.target`.
        One that failed has its turns until then, and the reason under `failed`.

    Raises:
        InputError: for a configuration or data that cannot be used, or where Keras or airbench is not there.
    """
    started = time.perf_counter()
    check(config.trainer.limit_batches is None, "trainer.limit_batches", config.trainer.limit_batches,
          "null, or the peers would train on more; data.train=N trains all of them on fewer images")  # fmt: skip
    check_keras(config)
    prepare_memory()  # as our trainer does: the others have what it has
    provenance = {}
    if "airbench" in config.peers:
        airbench.check(config)
        provenance = {"airbench": airbench.describe(config)}
    dataset = load(config.data)
    check_sizes(config, dataset)
    own = ours(config) if "ours" in config.peers else {}
    trainings: dict[str, Callable[[int], Iterator[Turn]]] = {}
    for peer in config.peers:
        if peer == "ours":
            trainings |= {name: partial(train_ours, training, dataset) for name, training in own.items()}
        else:
            trainings[peer] = partial(PEERS[peer], config, dataset)
    first = [*own.values()]
    if "bare" in config.peers and configured(config) not in first:
        first.append(configured(config))
    for training in first:
        warm_up(training, dataset)
    counts = config.peer_rounds | {"airbench": 1}
    turns: dict[str, list[Turn]] = {name: journal.parts.get(name, []) for name in trainings}
    if len(turns.get("airbench", [])) < config.rounds:  # its block is made whole
        turns |= {name: [] for name in turns if name == "airbench"}
    left = {name: counts.get(name, config.rounds) - len(turns[name]) for name in trainings}
    end = math.inf if config.seconds is None else started + config.seconds
    failed: dict[str, str] = {}
    for name in track(order(left), "benchmark: turn"):
        if name in failed or (turns[name] and time.perf_counter() > end):
            continue
        try:
            for turn in trainings[name](config.seed + len(turns[name])):
                journal.keep(name, [*turns[name], turn])
                turns[name].append(turn)
                tta = turn.get("test_accuracy_tta")
                augmented = "" if tta is None else f", {tta:.2%} with test-time augmentation"
                CONSOLE.print(f"{name}: {turn['fit_seconds']:.2f} s, {turn['test_accuracy']:.2%}{augmented}")
                if time.perf_counter() > end:
                    break
        except InputError as error:  # the others' turns are not lost
            failed[name] = str(error)
    rows = {name: summary(trained, config.target) for name, trained in turns.items() if trained}
    if not rows:
        raise InputError("; ".join(failed.values()))
    for reference in [name for name in REFERENCES if name in rows]:
        for row in rows.values():
            tested = reference == "airbench" and "fit_and_test_seconds" in row
            seconds = row["fit_and_test_seconds" if tested else "fit_seconds"]["median"]
            row[f"times_as_fast_as_{reference}"] = rows[reference]["fit_seconds"]["median"] / seconds
    # the bare loop is ours too, and has no validation accuracy
    reach = [row for name, row in rows.items() if name in PEERS and row.get("val_accuracy", 0.0) >= config.target]
    if fastest := min((row["fit_seconds"]["median"] for row in reach), default=None):
        for row in rows.values():
            row["times_as_fast_as_peers"] = fastest / row["fit_seconds"]["median"]
    return {
        "suite": "peers",
        "data": config.data.name,
        "images": {part: len(getattr(dataset, part)) for part in ("train", "validation", "test")},
        "target": config.target,
        "trainings": rows,
        "failed": failed,
        **provenance,
    }


def check_keras(config: PeersConfig) -> None:
    """Raises InputError where `config.peers` has Keras and its backend is not there, or on a GPU."""
    asked = [name for name in config.peers if name.startswith("keras")]
    if asked and find_device(config.trainer).type != "cpu":
        raise InputError(f"the Keras peer trains on the CPU: give trainer=cpu, or leave {asked[0]} out of peers=")
    if set(asked) & set(TENSORFLOW) and not (KERAS / "ready").exists():
        raise InputError(f"Keras is not in {KERAS}: run make peers, or leave it out with peers=[template,bare,ours]")
    if "keras_torch" in asked and importlib.util.find_spec("keras") is None:
        raise InputError(
            "keras_torch needs Keras beside torch: pip install 'keras>=3', or leave keras_torch out of peers="
        )


def check_sizes(config: PeersConfig, dataset: Dataset) -> None:
    """Raises InputError where the images are too small for NETWORK, and a peer that trains it is asked for."""
    for peer in config.peers:
        if peer.startswith(("keras", "template")):
            try:
                networks.build(shape=dataset.shape, classes=len(dataset.classes), **NETWORK)
            except InputError as error:
                raise InputError(
                    f"{peer} trains model={NETWORK['name']}: {error}, or leave it out of peers="
                ) from error


def order(counts: dict[str, int]) -> list[str]:
    """Each name as often as `counts` says, its turns spread evenly over all."""
    places = [((turn + 0.5) / count, name) for name, count in counts.items() for turn in range(count)]
    return [name for _, name in sorted(places, key=lambda place: place[0])]


def summary(turns: list[Turn], target: float) -> dict[str, Any]:
    """The figures of a training's turns."""
    whole = [turn["fit_seconds"] + turn["test_seconds"] for turn in turns if "test_seconds" in turn]
    validated = [turn["val_accuracy"] for turn in turns if turn.get("val_accuracy") is not None]
    return {
        **judge_runs(turns, target),
        **({"val_accuracy": statistics.fmean(validated)} if validated else {}),
        **({"fit_and_test_seconds": spread(whole)} if whole else {}),
        "images_per_second": spread([turn["images"] / turn["fit_seconds"] for turn in turns]),
        "turns": turns,
    }


def ours(config: PeersConfig) -> dict[str, TrainConfig]:
    """Our trainings by name: those of `config.experiments`, on this command's data and trainer, or its own."""
    if not config.experiments:
        return {"ours": configured(config)}
    shared = [o for o in training_arguments() if re.match(r"[+~]*(data|trainer)[.=]", o)]
    trainings = {}
    for name in config.experiments:
        try:
            training = read(TrainConfig, compose("train", [f"experiment={name}", *shared]))
        except HydraException as error:
            raise InputError(explain_composition(error)) from error
        data, here = (flatten(asdict(data), "data.") for data in (training.data, config.data))
        changes = [f"{key}={data.get(key, 'null')}" for key in data | here if data.get(key) != here.get(key)]
        if changes:
            raise InputError(f"experiments has {name}, which changes the images: the peers would train on others; "
                             f"give {' '.join(changes)} to this command too")  # fmt: skip
        trainings[name] = training
    return trainings


def train_ours(training: TrainConfig, dataset: Dataset, seed: int) -> Iterator[Turn]:
    """A training of ours in this process."""
    result = train_quietly(replace(training, seed=seed), dataset)
    figures = ("fit_seconds", "test_seconds", "val_accuracy", "test_accuracy", "test_accuracy_tta", "epochs",
               "batch_size", "parameters", "macs", "precision")  # fmt: skip
    yield {
        **{name: getattr(result, name) for name in figures},
        "images": result.epochs * count_images(dataset, training.recipe),
        "model": training.model,
    }


def train_bare(config: PeersConfig, dataset: Dataset, seed: int) -> Iterator[Turn]:
    """A training by the bare loop, and the test at its end."""
    recipe, device = config.recipe, find_device(config.trainer)
    L.seed_everything(seed, verbose=False)
    classifier = make_classifier(config.model, recipe, dataset)
    dataset = dataset.to(device)
    images = count_images(dataset, recipe)
    steps = recipe.epochs * -(-images // recipe.batch_size)
    precision = resolve_precision(recipe.precision, device)
    bare = BareLoop(classifier, dataset, precision, steps, seed, config.trainer)
    synchronize(device)
    started = time.perf_counter()
    if recipe.whiten:
        whiten(classifier, dataset)
    bare.run(steps)
    synchronize(device)
    fit_seconds = time.perf_counter() - started
    parts = dataset.test.split(evaluation_batch(device, dataset.shape))
    hits = sum(int((bare.classify(rows).argmax(1) == dataset.labels[rows]).sum()) for rows in parts)
    yield {
        "fit_seconds": fit_seconds,
        "test_accuracy": round(hits / len(dataset.test), 6),
        "images": recipe.epochs * images,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "parameters": counting.parameters(classifier.net),
        "macs": counting.macs(classifier.net, dataset.shape),
        "model": config.model,
        "precision": precision,
    }


def train_template(name: str, config: PeersConfig, dataset: Dataset, seed: int) -> Iterator[Turn]:
    """A training as Lightning templates set it up, or its fast form."""
    L.seed_everything(seed, verbose=False)
    net = networks.build(shape=dataset.shape, classes=len(dataset.classes), **NETWORK, kernels="torch")
    epochs, rate = config.peer_epochs[name], config.peer_rates.get(name)
    batch_size = config.recipe.batch_size if rate is None else FAST_BATCH
    kind = find_device(config.trainer).type
    yield {
        **template.train(net, dataset, batch_size, epochs, {"cuda": "gpu"}.get(kind, kind), rate),
        "images": epochs * len(dataset.train),
        "epochs": epochs,
        "batch_size": batch_size,
        "rate": rate,
        "parameters": counting.parameters(net),
    }


def train_pytorch(config: PeersConfig, dataset: Dataset, seed: int) -> Iterator[Turn]:
    """The MNIST example of PyTorch."""
    L.seed_everything(seed, verbose=False)
    net = pytorch_example.make_network(dataset.shape, len(dataset.classes))
    epochs = config.peer_epochs["pytorch"]
    yield {
        **pytorch_example.train(net, dataset, epochs, find_device(config.trainer)),
        "images": epochs * len(dataset.train),
        "epochs": epochs,
        "batch_size": pytorch_example.BATCH_SIZE,
        "parameters": counting.parameters(net),
        "precision": "32-true",
    }


def train_keras(name: str, config: PeersConfig, dataset: Dataset, seed: int) -> Iterator[Turn]:
    """Keras's training, or its fast form, in a process of its own, on as many threads as torch has here."""
    rate = config.peer_rates.get(name)
    batch_size, precision = (32, "float32") if rate is None else (FAST_BATCH, "mixed_bfloat16")
    options = {"epochs": config.peer_epochs[name], "batch_size": batch_size, "precision": precision, "rate": rate,
               "threads": torch.get_num_threads(), "seed": seed}  # fmt: skip
    backend, python = ("tensorflow", KERAS / "bin/python") if name in TENSORFLOW else ("torch", sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images.npz")
        hand_over(dataset, images)
        command = [python, REPOSITORY / "scripts/peers/keras_example.py", images, json.dumps(options)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment["KERAS_BACKEND"] = backend
        process = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    if process.returncode != 0:
        reason = (process.stderr.strip() or f"status {process.returncode}").splitlines()[-1]
        remedy = f"delete {KERAS} and run make peers" if name in TENSORFLOW else f"leave {name} out of peers="
        raise InputError(f"the Keras example failed ({reason}): {remedy}")
    figures = json.loads(process.stdout.splitlines()[-1])
    yield figures | {"images": figures["epochs"] * len(dataset.train), "rate": rate}


def hand_over(dataset: Dataset, path: Path) -> None:
    """Writes the three parts of `dataset` for keras_example.py: pixels, uint8 (N, H, W, C), and labels, int64 (N,)."""
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "validation", "test"):
        rows = getattr(dataset, part)
        arrays |= {f"{part}_pixels": dataset.pixels[rows].numpy(), f"{part}_labels": dataset.labels[rows].numpy()}
    np.savez(path, allow_pickle=False, **arrays)


PEERS: dict[str, Callable[[PeersConfig, Dataset, int], Iterator[Turn]]] = {
    **{name: partial(train_keras, name) for name in (*TENSORFLOW, "keras_torch")},
    "pytorch": train_pytorch,
    "airbench": airbench.train,
    **{name: partial(train_template, name) for name in ("template", "template_fast")},
    "bare": train_bare,
}


def table(record: dict[str, Any]) -> Table:
    """A row a training."""

    def times_as_fast(reference: str) -> Column:
        key = f"times_as_fast_as_{reference}"
        return Column(f"times as fast as {reference}", lambda row: f"{row[key]:.1f}" if key in row else "")

    def of_turn(key: str) -> Column:
        return Column(key.replace("_", " "), lambda row: f"{row['turns'][0][key]:,}" if row["turns"][0][key] else "")

    def factors(row: dict[str, Any]) -> str:
        """Of the times as fast as Keras: times fewer images, and times as many of them a second."""
        keras = record["trainings"].get("keras")
        if keras is None or "times_as_fast_as_keras" not in row:
            return ""
        fewer = keras["turns"][0]["images"] / row["turns"][0]["images"]
        return f"{fewer:.1f} x {row['times_as_fast_as_keras'] / fewer:.1f}"

    def validated(row: dict[str, Any]) -> str:
        return f"{row['val_accuracy']:.2%}".replace("%", " %") if "val_accuracy" in row else ""

    columns = [
        Column("training", lambda row: row["name"]),
        Column("validation accuracy", validated),
        *accuracy_columns(record["target"]),
        Column("fit (s)", lambda row: write_spread(row["fit_seconds"])),
        *map(times_as_fast, (*REFERENCES, "peers")),
        Column("by fewer images x images/s", factors),
        Column("images/s", lambda row: write_spread(row["images_per_second"], 0)),
        *map(of_turn, ("epochs", "images", "batch_size", "parameters")),
        Column("precision", lambda row: row["turns"][0]["precision"], left=True),
    ]
    title = f"the same {record['images']['train']:,} images of {record['data']}"
    return Table(title, columns, [{"name": name, **row} for name, row in record["trainings"].items()])
