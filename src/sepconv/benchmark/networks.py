"""Networks against their dense twins: how much faster, beside how much less there is to compute."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, TypeVar

import lightning as L
import torch

from sepconv import InputError
from sepconv.benchmark.journal import Journal
from sepconv.benchmark.loop import BareLoop
from sepconv.config.keys import NetworksConfig
from sepconv.costs import counting
from sepconv.data.datasets import Dataset, load
from sepconv.devices import find_device, resolve_precision, synchronize
from sepconv.study.statistics import spread, write_spread
from sepconv.tables import Column, Table
from sepconv.terminal import CONSOLE, track
from sepconv.training.classifier import describe_images
from sepconv.training.train import make_classifier

Key = TypeVar("Key")

TURN = 0.5  # seconds, at least, of a turn


def measure(config: NetworksConfig, journal: Journal) -> dict[str, Any]:
    """Images/s of `config.networks` and of their dense twins, in training and in evaluation, over batch sizes.

    Training is the bare loop's step with the recipe, in the form that `config.trainer` means. Evaluation is op by op,
    so that a GPU waits for its launches while batches are small. The two take turns, `config.rounds` each of TURN
    seconds or more.

    Returns:
        For each network and batch size: an image's MACs, of a forward pass and of a training step; rates of each turn,
        and ratios separable / dense of each pair of turns.

    Raises:
        InputError: for a configuration or data that cannot be used.
    """
    device = find_device(config.trainer)
    dataset = load(config.data)
    if (largest := max(config.batch_sizes, default=0)) > len(dataset.train):
        raise InputError(f"batch_sizes has {largest}: {dataset.name} has {len(dataset.train)} images to train on")
    resident = dataset.to(device)
    rows = []
    for name, batch_size in track(list(product(config.networks, config.batch_sizes)), "benchmark: network"):
        row = journal.part(f"{name}, {batch_size}", partial(measure_network, config, resident, name, batch_size))
        rows.append(row)
        times = ", ".join(f"{part} {row[part]['median']:.2f}" for part in ("training", "evaluation"))
        CONSOLE.print(f"{name}, batches of {batch_size}: separable over dense, {times}", soft_wrap=True)
    precision = resolve_precision(config.recipe.precision, device)
    return {"suite": "networks", "data": dataset.name, "precision": precision, "networks": rows}


def measure_network(config: NetworksConfig, dataset: Dataset, name: str, batch_size: int) -> dict[str, Any]:
    """The record of a network and its dense twin on batches of a size; `dataset` is on the device."""
    device, images = dataset.pixels.device, describe_images(dataset)
    precision = resolve_precision(config.recipe.precision, device)
    loops, macs, training_macs = {}, {}, {}
    # a captured step is of one size; turns last as long as they do, so no schedule has an end to go to
    recipe = replace(config.recipe, batch_size=batch_size, schedule="constant")
    for conv in ("separable", "dense"):
        L.seed_everything(config.seed, verbose=False)
        classifier = make_classifier({"name": name, "conv": conv}, recipe, dataset, images)
        cost = counting.total(counting.layers(classifier.net, dataset.shape))
        macs[conv], training_macs[conv] = cost.macs, cost.macs + cost.macs_backward
        loops[conv] = BareLoop(classifier, dataset, precision, 1, config.seed, config.trainer)
    step = {conv: bare.form for conv, bare in loops.items()}
    row: dict[str, Any] = {"network": name, "batch_size": batch_size, "macs": macs, "training_macs": training_macs,
                           "step": step}  # fmt: skip
    batch = dataset.train[:batch_size]
    for part, call in (("training", BareLoop.step), ("evaluation", BareLoop.classify)):
        calls = {conv: partial(call, bare, batch) for conv, bare in loops.items()}
        turns = take_turns(calls, config.rounds, device)
        rates = {conv: [batch_size * rate for rate in turns[conv]] for conv in turns}
        ratios = [a / b for a, b in zip(rates["separable"], rates["dense"], strict=True)]
        row[part] = spread(ratios) | {"images_per_second": rates}
    return row


def take_turns(calls: Mapping[Key, Callable[[], Any]], rounds: int, device: torch.device) -> dict[Key, list[float]]:
    """How often a second each of `calls` runs, in each of `rounds` turns after one that is left out."""
    rates = [{name: rate_of(call, device) for name, call in calls.items()} for _ in range(rounds + 1)]
    return {name: [turn[name] for turn in rates[1:]] for name in calls}


def rate_of(call: Callable[[], Any], device: torch.device) -> float:
    """How often a second `call` runs, over TURN seconds or one call, whichever is longer."""
    calls = 0
    synchronize(device)
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < TURN:
        call()
        calls += 1
        synchronize(device)
    return calls / elapsed


def table(record: dict[str, Any]) -> Table:
    """A row a network and batch size; MACs of training where the record has them."""

    def fewer(row: dict[str, Any], key: str) -> str:
        return f"{row[key]['dense'] / row[key]['separable']:.1f}" if key in row else ""

    columns = [
        Column("network", lambda row: row["network"]),
        Column("batch size", lambda row: str(row["batch_size"])),
        Column("times fewer MACs", lambda row: fewer(row, "macs")),
        Column("times fewer MACs in training", lambda row: fewer(row, "training_macs")),
        Column("times as fast in training", lambda row: write_spread(row["training"])),
        Column("in evaluation", lambda row: write_spread(row["evaluation"])),
        Column("turns", lambda row: str(len(row["training"]["images_per_second"]["separable"]))),
    ]
    return Table(f"separable and dense on {record['data']}, {record['precision']}", columns, record["networks"])
