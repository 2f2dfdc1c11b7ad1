"""Recorded runs compared: what each network reaches and costs, and how sure that is.

A network here is one configuration, whatever the seed; its runs are one a seed. Accuracies are of the test images,
but for the time to a target, which training's own validation tells.
"""

import glob
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scipy import stats

from sepconv import InputError
from sepconv.config import MADE, CompareConfig, TrainConfig, flatten
from sepconv.training import runs

CONFIDENCE = 0.95
HEADLINE = "test_accuracy"
# what a network costs, and whether less of it is better: an accuracy is set against each
COSTS = {"parameters": True, "macs": True, "train_images_per_second": False, "fit_seconds": True}
# overrides that do not tell networks apart
APART = {"data", "data.root", "data.download", "model", "seed", "runs", "trainer", "trainer.accelerator"}
SHOWN = 3  # keys that are named where configurations differ
TIMES = {"train_images_per_second", "eval_images_per_second", "fit_seconds", "target_seconds", "peak_memory_bytes"}


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    config: TrainConfig
    result: dict[str, Any]
    overrides: list[str] = field(default_factory=list)  # what was asked for on the command line


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval by Student's t; None where one seed tells of no spread."""

    n: int
    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: list[float]) -> "Estimate":
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(len(values), mean, None, None)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
        return cls(len(values), mean, mean - half, mean + half)


@dataclass(frozen=True)
class Difference:
    """Test accuracy less the reference's over the seeds that both have, and its p-value by the paired t-test.

    The p-value is for one comparison alone; None where one pair, or pairs that all differ alike, give none.
    """

    estimate: Estimate
    p: float | None


@dataclass
class Network:
    """One configuration's runs, by seed."""

    label: str
    runs: dict[int, Run]
    target_seconds: float | None = None  # the median over seeds; None where not each reached the target
    reached: int = 0  # runs that reached the target, of those that tell
    telling: int = 0  # runs with a history
    difference: Difference | None = None  # None for the reference, and without common seeds
    front: list[str] = field(default_factory=list)  # costs against which no network is better in both

    @property
    def accuracy(self) -> Estimate:
        return Estimate.of([run.result[HEADLINE] for run in self.runs.values()])

    def values(self, key: str) -> list[float]:
        """A figure of each run, where it has one: a separated network, which was not trained, took 0 s to fit."""
        found = (run.result.get(key) for run in self.runs.values())
        return [value for value in found if value is not None and (value or key != "fit_seconds")]

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
    notes: list[str]

    @property
    def timed(self) -> bool:
        return len(self.hardware) == 1

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
    duplicates: list[Path]  # earlier runs of a configuration and seed that has a later one


def compare(config: CompareConfig) -> Comparison:
    """The runs under the paths and patterns of `config.runs`, compared.

    Raises:
        InputError: where there are no finished runs, runs of one data set were split differently, or there is no such
            reference.
    """
    finished, unfinished = find(config.runs)
    if not finished:
        left = f" ({len(unfinished)} unfinished)" if unfinished else ""
        raise InputError(
            f"no finished run{left} in {', '.join(config.runs)}: give run directories, or a folder of them"
        )
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
    if config.reference and not any(matches(s.reference, config.reference) for s in sections):
        names = sorted({network.label for section in sections for network in section.networks})
        raise InputError(f"unknown reference={config.reference}: choose from {', '.join(names)}")
    return Comparison(sections, unfinished, duplicates)


def find(paths: Iterable[str]) -> tuple[list[Run], list[Path]]:
    """The finished runs, and the directories of unfinished ones, at or under `paths`, which may be patterns.

    A multirun's folder stands for the runs that it made. Raises InputError for a path that is not there.
    """
    directories: dict[Path, None] = {}  # in order, each once
    for pattern in paths:
        found = [Path(path) for path in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]
        if not found:
            raise InputError(f"{pattern} is not there: give run directories, a folder of them, or a pattern")
        for path in found:
            path = path.parent if path.is_file() else path
            made = path / MADE
            listed = [Path(line) for line in made.read_text().splitlines()] if made.is_file() else []
            for directory in listed or sorted(config.parent for config in path.rglob("config.yaml")):
                directories[directory.resolve()] = None
    finished, unfinished = [], []
    for directory in directories:
        if (directory / "result.json").is_file():
            path, recorded, overrides = runs.read_config(directory)
            finished.append(Run(path, recorded, runs.read_result(path), overrides))
        else:
            unfinished.append(directory)
    return finished, unfinished


def check_split(data: str, found: list[Run]) -> None:
    """Raises InputError unless all runs `found` have the same images in the same parts."""
    splits: dict[str, Run] = {}
    for run in found:
        source = run.config.data
        keys = ("image_size", "validation", "test", "split_seed")
        values = {key: getattr(source, key) for key in keys} | {"images": run.result["images"]}
        if source.name == "folder":
            values["root"] = source.root
        splits.setdefault(", ".join(f"{key} {value}" for key, value in values.items()), run)
    if len(splits) > 1:
        (one, first), (other, second), *_ = splits.items()
        raise InputError(
            f"runs on different images cannot be compared: {data} with {one} in {first.path}, with {other} in "
            f"{second.path}: give the runs of one"
        )


def group(found: list[Run]) -> tuple[list[Network], list[Path]]:
    """Networks, with labels that tell them apart, and runs that a later one of the same seed replaces."""
    by_configuration: dict[str, tuple[dict[str, Any], dict[int, Run]]] = {}
    older = []
    for run in sorted(found, key=lambda run: run.path.name):
        settings = configuration(run.config)
        _, seeds = by_configuration.setdefault(repr(sorted(settings.items())), (settings, {}))
        if run.config.seed in seeds:
            older.append(seeds[run.config.seed].path)
        seeds[run.config.seed] = run
    networks = [
        Network(label, dict(sorted(seeds.items())))
        for label, (_, seeds) in zip(labels(list(by_configuration.values())), by_configuration.values(), strict=True)
    ]
    networks.sort(key=lambda network: (network.median("parameters") or 0, network.label))
    return networks, older


def labels(networks: list[tuple[dict[str, Any], dict[int, Run]]]) -> list[str]:
    """A short name for each of `networks`, its settings and runs: its model's, and what tells it from namesakes.

    That is what was asked for on the command line, or, where that is the same, up to SHOWN of the settings that differ.
    """
    named = [str(settings["model.name"]) for settings, _ in networks]
    asked = []
    for name, (_, seeds) in zip(named, networks, strict=True):
        overrides = [o for o in next(iter(seeds.values())).overrides if o.lstrip("+~").partition("=")[0] not in APART]
        overrides = [f"weights={Path(o).name}" if o.startswith("weights=") else o for o in overrides]
        asked.append(f"{name} ({', '.join(overrides) or 'defaults'})" if named.count(name) > 1 else name)
    short = []
    for label, (settings, _) in zip(asked, networks, strict=True):
        namesakes = [other for its, (other, _) in zip(asked, networks, strict=True) if its == label]
        keys = sorted({key for other in namesakes for key in other})
        differing = [key for key in keys if len({repr(other.get(key)) for other in namesakes}) > 1]
        more = ", ..." if len(differing) > SHOWN else ""
        told = ", ".join(f"{key}={settings.get(key)}" for key in differing[:SHOWN]) + more
        short.append(label.replace(" (defaults)", "") + (f" ({told})" if told else ""))
    return short


def configuration(config: TrainConfig) -> dict[str, Any]:
    """What makes two runs those of one network: everything but seed, place and machine, as dotted keys."""
    kept = {key: value for key, value in asdict(config).items() if key in ("model", "recipe", "weights")}
    return flatten(kept | {"limit_batches": config.trainer.limit_batches})


def make_section(data: str, networks: list[Network], config: CompareConfig) -> Section:
    """The section of `data`, its figures worked out."""
    reference = find_reference(networks, config.reference)
    every = [run for network in networks for run in network.runs.values()]
    histories = [run.result["history"] for run in every if run.result.get("history")]
    # by default what all of them reach, to a tenth of a point
    common = min((max(epoch["val_accuracy"] for epoch in history) for history in histories), default=0.0)
    target = config.target if config.target is not None else math.floor(common * 1000) / 1000
    hardware = sorted({describe(run.result["device"]) for run in every})
    section = Section(data, every[0].result["images"], networks, reference, target, hardware, [])
    for network in networks:
        times = [time_to(target, history) for run in network.runs.values() if (history := run.result.get("history"))]
        network.telling = len(times)
        reached = [time for time in times if time is not None]
        network.reached = len(reached)
        network.target_seconds = statistics.median(reached) if reached and len(reached) == len(times) else None
        if network is not reference:
            network.difference = difference(network, reference)
    for cost, less in COSTS.items():
        points = [(network, value if less else -value) for network in networks
                  if (value := section.figure(network, cost)) is not None]  # fmt: skip
        for network, value in points:
            accuracy = network.accuracy.mean
            beaten = any(
                other.accuracy.mean >= accuracy and cost <= value and (other.accuracy.mean, -cost) != (accuracy, -value)
                for other, cost in points
            )
            if not beaten:
                network.front.append(cost)
    section.notes = list(notes(section))
    return section


def find_reference(networks: list[Network], wanted: str | None) -> Network:
    """The network `wanted`, or else the one named baseline, or the one with the most MACs."""
    named = [network for network in networks if matches(network, wanted or "baseline")]
    return named[0] if named else max(networks, key=lambda network: network.median("macs") or 0)


def matches(network: Network, name: str) -> bool:
    return name in (network.label, next(iter(network.runs.values())).config.model["name"])


def difference(network: Network, reference: Network) -> Difference | None:
    """What `network` has over `reference`, by the seeds that both have."""
    seeds = sorted(network.runs.keys() & reference.runs.keys())
    if not seeds:
        return None
    ours, theirs = ([n.runs[seed].result[HEADLINE] for seed in seeds] for n in (network, reference))
    return paired(ours, theirs)


def paired(ours: list[float], theirs: list[float]) -> Difference:
    """`ours` less `theirs`, pair by pair."""
    differences = [round(a - b, 9) for a, b in zip(ours, theirs, strict=True)]  # shares of whole images
    known = len(set(differences)) > 1
    p = float(stats.ttest_1samp(differences, 0.0).pvalue) if known else None
    return Difference(Estimate.of(differences), p)


def time_to(target: float, history: list[dict[str, float]]) -> float | None:
    """Seconds of training until validation first reached `target`, by the epochs' ends; None where it did not."""
    return next((epoch["seconds"] for epoch in history if epoch["val_accuracy"] >= target - 1e-9), None)


def describe(device: dict[str, Any]) -> str:
    """A device in a few words."""
    count = device.get("threads")
    threads = "" if count is None else f", {count} thread{'s' * (count != 1)}"
    return f"{device['name']}{threads}"


def notes(section: Section) -> Iterable[str]:
    """What a reader must know before comparing."""
    if not section.timed:
        yield f"times and memory are not compared: runs were on {'; '.join(section.hardware)}"
    every = [(network, run) for network in section.networks for run in network.runs.values()]
    for what, get in DISTINCTIONS.items():
        values: dict[str, set[str]] = defaultdict(set)
        for network, run in every:
            values[get(run)].add(network.label)
        if len(values) > 1:
            parts = "; ".join(f"{value}: {', '.join(sorted(labels))}" for value, labels in sorted(values.items()))
            yield f"{what} differs ({parts})"
    recipes = {
        network.label: flatten(asdict(next(iter(network.runs.values())).config.recipe)) for network in section.networks
    }
    differing = sorted(
        key for key in {key for recipe in recipes.values() for key in recipe}
        if len({repr(recipe.get(key)) for recipe in recipes.values()}) > 1
    )  # fmt: skip
    if differing:
        keys = ", ".join(differing[:SHOWN]) + (f" and {len(differing) - SHOWN} more keys" if differing[SHOWN:] else "")
        yield f"a difference is of network and recipe together: recipes differ in {keys}"
    if any(run.config.trainer.limit_batches for _, run in every):
        yield "some runs saw a part of the images only (trainer.limit_batches)"
    if any(run.result["git"]["dirty"] for _, run in every):
        yield "some runs were of code that was not committed"
    sizes = {len(network.runs) for network in section.networks}
    if len({tuple(network.runs) for network in section.networks}) > 1:
        yield f"networks have different seeds ({min(sizes)} to {max(sizes)} runs): differences are over common ones"


DISTINCTIONS: dict[str, Callable[[Run], str]] = {
    "the commit": lambda run: str(run.result["git"]["sha"])[:7],
    "precision": lambda run: run.result["precision"],
    "torch": lambda run: run.result["versions"]["torch"],
    "trainer.step": lambda run: run.result.get("step") or "eager",  # older records and separated networks have none
}
