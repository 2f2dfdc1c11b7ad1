"""Networks against their dense twins: how much faster, beside how much less there is to compute."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any, TypeVar

import lightning as L
import torch

from sepconv import InputError, networks
from sepconv.benchmark.journal import Journal
from sepconv.benchmark.loop import BareLoop
from sepconv.config.keys import NetworksConfig
from sepconv.costs import counting, roofline
from sepconv.costs.roofline import Machine
from sepconv.data.datasets import Dataset, load
from sepconv.devices import find_device, prepare_memory, resolve_precision, synchronize
from sepconv.study.statistics import spread, write_spread
from sepconv.tables import Column, Table
from sepconv.terminal import CONSOLE, track
from sepconv.training.classifier import describe_images
from sepconv.training.train import make_classifier

Key = TypeVar("Key")

TURN = 0.5  # seconds, at least, of a turn
KINDS = ("separable", "dense")
PARTS = ("training", "evaluation")
SECONDS = ("least_seconds", "alone_seconds", "between_seconds", "measured_seconds")  # of a step
# predictions of a step, in words, and what of SECONDS is in each
PREDICTIONS = {
    "its kernels and what is between": ("alone_seconds", "between_seconds"),
    "its kernels alone": ("alone_seconds",),
    "the peaks": ("least_seconds",),
}


def measure(config: NetworksConfig, journal: Journal) -> dict[str, Any]:
    """Images/s of `config.networks` and of their dense twins, in training and in evaluation, over batch sizes.

    Training is the bare loop's step with the recipe, in the form that `config.trainer` means. Evaluation is op by op,
    so that a GPU waits for its launches while batches are small. The two take turns, `config.rounds` each of TURN
    seconds or more. Then the roofline's prediction of each step is set against the step (`roofline.measure_step`).

    Returns:
        For each network and batch size: an image's MACs, of a forward pass and of a training step; rates of each turn,
        and ratios separable / dense of each pair of turns; seconds of a step, predicted and measured.

    Raises:
        InputError: for a configuration or data that cannot be used.
    """
    device = find_device(config.trainer)
    dataset = load(config.data)
    if (largest := max(config.batch_sizes, default=0)) > len(dataset.train):
        raise InputError(f"batch_sizes has {largest}: {dataset.name} has {len(dataset.train)} images to train on")
    with torch.device("meta"):  # before anything is measured
        for name, conv in product(config.networks, KINDS):
            networks.build(name, dataset.shape, len(dataset.classes), conv=conv)
    resident = dataset.to(device)
    prepare_memory()  # as the trainer does
    peaks = journal.part("peaks", lambda: asdict(roofline.measure_machine(device)))
    rows = []
    for name, batch_size in track(list(product(config.networks, config.batch_sizes)), "benchmark: network"):
        measured = partial(measure_network, config, resident, name, batch_size, Machine.of(peaks))
        row = journal.part(f"{name}, {batch_size}", measured)
        rows.append(row)
        times = ", ".join(f"{part} {row[part]['median']:.2f}" for part in PARTS)
        CONSOLE.print(f"{name}, batches of {batch_size}: separable over dense, {times}", soft_wrap=True)
    precision = resolve_precision(config.recipe.precision, device)
    return {"suite": "networks", "data": dataset.name, "precision": precision, "peaks": peaks, "networks": rows}


def measure_network(
    config: NetworksConfig, dataset: Dataset, name: str, batch_size: int, machine: Machine
) -> dict[str, Any]:
    """The record of a network and its dense twin on batches of a size; `dataset` is on the device."""
    device, images = dataset.pixels.device, describe_images(dataset)
    precision = resolve_precision(config.recipe.precision, device)
    loops, nets, macs, training_macs = {}, {}, {}, {}
    # a captured step is of one size; turns last as long as they do, so no schedule has an end to go to
    recipe = replace(config.recipe, batch_size=batch_size, schedule="constant")
    for conv in KINDS:
        L.seed_everything(config.seed, verbose=False)
        classifier = make_classifier({"name": name, "conv": conv}, recipe, dataset, images)
        cost = counting.total(counting.layers(classifier.net, dataset.shape))
        macs[conv], training_macs[conv] = cost.macs, cost.macs + cost.macs_backward
        nets[conv] = classifier.net
        loops[conv] = BareLoop(classifier, dataset, precision, 1, config.seed, config.trainer)
    step = {conv: bare.form for conv, bare in loops.items()}
    row: dict[str, Any] = {"network": name, "batch_size": batch_size, "macs": macs, "training_macs": training_macs,
                           "step": step}  # fmt: skip
    batch = dataset.train[:batch_size]
    for part, call in zip(PARTS, (BareLoop.step, BareLoop.classify), strict=True):
        calls = {conv: partial(call, bare, batch) for conv, bare in loops.items()}
        turns = take_turns(calls, config.rounds, device)
        rates = {conv: [batch_size * rate for rate in turns[conv]] for conv in turns}
        ratios = [a / b for a, b in zip(rates["separable"], rates["dense"], strict=True)]
        row[part] = spread(ratios) | {"images_per_second": rates}
    dtype = "bf16" if precision == "bf16-mixed" else "fp32"
    parts = PARTS if batch_size > 1 else PARTS[1:]  # a norm's statistics may be of a single value
    row["steps"] = [
        {"conv": conv, "part": part, **{key: getattr(timed, key) for key in SECONDS}}
        for part, (conv, net) in product(parts, nets.items())
        for timed in [roofline.measure_step(net, dataset.shape, batch_size, machine, dtype, part == "training")]
    ]
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
    """A row a network and batch size; MACs of training, and predicted steps, where the record has them."""

    def fewer(row: dict[str, Any], key: str) -> str:
        return f"{row[key]['dense'] / row[key]['separable']:.1f}" if key in row else ""

    def over(row: dict[str, Any], keys: Sequence[str], part: str) -> str:
        """Measured over predicted seconds of a step, separable and dense, where the record has them."""
        steps = [step for step in row.get("steps", []) if step["part"] == part and step.keys() >= set(keys)]
        return " and ".join(f"{step['measured_seconds'] / sum(step[key] for key in keys):.2f}" for step in steps)

    columns = [
        Column("network", lambda row: row["network"]),
        Column("batch size", lambda row: str(row["batch_size"])),
        Column("times fewer MACs", lambda row: fewer(row, "macs")),
        Column("times fewer MACs in training", lambda row: fewer(row, "training_macs")),
        Column("times as fast in training", lambda row: write_spread(row["training"])),
        Column("in evaluation", lambda row: write_spread(row["evaluation"])),
        Column("turns", lambda row: str(len(row["training"]["images_per_second"]["separable"]))),
        *(Column(f"{part} over {words}", partial(over, keys=keys, part=part))
          for words, keys in PREDICTIONS.items() for part in PARTS),
    ]  # fmt: skip
    return Table(f"separable and dense on {record['data']}, {record['precision']}", columns, record["networks"])
