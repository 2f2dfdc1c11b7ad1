"""Every key of a run's configuration: its type, unit and range. The values are in `configs/`.

Light to import, so that a mistake in a key is answered before torch is loaded.
"""

import difflib
import math
import re
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sepconv import InputError

REPOSITORY = Path(__file__).parents[2]
MADE = "runs.txt"  # in a multirun's folder: the directories of the runs that it made, a line each

T = TypeVar("T")


@cache
def defaults(name: str) -> dict[str, Any]:
    """What configs/model/ has of the network `name`; nothing of one that is not there."""
    files = {path.stem: path for path in (REPOSITORY / "configs" / "model").glob("*.yaml")}
    return dict(OmegaConf.load(files[name])) if name in files else {}


def complete(model: dict[str, Any]) -> dict[str, Any]:
    """`model` (name and options) with the defaults of what it leaves out, as runs leave out options that came later."""
    if model["name"] == "separated":
        return model | {"base": complete(model["base"])}
    return defaults(model["name"]) | model


@dataclass(kw_only=True)
class Augment:
    """Random changes to a training image, drawn per sample; 0 or false leaves one out."""

    crop: int = 0  # padding, in pixels, before a crop back to the image's size at a random place
    reflect: bool = False  # pad with the image's own pixels, mirrored at its border; else with zeros
    flip: bool = False  # mirror left to right, half of the time
    alternate: bool = False  # flips at every other visit of an image, instead of at random
    shift: float = 0.0  # translation of up to this many pixels each way, sub-pixel
    rotate: float = 0.0  # rotation of up to this many degrees each way
    cutout: int = 0  # side, in pixels, of a square replaced by the training set's mean colour

    def __post_init__(self) -> None:
        for field in fields(self):
            check(
                getattr(self, field.name) >= 0,
                f"augment.{field.name}",
                getattr(self, field.name),
                "0 or more",
            )
        if self.alternate and not self.flip:
            raise InputError("augment.alternate=true says when to flip: give augment.flip=true too")


@dataclass(kw_only=True)
class DataConfig:
    """Which images, and how they are split."""

    name: str
    root: str  # folder of the files, in torchvision's layout
    download: bool = True  # fetch files that are missing
    image_size: int | None = None  # side in pixels to resize to; null keeps the images' own
    test: float | None = None  # share held out as test set, where the source brings none
    validation: int | float  # images (1 or more) or share (below 1) of train held out for decisions
    train: int | None = None  # train on so many of the rest only, each class in its share; null: on all
    split_seed: int = 0  # draws the held-out images: the same in every run, so that runs can be paired
    epochs: int  # a length of training that suits the set's size; recipes refer to it
    augment: Augment  # what leaves these images' labels unchanged; recipes refer to it

    def __post_init__(self) -> None:
        check(
            self.image_size is None or self.image_size > 0,
            "data.image_size",
            self.image_size,
            "1 or more, or null",
        )
        check(self.test is None or 0 < self.test < 1, "data.test", self.test, "a share between 0 and 1")
        check(self.validation > 0, "data.validation", self.validation, "above 0")
        check(self.train is None or self.train > 0, "data.train", self.train, "1 or more, or null")


@dataclass(kw_only=True)
class RecipeConfig:
    """How a network is trained."""

    epochs: int
    # an epoch is so many images, drawn anew each time; more than there are is several passes over them; null: one pass
    epoch_images: int | None = None
    batch_size: int
    drop_last: bool  # leave out an epoch's last, smaller batch (a random part of it each time)
    # `name` in torch.optim, and its arguments; `biases`: those that biases and norms have of their own (no weight decay
    # unless given). Muon also takes `others` (name and arguments of the optimizer of all but filters) and `depthwise`
    # (others | muon: which of the two depthwise filters go to)
    optimizer: dict[str, Any]
    schedule: str  # constant | one_cycle | linear, stepped every batch
    warmup: float = 0.0  # one_cycle, linear: share of the steps on the way up to the learning rate
    label_smoothing: float = 0.0
    # train on this share of each batch, the images with the largest losses under `proxy`; 1: on all, without a proxy
    hardest: float = 1.0
    proxy: dict[str, Any] | None = None  # a smaller network, trained along: `name` in sepconv.models, and its options
    initialization: str = "torch"  # torch | glorot_uniform | kaiming_normal | dirac
    # the first convolution gets filters that whiten the images' patches, to this deviation, and is not trained; 0: none
    whiten: float = 0.0
    # standardize (pixels of mean 0, deviation 1 per channel) | unit (0 to 1) | moments (standardize, and each image's
    # place, slant and size made alike)
    normalize: str = "standardize"
    precision: str = "auto"  # auto (bf16 where the hardware has it) | fp32 | bf16
    channels_last: bool = True
    augment: Augment
    tta: str = "none"  # test-time augmentation: none | mirror | translate (mirrored, and shifted by a pixel)

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "recipe.epochs", self.epochs, "1 or more")
        check(self.batch_size >= 1, "recipe.batch_size", self.batch_size, "1 or more")
        check(self.epoch_images is None or self.epoch_images >= self.batch_size, "recipe.epoch_images",
              self.epoch_images, f"at least a batch, {self.batch_size}, or null")  # fmt: skip
        check(0 <= self.warmup <= 1, "recipe.warmup", self.warmup, "a share from 0 to 1")
        check(0 <= self.label_smoothing < 1, "recipe.label_smoothing", self.label_smoothing, "from 0 to below 1")
        check(0 < self.hardest <= 1, "recipe.hardest", self.hardest, "a share above 0, up to 1")
        if (self.hardest < 1) != (self.proxy is not None):
            raise InputError("give recipe.hardest below 1 and recipe.proxy together, or neither")
        if self.proxy is not None:
            check_model("recipe.proxy", self.proxy)
        check_choice("recipe.schedule", self.schedule, "constant", "one_cycle", "linear")
        check(self.whiten >= 0, "recipe.whiten", self.whiten, "0 or more")
        check_choice("recipe.initialization", self.initialization, "torch", "glorot_uniform", "kaiming_normal", "dirac")
        check_choice("recipe.tta", self.tta, "none", "mirror", "translate")
        check_choice("recipe.normalize", self.normalize, "standardize", "unit", "moments")
        check_choice("recipe.precision", self.precision, "auto", "fp32", "bf16")
        check_optimizer("recipe.optimizer", self.optimizer)
        if self.optimizer["name"] == "Muon":
            check_optimizer("recipe.optimizer.others", self.optimizer.get("others"))


@dataclass(kw_only=True)
class TrainerConfig:
    """What the training runs on."""

    accelerator: str  # auto (CUDA, else Apple's MPS, else the CPU) | cpu | gpu
    # eager | compile (the network) | graph (one CUDA graph, replayed) | compiled_graph (both) | auto (graph on CUDA, if
    # the optimizer can be captured and detect_anomaly is off, else eager)
    step: str = "auto"
    limit_batches: int | None = None  # at most so many batches of each kind an epoch; null: all
    deterministic: bool = False  # only algorithms that give the same bits each time (a CPU's always do here)
    detect_anomaly: bool = False  # name the operation whose gradient is not a number; slow

    def __post_init__(self) -> None:
        check_choice("trainer.accelerator", self.accelerator, "auto", "cpu", "gpu")
        check_choice("trainer.step", self.step, "auto", "eager", "compile", "graph", "compiled_graph")
        check(self.limit_batches is None or self.limit_batches > 0, "trainer.limit_batches", self.limit_batches,
              "1 or more, or null")  # fmt: skip


@dataclass(kw_only=True)
class TrainConfig:
    """One run of `scripts/train.py`."""

    data: DataConfig
    model: dict[str, Any]  # `name` in sepconv.models, and its options
    recipe: RecipeConfig
    trainer: TrainerConfig
    seed: int  # initial weights, order of the batches, augmentation
    runs: str  # folder that run directories are made in
    resume: str | None = None  # a stopped run's directory, to be continued
    weights: str | None = None  # another run's directory: its network is trained on, from its best checkpoint

    def __post_init__(self) -> None:
        check_model("model", self.model)
        check(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")


@dataclass(kw_only=True)
class SourceConfig:
    """Where the images of a recorded run are now."""

    root: str | None = None  # null: where they were


@dataclass(kw_only=True)
class EvaluateConfig:
    """One run of `scripts/evaluate.py`."""

    run: str  # the run's directory
    checkpoint: str = "best"  # best (on the validation images) | last
    data: SourceConfig
    trainer: TrainerConfig

    def __post_init__(self) -> None:
        check_choice("checkpoint", self.checkpoint, "best", "last")


@dataclass(kw_only=True)
class SeparateConfig:
    """One run of `scripts/separate.py`."""

    run: str  # directory of the trained run
    method: str  # of sepconv.lowrank: spatial | spatial_joint | depthwise
    rank: int | None = None  # of every layer, as far as it goes
    macs: float | None = None  # or: at most this share of the network's MACs is left
    accuracy_drop: float | None = None  # or: fewest MACs with at most this loss of validation accuracy (0.001: 0.1 %)
    sweep: int  # at most so many networks, from full rank to 1, are reported beside the one asked for
    finetune_epochs: int  # of the run's own recipe; 0 leaves fine-tuning out
    finetune_lr: float  # learning rate of fine-tuning, times the recipe's
    data: SourceConfig
    trainer: TrainerConfig
    runs: str  # folder that run directories are made in

    def __post_init__(self) -> None:
        check_choice("method", self.method, "spatial", "spatial_joint", "depthwise")
        targets = (self.rank, self.macs, self.accuracy_drop)
        if sum(target is not None for target in targets) != 1:
            raise InputError("give one of rank=, macs= and accuracy_drop=: what the separated network must meet")
        check(self.macs is None or 0 < self.macs < 1, "macs", self.macs, "a share between 0 and 1")
        check(self.accuracy_drop is None or 0 <= self.accuracy_drop < 1, "accuracy_drop", self.accuracy_drop,
              "a share from 0 to below 1, such as 0.001")  # fmt: skip
        check(self.sweep >= 0, "sweep", self.sweep, "0 or more")
        check(self.finetune_epochs >= 0, "finetune_epochs", self.finetune_epochs, "0 or more")
        check(0 < self.finetune_lr < math.inf, "finetune_lr", self.finetune_lr, "above 0")


@dataclass(kw_only=True)
class BenchmarkConfig:
    """One run of `scripts/benchmark.py`."""

    suite: str
    data: DataConfig
    model: dict[str, Any]
    recipe: RecipeConfig
    trainer: TrainerConfig
    # loop: trainings; networks: turns of each; time_to_accuracy: warm runs; peers: runs of ours, bare and airbench
    rounds: int
    steps: int  # loop: optimizer steps of each training
    networks: list[str]  # networks: of sepconv.models, each with its dense twin
    batch_sizes: list[int]  # networks: images of a step
    target: float  # time_to_accuracy, peers: the test accuracy to reach, a share
    cold_rounds: int  # time_to_accuracy: runs in a process of their own
    peers: list[str]  # peers: of keras, airbench, template, bare and ours
    peer_rounds: int  # peers: trainings of keras and of template
    peer_epochs: int  # peers: epochs of each of those
    # peers, time_to_accuracy: after so many no turn (warm run) begins but the first of a training; null: all do
    seconds: float | None
    airbench: str | None  # peers: folder of a checkout of github.com/KellerJordan/cifar10-airbench
    airbench_script: str  # peers: airbench94_muon.py | airbench96_faster.py
    experiments: list[str]  # peers: our trainings, files of configs/experiment; []: the configuration's own
    seed: int
    output: str  # folder of the records

    def __post_init__(self) -> None:
        check_choice("suite", self.suite, "loop", "networks", "time_to_accuracy", "peers")
        check_model("model", self.model)
        check(all(size > 0 for size in self.batch_sizes), "batch_sizes", self.batch_sizes, "1 or more each")
        check(0 < self.target <= 1, "target", self.target, "a share of 1, such as 0.99")
        for key in ("rounds", "cold_rounds", "peer_rounds", "peer_epochs"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")
        check(self.seconds is None or self.seconds > 0, "seconds", self.seconds, "above 0, or null")
        for key in ("peers", "experiments"):
            check(len(set(getattr(self, key))) == len(getattr(self, key)), key, getattr(self, key), "each once")
        check(bool(self.peers), "peers", self.peers, "one or more")
        for peer in self.peers:
            check_choice("peers", peer, "keras", "airbench", "template", "bare", "ours")
        check_choice("airbench_script", self.airbench_script, "airbench94_muon.py", "airbench96_faster.py")
        check(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")


@dataclass(kw_only=True)
class CompareConfig:
    """One run of `scripts/compare.py`; its arguments that are no key=value are `runs`."""

    runs: list[str]  # run directories, folders of them, a multirun's folder, or patterns
    reference: str | None = None  # the network that others are set against; null: baseline, or the most MACs
    target: float | None = None  # validation accuracy whose time is given, a share; null: one that all runs reach
    output: str  # folder of the report

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("give runs to compare: python scripts/compare.py runs/mnist")
        check(self.target is None or 0 < self.target <= 1, "target", self.target, "a share of 1, such as 0.99")


@dataclass(kw_only=True)
class ClaimsConfig:
    """One run of `scripts/claims.py`."""

    scale: str  # name of the effort, for the report
    only: list[str] | None = None  # such as [C7,C9]; null: all
    data: DataConfig
    recipe: RecipeConfig
    trainer: TrainerConfig
    seeds: list[int]  # of each network that is trained
    train_sizes: list[int]  # training images of claim C10, beside all
    runs: str  # folder of the runs; finished ones of the same configuration are not made again
    output: str  # folder of claims.md, with the figures and plots of each data set under claims/

    def __post_init__(self) -> None:
        check(len(self.seeds) >= 2, "seeds", self.seeds, "two or more: an interval needs them")
        check(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "each once")
        check(all(size > 0 for size in self.train_sizes), "train_sizes", self.train_sizes, "1 or more each")


MOST = 10**6  # classes, units of a layer: more is a slip of the finger
PICTURES = (".png", ".pdf", ".svg")


@dataclass(kw_only=True)
class CostConfig:
    """One run of `scripts/cost.py`."""

    data: DataConfig  # gives the images' shape and the number of classes; its files are not read
    model: dict[str, Any]  # `name` in sepconv.models, and its options
    shape: list[int] | None = None  # channels, height, width of other images; null: those of the data
    classes: int | None = None  # another number of classes; null: that of the data
    batch: int = 1  # images at once, over which weights are read once; every figure is for the batch
    dtype: str = "fp32"  # of maps and weights: fp32 | bf16
    format: str = "table"  # table | json | csv (the layers alone) | markdown
    device: str | None = None  # cpu | cuda: measure its roofline, and each layer's time on it; null: count only
    plot: str | None = None  # picture file of the roofline, .png, .pdf or .svg; needs device
    receptive_field: str | None = None  # picture file of the effective receptive field of each spatial layer
    sweep: bool = False  # instead: a standard and a separable layer, alone, as the input channels grow

    def __post_init__(self) -> None:
        check_model("model", self.model)
        shape = self.shape
        check(shape is None or (len(shape) == 3 and min(shape) > 0), "shape", shape,
              "[channels,height,width], each 1 or more, or null")  # fmt: skip
        check(self.classes is None or 0 < self.classes <= MOST, "classes", self.classes, f"1 to {MOST}, or null")
        check(0 < self.batch < 2**31, "batch", self.batch, "1 or more, below 2^31")
        check_choice("dtype", self.dtype, "fp32", "bf16")
        check_choice("format", self.format, "table", "json", "csv", "markdown")
        if self.device is not None:
            check_choice("device", self.device, "cpu", "cuda")
        for key, path in (("plot", self.plot), ("receptive_field", self.receptive_field)):
            if path is not None:
                check(Path(path).suffix in PICTURES, key, path, f"a file name that ends in {', '.join(PICTURES)}")
                if not Path(path).expanduser().resolve().parent.is_dir():
                    raise InputError(f"{key}={path}: its folder does not exist; make it, or choose another")
        if self.plot is not None and self.device is None:
            raise InputError("plot= draws what device= measures: give device=cpu or device=cuda too")


def check(valid: bool, key: str, value: object, right: str) -> None:
    """Raises InputError unless `valid`."""
    if not valid:
        raise InputError(f"{key}={value} is out of range: {right}")


def check_optimizer(key: str, options: Any) -> None:
    """Raises InputError unless `options` name an optimizer and give it a learning rate above 0, if any."""
    check(isinstance(options, dict) and "name" in options, key, options, "a `name` in torch.optim, and arguments")
    biases = options.get("biases", {})
    check(isinstance(biases, dict), f"{key}.biases", biases, "arguments of the optimizer")
    for name, arguments in ((key, options), (f"{key}.biases", biases)):
        rate = arguments.get("lr", 1e-3)
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        check(number and 0 < rate < math.inf, f"{name}.lr", rate, "a number above 0")


def check_model(key: str, options: dict[str, Any]) -> None:
    """Raises InputError unless `options` name a network."""
    check(isinstance(options.get("name"), str), key, options, "a network: {name: separable}, say, and its options")


def check_choice(key: str, value: str, *choices: str) -> None:
    """Raises InputError unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"unknown {key}={value}: choose from {', '.join(choices)}")


def read(schema: type[T], config: DictConfig | dict[str, Any], prefix: str = "") -> T:
    """`config` as an instance of the dataclass `schema`, types and ranges checked; `prefix` leads its keys' names.

    Raises InputError, in one line, for an unknown key, a wrong type, a missing value or one out of range.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        instance = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(explain(error, schema, prefix)) from error
    assert isinstance(instance, schema)
    return instance


def explain(error: OmegaConfBaseException, schema: type, prefix: str = "") -> str:
    """One line for an error of OmegaConf: the key, what is wrong, what would be right."""
    key = str(error.full_key or error.key or "")
    message = str(error).splitlines()[0]
    if re.search(r"Key '.*' (not in|is not in struct)", message):
        return unknown_key(key, schema, prefix)
    if "mandatory value" in message:
        return f"{prefix}{key} is missing: give {prefix}{key}=..."
    if "is not a ListConfig" in message:
        return f"{prefix}{key} takes a list: {prefix}{key}=[...]"
    return f"{prefix}{key}: {message}"


def unknown_key(key: str, schema: type, prefix: str = "") -> str:
    """One line for a key that `schema` does not have: the nearest that it has, or all beside it."""
    *path, name = key.lstrip("+~").split(".")
    for part in path:
        inner = {field.name: field.type for field in fields(schema)}.get(part)
        if not (isinstance(inner, type) and is_dataclass(inner)):
            return f"unknown key {prefix}{key}; `--cfg job` lists every key"
        schema = inner
    names = [field.name for field in fields(schema)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    hint = f"did you mean {prefix}{'.'.join([*path, near[0]])}?" if near else f"choose from {', '.join(names)}"
    return f"unknown key {prefix}{key}: {hint}"


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted keys and plain values; what is not set is left out."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value not in (None, ""):
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
