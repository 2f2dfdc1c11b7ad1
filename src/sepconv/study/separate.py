"""A trained run separated: ranks chosen, the network recorded as a run, and others measured beside it."""

import copy
import hashlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from sepconv import InputError, files
from sepconv.config.keys import SeparateConfig, TrainConfig
from sepconv.config.read import flatten
from sepconv.costs import counting
from sepconv.costs.closed_forms import Cost
from sepconv.data.datasets import sample
from sepconv.data.module import ImageData, evaluation_batch
from sepconv.devices import describe_device, find_device, resolve_precision, synchronize
from sepconv.networks.lowrank import Decomposition, KernelWise, find_separable, make_factors, put
from sepconv.reading import read_json, write_yaml
from sepconv.study.separation_report import Ranks, label, print_report, write_report
from sepconv.terminal import CONSOLE, Progress, logged, track
from sepconv.training import runs
from sepconv.training.callbacks import Stopwatch
from sepconv.training.classifier import ImageClassifier
from sepconv.training.recipe import build_optimizer
from sepconv.training.recorded import load_run, measure_accuracy
from sepconv.training.runs import Result
from sepconv.training.step import resolve_step
from sepconv.training.train import log_cost, make_result, record, train
from sepconv.training.trainer import make_trainer, stoppable
from sepconv.training.whitening import find_stem

CALIBRATION = 500  # training images on which a rank's effect on the logits is measured
CHOICES = 32  # at most so many ranks of a layer are tried
ROUNDS, TIMED = 10, 128  # of the speed measurement: rounds, and images a batch
LONGEST = 10.0  # seconds after which no round begins but the first, and of a batch


@dataclass(kw_only=True)
class Row:
    """One network's figures. Errors are relative to the original network; accuracies are of the validation images."""

    ranks: Ranks
    weight_error: float  # Frobenius norm of the change of the weights that the method separates, relative to theirs
    logit_error: float  # norm of the change of the validation images' logits, relative to theirs, in fp32
    logit_difference: float  # the largest change of a logit
    parameters: int
    macs: int
    images_per_second: float | None = None  # of a forward pass
    accuracy: float
    finetuned_accuracy: float | None = None

    @property
    def reached(self) -> float:
        """The accuracy that the network ends with."""
        return self.accuracy if self.finetuned_accuracy is None else self.finetuned_accuracy


def separate(config: SeparateConfig, overrides: list[str], started: float) -> tuple[Path, dict[str, Any]]:
    """Separates a trained run's convolutions as `config` asks, and records the network as a run, with a report.

    The validation images decide; only the original network and the finished ones see the test images. `overrides` are
    the command's arguments, for the record; the job began at `started`, in seconds since the epoch.

    The network that is asked for comes first, with its run and report; `config.sweep` others are added to the report
    after it. What is finished is kept: the same command, where it was stopped, goes on from there.

    Returns the directory of the separated network's run, and the report that it holds beside what every run does, in
    `separation.json`, `separation.csv` and `separation.png`. Raises InputError for a path that is no run, data that
    are not there, a rank out of range, a target not to be met.
    """
    code = runs.current_code()
    original = Original(config)
    original.check_target()
    with ExitStack() as held, stoppable(lambda: "what is finished is kept, and the same command goes on from there"):
        separation = Separation.find(original, held, code) or Separation.make(original, overrides, held, code)
        path = original.uniform() if config.rank is not None else original.greedy(separation)
        separation.follow(path)
        macs = [original.macs(ranks) for ranks in path]
        place = find_place(config, macs)
        separation.measure(0)
        if place is None:
            place = search(separation, config)
        separation.record(place, overrides, started)
        if config.sweep > 0:
            print_report(separation.run, separation.report)
            others = [0, *(other + 1 for other in choose_places(macs[1:], config.sweep))]
            for other in track(others, "sweep: network"):
                separation.measure(other, finetune=other != place)
            separation.time()
        separation.finish()
    return separation.run, separation.report


def search(separation: "Separation", config: SeparateConfig) -> int:
    """The place of the network of fewest MACs that keeps the accuracy. Raises InputError where there is none."""
    assert config.accuracy_drop is not None
    original, count = separation.measure(0), len(separation.path)
    with Progress("search: network", count.bit_length()) as progress:

        def measure(place: int) -> Row:
            row = separation.measure(place, finetune=True)
            progress.reach(len(separation.rows) - 1)
            return row

        place = last_above(original.accuracy - config.accuracy_drop, measure, [0], count)
    if place == 0:
        best = max(row.reached for other, row in separation.rows.items() if other > 0)
        separation.remove()
        raise InputError(
            f"accuracy_drop={config.accuracy_drop} cannot be met: method={config.method} comes to {best:.2%} of "
            f"the validation images at most, from {original.accuracy:.2%}"
        )
    return place


class Separation:
    """The directory of a separated network, a run's, and the report in it, which is written as each part is done.

    Args:
        report: as it was left, where the directory is not new.
    """

    def __init__(self, original: "Original", run: Path, report: dict[str, Any]) -> None:
        self.original, self.run, self.report = original, run, report
        self.path: list[Ranks] = []
        self.rows: dict[int, Row] = {}  # measured networks, by their place in the path
        self.place: int | None = None  # of the network that is recorded

    @classmethod
    def find(cls, original: "Original", held: ExitStack, code: dict[str, Any]) -> "Separation | None":
        """The latest one that the same command began and did not finish, held for this process."""
        identity = original.identity()
        for file in sorted(original.folder.glob("*/separation.json"), reverse=True):
            try:
                report = read_json(file)
                if report.get("complete", True) or any(report.get(key) != value for key, value in identity.items()):
                    continue
                for row in report["networks"]:
                    Row(**row)
                held.enter_context(runs.lock(file.parent))
                runs.add_code(file.parent, code)
            except (InputError, AttributeError, KeyError, TypeError):  # damaged, or another process's
                continue
            CONSOLE.print(f"goes on from {file.parent}", soft_wrap=True)
            return cls(original, file.parent.resolve(), report)
        return None

    @classmethod
    def make(cls, original: "Original", overrides: list[str], held: ExitStack, code: dict[str, Any]) -> "Separation":
        """A new one."""
        _, _, first_overrides = runs.read_config(original.run)
        here = [o for o in overrides if o.startswith(("trainer", "data.root=", "runs="))]
        others = [o for o in first_overrides if not o.lstrip("+~").startswith("model")]
        run = runs.create(original.describe({}), amend(others, here), code)
        held.enter_context(runs.lock(run))
        report = {
            **original.identity(),
            "model": original.recorded.model,
            "data": original.recorded.data.name,
            "layers": original.full,
            "device": describe_device(original.device),
            "precision": original.precision,
            "command": runs.command_line("separate", overrides),
            "complete": False,
            "calibration": {},  # squared error of the logits by layer and rank, where ranks were chosen by it
            "test_accuracy": {},
            "chosen": None,
            "networks": [],
        }
        separation = cls(original, run, report)
        separation.write()
        return separation

    def follow(self, path: list[Ranks]) -> None:
        """Takes `path` as the networks that there are, from the original to the cheapest."""
        self.path = path
        self.rows = {path.index(row["ranks"]): Row(**row) for row in self.report["networks"] if row["ranks"] in path}

    def measure(self, place: int, finetune: bool = False) -> Row:
        """The figures of a network of the path, measured unless they were; `finetune`d, where the command says so."""
        original = self.original
        row = self.rows.get(place) or original.measure(self.path[place])
        tuned = finetune and original.config.finetune_epochs > 0
        if tuned and row.finetuned_accuracy is None:
            row.finetuned_accuracy = original.finetune(original.separated(row.ranks))
        elif place in self.rows:
            return row
        self.rows[place] = row
        self.write()
        CONSOLE.print(describe(row, original.full, original.total.macs), soft_wrap=True)
        return row

    def record(self, place: int, overrides: list[str], started: float) -> None:
        """Records the network of `place` as this run, and fine-tuned as another, as far as that is left to do."""
        original, row = self.original, self.measure(place)
        self.place = place
        if (self.run / "result.json").exists():
            result = runs.read_result(self.run)
        else:
            with logged(self.run):
                result = original.save(row, self.run, overrides, started)
        row.accuracy = result.val_accuracy
        tested = self.report["test_accuracy"]
        tested["separated"] = result.test_accuracy
        if "original" not in tested:
            accuracy = measure_accuracy(original.separated({}), original.dataset, original.config.trainer)
            self.report["test_accuracy"] = {"original": accuracy} | tested
        self.time()
        self.publish()
        if original.config.finetune_epochs > 0:
            path, finetuned = original.train_on(self.run)
            row.finetuned_accuracy = finetuned.history[-1]["val_accuracy"]  # as of the others, after the last epoch
            self.report["test_accuracy"]["finetuned"] = finetuned.test_accuracy
            self.report["finetuned_run"] = str(path)
            self.publish()

    def time(self) -> None:
        """Measures the speed of all networks that were measured so far."""
        self.original.time([self.rows[place] for place in sorted(self.rows)])

    def write(self) -> None:
        """Writes the report as far as it goes."""
        order = sorted(self.rows)
        networks = [asdict(self.rows[place]) for place in order] or self.report["networks"]
        chosen = None if self.place is None else order.index(self.place)
        self.report |= {"chosen": chosen, "networks": networks}
        files.write(self.run / "separation.json", json.dumps(self.report, indent=2) + "\n")

    def publish(self) -> None:
        """Writes the report, its table and its picture."""
        self.write()
        write_report(self.run, self.report)

    def finish(self) -> None:
        """Marks the report as complete, and shows it."""
        self.report["complete"] = True
        self.publish()
        print_report(self.run, self.report)

    def remove(self) -> None:
        """Removes the directory, in which nothing was recorded."""
        shutil.rmtree(self.run)


class Original:
    """The trained run, and what it takes to separate its network and to measure what comes of it."""

    def __init__(self, config: SeparateConfig) -> None:
        self.config = config
        self.run, self.recorded, self.classifier, self.dataset = load_run(config.run, "best", config.data)
        self.device = find_device(config.trainer)
        self.precision = resolve_precision(self.recorded.recipe.precision, self.device)
        self.judged = replace(self.dataset, test=self.dataset.validation)  # the images that decide
        net = self.classifier.net
        if self.recorded.recipe.whiten:  # what is not trained is not separated: its parts would be
            find_stem(net).requires_grad_(False)
        convolutions = find_separable(net, config.method)
        if not convolutions:
            raise InputError(f"{self.recorded.model['name']} has no convolution that method={config.method} separates")
        named = track(convolutions.items(), "decomposition: layer")
        self.decompositions = {name: Decomposition(conv, config.method) for name, conv in named}
        self.full = {name: layer.full for name, layer in self.decompositions.items()}
        layers = counting.layers(net, self.dataset.shape)
        self.total = Cost(counting.parameters(net), counting.total(layers).macs)
        # of each layer, as often as it is used: its own cost, and that of each rank
        self.costs: dict[str, tuple[Cost, Cost]] = {}
        for name, conv in convolutions.items():
            uses = [layer for layer in layers if layer.name == name]
            factors = make_factors(copy.deepcopy(conv).to("meta"), config.method, 1)
            macs = sum(counting.macs(factors, (use.input[1], use.input[2], use.input[3])) for use in uses)
            weights = counting.parameters(factors) - (0 if conv.bias is None else conv.bias.numel())
            self.costs[name] = Cost(conv.weight.numel(), sum(use.macs for use in uses)), Cost(weights, macs)
        self.logits = self.compute_logits(self.classifier, self.dataset.validation)
        optimizer = scale_rates(self.recorded.recipe.optimizer, config.finetune_lr)
        self.finetuning = replace(self.recorded.recipe, epochs=max(1, config.finetune_epochs), optimizer=optimizer)
        self.step = resolve_step(config.trainer, self.device, build_optimizer(net, optimizer))

    @property
    def folder(self) -> Path:
        """Where the directories of its separations are."""
        return Path(self.config.runs) / self.recorded.data.name / "separated"

    def identity(self) -> dict[str, Any]:
        """What a report has of the command that made it, but for how many networks it measures beside."""
        config = self.config
        targets = {key: getattr(config, key) for key in ("rank", "macs", "accuracy_drop")}
        return {
            "original_run": str(self.run),
            "checkpoint_sha256": hashlib.sha256((self.run / "checkpoints/best.ckpt").read_bytes()).hexdigest(),
            "method": config.method,
            "target": {key: value for key, value in targets.items() if value is not None},
            "finetune_epochs": config.finetune_epochs,
            "finetune_lr": config.finetune_lr,
            "trainer": asdict(config.trainer),
        }

    def check_target(self) -> None:
        """Raises InputError for a target that the costs alone show to be out of reach."""
        config = self.config
        if config.rank is not None:
            find_place(config, [0] * (max(self.full.values()) + 1))
            return
        least = {name: 1 for name in self.full if self.macs_saved(name, 1) > 0}
        if not least:
            raise InputError(
                f"no rank of method={config.method} saves MACs in this network: give rank=, or another method"
            )
        find_place(config, [self.total.macs, self.macs(least)])

    def uniform(self) -> list[Ranks]:
        """The network as it is, then every layer at full rank, and so on to rank 1; each layer as far as it goes."""
        ranks = range(max(self.full.values()), 0, -1)
        return [{}, *({name: min(rank, full) for name, full in self.full.items()} for rank in ranks)]

    def greedy(self, separation: Separation) -> list[Ranks]:
        """The network as it is, then one layer's rank lowered at each step, until no layer's can be.

        It is the layer whose next lower rank adds the least squared error of the logits for each MAC that it saves;
        a layer's error at a rank is measured with the others as they were. Ranks that save nothing are left out.
        Ranks are chosen greedily, by singular values, in Zhang et al., arXiv 1505.06798, section 2.4. The errors are
        kept in the report of `separation`.
        """
        rows = sample(self.dataset.train, CALIBRATION)
        reference = self.compute_logits(self.classifier, rows)
        # of each layer, from the dearest: the rank (None: as it is), MACs saved, squared error
        options: dict[str, list[tuple[int | None, int, float]]] = {}
        known: dict[str, dict[str, float]] = separation.report["calibration"]
        for name, full in track(self.full.items(), "choice of ranks: layer"):
            falling = range(full, 0, -1)
            ranks = [falling[place] for place in choose_places(falling, CHOICES)]
            ranks = [rank for rank in ranks if self.macs_saved(name, rank) > 0]
            if name not in known:
                known[name] = {}
                for rank in ranks:
                    change = self.compute_logits(self.approximated({name: rank}), rows) - reference
                    known[name][str(rank)] = float(change.square().sum())
                separation.write()
            steps = [(rank, self.macs_saved(name, rank), known[name][str(rank)]) for rank in ranks]
            options[name] = [(None, 0, 0.0), *steps]
        at = dict.fromkeys(options, 0)

        def price(name: str) -> float:
            (_, saved, error), (_, more, greater) = options[name][at[name] : at[name] + 2]
            return (greater - error) / (more - saved)

        path: list[Ranks] = [{}]
        while lower := [name for name in options if at[name] + 1 < len(options[name])]:
            at[min(lower, key=price)] += 1
            chosen = {name: options[name][place][0] for name, place in at.items()}
            path.append({name: rank for name, rank in chosen.items() if rank is not None})
        return path

    def separated(self, ranks: Ranks) -> ImageClassifier:
        """A copy of the classifier with layers separated at `ranks`."""
        classifier = copy.deepcopy(self.classifier)
        for name, rank in ranks.items():
            put(classifier.net, name, self.decompositions[name].factors(rank))
        return classifier.cpu()

    def approximated(self, ranks: Ranks) -> ImageClassifier:
        """A copy of the classifier that computes what `separated` does by dense layers: in less time and memory."""
        classifier = copy.deepcopy(self.classifier)
        with torch.no_grad():
            for name, rank in ranks.items():
                conv = classifier.net.get_submodule(name)
                assert isinstance(conv, torch.nn.Conv2d)
                conv.weight.copy_(self.decompositions[name].weight(rank))
        return classifier.cpu()

    def macs(self, ranks: Ranks) -> int:
        """MACs of the whole network with layers separated at `ranks`."""
        return self.total.macs - sum(self.macs_saved(name, rank) for name, rank in ranks.items())

    def macs_saved(self, name: str, rank: int) -> int:
        """MACs that a layer at `rank` saves; negative where it adds some."""
        whole, each = self.costs[name]
        return whole.macs - rank * each.macs

    def parameters(self, ranks: Ranks) -> int:
        """Parameters of the whole network with layers separated at `ranks`."""
        costs = ((self.costs[name], rank) for name, rank in ranks.items())
        return self.total.parameters - sum(whole.parameters - rank * each.parameters for (whole, each), rank in costs)

    def compute_logits(self, classifier: ImageClassifier, rows: Tensor) -> Tensor:
        """Logits (N, classes) for the images of `rows` (N,), in fp32 proper."""
        classifier, size = classifier.to(self.device).eval(), evaluation_batch(self.device, self.dataset.shape)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            batches = track(rows.split(size), "logits: batch")
            parts = [classifier(self.dataset[batch][0].to(self.device)) for batch in batches]
        return torch.cat(parts).cpu().double()

    def measure(self, ranks: Ranks) -> Row:
        """The figures of the network separated at `ranks`, before fine-tuning."""
        classifier = self.approximated(ranks)
        logits = self.compute_logits(classifier, self.dataset.validation) if ranks else self.logits
        change = logits - self.logits
        error = sum(self.decompositions[name].error(rank) for name, rank in ranks.items())
        return Row(
            ranks=ranks,
            weight_error=(error / sum(layer.error(0) for layer in self.decompositions.values())) ** 0.5,
            logit_error=float(change.norm() / self.logits.norm()),
            logit_difference=float(change.abs().max()),
            parameters=self.parameters(ranks),
            macs=self.macs(ranks),
            accuracy=measure_accuracy(classifier, self.judged, self.config.trainer),
        )

    def data(self) -> ImageData:
        """The data as a training of the run's seed would draw them."""
        recorded, limit = self.recorded, self.config.trainer.limit_batches
        return ImageData(self.dataset, recorded.recipe, self.device, recorded.seed, limit)

    def finetune(self, classifier: ImageClassifier) -> float:
        """Trains `classifier` on, in place: its accuracy on the validation images after the last epoch."""
        L.seed_everything(self.recorded.seed, verbose=False)
        classifier.recipe = self.finetuning
        classifier.form = self.step
        trainer = make_trainer(self.config.trainer, self.precision, [], False, self.finetuning.epochs)
        trainer.fit(classifier, self.data())
        return round(float(trainer.callback_metrics["accuracy/validation"]), 6)

    def describe(self, ranks: Ranks) -> TrainConfig:
        """The configuration of the run of the network separated at `ranks`."""
        recorded, config = self.recorded, self.config
        model = {"name": "separated", "base": recorded.model, "method": config.method, "ranks": ranks}
        data = replace(recorded.data, root=str(Path(recorded.data.root).resolve()))
        return replace(
            recorded, data=data, model=model, trainer=config.trainer, runs=config.runs, resume=None, weights=None
        )

    def save(self, row: Row, run: Path, overrides: list[str], started: float) -> Result:
        """Records the network of `row` as the run of that directory, as `sepconv.training.train` would: its result."""
        recorded, config = self.recorded, self.config
        separated = self.describe(row.ranks)
        files.write(run / "config.yaml", write_yaml(asdict(separated)))
        images: dict[str, Any] = self.classifier.hparams["images"]
        classifier = ImageClassifier(separated.model, asdict(recorded.recipe), dict(images))
        classifier.load_state_dict(self.separated(row.ranks).state_dict())
        stopwatch = Stopwatch(started)
        logger = TensorBoardLogger(run, name="", version="", default_hp_metric=False)
        cost = Cost(counting.parameters(classifier.net), counting.macs(classifier.net, self.dataset.shape))
        log_cost(logger, cost)
        trainer = make_trainer(config.trainer, self.precision, [stopwatch], logger, recorded.recipe.epochs)
        validated = trainer.validate(classifier, self.data(), verbose=False)[0]
        best = run / "checkpoints/best.ckpt"
        for path in (best, best.with_name("last.ckpt")):
            trainer.save_checkpoint(path, weights_only=True)
        tested = trainer.test(classifier, self.data(), ckpt_path=best, weights_only=True, verbose=False)[0]
        result = make_result(
            separated,
            self.data(),
            classifier,
            cost,
            stopwatch,
            tested,
            val_accuracy=round(validated["accuracy/validation"], 6),
            epochs=0,
            fit_seconds=0.0,
            history=[],
            dashboard_seconds=0.0,
            train_images_per_second=None,
            precision=self.precision,
            separated_from=str(self.run),
            **runs.provenance(run),
        )
        record(run, separated, classifier, result, logger)
        return result

    def train_on(self, run: Path) -> tuple[Path, Result]:
        """Fine-tunes the separated network of `run` as a run of its own, or goes on with that: directory and result."""
        _, separated, overrides = runs.read_config(run)
        recipe = self.finetuning
        for path in sorted(run.parent.iterdir()):
            if path.name > run.name and (path / "config.yaml").is_file():
                try:
                    _, begun, _ = runs.read_config(path)
                except InputError:  # a damaged one, of whatever
                    continue
                if (begun.weights, begun.recipe) == (str(run), recipe):
                    if (path / "result.json").exists():
                        return path, runs.read_result(path)
                    return train(replace(begun, resume=str(path)), [f"resume={path}"], time.time())
        options = flatten(recipe.optimizer, "recipe.optimizer.")
        rates = [f"{key}={value}" for key, value in options.items() if key.endswith(".lr")]
        changes = [f"weights={run}", f"recipe.epochs={recipe.epochs}", *rates]
        return train(replace(separated, weights=str(run), recipe=recipe), amend(overrides, changes), time.time())

    def time(self, rows: Sequence[Row]) -> None:
        """Measures the images a second of the forward pass of each network of `rows`: medians over ROUNDS.

        The networks take turns, so that what else the machine does meets all of them. Separated layers run step by
        step, kernel-wise ones too.
        """
        device, half = self.device, self.precision == "bf16-mixed"
        images = self.dataset[self.dataset.validation[:TIMED]][0].to(device)
        classifiers = [self.separated(row.ranks) for row in rows]
        for classifier in classifiers:
            classifier.setup("test")  # its memory format
            classifier.to(device).eval()
            for layer in classifier.modules():
                if isinstance(layer, KernelWise):
                    layer.stepwise = True

        def rate(classifier: ImageClassifier, count: int) -> float:
            synchronize(device)
            started = time.perf_counter()
            classifier(images[:count])
            synchronize(device)
            return count / (time.perf_counter() - started)

        began = time.perf_counter()
        rates = []
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            # by one image, the second time: fewer of them where a batch would take too long
            ones = [max(rate(classifier, 1) for _ in range(2)) for classifier in classifiers]
            counts = [min(len(images), math.ceil(LONGEST * one)) for one in ones]
            for turn in track(range(ROUNDS + 1), "speed: round"):
                if turn > 1 and time.perf_counter() - began > LONGEST:
                    break
                rates.append([rate(*pair) for pair in zip(classifiers, counts, strict=True)])  # the first warms up
        for row, values in zip(rows, zip(*rates[1:], strict=True), strict=True):
            row.images_per_second = statistics.median(values)


def find_place(config: SeparateConfig, macs: list[int]) -> int | None:
    """The place of the network that meets the target among those of `macs`; None where their accuracy decides.

    Raises InputError for a rank out of range, and a share of MACs out of reach.
    """
    if config.rank is not None:
        full = len(macs) - 1
        if not 1 <= config.rank <= full:
            raise InputError(f"rank={config.rank} is out of range: 1 to {full}, full rank by method={config.method}")
        return full + 1 - config.rank
    if config.macs is None:
        return None
    if macs[-1] > config.macs * macs[0]:
        least = macs[-1] / macs[0]
        raise InputError(f"macs={config.macs} cannot be met: method={config.method} leaves {least:.4f} at rank 1")
    return next(place for place, count in enumerate(macs) if count <= config.macs * macs[0])


def choose_places(values: Sequence[int], count: int) -> list[int]:
    """The places of at most `count` of the falling `values`, the first and the last with others evenly by ratio."""
    if len(values) <= count:
        return list(range(len(values)))
    ratio = values[-1] / values[0]
    even = [values[0] * ratio ** (i / (count - 1)) for i in range(count)] if count > 1 else list(values[-1:])[:count]
    return sorted({min(range(len(values)), key=lambda place: abs(values[place] - value)) for value in even})


def last_above(lowest: float, measure: Callable[[int], Row], measured: list[int], count: int) -> int:
    """The last of `count` networks that reaches the accuracy `lowest`, or 0, the original.

    By bisection, between the last of those `measured` that reaches it and the next: as if accuracy fell all the way.
    """

    def reaches(place: int) -> bool:
        return measure(place).reached >= lowest - 1e-9

    good = max(place for place in measured if place == 0 or reaches(place))
    bad = min((place for place in measured if place > good), default=count)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if reaches(middle) else (good, middle)
    return good


def scale_rates(options: dict[str, Any], factor: float) -> dict[str, Any]:
    """`options` of an optimizer, and of `others` and `biases` in it, with learning rates times `factor`."""
    scaled = {k: scale_rates(value, factor) if isinstance(value, dict) else value for k, value in options.items()}
    if "name" in options or "lr" in options:  # biases without a rate have that of their optimizer
        scaled["lr"] = float(f"{options.get('lr', 1e-3) * factor:.6g}")
    return scaled


def amend(overrides: list[str], changes: list[str]) -> list[str]:
    """`overrides` with `changes`, which replace those of the same keys."""
    keys = {change.partition("=")[0] for change in changes}
    return [o for o in overrides if o.lstrip("+~").partition("=")[0] not in keys] + changes


def describe(row: Row, layers: Iterable[str], total: int) -> str:
    """One line as a network has been measured; `total` is the original's MACs."""
    name = "original" if not row.ranks else f"rank {label(row.ranks, layers)}"
    after = "" if row.finetuned_accuracy is None else f", fine-tuned {row.finetuned_accuracy:.2%}"
    return f"{name}: {row.macs / total:.1%} of the MACs, validation accuracy {row.accuracy:.2%}{after}"
