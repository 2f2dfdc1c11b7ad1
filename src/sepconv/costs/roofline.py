"""A machine's roofline, measured, and each layer's and each step's place on it: predicted against measured time.

A layer that moves some bytes and does some FLOP takes at least max(bytes / bandwidth, FLOP / peak) (Williams et al.
2009, "Roofline: an insightful visual performance model"). A step takes the sum over its calls of kernels
(`passes.list_calls`); what they take alone says how much of the rest is the kernels' and how much is between them, and
a step of very few images how much that is.
"""

import copy
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sepconv.costs import counting, passes
from sepconv.costs.counting import DTYPES, Layer
from sepconv.costs.passes import Call
from sepconv.devices import check_memory, describe_device
from sepconv.networks import fused
from sepconv.networks.blocks import ConvNormActivation, Residual, Sequence, depthwise_separable
from sepconv.terminal import track

REPEATS = 11  # of each measurement, whose median counts
WARM_UP = 3
LEAST = 0.02  # seconds of calls of which the shortest counts
TURNS = 64  # maps, at most, that a kernel alone writes in turn
STEPPED = 0.3  # seconds of steps whose median counts
FEW = 2  # images: the least that a norm's statistics can be of
SMALLER = "choose a smaller batch"  # where memory does not suffice

# the peaks are the best of several kernels at these sizes: of a CPU, of a GPU
WORKING_SETS = {"cpu": (2**18, 2**20, 2**22, 2**24, 2**26, 2**28), "cuda": (2**24, 2**26, 2**28, 2**30)}  # bytes
MATRICES = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # rows and columns
CHANNELS = {"cpu": (16, 32, 64, 128, 256), "cuda": (64, 128, 256, 512)}  # in and out
MAPS = {"cpu": 2**19, "cuda": 2**25}  # elements of a convolution's maps
PIXELS = 14  # their side
CACHE = {"cpu": 2**27, "cuda": 2**28}  # bytes that are written to empty the caches

# the sweep over input channels: those, the output's channels, and the side of the map
IN_CHANNELS = (1, 3, 8, 16, 32, 64, 128, 256, 512)
OUT_CHANNELS = 128
SIDE = 32


@dataclass(frozen=True)
class Machine:
    """What a device reaches at most, measured: the best of several kernels, shapes and sizes.

    Attributes:
        device: kind, name, threads of a CPU.
        bandwidths: by the bytes of a working set, bytes a second, read and written: those of caches and of memory.
        flops: by dtype, FLOP a second of a matrix product or convolution; fp32 is that without TF32.
    """

    device: dict[str, Any]
    bandwidths: dict[int, float]
    flops: dict[str, float]

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Machine":
        """The machine of a record in JSON, whose keys are all text."""
        bandwidths = {int(size): rate for size, rate in record["bandwidths"].items()}
        return cls(record["device"], bandwidths, record["flops"])

    @property
    def bandwidth(self) -> float:
        """Bytes a second of memory: of the largest working set, which no cache holds."""
        return self.bandwidths[max(self.bandwidths)]

    def bandwidth_of(self, size: int) -> float:
        """Bytes a second of a working set of so many bytes, which a cache may hold: the best of those not smaller."""
        below = max((each for each in self.bandwidths if each <= size), default=min(self.bandwidths))
        return max(rate for each, rate in self.bandwidths.items() if each >= below)

    def seconds(self, layer: Layer, dtype: str) -> float:
        """The least time that a layer can take whose maps come from memory."""
        return max(layer.bytes(dtype) / self.bandwidth, 2 * layer.macs / self.flops[dtype])

    def bound(self, layer: Layer, dtype: str) -> str:
        """What limits a layer: memory, or arithmetic from the intensity on at which the two lines meet."""
        return "arithmetic" if layer.intensity(dtype) >= self.flops[dtype] / self.bandwidth else "memory"

    def call_seconds(self, call: Call, dtype: str) -> float:
        """The least time of a call in a step, where maps may be in a cache."""
        return max(call.moved / self.bandwidth_of(call.moved), call.flop / self.flops[dtype])


def time_calls(call: Callable[[], Any], device: torch.device, cold: bool, least: float = 0) -> list[float]:
    """Seconds of each of REPEATS calls after a warm-up, or of more.

    Args:
        cold: with empty caches: the call's bytes come from memory.
        least: seconds that all of them take at least.
    """
    cache = torch.empty(CACHE[device.type] if cold else 0, dtype=torch.uint8, device=device)
    times: list[float] = []
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        for _ in range(WARM_UP):
            call()
        while len(times) < REPEATS or sum(times) < least:
            cache.zero_()
            if device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / 1000)
            else:
                before = time.perf_counter()
                call()
                times.append(time.perf_counter() - before)
    return times


@torch.no_grad()
def median_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median time of `call`, with empty caches, without gradients of its own."""
    return statistics.median(time_calls(call, device, cold=True))


def least_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """The shortest time of `call`, with its data in a cache: what else a machine does can only make it longer."""
    return min(time_calls(call, device, cold=False, least=LEAST))


def measure_machine(device: torch.device) -> Machine:
    """The peaks of `device`: of memory and caches in copies, sums and additions, of arithmetic in products."""
    with torch.no_grad():
        bandwidths = {size: measure_bandwidth(size, device) for size in track(WORKING_SETS[device.type], "peaks: size")}
        flops = {name: measure_flops(name, device) for name in DTYPES}
    return Machine(describe_device(device), bandwidths, flops)


def measure_bandwidth(size: int, device: torch.device) -> float:
    """Bytes a second, read and written, of the fastest of several kernels over a working set of `size` bytes."""
    rates = []
    for count, ways, kernel in TRAFFIC:
        tensors = [torch.ones(size // count // 4, device=device) for _ in range(count)]
        moved = ways * sum(tensor.nbytes for tensor in tensors)
        rates.append(moved / least_seconds(partial(kernel, *tensors), device))
    return max(rates)


# kernels over memory, with how many tensors they go over and how often: a copy, a sum, a triad, and two in place
TRAFFIC: tuple[tuple[int, int, Callable[..., Any]], ...] = (
    (2, 1, lambda a, b: b.copy_(a)),
    (1, 1, lambda a: a.sum()),
    (3, 1, lambda a, b, c: torch.add(a, b, alpha=3, out=c)),
    (1, 2, lambda a: a.add_(1)),
    (1, 2, lambda a: a.relu_()),
)


def measure_flops(dtype: str, device: torch.device) -> float:
    """FLOP a second of the fastest matrix product or convolution, 1 x 1 or 3 x 3, of several sizes.

    A transposed convolution is a convolution's data gradient.
    """
    rates = []
    for size in MATRICES[device.type]:
        a, b, out = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(3))
        rates.append(2 * size**3 / least_seconds(partial(torch.mm, a, b, out=out), device))
    for channels, size in product(CHANNELS[device.type], (1, 3)):
        batch = max(1, MAPS[device.type] // (channels * PIXELS**2))
        shapes = (batch, channels, PIXELS, PIXELS), (channels, channels, size, size)
        maps, weight = (
            torch.randn(shape, device=device).to(DTYPES[dtype], memory_format=torch.channels_last) for shape in shapes
        )
        for convolve in (F.conv2d, F.conv_transpose2d):
            seconds = least_seconds(partial(convolve, maps, weight, padding=size // 2), device)
            rates.append(2 * maps.numel() * channels * size**2 / seconds)
    return max(rates)


@dataclass(frozen=True)
class Step:
    """A network's training step, or its forward pass in evaluation, on a batch.

    Attributes:
        part: training, evaluation.
        calls: of kernels; each with the least time by the machine's peaks, and its own, alone.
        least_seconds: the sum of those by the peaks.
        alone_seconds: the sum of its calls', each made by itself, on maps that are as far from a cache as in the step:
            what the step would take if nothing were between them.
        between_seconds: what is between them, such as Python, torch's dispatch and the loss, taken to be the same for
            any number of images: of FEW images the median of the step, less its calls alone.
        measured_seconds: the median of the step.
    """

    part: str
    calls: list[dict[str, Any]]
    least_seconds: float
    alone_seconds: float
    between_seconds: float
    measured_seconds: float


def measure_step(
    net: nn.Module, shape: tuple[int, int, int], batch: int, machine: Machine, dtype: str, training: bool
) -> Step:
    """Predicts and measures a step of `net` on `batch` images (C, H, W), in mixed precision where `dtype` is bf16.

    Training is forward pass, loss, backward pass and AdamW's update, without the making of a batch.

    Raises:
        InputError: memory does not hold that.
    """
    device = torch.device(machine.device["kind"])
    check_memory(counting.training_bytes(net, shape, batch, dtype), device, "a training step", SMALLER)
    net = copy.deepcopy(net).to(device).to(memory_format=torch.channels_last).train(training)
    calls, alone_seconds, measured = time_step(net, shape, batch, device, dtype)
    _, few_alone, few = time_step(net, shape, FEW, device, dtype)
    least = [machine.call_seconds(call, dtype) for call in calls]
    records = [
        {"call": call.name, "moved_bytes": call.moved, "flop": call.flop, "least_seconds": fastest,
         "alone_seconds": by_itself, "share": fastest / by_itself}
        for call, fastest, by_itself in zip(calls, least, alone_seconds, strict=True)
    ]  # fmt: skip
    return Step("training" if training else "evaluation", records, sum(least), sum(alone_seconds),
                max(0.0, few - sum(few_alone)), measured)  # fmt: skip


def time_step(
    net: nn.Module, shape: tuple[int, int, int], batch: int, device: torch.device, dtype: str
) -> tuple[list[Call], list[float], float]:
    """The calls of a step of `net` in its mode, the seconds of each alone, and those of the step."""
    training = net.training
    calls = passes.list_calls(net, shape, batch, dtype, training, find_kernels(device, dtype))
    calls += [passes.update(net, dtype)] if training else []
    step = make_step(net, shape, batch, device, dtype)
    measured = statistics.median(time_calls(step, device, cold=False, least=STEPPED))
    kept = sum(call.made for call in calls) if training else 0
    timed = track(calls, "timing: kernel")
    seconds = [least_seconds(alone(net, call, device, dtype, kept), device) for call in timed]
    return calls, seconds, measured


def find_kernels(device: torch.device, dtype: str) -> str:
    """Whose kernels train on `device`: fused, or torch."""
    return "fused" if device.type == "cpu" and fused.library(DTYPES[dtype]) else "torch"


def mixed(device: torch.device, dtype: str) -> torch.autocast:
    """The context of mixed precision, where `dtype` is bf16; weights are converted at each use, as in training."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16", cache_enabled=False)


def make_step(
    net: nn.Module, shape: tuple[int, int, int], batch: int, device: torch.device, dtype: str
) -> Callable[[], Any]:
    """A step of `net`, on the device, as its mode has it: training or evaluation, on random images."""
    images = torch.randn(batch, *shape, device=device).to(memory_format=torch.channels_last)
    with torch.no_grad():
        labels = torch.randint(copy.deepcopy(net).eval()(images[:1]).shape[1], (batch,), device=device)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def train() -> None:
        with mixed(device, dtype):
            loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def evaluate() -> None:
        with torch.inference_mode(), mixed(device, dtype):
            net(images)

    return train if net.training else evaluate


def alone(net: nn.Module, call: Call, device: torch.device, dtype: str, kept: int) -> Callable[[], Any]:
    """A call that does `call` of `net` by itself, on random maps; `net` is on the device, in the mode of the step.

    What the call before has just written is the same each time, and so in a cache where that holds it. What a training
    step writes for its backward pass, and reads there a whole pass later, are other maps each time, of `kept` bytes.
    """
    if not call.layers:
        return make_update(net)
    compute = find_function(net, call, DTYPES[dtype])
    size = max(1, call.layers[0].read * counting.BYTES[dtype])
    turns = range(min(TURNS, max(1, kept // size)))
    inputs = [draw(call.layers[0], device, DTYPES[dtype]) for _ in (turns if call.direction != "forward" else (0,))]
    leaves = [[leaf for leaf in counting.tensors_in(each) if leaf.is_floating_point()] for each in inputs]
    for leaf in chain.from_iterable(leaves):
        leaf.requires_grad_(net.training and call.layers[0].gradient)
    copies = [tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, each) for each in inputs]

    def forward(args: Any, kwargs: Any) -> Any:
        with torch.set_grad_enabled(net.training), mixed(device, dtype):
            return compute(*args, **kwargs)

    if call.direction == "forward":
        # of a copy: an activation may overwrite it; as many as are kept, so that each call writes where memory was
        written = deque((forward(*copies[0]) for _ in turns), maxlen=len(turns))
        return lambda: written.append(forward(*copies[0]))
    learning = [p for p in compute.parameters() if p.requires_grad] if isinstance(compute, nn.Module) else []
    outputs = [forward(*each) for each in copies]
    gradient, places = torch.randn_like(outputs[0]), cycle(turns)

    def backward() -> None:
        place = next(places)
        maps = [] if call.direction == "weight gradient" else leaves[place]
        wanted = [
            *(leaf for leaf in maps if leaf.requires_grad),
            *([] if call.direction == "data gradient" else learning),
        ]
        torch.autograd.grad(outputs[place], wanted, gradient, retain_graph=True)

    return backward


def find_function(net: nn.Module, call: Call, dtype: torch.dtype) -> Callable[..., Any]:
    """What computes the group of layers of `call` on maps of `dtype`."""
    modules = [net.get_submodule(layer.name) for layer in call.layers if layer.call is None]
    if not modules:
        operation: Callable[..., Any] = call.layers[0].call
        return operation
    if len(modules) == 1 and call.owner != "fused":
        return modules[0]
    sums = [layer for layer in call.layers if layer.kind == "add"]
    if not sums:
        return Sequence(*modules).train(net.training)
    last = modules.pop() if call.layers[-1] is not sums[0] else None
    return Residual(nn.Sequential(*modules), Held(sums[0].output, dtype), last).train(net.training)


class Held(nn.Module):
    """A shortcut that gives the same random maps, of `shape` (B, C, H, W), whatever comes in."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.maps = torch.randn(shape).to(dtype, memory_format=torch.channels_last)

    def forward(self, maps: Tensor) -> Tensor:
        return self.maps


def make_update(net: nn.Module) -> Callable[[], Any]:
    """AdamW's step of a copy of `net`, whose gradients are zeros, and their end."""
    parameters = [p for p in copy.deepcopy(net).parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) for p in parameters]
    optimizer = torch.optim.AdamW(parameters, fused=True)

    def step() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    return step


def above_peak(shares: Mapping[str, float]) -> str | None:
    """What is wrong where a share of a peak, by the name of what has it, is above 1; None where none is."""
    above = sorted((share, name) for name, share in shares.items() if share > 1)
    if not above:
        return None
    share, name = above[-1]
    others = f", and {len(above) - 1} more above 100 %" if above[1:] else ""
    return (
        f"{name} reaches {share:.1%} of what was measured as this machine's peak{others}: the measurement is wrong; "
        "measure again while nothing else runs"
    )


def time_layers(net: nn.Module, layers: list[Layer], device: torch.device, dtype: str) -> list[float]:
    """Seconds of each layer's forward pass, in isolation, in evaluation, on random maps, channels last.

    `layers` are `counting.layers` of this network, for the batch. Raises InputError where memory does not hold that.
    """
    check_layers(layers, device)
    timed = track(layers, "timing: layer")
    return [median_seconds(isolated(net, layer, device, DTYPES[dtype]), device) for layer in timed]


def check_layers(layers: list[Layer], device: torch.device) -> None:
    """Raises InputError unless the layer that moves most fits on `device`, with copies that its kernel may make."""
    check_memory(2 * max(layer.bytes("fp32") for layer in layers), device, "a layer", SMALLER)


def isolated(net: nn.Module, layer: Layer, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """A call that runs `layer` alone."""
    args, kwargs = draw(layer, device, dtype)
    if layer.call is not None:
        return partial(layer.call, *args, **kwargs)
    module = copy.deepcopy(net.get_submodule(layer.name)).to(device, dtype).to(memory_format=torch.channels_last).eval()
    return partial(module, *args, **kwargs)


def draw(layer: Layer, device: torch.device, dtype: torch.dtype) -> Any:
    """Random arguments of `layer`, positional ones and those by name: its maps, channels last."""

    def real(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        tensor = torch.randn(value.shape, device=device).to(dtype)
        return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    return tree_map(real, layer.arguments)


def sweep(device: torch.device | None, dtype: str, batch: int) -> list[dict[str, Any]]:
    """A standard and a separable 3 x 3 convolution, no norm or activation, as the input channels grow (claim C8).

    The output has OUT_CHANNELS channels, so that the ratio of MACs is the same throughout; the map's side is SIDE.

    Returns a record for each of IN_CHANNELS: the costs of both, their names led by `standard_` and `separable_`, with
    times where there is a device, and the ratios of the second to the first.
    """
    layers: dict[str, Any] = {"standard": ConvNormActivation, "separable": partial(depthwise_separable, between=False)}
    records = []
    for channels in track(IN_CHANNELS, "layers: width"):
        shape = (channels, SIDE, SIDE)
        record: dict[str, Any] = {"in_channels": channels}
        for name, layer in layers.items():
            net = layer(channels, OUT_CHANNELS, norm_layer=None, activation_layer=None, bias=False)
            total = counting.total(counting.layers(net, shape, batch))
            record |= {
                f"{name}_parameters": total.parameters,
                f"{name}_macs": total.macs,
                f"{name}_bytes": total.bytes(dtype),
                f"{name}_flop_per_byte": total.intensity(dtype),
                f"{name}_seconds": None if device is None else time_network(net, shape, batch, device, dtype),
            }
        for figure in ("macs", "bytes", "seconds"):
            standard, separable = record[f"standard_{figure}"], record[f"separable_{figure}"]
            record[f"{figure}_ratio"] = separable / standard if standard else None
        records.append(record)
    return records


def time_network(net: nn.Module, shape: tuple[int, int, int], batch: int, device: torch.device, dtype: str) -> float:
    """Seconds of a network's forward pass, measured as `time_layers` does a layer's. Raises InputError as that does."""
    check_layers(counting.layers(net, shape, batch), device)
    net, images = place(net, shape, batch, device, dtype)
    return median_seconds(partial(net.eval(), images), device)


def place(
    net: nn.Module, shape: tuple[int, int, int], batch: int, device: torch.device, dtype: str
) -> tuple[nn.Module, Tensor]:
    """A copy of a network and random images for it (B, C, H, W), on `device` and channels last."""
    images = torch.randn(batch, *shape, device=device).to(DTYPES[dtype])
    net = copy.deepcopy(net).to(device, DTYPES[dtype])
    return net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
