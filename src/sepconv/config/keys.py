"""Every key of the commands: its type, meaning, unit, range and default. `configs/` has what differs from these."""

import math
from dataclasses import dataclass, field
from typing import Any

from sepconv import InputError
from sepconv.config import CALIBRATION_IMAGES, EXPORTED, MODEL, MOST, REPOSITORY
from sepconv.config.rules import (
    check,
    check_channels,
    check_costs,
    check_given,
    check_held_out,
    check_images,
    check_model,
    check_name,
    check_network,
    check_once,
    check_one_device,
    check_optimizer,
    check_picture,
    check_rungs,
    check_runs,
    check_seeds,
    check_shape,
    check_two_networks,
    checked,
    number,
    one_of,
    path,
)


@dataclass(kw_only=True)
class Augment:
    """Random changes to a training image, drawn per sample; 0 or false leaves one out."""

    # padding, in pixels, before a crop back to the image's size at a random place
    crop: int = number(0, least=0, most=MOST)
    reflect: bool = False  # pad with the image's own pixels, mirrored at its border; else with zeros
    flip: bool = False  # mirror left to right, half of the time
    alternate: bool = False  # flips at every other visit of an image, instead of at random
    shift: float = number(0.0, least=0, most=MOST)  # translation of up to this many pixels each way, sub-pixel
    rotate: float = number(0.0, least=0, most=360)  # rotation of up to this many degrees each way
    # side, in pixels, of a square replaced by the training set's mean colour
    cutout: int = number(0, least=0, most=MOST)

    def __post_init__(self) -> None:
        if self.alternate and not self.flip:
            raise InputError("augment.alternate=true says when to flip: give augment.flip=true too")


@dataclass(kw_only=True)
class DataConfig:
    """Which images, and how they are split."""

    name: str = checked(check_name)
    root: str = path(f"{REPOSITORY}/data", check_given)  # folder of the files, in torchvision's layout
    download: bool = True  # fetch files that are missing
    image_size: int | None = number(None, least=1, most=MOST)  # side in pixels to resize to; null keeps the images' own
    # of a folder's images: 1 (grey) or 3 (RGB); null: 1 where all are grey all over, else 3
    channels: int | None = checked(check_channels, None)
    test: float | None = number(None, above=0, below=1)  # share held out as test set, where the source brings none
    # images (a whole number) or share (below 1) of train held out, where the source brings no validation set
    validation: int | float = checked(check_held_out, 0.1)
    train: int | None = number(None, least=1)  # train on so many of the rest, each class in its share; null: on all
    split_seed: int = 0  # draws the held-out images: the same in every run, so that runs can be paired
    epochs: int  # a length of training that suits the set's size; recipes refer to it
    augment: Augment = field(default_factory=Augment)  # what leaves these images' labels unchanged; recipes refer to it

    def __post_init__(self) -> None:
        if self.channels is not None and self.name != "folder":
            raise InputError(f"data.channels={self.channels} is for data=folder; {self.name} has channels of its own")


@dataclass(kw_only=True)
class RecipeConfig:
    """How a network is trained."""

    epochs: int = number(least=1)
    # an epoch is so many images, drawn anew each time; more than there are is several passes over them; null: one pass
    epoch_images: int | None = number(None, least=1)
    batch_size: int = number(least=1)
    drop_last: bool = False  # leave out an epoch's last, smaller batch (a random part of it each time)
    # `name` in torch.optim, and its arguments; `biases`: those that biases and norms have of their own (no weight decay
    # unless given). Muon also takes `others` (name and arguments of the optimizer of all but filters) and `depthwise`
    # (others | muon: which of the two depthwise filters go to). Another name on the command line inherits no argument
    optimizer: dict[str, Any] = checked(check_optimizer)
    schedule: str = one_of("constant", "one_cycle", "linear")  # of the learning rate, stepped every batch
    warmup: float = number(0.0, least=0, most=1, unit="a share")  # one_cycle, linear: of the steps, on the way up
    label_smoothing: float = number(0.0, least=0, below=1)
    initialization: str = one_of("torch", "glorot_uniform", "kaiming_normal", "dirac")
    # the first convolution gets filters that whiten the images' patches, to this deviation, and is not trained; 0: none
    whiten: float = number(0.0, least=0, most=MOST)
    # standardize (pixels of mean 0, deviation 1 per channel) | unit (0 to 1) | moments (standardize, and each image's
    # place, slant and size made alike)
    normalize: str = one_of("standardize", "unit", "moments")
    precision: str = one_of("auto", "fp32", "bf16")  # auto: bf16 where the hardware has it
    channels_last: bool = True  # how maps lie in memory; the same figures, at another speed
    augment: Augment = field(default_factory=Augment)
    tta: str = one_of("none", "mirror", "translate")  # test-time augmentation; translate: mirrored, moved by a pixel

    def __post_init__(self) -> None:
        check(self.epoch_images is None or self.epoch_images >= self.batch_size, "recipe.epoch_images",
              self.epoch_images, f"at least a batch, {self.batch_size}, or null")  # fmt: skip


@dataclass(kw_only=True)
class TrainerConfig:
    """What the training runs on."""

    accelerator: str = one_of("auto", "cpu", "gpu")  # auto: CUDA, else Apple's MPS, else the CPU
    # how many GPUs (or processes of a CPU) train one network together (DDP), each on its share of every batch
    devices: int = number(1, least=1)
    # eager | compile (the network) | graph (one CUDA graph, replayed) | compiled_graph (both) | auto (graph on CUDA, if
    # the optimizer can be captured and detect_anomaly is off, else eager); several devices take eager
    step: str = one_of("auto", "eager", "compile", "graph", "compiled_graph")
    limit_batches: int | None = number(None, least=1)  # at most so many batches of each kind an epoch; null: all
    checkpoint_seconds: float = number(180.0, least=0)  # within an epoch, the state is kept so often, to resume from
    deterministic: bool = False  # only algorithms that give the same bits each time (a CPU's always do here)
    detect_anomaly: bool = False  # name the operation whose gradient is not a number; slow


@dataclass(kw_only=True)
class Training:
    """What makes a training."""

    data: DataConfig
    model: dict[str, Any] = checked(check_model, MODEL)  # `name` in sepconv.networks, and its options
    recipe: RecipeConfig
    trainer: TrainerConfig
    seed: int = number(0, least=0, below=2**32)  # initial weights, order of the batches, augmentation


@dataclass(kw_only=True)
class TrainConfig(Training):
    """One run of `scripts/train.py`."""

    runs: str = path(f"{REPOSITORY}/runs")  # folder that run directories are made in
    # a stopped run's directory, to be continued; true: the run of these settings, seed and code among those in `runs`,
    # which is kept where it is complete, continued where it was stopped, and begun where there is none
    resume: str | None = path(None)
    weights: str | None = path(None)  # another run's directory: its network is trained on, from its best checkpoint


@dataclass(kw_only=True)
class SourceConfig:
    """Where the images of a recorded run are now."""

    root: str | None = path(None)  # null: where they were


@dataclass(kw_only=True)
class EvaluateConfig:
    """One run of `scripts/evaluate.py`, of `run` or `file`."""

    run: str | None = path(None)  # its directory
    file: str | None = path(None)  # one that scripts/export.py wrote; it is tested on the CPU
    checkpoint: str = one_of("best", "last")  # best: on the validation images
    other_images: bool = False  # also where the test images are not those of the run, such as a new test set
    data: SourceConfig
    trainer: TrainerConfig

    def __post_init__(self) -> None:
        check_network(self.run, self.file)
        check_one_device(self.trainer.devices)
        if self.file is not None:
            check(self.checkpoint == "best", "checkpoint", self.checkpoint, "not with file=, which has one network")
            accelerator = self.trainer.accelerator
            check(accelerator != "gpu", "trainer.accelerator", accelerator, "file= is tested on the CPU")


@dataclass(kw_only=True)
class PredictConfig:
    """One run of `scripts/predict.py`, by `run` or `file`; its arguments that are no key=value are `images`."""

    images: list[str] = path([], check_images)  # image files, folders of them, or patterns
    run: str | None = path(None)  # directory of the run, whose best checkpoint classifies
    file: str | None = path(None)  # one that scripts/export.py wrote
    top: int = number(2, least=1)  # classes of each image in a table or csv, from the most probable; json has all
    format: str = one_of("table", "json", "csv")
    # middle (the largest square in the middle, as data=folder reads images) | none (all of it, padded to a square) |
    # auto: around what is drawn for a network of digits or mnist, none for fashion_mnist, middle for others
    crop: str = one_of("auto", "middle", "none")
    # auto: a picture on a light ground is inverted for a network of digits, mnist or fashion_mnist
    polarity: str = one_of("auto", "keep", "invert")

    def __post_init__(self) -> None:
        check_network(self.run, self.file)


@dataclass(kw_only=True)
class DemoConfig:
    """One run of `scripts/demo.py`."""

    # of two networks, each a run's directory, whose best checkpoint classifies, or a file that scripts/export.py wrote
    networks: list[str] = path(
        [f"{REPOSITORY}/pretrained/{kind}_mnist" for kind in ("separable", "dense")], check_two_networks
    )
    port: int | None = number(7860, least=0, most=65535)  # of the page, on this machine alone; null or 0: a free one
    open: bool = True  # the page in a browser


@dataclass(kw_only=True)
class ExportConfig:
    """One run of `scripts/export.py`."""

    run: str = path()  # directory of the trained run
    twin: str | None = path(None)  # that of another run on the same images, such as its dense twin, to set beside it
    format: str = one_of(*EXPORTED, "run")  # run: a copy of its directory without what is of one machine, to be shared
    int8: bool = False  # in 8 bits too
    # most that int8 may cost in accuracy on the validation images (0.002: 0.2 points); above it no file is written
    int8_drop: float = number(0.002, least=0, below=1, unit="a share, such as 0.002")
    calibration_images: int = number(CALIBRATION_IMAGES, least=1)  # training images that tell the ranges of int8's maps
    data: SourceConfig
    output: str = path(f"{REPOSITORY}/exported")  # folder of the files

    def __post_init__(self) -> None:
        if self.int8 and self.format != "onnx":
            raise InputError(f"int8=true is for format=onnx, not format={self.format}")
        if self.twin and self.format == "run":
            raise InputError("twin= is for files, not for format=run")


@dataclass(kw_only=True)
class SeparateConfig:
    """One run of `scripts/separate.py`, by one of `rank`, `macs` and `accuracy_drop`; the last two choose the ranks."""

    run: str = path()  # directory of the trained run
    method: str = one_of("depthwise", "spatial", "spatial_joint")  # of sepconv.networks.lowrank
    rank: int | None = None  # of every layer, as far as it goes
    macs: float | None = number(None, above=0, below=1, unit="a share")  # at most so much of the network's MACs is left
    # fewest MACs with at most this loss of validation accuracy after fine-tuning (0.001: 0.1 points)
    accuracy_drop: float | None = number(None, least=0, below=1, unit="a share, such as 0.001")
    sweep: int = number(0, least=0)  # at most so many other networks, from full rank to 1, are reported too
    finetune_epochs: int = number(1, least=0)  # of the run's own recipe; 0 leaves fine-tuning out
    finetune_lr: float = number(0.5, above=0, below=math.inf)  # learning rate of fine-tuning, times the recipe's
    data: SourceConfig
    trainer: TrainerConfig
    runs: str = path(f"{REPOSITORY}/runs")  # folder that run directories are made in

    def __post_init__(self) -> None:
        check_one_device(self.trainer.devices)
        if sum(target is not None for target in (self.rank, self.macs, self.accuracy_drop)) != 1:
            raise InputError("give one of rank=, macs= and accuracy_drop=: what the separated network must meet")


@dataclass(kw_only=True)
class BenchmarkConfig:
    """What every suite of `scripts/benchmark.py` has."""

    suite: str
    trainer: TrainerConfig
    output: str = path(f"{REPOSITORY}/benchmarks")  # folder of the records

    def __post_init__(self) -> None:
        check_one_device(self.trainer.devices)


@dataclass(kw_only=True)
class CpuLayersConfig(BenchmarkConfig):
    """The layers that are made faster on a CPU, against torch's own."""

    suite: str = "cpu_layers"
    rounds: int = number(20, least=1)  # turns of each


@dataclass(kw_only=True)
class CpuKernelsConfig(BenchmarkConfig):
    """The fused kernels of a separable block, against the machine's peaks."""

    suite: str = "cpu_kernels"


@dataclass(kw_only=True)
class NetworksConfig(BenchmarkConfig):
    """Networks against their dense twins."""

    suite: str = "networks"
    data: DataConfig
    recipe: RecipeConfig
    seed: int = number(0, least=0, below=2**32)
    networks: list[str] = checked(check_once, ["tiny", "separable", "resnet", "mobilenet_v2"])
    batch_sizes: list[int] = number([32, 128], least=1)  # images of a step
    rounds: int = number(5, least=1)  # turns of each


@dataclass(kw_only=True)
class LoopConfig(Training, BenchmarkConfig):
    """Our training loop against a bare PyTorch one."""

    suite: str = "loop"
    rounds: int = number(5, least=1)  # trainings
    steps: int = number(400, least=1)  # optimizer steps of each training, an epoch: some passes where images are few


@dataclass(kw_only=True)
class TimeToAccuracyConfig(Training, BenchmarkConfig):
    """A training's time to a test accuracy, cold and warm; the seeds are seed, seed + 1, ..."""

    suite: str = "time_to_accuracy"
    target: float = number(0.99, above=0, most=1, unit="a share")  # the test accuracy to reach
    rounds: int = number(5, least=1)  # warm runs
    cold_rounds: int = number(3, least=1)  # runs in a process of their own
    seconds: float | None = number(None, above=0)  # after so many no warm run begins but the first; null: all do


@dataclass(kw_only=True)
class PeersConfig(Training, BenchmarkConfig):
    """Our training against those of others, on the same images; the seeds are seed, seed + 1, ..."""

    suite: str = "peers"
    # keras and keras_fast need `make peers`, keras_torch Keras in this environment, airbench a GPU and a checkout
    peers: list[str] = one_of(
        "keras", "keras_fast", "keras_torch", "pytorch", "airbench", "template", "template_fast", "bare", "ours",
        default=["keras", "template", "bare", "ours"],
    )  # fmt: skip
    experiments: list[str] = field(default_factory=list)  # ours, of configs/experiment; []: that of the other keys
    target: float = number(0.99, above=0, most=1, unit="a share")  # the test accuracy to reach
    rounds: int = number(5, least=1)  # trainings of ours, bare and airbench
    peer_rounds: dict[str, int] = number(least=1)  # trainings of each of the others
    peer_epochs: dict[str, int] = number(least=1)  # of each of those
    peer_rates: dict[str, float] = number(above=0)  # learning rates that those of fast forms begin with
    seconds: float | None = number(None, above=0)  # after so many no turn begins but the first of a training; null: all
    airbench: str | None = path(None)  # folder of a checkout of github.com/KellerJordan/cifar10-airbench


SUITES = {
    schema.suite: schema
    for schema in (CpuKernelsConfig, CpuLayersConfig, LoopConfig, NetworksConfig, PeersConfig, TimeToAccuracyConfig)
}


@dataclass(kw_only=True)
class CompareConfig:
    """One run of `scripts/compare.py`; its arguments that are no key=value are `runs`."""

    runs: list[str] = path([], check_runs)  # run directories, folders of them, a multirun's folder, or patterns
    reference: str | None = None  # the network that others are set against; null: baseline, or the most MACs
    # validation accuracy whose time is given; null: one that all runs reach
    target: float | None = number(None, above=0, most=1, unit="a share")
    output: str = path(f"{REPOSITORY}/comparison")  # folder of the report


@dataclass(kw_only=True)
class ClaimsConfig:
    """One run of `scripts/claims.py`."""

    scale: str  # name of the effort, for the report
    only: list[str] | None = checked(check_once, None)  # such as [C7,C9]; null: all
    data: DataConfig
    recipe: RecipeConfig
    trainer: TrainerConfig
    seeds: list[int] = checked(check_seeds, [0, 1, 2, 3, 4])  # of each network that is trained
    stem_seeds: list[int] = checked(check_seeds, [*range(10)])  # likewise, of claim C14, where differences are small
    train_sizes: list[int] = number(least=1)  # training images of claim C10, beside all
    lengths: list[int] = number(least=1)  # epochs of claim C9
    frontier: str = path(f"{REPOSITORY}/docs/frontier")  # folder of its records, which claim C7 is read off
    runs: str = path(f"{REPOSITORY}/runs/claims")  # folder of the runs; finished ones are used again
    # folder of claims.md, with the figures and plots of each data set under claims/
    output: str = path(f"{REPOSITORY}/docs")


@dataclass(kw_only=True)
class FrontierConfig:
    """One run of `scripts/frontier.py`."""

    data: DataConfig
    recipe: RecipeConfig
    trainer: TrainerConfig
    epochs: dict[str, int] = number(least=1)  # of each training, by data set; recipe.epochs refers to it
    kinds: list[str] | None = checked(check_once, None)  # such as [separable,dense]; null: all
    # parameters that networks have as nearly as widths allow; a kind has none at a size that no width of it comes near
    sizes: list[int] = number([2_700, 5_100, 12_700, 28_000, 56_000, 112_000, 294_000], least=1)
    rates: list[float] = number([0.002, 0.006, 0.018], above=0)  # learning rates that validation chooses from
    tuning_seed: int = number(1000, least=0, below=2**32)  # of the trainings that choose
    seeds: list[int] = checked(check_seeds, [0, 1, 2, 3, 4])  # of those that are reported
    jobs: int = number(2, least=0)  # trainings at a time, each on one thread; 0: the page is written, nothing trained
    rounds: int = number(5, least=1)  # turns of each network in the measurement of times, once all are trained
    uncommitted: bool = False  # for a trial: also by code that is not committed
    runs: str = path(f"{REPOSITORY}/runs/frontier")  # folder of the runs; finished ones are used again
    output: str = path(f"{REPOSITORY}/docs/frontier")  # folder of the record, its page and its picture

    def __post_init__(self) -> None:
        check(self.tuning_seed not in self.seeds, "tuning_seed", self.tuning_seed, "a seed that is not one of seeds=")
        for key in ("sizes", "rates"):
            check_once(key, getattr(self, key))


@dataclass(kw_only=True)
class SearchConfig:
    """One run of `scripts/search.py`."""

    data: DataConfig
    recipe: RecipeConfig
    trainer: TrainerConfig
    # the budget, for one image: any of these; null is no limit
    parameters: int | None = number(None, least=1)
    macs: float | None = number(None, least=1)
    peak_bytes: int | None = number(None, least=1)  # of the maps that are alive at once, in int8
    latency_ms: float | None = number(None, above=0)  # of the network's file in ONNX, on one thread of this machine
    # costs to make small too, for a front of networks; none: the search is for the most accurate one
    minimize: list[str] = checked(check_costs, [])
    kinds: list[str] | None = checked(check_once, None)  # of convolutions, such as [separable]; null: all
    trials: int = number(100, least=1)  # networks that are drawn and trained
    rungs: list[int] = checked(check_rungs, [3, 9])  # epochs: of all networks, then of the best, and so on
    keep: float = number(0.25, above=0, most=1)  # the share of them that is trained longer each time
    winners: int = number(3, least=1)  # networks that are trained at last for recipe.epochs
    seed: int = number(0, least=0, below=2**32)  # of what is drawn, and of all trainings but the winners'
    seeds: list[int] = checked(check_seeds, [1, 2, 3])  # of the winners' trainings
    jobs: int = number(2, least=1)  # trainings at a time, each on one thread
    storage: str | None = None  # URL of a database for the trials; null: a file of SQLite in output
    output: str = path(f"{REPOSITORY}/runs/search")  # folder of what is found, of the trials and of their runs

    def __post_init__(self) -> None:
        check(self.seed not in self.seeds, "seed", self.seed, "a seed that is not one of seeds=")


@dataclass(kw_only=True)
class RecordsConfig:
    """One run of `scripts/records.py`."""

    records: str = path(f"{REPOSITORY}/benchmarks")  # folder of the records
    output: str = path(f"{REPOSITORY}/docs")  # folder of records.md


@dataclass(kw_only=True)
class CostConfig:
    """One run of `scripts/cost.py`."""

    run: str | None = path(None)  # a run's directory, whose network is counted, on its images; null: model, on data
    data: DataConfig  # gives the images' shape and the number of classes; its files are not read
    model: dict[str, Any] = checked(check_model, MODEL)  # `name` in sepconv.networks, and its options
    shape: list[int] | None = checked(check_shape, None)  # channels, height, width of other images; null: the data's
    classes: int | None = number(None, least=1, most=MOST)  # null: those of the data
    batch: int = number(1, least=1, below=2**31)  # images at once, for which weights are read once; figures are its
    dtype: str = one_of("fp32", "bf16", "int8")  # of maps and weights; int8 is counted, not measured
    format: str = one_of("table", "json", "csv", "markdown")  # csv: the layers alone
    device: str | None = one_of("cpu", "cuda", default=None)  # measure its roofline, layers and steps; null: none
    plot: str | None = path(None, check_picture)  # file of a picture of the roofline; needs device
    # file of a picture of each spatial layer's effective receptive field
    receptive_field: str | None = path(None, check_picture)
    sweep: bool = False  # instead: a standard and a separable layer, alone, as the input channels grow

    def __post_init__(self) -> None:
        if self.plot is not None and self.device is None:
            raise InputError("plot= draws what device= measures: give device=cpu or device=cuda too")
        if self.dtype == "int8" and self.device is not None:
            raise InputError("dtype=int8 is counted, not measured: leave device= out, or choose dtype=fp32 or bf16")
        for key in ("run", "shape", "classes", "plot", "receptive_field") if self.sweep else ():
            if getattr(self, key) is not None:
                raise InputError(f"{key}= is for a network, and sweep=true counts two layers alone: leave one out")


SCHEMAS = (TrainConfig, EvaluateConfig, PredictConfig, DemoConfig, ExportConfig, SeparateConfig, *SUITES.values(),
           CompareConfig, ClaimsConfig, FrontierConfig, SearchConfig, RecordsConfig, CostConfig)  # fmt: skip
