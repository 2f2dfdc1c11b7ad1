"""A trained run separated: ranks chosen, networks measured, and the one asked for recorded as a run."""

import copy
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from sepconv import InputError
from sepconv.config import SeparateConfig, flatten
from sepconv.costs import counting
from sepconv.costs.closed_forms import Cost
from sepconv.data.datasets import sample
from sepconv.data.module import ImageData, evaluation_batch
from sepconv.devices import find_device, reset_peak_memory, resolve_precision, synchronize
from sepconv.networks.lowrank import Decomposition, find_separable, make_factors, put
from sepconv.study.separation_report import Ranks, label, print_report, write_report
from sepconv.terminal import CONSOLE
from sepconv.training import runs
from sepconv.training.callbacks import Stopwatch
from sepconv.training.classifier import ImageClassifier
from sepconv.training.evaluate import load_run, measure_accuracy
from sepconv.training.recipe import build_optimizer
from sepconv.training.runs import Result
from sepconv.training.step import resolve_step
from sepconv.training.train import log_cost, make_result, record, train
from sepconv.training.trainer import make_trainer
from sepconv.training.whitening import find_stem

CALIBRATION = 500  # training images on which a rank's effect on the logits is measured
CHOICES = 32  # at most so many ranks of a layer are tried
ROUNDS, TIMED = 10, 128  # of the speed measurement: rounds, and images a batch


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

    Returns the directory of the separated network's run, and the report that it holds beside what every run does, in
    `separation.json`, `separation.csv` and `separation.png`. Raises InputError for a path that is no run, data that
    are not there, a rank out of range, a target not to be met.
    """
    reset_peak_memory()
    original = Original(config)
    path = original.uniform() if config.rank is not None else original.greedy()
    if len(path) == 1:
        raise InputError(f"no rank of method={config.method} saves MACs in this network: give rank=, or another method")
    macs = [original.macs(ranks) for ranks in path]
    asked = place_asked(config, macs)
    rows: dict[int, Row] = {}

    def measure(place: int, finetune: bool = True) -> Row:
        if place not in rows:
            rows[place] = original.measure(path[place], finetune)
            CONSOLE.print(describe(rows[place], original.full, macs[0]), soft_wrap=True)
        return rows[place]

    lowest = measure(0, finetune=config.sweep > 0).accuracy - (config.accuracy_drop or 0)
    for place in choose_places(macs[1:], config.sweep):
        measure(place + 1, finetune=place + 1 != asked)  # the one asked for is fine-tuned as a run of its own
    if asked is None:
        asked = last_above(lowest, measure, list(rows), len(path))
        if asked == 0:
            best = max(row.reached for place, row in rows.items() if place > 0)
            raise InputError(
                f"accuracy_drop={config.accuracy_drop} cannot be met: method={config.method} comes to {best:.2%} of "
                f"the validation images at most, from {rows[0].accuracy:.2%}"
            )
    chosen = measure(asked, finetune=False)
    run, result = original.save(chosen, overrides, started)
    accuracy = measure_accuracy(original.separated({}), original.dataset, config.trainer)
    test_accuracy = {"original": accuracy, "separated": result.test_accuracy}
    finetuned_run = {}
    if config.finetune_epochs > 0:
        finetuned_path, finetuned = original.train_on(run)
        chosen.finetuned_accuracy = finetuned.val_accuracy
        test_accuracy["finetuned"] = finetuned.test_accuracy
        finetuned_run["finetuned_run"] = str(finetuned_path)
    order = sorted(rows)
    original.time([rows[place] for place in order])
    targets = {key: getattr(config, key) for key in ("rank", "macs", "accuracy_drop")}
    report = {
        "original_run": str(original.run),
        "model": original.recorded.model,
        "data": original.recorded.data.name,
        "method": config.method,
        "layers": original.full,
        "target": {key: value for key, value in targets.items() if value is not None},
        "finetune_epochs": config.finetune_epochs,
        "test_accuracy": test_accuracy,
        **finetuned_run,
        "device": result.device,
        "precision": result.precision,
        "chosen": order.index(asked),
        "networks": [asdict(rows[place]) for place in order],
        "command": result.command,
    }
    write_report(run, report)
    print_report(run, report)
    return run, report


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
        self.decompositions = {name: Decomposition(conv, config.method) for name, conv in convolutions.items()}
        self.full = {name: layer.full for name, layer in self.decompositions.items()}
        layers = counting.layers(net, self.dataset.shape)
        # each layer as often as it is used
        self.uses = {name: [layer for layer in layers if layer.name == name] for name in convolutions}
        self.total_macs = counting.total(layers).macs
        self.saved: dict[tuple[str, int], int] = {}  # MACs, by layer and rank
        self.logits = self.compute_logits(self.classifier, self.dataset.validation)
        optimizer = scale_rates(self.recorded.recipe.optimizer, config.finetune_lr)
        self.finetuning = replace(self.recorded.recipe, epochs=max(1, config.finetune_epochs), optimizer=optimizer)
        self.step = resolve_step(config.trainer, self.device, build_optimizer(net, optimizer))

    def uniform(self) -> list[Ranks]:
        """The network as it is, then every layer at full rank, and so on to rank 1; each layer as far as it goes."""
        ranks = range(max(self.full.values()), 0, -1)
        return [{}, *({name: min(rank, full) for name, full in self.full.items()} for rank in ranks)]

    def greedy(self) -> list[Ranks]:
        """The network as it is, then one layer's rank lowered at each step, until no layer's can be.

        It is the layer whose next lower rank adds the least squared error of the logits for each MAC that it saves;
        a layer's error at a rank is measured with the others as they were. Ranks that save nothing are left out.
        Ranks are chosen greedily, by singular values, in Zhang et al., arXiv 1505.06798, section 2.4.
        """
        rows = sample(self.dataset.train, CALIBRATION)
        reference = self.compute_logits(self.classifier, rows)
        # of each layer, from the dearest: the rank (None: as it is), MACs saved, squared error
        options: dict[str, list[tuple[int | None, int, float]]] = {}
        for name, full in self.full.items():
            options[name] = [(None, 0, 0.0)]
            falling = range(full, 0, -1)
            for rank in (falling[place] for place in choose_places(falling, CHOICES)):
                if (saved := self.macs_saved(name, rank)) > 0:
                    logits = self.compute_logits(self.separated({name: rank}), rows)
                    options[name].append((rank, saved, float((logits - reference).square().sum())))
        at = dict.fromkeys(options, 0)

        def price(name: str) -> float:
            (_, saved, error), (_, more, greater) = options[name][at[name] : at[name] + 2]
            return (greater - error) / (more - saved)

        path: list[Ranks] = [{}]
        while lower := [name for name in options if at[name] + 1 < len(options[name])]:
            at[min(lower, key=price)] += 1
            ranks = {name: options[name][place][0] for name, place in at.items()}
            path.append({name: rank for name, rank in ranks.items() if rank is not None})
        return path

    def separated(self, ranks: Ranks) -> ImageClassifier:
        """A copy of the classifier with layers separated at `ranks`."""
        classifier = copy.deepcopy(self.classifier)
        for name, rank in ranks.items():
            put(classifier.net, name, self.decompositions[name].factors(rank))
        return classifier.cpu()

    def macs(self, ranks: Ranks) -> int:
        """MACs of the whole network with layers separated at `ranks`."""
        return self.total_macs - sum(self.macs_saved(name, rank) for name, rank in ranks.items())

    def macs_saved(self, name: str, rank: int) -> int:
        """MACs that a layer at `rank` saves; negative where it adds some."""
        if (name, rank) not in self.saved:
            layer = self.decompositions[name]
            factors = make_factors(layer.conv, layer.method, rank)
            self.saved[name, rank] = 0
            for use in self.uses[name]:
                _, channels, height, width = use.input
                self.saved[name, rank] += use.macs - counting.macs(factors, (channels, height, width))
        return self.saved[name, rank]

    def compute_logits(self, classifier: ImageClassifier, rows: Tensor) -> Tensor:
        """Logits (N, classes) for the images of `rows` (N,), in fp32 proper."""
        classifier, size = classifier.to(self.device).eval(), evaluation_batch(self.device)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            parts = [classifier(self.dataset[part][0].to(self.device)) for part in rows.split(size)]
        return torch.cat(parts).cpu().double()

    def measure(self, ranks: Ranks, finetune: bool) -> Row:
        """The figures of the network separated at `ranks`; fine-tuned too, where `finetune` and the command say so."""
        classifier = self.separated(ranks)
        change = self.compute_logits(classifier, self.dataset.validation) - self.logits
        error = sum(self.decompositions[name].error(rank) for name, rank in ranks.items())
        row = Row(
            ranks=ranks,
            weight_error=(error / sum(layer.error(0) for layer in self.decompositions.values())) ** 0.5,
            logit_error=float(change.norm() / self.logits.norm()),
            logit_difference=float(change.abs().max()),
            parameters=counting.parameters(classifier.net),
            macs=counting.macs(classifier.net, self.dataset.shape),
            accuracy=measure_accuracy(classifier, self.judged, self.config.trainer),
        )
        if finetune and self.config.finetune_epochs > 0:
            row.finetuned_accuracy = self.finetune(classifier)
        return row

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
        try:
            trainer.fit(classifier, self.data())
        except SystemExit:  # Lightning's answer to a keyboard interrupt
            raise KeyboardInterrupt("nothing is recorded") from None
        return round(float(trainer.callback_metrics["accuracy/validation"]), 6)

    def save(self, row: Row, overrides: list[str], started: float) -> tuple[Path, Result]:
        """Records the network of `row` as a run, as `sepconv.training.train` would: its directory and result."""
        recorded, config = self.recorded, self.config
        model = {"name": "separated", "base": recorded.model, "method": config.method, "ranks": row.ranks}
        separated = replace(recorded, model=model, trainer=config.trainer, runs=config.runs, resume=None, weights=None)
        classifier = ImageClassifier(model, asdict(recorded.recipe), dict(self.classifier.hparams["images"]))
        classifier.load_state_dict(self.separated(row.ranks).state_dict())
        _, _, first_overrides = runs.read_config(self.run)
        here = [o for o in overrides if o.startswith(("trainer", "data.root=", "runs="))]
        others = [o for o in first_overrides if not o.lstrip("+~").startswith("model")]
        run = runs.create(separated, amend(others, here))
        stopwatch = Stopwatch(started)
        logger = TensorBoardLogger(run, name="", version="", default_hp_metric=False)
        cost = Cost(row.parameters, row.macs)
        log_cost(logger, cost)
        trainer = make_trainer(config.trainer, self.precision, [stopwatch], logger, recorded.recipe.epochs)
        validated = trainer.validate(classifier, self.data(), verbose=False)[0]
        best = run / "checkpoints/best.ckpt"
        trainer.save_checkpoint(best, weights_only=True)
        shutil.copyfile(best, best.with_name("last.ckpt"))
        tested = trainer.test(classifier, self.data(), ckpt_path=best, weights_only=True, verbose=False)[0]
        result = make_result(
            separated,
            self.dataset,
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
            command=runs.command_line("separate", overrides),
            separated_from=str(self.run),
        )
        record(run, separated, result, logger)
        return run, result

    def train_on(self, run: Path) -> tuple[Path, Result]:
        """Fine-tunes the separated network of `run` as a run of its own: its directory and result."""
        _, separated, overrides = runs.read_config(run)
        recipe = self.finetuning
        options = flatten(recipe.optimizer, "recipe.optimizer.")
        rates = [f"{key}={value}" for key, value in options.items() if key.endswith(".lr")]
        changes = [f"weights={run}", f"recipe.epochs={recipe.epochs}", *rates]
        return train(replace(separated, weights=str(run), recipe=recipe), amend(overrides, changes), time.time())

    def time(self, rows: Sequence[Row]) -> None:
        """Measures the images a second of the forward pass of each network of `rows`: medians over ROUNDS.

        The networks take turns, so that what else the machine does meets all of them.
        """
        device, half = self.device, self.precision == "bf16-mixed"
        images = self.dataset[self.dataset.validation[:TIMED]][0].to(device)
        classifiers = [self.separated(row.ranks) for row in rows]
        for classifier in classifiers:
            classifier.setup("test")  # its memory format
            classifier.to(device).eval()
        seconds: list[list[float]] = [[] for _ in rows]
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            for turn in range(ROUNDS + 1):
                for classifier, times in zip(classifiers, seconds, strict=True):
                    synchronize(device)
                    started = time.perf_counter()
                    classifier(images)
                    synchronize(device)
                    if turn > 0:  # the first one warms up
                        times.append(time.perf_counter() - started)
        for row, times in zip(rows, seconds, strict=True):
            row.images_per_second = len(images) / statistics.median(times)


def place_asked(config: SeparateConfig, macs: list[int]) -> int | None:
    """The place of the network that `config` asks for among those of `macs`; None where their accuracy decides.

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
    wanted = [values[0] * ratio ** (i / (count - 1)) for i in range(count)] if count > 1 else list(values[-1:])[:count]
    return sorted({min(range(len(values)), key=lambda place: abs(values[place] - value)) for value in wanted})


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
