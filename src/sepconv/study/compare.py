"""Recorded runs compared: what each network reaches and costs, and how sure that is.

A network here is one configuration, whatever the seed; its runs are one a seed. Accuracies are of the test images,
but for the time to a target, which training's own validation tells. Where runs kept what they predicted, intervals
know of seeds and of images, and it is told on which images networks differ. A file of scripts/export.py is a network
too, of the seed of its run; it has the accuracy of the file, and no times.
"""

import glob
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sepconv import InputError
from sepconv.config import EXPORTED, MADE, PARTS
from sepconv.config.keys import CompareConfig, TrainConfig
from sepconv.config.read import flatten
from sepconv.reading import read_text, read_yaml
from sepconv.study.statistics import Difference, Estimate
from sepconv.terminal import track
from sepconv.text import tell_apart
from sepconv.training import runs
from sepconv.training.runs import Result

if TYPE_CHECKING:
    from sepconv.deployment.formats import ExportedFile

# what a network costs, and whether less of it is better: an accuracy is set against each
COSTS = {"parameters": True, "macs": True, "train_images_per_second": False, "fit_seconds": True}
TIMES = {"train_images_per_second", "eval_images_per_second", "fit_seconds", "target_seconds"}
# overrides that do not tell networks apart
NEUTRAL = {"data", "data.root", "data.download", "model", "seed", "runs", "trainer", "trainer.accelerator"}
SPLIT = ("image_size", "validation", "test", "train", "split_seed", "root")  # what may make images differ
NAMED = 3  # keys that are named where configurations differ
MOST_LISTED = 2**20  # bytes of a multirun's list of runs


@dataclass(frozen=True)
class Run:
    """A finished run, or an exported file of one."""

    path: Path  # its directory; the file
    config: TrainConfig
    result: Result
    file: "ExportedFile | None" = None  # that it is

    @property
    def model(self) -> str:
        """The name of its network, with the form of the file."""
        name: str = self.config.model["name"]
        return f"{name}, {self.file.record.name}" if self.file else name

    def right(self) -> NDArray[np.bool_]:
        """Of each test image, whether its network classifies it rightly, (N,).

        Raises InputError where that was not kept, or is not what its accuracy says.
        """
        if self.file:
            return self.file.right
        if (predictions := runs.read_predictions(self.path, self.result)) is None:
            raise InputError(f"{self.path} has no {runs.PREDICTIONS}: train it again")
        return np.equal(*predictions)

    def settings(self) -> dict[str, Any]:
        """What makes it a run of its network, as it recorded that."""
        config = asdict(self.config) if self.file else read_yaml(self.path / "config.yaml")
        return configuration(config)


@dataclass(frozen=True)
class Contrast:
    """A network and the reference: how many of the `seeds` that both have are right about each test image, (N,)."""

    seeds: int
    ours: NDArray[np.integer[Any]]
    theirs: NDArray[np.integer[Any]]

    def images(self, more: bool) -> list[int]:
        """The images that the network is right about more often, or else less often, from the largest difference."""
        gaps = (self.ours - self.theirs) * (1 if more else -1)
        order = np.argsort(-gaps, stable=True)
        return [int(image) for image in order[: (gaps > 0).sum()]]


@dataclass
class Network:
    """One configuration's runs, by seed."""

    label: str
    runs: dict[int, Run]
    right: dict[int, NDArray[np.bool_]] | None = None  # by seed, of each test image; None where a run did not keep it
    target_seconds: float | None = None  # the median over seeds; None where not each reached the target
    reached: int = 0  # runs that reached the target, of those with a history
    difference: Difference | None = None  # in test accuracy; None for the reference, and without common seeds
    contrast: Contrast | None = None  # None without a difference, and where a run of either kept no predictions
    front: list[str] = field(default_factory=list)  # costs against which no network is better in both

    @property
    def config(self) -> TrainConfig:
        """That of one run; the others have another seed, and perhaps another place and machine."""
        return next(iter(self.runs.values())).config

    @cached_property
    def accuracy(self) -> Estimate:
        """In the test: over seeds and images, where it is known which of them are `right`, else over seeds alone."""
        if self.right is not None:
            return Estimate.crossed(np.array(list(self.right.values())))
        return Estimate.of([run.result.test_accuracy for run in self.runs.values()]).within(0.0, 1.0)

    @property
    def histories(self) -> list[list[dict[str, Any]]]:
        """Of each run that was trained, its epochs."""
        return [run.result.history for run in self.runs.values() if run.result.history]

    def values(self, key: str) -> list[float]:
        """A figure of each run, where it has one: a separated network, which was not trained, took 0 s to fit."""
        values = (getattr(run.result, key) for run in self.runs.values())
        return [value for value in values if value is not None and (value or key != "fit_seconds")]

    def median(self, key: str) -> float | None:
        values = self.values(key)
        return statistics.median(values) if values else None


@dataclass
class Section:
    """The networks of one data set, whose runs may be compared."""

    data: str
    images: dict[str, int]  # of each part
    networks: list[Network]  # from the fewest parameters
    reference: Network
    target: float  # validation accuracy whose time is given
    hardware: list[str]  # that runs were on; times are compared only where it is one
    labels: NDArray[np.integer[Any]] | None  # of each test image, (N,); None where no run kept its predictions
    notes: list[str] = field(default_factory=list)  # what a reader must know before comparing

    @property
    def timed(self) -> bool:
        return len(self.hardware) == 1

    @property
    def runs(self) -> list[tuple[Network, Run]]:
        return [(network, run) for network in self.networks for run in network.runs.values()]

    def figure(self, network: Network, key: str) -> float | None:
        """A network's `key`, the median over seeds; None for a time where runs were on several machines."""
        if key in TIMES and not self.timed:
            return None
        return network.target_seconds if key == "target_seconds" else network.median(key)


@dataclass
class Comparison:
    """What was compared, and what was left out."""

    sections: list[Section]
    unfinished: list[Path]
    missing: list[Path]  # runs that a multirun lists, and that are not there
    duplicates: list[Path]  # earlier runs of a configuration and seed that has a later one


def compare(config: CompareConfig) -> Comparison:
    """The runs under the paths and patterns of `config.runs`, compared.

    Raises InputError where no run is finished, a record is wrong, the runs' images differ, or there is no such
    reference.
    """
    finished, unfinished, missing = find_runs(config.runs)
    if not finished:
        counts = {"unfinished": len(unfinished), "missing": len(missing)}
        left = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        left = f" ({left})" if left else ""
        patterns = ", ".join(config.runs)
        raise InputError(f"no finished run{left} in {patterns}: give run directories, or a folder of them")
    by_data: dict[str, list[Run]] = defaultdict(list)
    for run in finished:
        by_data[run.config.data.name].append(run)
    duplicates: list[Path] = []
    sections = []
    for data in sorted(by_data):
        check_split(data, by_data[data])
        networks, older = group(by_data[data])
        duplicates += older
        sections.append(make_section(data, networks, config))
    if config.reference and not any(is_called(s.reference, config.reference) for s in sections):
        names = sorted({network.label for section in sections for network in section.networks})
        raise InputError(f"unknown reference={config.reference}: choose from {', '.join(names)}")
    return Comparison(sections, unfinished, missing, duplicates)


def find_runs(patterns: Iterable[str]) -> tuple[list[Run], list[Path], list[Path]]:
    """The finished runs at or under paths or patterns of them; directories of unfinished runs, and of missing ones.

    An exported file is taken where it is named.

    A multirun's folder stands for the runs that it made, wherever both were moved to. Raises InputError for a path that
    is not there, and for a wrong record.
    """
    directories: dict[Path, None] = {}  # in order, each once
    for pattern in patterns:
        paths = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise InputError(f"{pattern} is not there: give run directories, a folder of them, or a pattern")
        for path in map(Path, paths):
            folder = path if os.path.isdir(path) else path.parent
            found = [path] if path.suffix in EXPORTED.values() else list_runs(folder)
            directories |= dict.fromkeys(Path(os.path.realpath(each)) for each in found)
    finished, unfinished, missing = [], [], []
    for directory in track(directories, "reading: run"):
        if directory.suffix in EXPORTED.values():
            finished.append(read_exported(directory))
        elif not os.path.lexists(directory / "config.yaml"):
            missing.append(directory)
        elif os.path.lexists(directory / "result.json"):
            finished.append(read_run(directory))
        else:
            unfinished.append(directory)
    return finished, unfinished, missing


def list_runs(folder: Path) -> list[Path]:
    """The directories of the runs that a multirun made, by its list in `folder`; without one, of those in `folder`."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error

    if os.path.lexists(folder / MADE):
        text = read_text(folder / MADE, MOST_LISTED)
        if "\0" in text:
            raise InputError(f"{folder / MADE} is not a list of runs: it is no text")
        if listed := [folder / line for line in text.split("\n") if line]:
            return listed
    return sorted(Path(place) for place, _, names in os.walk(folder, onerror=fail) if "config.yaml" in names)


def read_run(directory: Path) -> Run:
    """A finished run. Raises InputError where its record is wrong, or is of another run than its configuration."""
    path, config, _ = runs.read_config(directory)
    result = runs.read_result(path)
    for key, value in {"data": config.data.name, "model": config.model["name"], "seed": config.seed}.items():
        if getattr(result, key) != value:
            raise InputError(f"{path}/result.json is of another run: its {key} is not {value}, as config.yaml says")
    return Run(path, config, result)


def read_exported(path: Path) -> Run:
    """An exported file as a run. Raises InputError where it is none."""
    from sepconv.deployment.formats import read_file  # here: runs alone do not wait for torch

    file = read_file(path)
    record = file.record
    result = replace(
        record.result, test_accuracy=record.test_accuracy, val_accuracy=record.val_accuracy, test_accuracy_tta=None,
        precision=record.name, history=[], fit_seconds=0.0, train_images_per_second=None, eval_images_per_second=None,
    )  # fmt: skip
    return Run(path, record.config, result, file)


def check_split(data: str, finished: list[Run]) -> None:
    """Raises InputError unless all runs had the same classes, and the same images in the same parts."""
    first, *others = finished
    for other in others:
        results = first.result, other.result
        differing = [f"{part} images" for part in PARTS
                     if len({(result.digests[part], result.images[part]) for result in results}) > 1]  # fmt: skip
        if first.result.classes != other.result.classes:
            differing.insert(0, "classes")
        if differing:
            pairs = {key: [getattr(run.config.data, key) for run in (first, other)] for key in SPLIT}
            why = "; ".join(f"data.{key} {one} and {two}" for key, (one, two) in pairs.items() if one != two)
            raise InputError(
                f"runs on different images cannot be compared: the {', '.join(differing)} of {data} differ between "
                f"{first.path} and {other.path}{f' ({why})' if why else ''}: give runs on the same"
            )


def group(finished: list[Run]) -> tuple[list[Network], list[Path]]:
    """Networks, with labels that tell them apart, and runs that a later one of the same seed replaces."""
    by_configuration: dict[str, dict[int, Run]] = {}
    older = []
    for run in sorted(finished, key=lambda run: run.path.name):
        settings = configuration(asdict(run.config)) | {"name": run.model}
        seeds = by_configuration.setdefault(repr(sorted(settings.items())), {})
        if run.config.seed in seeds:
            older.append(seeds[run.config.seed].path)
        seeds[run.config.seed] = run
    labels = make_labels([next(iter(seeds.values())) for seeds in by_configuration.values()])
    pairs = zip(labels, by_configuration.values(), strict=True)
    networks = [Network(label, dict(sorted(seeds.items()))) for label, seeds in pairs]
    return sorted(networks, key=lambda network: (network.median("parameters") or 0, network.label)), older


def configuration(config: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs those of one network: everything but seed, place and machine, as dotted keys."""
    settings = {key: value for key, value in config.items() if key in ("model", "recipe", "weights")}
    return flatten(settings | {"limit_batches": config.get("trainer", {}).get("limit_batches")})


def make_labels(examples: list[Run]) -> list[str]:
    """A short name for the network of each of these runs: its model's, and what tells it from namesakes.

    That is its command's arguments, or, where those are the same, up to NAMED of the settings that differ. All are as
    the runs recorded them: an option that came later is not named.
    """
    models = [run.model for run in examples]
    names = []
    for model, run in zip(models, examples, strict=True):
        overrides = [o for o in run.result.overrides if o.lstrip("+~").partition("=")[0] not in NEUTRAL]
        overrides = [f"weights={Path(o).name}" if o.startswith("weights=") else o for o in overrides]
        names.append(f"{model} ({', '.join(overrides) or 'defaults'})" if models.count(model) > 1 else model)
    settings = [run.settings() for run in examples]
    labels = []
    for name, values in zip(names, settings, strict=True):
        namesakes = [other for label, other in zip(names, settings, strict=True) if label == name]
        keys = differing_keys(namesakes)
        more = ", ..." if len(keys) > NAMED else ""
        text = ", ".join(f"{key}={values[key]}" for key in keys[:NAMED] if key in values) + more
        labels.append(name.replace(" (defaults)", "") + (f" ({text})" if text else ""))
    return tell_apart(labels)


def differing_keys(settings: Iterable[dict[str, Any]]) -> list[str]:
    """The keys in which settings differ, sorted."""
    settings = list(settings)
    keys = sorted({key for values in settings for key in values})
    return [key for key in keys if len({repr(values.get(key)) for values in settings}) > 1]


def make_section(data: str, networks: list[Network], config: CompareConfig) -> Section:
    """The section of `data`, its figures worked out."""
    reference = find_reference(networks, config.reference)
    every = [run for network in networks for run in network.runs.values()]
    # by default what all of them reach, to a tenth of a point
    bests = (max(epoch["val_accuracy"] for epoch in history) for network in networks for history in network.histories)
    target = config.target if config.target is not None else math.floor(min(bests, default=0.0) * 1000) / 1000
    hardware = sorted({name_hardware(run.result.device) for run in every})
    labels = read_predictions(networks)
    section = Section(data, every[0].result.images, networks, reference, target, hardware, labels)
    for network in networks:
        # until validation first reached the target, by the epochs' ends
        times = [next((epoch["seconds"] for epoch in history if epoch["val_accuracy"] >= target - 1e-9), None)
                 for history in network.histories]  # fmt: skip
        seconds = [time for time in times if time is not None]
        network.reached = len(seconds)
        network.target_seconds = statistics.median(seconds) if seconds and len(seconds) == len(times) else None
        if network is not reference and (seeds := sorted(network.runs.keys() & reference.runs.keys())):
            set_against(network, reference, seeds)
    for cost, less in COSTS.items():
        points = [(network, value if less else -value) for network in networks
                  if (value := section.figure(network, cost)) is not None]  # fmt: skip
        for network in pareto_front(points):
            network.front.append(cost)
    section.notes = list(make_notes(section))
    return section


def read_predictions(networks: list[Network]) -> NDArray[np.integer[Any]] | None:
    """Says of each network which test images it is right about, and gives their classes, where a run tells them.

    Raises InputError for predictions that are wrong, or of other images than another run's.
    """
    labels, first = None, None
    for network in networks:
        right = {}
        for seed, run in network.runs.items():
            if run.file:
                right[seed] = run.file.right
                continue
            if (predictions := runs.read_predictions(run.path, run.result)) is None:
                continue
            predicted, known = predictions
            if labels is None:
                labels, first = known, run.path
            elif not np.array_equal(labels, known):
                raise InputError(
                    f"{run.path}/{runs.PREDICTIONS} and that of {first} have other classes for the same test images: "
                    "remove the wrong one"
                )
            right[seed] = predicted == known
        network.right = right if len(right) == len(network.runs) else None
    return labels


def set_against(network: Network, reference: Network, seeds: list[int]) -> None:
    """Works out by how much a network differs from the reference, over these seeds, and on which images."""
    if network.right is None or reference.right is None:
        accuracies = ([each.runs[seed].result.test_accuracy for seed in seeds] for each in (network, reference))
        network.difference = Difference.between(*accuracies)
        return
    ours, theirs = (np.array([right[seed] for seed in seeds]) for right in (network.right, reference.right))
    network.difference = Difference.crossed(ours, theirs)
    network.contrast = Contrast(len(seeds), ours.sum(0), theirs.sum(0))


def pareto_front(points: list[tuple[Network, float]]) -> Iterator[Network]:
    """Of networks with their costs, those that no other betters in accuracy or cost and equals in the other."""
    for network, value in points:
        accuracy = network.accuracy.mean
        others = {(other.accuracy.mean, cost) for other, cost in points} - {(accuracy, value)}
        if not any(mean >= accuracy and cost <= value for mean, cost in others):
            yield network


def find_reference(networks: list[Network], name: str | None) -> Network:
    """The network `name`, or else the one named baseline, or the one with the most MACs."""
    named = [network for network in networks if is_called(network, name or "baseline")]
    if named:  # of several, the one that alone has this label
        return min(named, key=lambda network: network.label != name)
    return max(networks, key=lambda network: network.median("macs") or 0)


def is_called(network: Network, name: str) -> bool:
    return name in (network.label, next(iter(network.runs.values())).model)


def name_hardware(device: dict[str, Any]) -> str:
    """A device in a few words."""
    count, devices = device.get("threads"), device.get("count", 1)
    threads = "" if count is None else f", {count} thread{'s' * (count != 1)}"
    return f"{f'{devices} x ' * (devices > 1)}{device['name']}{threads}"


def make_notes(section: Section) -> Iterator[str]:
    """What a reader must know before comparing."""
    if not section.timed:
        yield f"times are not compared: runs were on {'; '.join(section.hardware)}"
    if unknown := [network.label for network in section.networks if network.right is None]:
        names = "" if len(unknown) == len(section.networks) else f" of {', '.join(unknown)}"
        yield f"intervals{names} are over seeds alone (Student's t): runs did not keep what they predicted"
    for distinction, value_of in DISTINCTIONS.items():
        values: dict[str, set[str]] = defaultdict(set)
        for network, run in section.runs:
            values[value_of(run.result)].add(network.label)
        if len(values) > 1:
            parts = "; ".join(f"{value}: {', '.join(sorted(labels))}" for value, labels in sorted(values.items()))
            yield f"{distinction} differs ({parts})"
    if keys := differing_keys(flatten(asdict(network.config.recipe)) for network in section.networks):
        text = ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more keys" if keys[NAMED:] else "")
        yield f"a difference is of network and recipe together: recipes differ in {text}"
    if any(run.config.trainer.limit_batches for _, run in section.runs):
        yield "some runs saw a part of the images only (trainer.limit_batches)"
    if any(code["dirty"] for _, run in section.runs for code in (run.result.git, *run.result.git_later)):
        yield "some runs were of code that was not committed"
    if any(run.result.git_later for _, run in section.runs):
        yield "some runs were resumed by other code than they were begun by"
    sizes = {len(network.runs) for network in section.networks}
    if len({tuple(network.runs) for network in section.networks}) > 1:
        yield f"networks have different seeds ({min(sizes)} to {max(sizes)} runs): differences are over common ones"


DISTINCTIONS: dict[str, Callable[[Result], str]] = {
    "the commit": lambda result: str(result.git["sha"])[:7],
    "precision": lambda result: result.precision,
    "torch": lambda result: str(result.versions["torch"]),
    "trainer.step": lambda result: result.step or "eager",  # older records and separated networks have none
}
