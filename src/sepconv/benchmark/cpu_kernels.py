"""Each kernel of a separable block by itself, against what the machine reaches at most."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from sepconv import InputError
from sepconv.benchmark.journal import Journal
from sepconv.config.keys import CpuKernelsConfig
from sepconv.costs import roofline
from sepconv.costs.counting import DTYPES
from sepconv.costs.roofline import Machine
from sepconv.devices import find_device, prepare_memory
from sepconv.networks import fused
from sepconv.networks.fused import ops
from sepconv.tables import Column, Table
from sepconv.terminal import track

BLOCKS = tuple(product((16, 64, 256), (32, 8)))  # channels and side of their maps
BATCH = 128


def measure(config: CpuKernelsConfig, journal: Journal) -> dict[str, Any]:
    """The machine's peaks, and each kernel's time and shares of them, in fp32 and bf16.

    Bytes are those of its passes over maps; the bandwidth that they are set against is the best of several kernels
    over as many, which a cache may hold. Raises InputError for a trainer that is not the CPU, and without a compiler.
    """
    device = find_device(config.trainer)
    if device.type != "cpu":
        raise InputError(f"suite=cpu_kernels measures a CPU, and trainer means {device.type}: give trainer=cpu")
    if not all(map(fused.library, DTYPES.values())):
        raise InputError(
            "suite=cpu_kernels needs a C compiler, cc or what CC names, to build the kernels that it measures"
        )
    prepare_memory()  # as the trainer does
    machine = journal.part("peaks", lambda: asdict(roofline.measure_machine(device)))
    peaks = Machine.of(machine)
    rows: list[dict[str, Any]] = []
    for (channels, side), precision in track(list(product(BLOCKS, DTYPES)), "benchmark: kernel"):
        part = partial(measure_kernels, channels, side, precision, peaks, device)
        rows += journal.part(f"{channels} channels at {side}, {precision}", part)
    return {"suite": "cpu_kernels", "peaks": machine, "kernels": rows}


def measure_kernels(
    channels: int, side: int, precision: str, peaks: Machine, device: torch.device
) -> list[dict[str, Any]]:
    """A record of each kernel of a separable block of so many channels, on maps of side x side."""
    positions, size = BATCH * side**2, DTYPES[precision].itemsize
    records = []
    for name, maps, multiplied, call in kernel_calls(channels, side, DTYPES[precision]):
        moved, flop = maps * positions * channels * size, 2 * positions * channels * multiplied
        seconds = roofline.least_seconds(call, device)
        records.append({
            "kernel": name, "input": f"{BATCH} x {channels} x {side} x {side}", "precision": precision,
            "milliseconds": 1000 * seconds, "passes": maps, "bytes_per_second": moved / seconds,
            "share_of_bandwidth": moved / seconds / peaks.bandwidth_of(moved),
            "share_of_arithmetic": flop / seconds / peaks.flops[precision],
        })  # fmt: skip
    return records


def kernel_calls(channels: int, side: int, dtype: torch.dtype) -> list[tuple[str, int, int, Callable[[], None]]]:
    """The kernels of a separable block, by name: passes over maps, multiplications for each value of a map, a call."""
    shape = (BATCH, channels, side, side)
    x, convolved, out, grad, first, second = (
        torch.randn(shape).to(dtype, memory_format=torch.channels_last) for _ in range(6)
    )
    depthwise, pointwise = (
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.Conv2d(channels, channels, 1),
    )
    norm = nn.BatchNorm2d(channels)
    geometries = [ops.measure(conv, shape) for conv in (depthwise, pointwise)]
    saved, described = ops.take_note(norm, x)
    found, plain, relu = ops.find_room(saved), ops.Reading(x), 1
    between = ops.Reading(convolved, saved, relu)
    filters, matrix = depthwise.weight.detach(), pointwise.weight.detach()
    ops.call("norm_statistics", dtype, *ops.sizes(x), x, described)
    ops.call("finish_backward", dtype, *ops.sizes(x), grad, between.structure(), None, None, found.structure())
    last, inner = (
        ops.Gradient(maps.data_ptr(), out.data_ptr(), found.numbers.data_ptr(), kind)
        for maps, kind in ((grad, relu), (first, 0))
    )
    of_filters, of_matrix = torch.empty_like(filters), torch.empty_like(matrix)
    result, kept = found.structure(), (norm, saved, found, x, convolved, out, grad, first)  # which structures point to
    calls: list[tuple[str, int, int, tuple[Any, ...]]] = [
        ("depthwise_forward", 2, 9, (geometries[0], plain.structure(), filters, described, convolved)),
        ("pointwise_forward", 2, channels, (geometries[1], between.structure(), matrix, described, out)),
        ("finish_forward", 2, 0, (*ops.sizes(x), between.structure(), None, out)),
        ("finish_backward", 2, 0, (*ops.sizes(x), grad, between.structure(), None, None, result)),
        ("pointwise_backward", 4, 2 * channels,
         (geometries[1], last, between.structure(), matrix, None, first, of_matrix, result)),
        ("depthwise_backward", 4, 18,
         (geometries[0], inner, plain.structure(), filters, None, second, of_filters, None)),
    ]  # fmt: skip

    def call(name: str, given: tuple[Any, ...], kept: tuple[Any, ...] = kept) -> None:
        ops.call(name, dtype, *given)

    return [(name, maps, multiplied, partial(call, name, given)) for name, maps, multiplied, given in calls]


def table(record: dict[str, Any]) -> Table:
    """A row a kernel, block and precision."""
    columns = [
        *(Column(key, itemgetter(key), left=True) for key in ("kernel", "input", "precision")),
        Column("passes", lambda row: str(row["passes"])),
        Column("ms", lambda row: f"{row['milliseconds']:.3f}"),
        Column("GB/s", lambda row: f"{row['bytes_per_second'] / 1e9:.1f}"),
        Column("of the bandwidth", lambda row: f"{row['share_of_bandwidth']:.0%}"),
        Column("of the arithmetic", lambda row: f"{row['share_of_arithmetic']:.0%}"),
    ]
    return Table("kernels on a CPU", columns, record["kernels"])
