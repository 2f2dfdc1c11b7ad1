"""The record of a frontier: what is to be trained, and each training's figures as its run recorded them."""

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepconv import InputError, files
from sepconv.packing import unpack
from sepconv.reading import check_each, check_fields, read_json
from sepconv.terminal import epochs
from sepconv.training.runs import ROUNDED


@dataclass(frozen=True, kw_only=True)
class Network:
    """A kind of network at a size, trained for so many epochs."""

    kind: str
    size: int  # parameters aimed at
    epochs: int
    width: float
    parameters: int
    macs: int  # of one image's forward pass


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of a network."""

    kind: str
    size: int
    epochs: int
    rate: float  # the learning rate
    seed: int

    @property
    def training(self) -> "Training":
        """Which training it is, without what it came to."""
        return Training(**{field.name: getattr(self, field.name) for field in fields(Training)})

    def __str__(self) -> str:
        return f"{self.kind} {self.size:,}, {epochs(self.epochs)} at {self.rate:g}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Row(Training):
    """A finished training. Accuracies are shares of 1."""

    val_accuracy: float  # the best of its epochs
    test_accuracy: float | None  # of that epoch's network; None of a training that chooses the learning rate
    images: int  # of the test
    right: str | None  # which of them that network is right about, as `pack` writes it; None as the accuracy is
    parameters: int
    macs: int
    seconds: float  # that it took, beside what else ran: tells how long a study takes, and is on no page
    device: str
    torch: str
    precision: str
    commit: str | None
    dirty: bool | None
    code: str | None  # a hash of the code of that commit; None of code that is not committed
    configuration: str  # a hash of all settings but the seed


@dataclass(frozen=True, kw_only=True)
class Diverged(Training):
    """A training whose loss became infinite or NaN, and what it was made by: None in records that did not keep it."""

    commit: str | None = None
    code: str | None = None  # as a row's
    configuration: str | None = None  # as a row's


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a network is, in turns with the others and nothing else running. Rates are of each turn."""

    kind: str
    size: int
    images: int  # that an epoch trains on
    training: list[float]  # images/s
    evaluation: list[float]  # images/s
    device: str
    torch: str
    precision: str
    commit: str | None
    dirty: bool | None
    date: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked for."""

    data: str
    rates: list[float]  # learning rates that validation chooses from
    tuning_seed: int  # of the trainings that it chooses by
    seeds: list[int]  # of those that are reported
    jobs: int  # trainings at a time
    command: str
    digests: dict[str, str] | None = None  # of the images; None in records that did not keep it


class Record:
    """A study of one data set, as far as it has come.

    Args:
        networks: from small ones to large ones, then those of the middle size that are trained longer.
        runs: finished trainings; there may be some that the study does not ask for. One that chose a learning rate with
            a seed that is now reported is left out: its test is not there.
        speeds: of networks, all of one measurement.
    """

    def __init__(self, settings: Settings, networks: list[Network], diverged: Iterable[Diverged] = (),
                 runs: Sequence[Row] = (), speeds: Sequence[Speed] = ()) -> None:  # fmt: skip
        self.settings, self.networks, self.speeds = settings, networks, list(speeds)
        self.diverged = {each.training: each for each in diverged}
        self.rows = {row.training: row for row in runs if row.right is not None or row.seed not in settings.seeds}
        if len({row.images for row in runs}) > 1:
            raise InputError("its runs were tested on different images")

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Raises InputError for what is no record of a frontier."""
        parts = {"networks": Network, "diverged": Diverged, "runs": Row, "speeds": Speed}
        values: dict[str, Any] = read_json(path)
        try:
            check_fields(Settings, "settings", values["settings"])
            for name, schema in parts.items():
                check_each(schema, name, values[name])
            for row in values["runs"]:
                check_right(Row(**row))
            lists = {name: [schema(**each) for each in values[name]] for name, schema in parts.items()}
            return cls(Settings(**values["settings"]), **lists)
        except (InputError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a record of scripts/frontier.py: {error}") from error

    def write(self, path: Path) -> None:
        """Writes it, a line for each network and run."""
        lists: dict[str, Iterable[Network | Training | Speed]] = {
            "networks": self.networks, "diverged": self.diverged.values(), "runs": self.rows.values(),
            "speeds": self.speeds,
        }  # fmt: skip
        parts = [f'"settings": {json.dumps(asdict(self.settings))}']
        for name, items in lists.items():
            lines = ",".join(f"\n{json.dumps(asdict(each))}" for each in items)
            parts.append(f'"{name}": [{lines}]')
        files.write(path, "{" + ",\n".join(parts) + "}\n")

    @property
    def epochs(self) -> int:
        """The length of all trainings but those that are twice as long."""
        return min(network.epochs for network in self.networks)

    @property
    def longer(self) -> list[Network]:
        """The networks that are trained twice as long."""
        return [network for network in self.networks if network.epochs > self.epochs]

    def of_kind(self, kind: str) -> list[Network]:
        """The networks of a kind, from small ones to large ones."""
        return [network for network in self.networks if network.kind == kind and network.epochs == self.epochs]

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(network.kind for network in self.networks))

    def tuning(self, network: Network) -> list[Training]:
        """The trainings that choose a network's learning rate; none where there is one rate alone."""
        rates = self.settings.rates
        return [make_training(network, rate, self.settings.tuning_seed) for rate in rates] if len(rates) > 1 else []

    def rate(self, network: Network) -> float | None:
        """The learning rate of the best validation accuracy; None until it is known, and where every rate diverged."""
        trainings = self.tuning(network)
        if not trainings:
            return self.settings.rates[0]
        rows = [self.rows[training] for training in trainings if training in self.rows]
        if not rows or any(self.is_missing(training) for training in trainings):
            return None
        return max(rows, key=lambda row: row.val_accuracy).rate

    def trainings(self, network: Network) -> list[Training]:
        """The trainings that are reported of a network, of each seed; none while its learning rate is not known."""
        rate = self.rate(network)
        return [] if rate is None else [make_training(network, rate, seed) for seed in self.settings.seeds]

    def reported(self, network: Network) -> list[Row]:
        """Those that are finished."""
        return [self.rows[training] for training in self.trainings(network) if training in self.rows]

    def is_complete(self, *networks: Network) -> bool:
        """Whether every seed of `networks` is in."""
        return all(len(self.reported(network)) == len(self.settings.seeds) for network in networks)

    def is_missing(self, training: Training) -> bool:
        return training not in self.rows and training not in self.diverged

    def missing(self) -> Iterator[Training]:
        """What can be trained by now, and was not."""
        for network in self.networks:
            yield from filter(self.is_missing, self.trainings(network) or self.tuning(network))

    def lost(self) -> list[Training]:
        """The trainings that diverged and that a network lacks for good: reported seeds, and all that choose a rate."""
        lost = []
        for network in self.networks:
            reported, tuning = self.trainings(network), self.tuning(network)
            if reported or all(training in self.diverged for training in tuning):
                lost += [training for training in reported or tuning if training in self.diverged]
        return lost

    def left(self) -> list[Network]:
        """The network of each training that is not in."""
        left = []
        for network in self.networks:
            tuning = sum(map(self.is_missing, self.tuning(network)))
            left += [network] * (tuning + len(self.settings.seeds) - len(self.reported(network)))
        return left

    @property
    def planned(self) -> int:
        """How many trainings there are in all."""
        return sum(len(self.tuning(network)) + len(self.settings.seeds) for network in self.networks)

    def right(self, network: Network) -> NDArray[np.bool_]:
        """Which test images the seeds that are in are right about, (seeds, images)."""
        return np.array([unpack(row.right, row.images) for row in self.reported(network) if row.right is not None])

    def cost(self, network: Network, name: str) -> float | None:
        """What a network costs: parameters, macs, or, by medians over turns, the seconds that its training takes or the
        ms_per_image of its evaluation; None where its speed was not measured.
        """
        if name in ("parameters", "macs"):
            return float(getattr(network, name))
        speed = self.speed(network)
        if speed is None:
            return None
        if name == "seconds":
            return network.epochs * speed.images / statistics.median(speed.training)
        return 1000 / statistics.median(speed.evaluation)

    def speed(self, network: Network) -> Speed | None:
        """How fast a network is, however long it is trained; None where that was not measured."""
        return next((each for each in self.speeds if (each.kind, each.size) == (network.kind, network.size)), None)

    @property
    def devices(self) -> list[str]:
        return sorted({row.device for row in self.rows.values()})


def check_right(row: Row) -> None:
    """Raises ValueError or InputError unless a run is right about as many images as its accuracy says."""
    accuracy = None if row.right is None else float(unpack(row.right, row.images).mean())
    pair = [-1.0 if each is None else each for each in (accuracy, row.test_accuracy)]
    if abs(pair[0] - pair[1]) > ROUNDED:
        raise InputError(f"{row.training} has the test accuracy {row.test_accuracy}, and is right about {accuracy}")


def make_training(network: Network, rate: float, seed: int) -> Training:
    return Training(kind=network.kind, size=network.size, epochs=network.epochs, rate=rate, seed=seed)
