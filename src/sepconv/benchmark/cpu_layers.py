"""What is made faster on a CPU against torch's own: layers, blocks and whole networks by the fused kernels."""

from collections.abc import Callable
from functools import partial
from itertools import product
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sepconv import InputError, networks
from sepconv.benchmark.journal import Journal
from sepconv.benchmark.networks import take_turns
from sepconv.config.keys import CpuLayersConfig
from sepconv.costs.counting import DTYPES
from sepconv.devices import find_device, prepare_memory
from sepconv.networks import cpu, fused
from sepconv.networks.blocks import ConvNormActivation, depthwise_separable
from sepconv.study.statistics import spread, write_spread
from sepconv.tables import Column, Table
from sepconv.terminal import CONSOLE, track


class Case(NamedTuple):
    """A layer, torch's own for it, and a use of both."""

    layer: Callable[[], nn.Module]
    stock: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]  # of the input maps (B, C, H, W)
    backward: bool = True  # else no gradient goes through
    learns: bool = True  # whether the input has a gradient too; images have none
    before: type[nn.Module] = nn.Identity  # a layer before, which works on the gradient's layout


def fusible(make: Callable[[], nn.Module], shape: tuple[int, int, int], learns: bool = True) -> Case:
    """A block or network, on a batch of maps of `shape` (C, H, W), by the fused kernels and by torch's."""
    return Case(make, lambda: fused.set_kernels(make(), "torch"), (128, *shape), learns=learns)


BLOCKS: dict[str, Callable[..., nn.Module]] = {"separable": depthwise_separable, "dense": ConvNormActivation}
NETWORKS: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "separable": ((1, 28, 28), {}),
    "mobilenet_v2": ((3, 32, 32), {}),
    "resnet": ((3, 32, 32), {"conv": "separable", "depth": 20}),
    "baseline": ((1, 28, 28), {}),
}
STRIDED: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 64, "bias": False}
DOUBLED: dict[str, Any] = {"kernel_size": 3, "groups": 32, "bias": False}
CASES = {
    "depthwise, stride 2": Case(
        partial(cpu.DepthwiseConv2d, 64, 64, **STRIDED), partial(nn.Conv2d, 64, 64, **STRIDED), (128, 64, 14, 14)
    ),
    "depthwise, two filters a channel": Case(
        partial(cpu.DepthwiseConv2d, 32, 64, **DOUBLED), partial(nn.Conv2d, 32, 64, **DOUBLED), (128, 32, 13, 13)
    ),
    "ReLU and GlobalAvgPool": Case(
        cpu.GlobalAvgPool, partial(nn.AdaptiveAvgPool2d, 1), (128, 128, 7, 7), before=nn.ReLU
    ),
    "ReLU and Flatten": Case(cpu.Flatten, nn.Flatten, (128, 64, 5, 5), before=nn.ReLU),
    "HalvingMaxPool": Case(cpu.HalvingMaxPool, partial(nn.MaxPool2d, 2), (128, 32, 26, 26), backward=False),
    **{
        f"{kind} block, {channels} channels at {side}": fusible(
            partial(BLOCKS[kind], channels, channels), (channels, side, side)
        )
        for kind, channels, side in product(BLOCKS, (16, 32, 64, 128, 256), (32, 16, 8))
    },
    **{
        f"network {name}": fusible(partial(networks.build, name, shape, 10, **options), shape, learns=False)
        for name, (shape, options) in NETWORKS.items()
    },
}


def measure(config: CpuLayersConfig, journal: Journal) -> dict[str, Any]:
    """The time of each case's layer and of torch's own, in fp32 and bf16, on maps in channels-last form.

    The two take turns, `config.rounds` each of half a second or more. For each case and precision the record has the
    milliseconds of a call and the ratios of torch's to the layer's, of each turn. Raises InputError for a trainer that
    is not the CPU.
    """
    device = find_device(config.trainer)
    if device.type != "cpu":
        raise InputError(f"suite=cpu_layers measures a CPU, and trainer means {device.type}: give trainer=cpu")
    prepare_memory()  # as the trainer does
    rows = []
    for name, precision in track(list(product(CASES, DTYPES)), "benchmark: layer"):
        row = journal.part(f"{name}, {precision}", partial(measure_layer, name, precision, config.rounds, device))
        rows.append(row)
        ratio = row["times_as_fast"]["median"]
        CONSOLE.print(f"{name}, {precision}: {ratio:.2f} times as fast as torch's own", soft_wrap=True)
    return {"suite": "cpu_layers", "layers": rows}


def measure_layer(name: str, precision: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """The record of a case in a precision."""
    case = CASES[name]
    maps = torch.randn(case.shape).to(DTYPES[precision], memory_format=torch.channels_last)
    calls = {key: use(case, make(), maps) for key, make in (("layer", case.layer), ("torch", case.stock))}
    rates = take_turns(calls, rounds, device)
    times = {key: [1000 / rate for rate in rates[key]] for key in rates}
    return {
        "layer": name,
        "input": " x ".join(map(str, case.shape)),
        "pass": "forward and backward" if case.backward else "forward",
        "precision": precision,
        "milliseconds": {key: spread(values) for key, values in times.items()},
        "times_as_fast": spread([b / a for a, b in zip(times["layer"], times["torch"], strict=True)]),
    }


def use(case: Case, layer: nn.Module, maps: Tensor) -> Callable[[], None]:
    """A call that runs `layer` on `maps` (B, C, H, W) as a network would, and backward where the case says so."""
    net = nn.Sequential(case.before(), layer).to(memory_format=torch.channels_last)
    inputs = maps.clone().requires_grad_(case.backward and case.learns)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=maps.dtype == torch.bfloat16)
    with autocast():
        gradient = torch.randn_like(net(inputs))

    def call() -> None:
        with autocast():
            output = net(inputs)
        if case.backward:
            inputs.grad = None
            net.zero_grad()
            output.backward(gradient)

    return call


def table(record: dict[str, Any]) -> Table:
    """A row a case and precision."""
    columns = [
        *(Column(key, itemgetter(key), left=True) for key in ("layer", "input", "pass", "precision")),
        Column("ms", lambda row: write_spread(row["milliseconds"]["layer"], 3)),
        Column("torch's ms", lambda row: write_spread(row["milliseconds"]["torch"], 3)),
        Column("times as fast", lambda row: write_spread(row["times_as_fast"])),
        Column("turns", lambda row: str(len(row["times_as_fast"]["turns"]))),
    ]
    return Table("layers on a CPU", columns, record["layers"])
