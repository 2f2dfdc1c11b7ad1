"""A machine's roofline, measured, and each layer's place on it: predicted against measured time.

A layer that moves some bytes and does some FLOP takes at least max(bytes / bandwidth, FLOP / peak) (Williams et al.
2009, "Roofline: an insightful visual performance model").
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sepconv import InputError
from sepconv.costs import counting
from sepconv.costs.counting import Layer
from sepconv.devices import describe_device, free_memory
from sepconv.networks.blocks import ConvNormActivation, depthwise_separable
from sepconv.terminal import track

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REPEATS = 11  # of each measurement, whose median counts
WARM_UP = 3

# sizes that no cache holds, and at which a matrix product reaches its peak: of a CPU, of a GPU
COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns
CACHE = {"cpu": 2**27, "cuda": 2**28}  # bytes that are written to empty the caches

# the sweep over input channels: those, the output's channels, and the side of the map
IN_CHANNELS = (1, 3, 8, 16, 32, 64, 128, 256, 512)
OUT_CHANNELS = 128
SIDE = 32


@dataclass(frozen=True)
class Machine:
    """What a device reaches at most, measured."""

    device: dict[str, Any]  # kind, name, threads of a CPU
    bandwidth: float  # bytes a second, of a copy, read and written
    flops: dict[str, float]  # FLOP a second of a matrix product, by dtype

    def seconds(self, layer: Layer, dtype: str) -> float:
        """The least time that a layer can take."""
        return max(layer.bytes(dtype) / self.bandwidth, 2 * layer.macs / self.flops[dtype])

    def bound(self, layer: Layer, dtype: str) -> str:
        """What limits a layer: memory, or arithmetic from the intensity on at which the two lines meet."""
        return "arithmetic" if layer.intensity(dtype) >= self.flops[dtype] / self.bandwidth else "memory"


def median_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median time of `call` after a warm-up, with empty caches: its bytes come from memory."""
    cache = torch.empty(CACHE[device.type], dtype=torch.uint8, device=device)
    times = []
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        for _ in range(WARM_UP):
            call()
        for _ in range(REPEATS):
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
    return statistics.median(times)


def measure_machine(device: torch.device) -> Machine:
    """What `device` reaches in a large copy and in large matrix products; fp32 is that without TF32."""
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    bandwidth = 2 * len(source) / median_seconds(partial(torch.empty_like(source).copy_, source), device)
    size, flops = MATRIX[device.type], {}
    for name, dtype in DTYPES.items():
        a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
        flops[name] = 2 * size**3 / median_seconds(partial(torch.mm, a, b, out=out), device)
    return Machine(describe_device(device), bandwidth, flops)


def time_layers(net: nn.Module, layers: list[Layer], device: torch.device, dtype: str) -> list[float]:
    """Seconds of each layer's forward pass, in isolation, in evaluation, on random maps, channels last.

    `layers` are `counting.layers` of this network, for the batch. Raises InputError where memory does not hold that.
    """
    check_memory(layers, device)
    timed = track(layers, "timing: layer")
    return [median_seconds(isolated(net, layer, device, DTYPES[dtype]), device) for layer in timed]


def check_memory(layers: list[Layer], device: torch.device) -> None:
    """Raises InputError unless the layer that moves most fits on `device`, with copies that its kernel may make."""
    need, free = 2 * max(layer.bytes("fp32") for layer in layers), free_memory(device)
    if need > free:
        raise InputError(
            f"a layer takes up to {need / 2**20:,.0f} MiB and {device} has {free / 2**20:,.0f} MiB free: "
            "choose a smaller batch"
        )


def isolated(net: nn.Module, layer: Layer, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """A call that runs `layer` alone."""

    def real(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        tensor = torch.randn(value.shape, device=device).to(dtype)
        return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    args, kwargs = tree_map(real, layer.arguments)
    if layer.call is not None:
        return lambda: layer.call(*args, **kwargs)
    module = copy.deepcopy(net.get_submodule(layer.name)).to(device, dtype).to(memory_format=torch.channels_last).eval()
    return lambda: module(*args, **kwargs)


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
    check_memory(counting.layers(net, shape, batch), device)
    net, images = place(net, shape, batch, device, dtype)
    return median_seconds(partial(net.eval(), images), device)


def place(
    net: nn.Module, shape: tuple[int, int, int], batch: int, device: torch.device, dtype: str
) -> tuple[nn.Module, Tensor]:
    """A copy of a network and random images for it (B, C, H, W), on `device` and channels last."""
    images = torch.randn(batch, *shape, device=device).to(DTYPES[dtype])
    net = copy.deepcopy(net).to(device, DTYPES[dtype])
    return net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
