"""The roofline: what is computed from measurements, and that everything is measured. No test asserts on a time."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SLIM, Outcome
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from sepconv.costs import closed_forms, roofline
from sepconv.costs.counting import layers
from sepconv.costs.passes import Call, list_calls
from sepconv.costs.plots import draw_roofline
from sepconv.costs.roofline import IN_CHANNELS, OUT_CHANNELS, SIDE, Machine, isolated, sweep, time_layers
from sepconv.networks import build
from sepconv.networks.blocks import depthwise_separable

CPU = torch.device("cpu")
MACHINE = Machine(
    {"kind": "cpu", "name": "paper", "threads": 1},
    bandwidths={1000: 4e9, 10_000: 5e9, 100_000: 1e9},
    flops={"fp32": 1e10, "bf16": 4e10},
)
SHAPE = (3, 16, 16)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small kernels: that they run is tested, not what they reach."""
    monkeypatch.setattr(roofline, "WORKING_SETS", dict.fromkeys(("cpu", "cuda"), (2**12, 2**16)))
    monkeypatch.setattr(roofline, "MATRICES", dict.fromkeys(("cpu", "cuda"), (16, 64)))
    monkeypatch.setattr(roofline, "CHANNELS", dict.fromkeys(("cpu", "cuda"), (8, 16)))
    monkeypatch.setattr(roofline, "MAPS", dict.fromkeys(("cpu", "cuda"), 2**12))
    monkeypatch.setattr(roofline, "LEAST", 0)
    monkeypatch.setattr(roofline, "STEPPED", 0)
    monkeypatch.setattr(roofline, "CACHE", {"cpu": 2**10, "cuda": 2**10})
    monkeypatch.setattr(roofline, "REPEATS", 3)


def test_prediction_is_the_larger_of_two_times() -> None:
    (layer,) = layers(nn.Conv2d(3, 4, 3, bias=False), (3, 5, 5))
    assert MACHINE.seconds(layer, "fp32") == layer.bytes("fp32") / 1e9  # 876 ns, its 1,944 FLOP would take 194
    assert MACHINE.bound(layer, "fp32") == "memory"
    busy = replace(layer, macs=10 * layer.macs)
    assert MACHINE.seconds(busy, "fp32") == 2 * busy.macs / 1e10
    assert MACHINE.bound(busy, "fp32") == "arithmetic"
    assert MACHINE.bound(busy, "bf16") == "arithmetic"
    assert MACHINE.seconds(busy, "bf16") == 2 * busy.macs / 4e10
    for some in (layer, busy):
        slower = replace(MACHINE, bandwidths={1: 1e-3})
        assert slower.bound(some, "fp32") == "memory"
        assert slower.seconds(some, "fp32") > MACHINE.seconds(some, "fp32")


def test_bandwidth_of_a_working_set() -> None:
    """That of the cache which holds it, or of one further away where that is faster."""
    expected = {1: 5e9, 1000: 5e9, 10_000: 5e9, 99_999: 5e9, 100_000: 1e9, 10**9: 1e9}
    assert {size: MACHINE.bandwidth_of(size) for size in expected} == expected
    assert MACHINE.bandwidth == 1e9
    call = Call("torch", "product", "forward", moved=50_000, flop=1000)
    assert MACHINE.call_seconds(call, "fp32") == 50_000 / 5e9
    assert MACHINE.call_seconds(replace(call, flop=10**6), "bf16") == 10**6 / 4e10


def test_machine_is_measured() -> None:
    machine = roofline.measure_machine(CPU)
    assert machine.device["kind"] == "cpu"
    assert machine.flops.keys() == {"fp32", "bf16"}
    assert list(machine.bandwidths) == [2**12, 2**16]
    assert min(*machine.bandwidths.values(), *machine.flops.values()) > 0


def test_peaks_are_the_best_of_all_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel is called at each size; whichever is fastest for its work sets the peak."""
    called = []

    def least_seconds(call: Callable[[], Any], device: torch.device) -> float:
        called.append(call())
        return float(len(called) != fastest) + 1  # one kernel takes half of the others' time

    monkeypatch.setattr(roofline, "least_seconds", least_seconds)
    products = [2 * side**3 for side in (16, 64)]
    batch = {channels: 2**12 // (channels * 14**2) for channels in (8, 16)}
    products += [2 * max(1, batch[c]) * c * 14**2 * c * size**2 for c in (8, 16) for size in (1, 1, 3, 3)]
    for fastest in range(1, len(products) + 1):
        called.clear()
        expected = max(work / (1 if place == fastest else 2) for place, work in enumerate(products, 1))
        assert roofline.measure_flops("fp32", CPU) == expected
        assert len(called) == len(products)
    moved = [4096, 4096, 3 * 1364, 8192, 8192]  # by a copy, a sum, a triad, twice in place
    for fastest in range(1, len(moved) + 1):
        called.clear()
        rate = roofline.measure_bandwidth(4096, CPU)
        assert rate == max(w / (1 if place == fastest else 2) for place, w in enumerate(moved, 1))
        assert len(called) == len(moved)


def test_a_share_above_a_peak_is_an_error() -> None:
    assert roofline.above_peak({"stem": 0.9, "head": 1.0}) is None
    message = roofline.above_peak({"stem": 1.051, "head": 1.32, "pool": 0.2})
    assert message is not None
    assert "head reaches 132.0%" in message
    assert "1 more above 100 %" in message
    assert "measure again" in message


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    ["separable", "mobilenet_v3_small", "resnet", "airbench", "tiny", pytest.param("xception", marks=pytest.mark.slow)],
)
def test_every_call_of_a_step_runs_alone(name: str, dtype: str) -> None:
    net = build(name, (3, 32, 32), 10, **SLIM.get(name, {}))
    for training in (True, False):
        step = roofline.measure_step(net, (3, 32, 32), 4, MACHINE, dtype, training)
        assert step.part == ("training" if training else "evaluation")
        assert step.alone_seconds == pytest.approx(sum(call["alone_seconds"] for call in step.calls))
        assert step.least_seconds == pytest.approx(sum(call["least_seconds"] for call in step.calls))
        assert min(step.measured_seconds, *(call["alone_seconds"] for call in step.calls)) > 0
        assert step.between_seconds >= 0
        for call in step.calls:
            assert call["share"] == pytest.approx(call["least_seconds"] / call["alone_seconds"])
    assert all(p.grad is None for p in net.parameters())  # of a copy


def test_sums_alone_are_of_the_type_of_the_step() -> None:
    """Else each timed call would convert what is added, as no step does."""
    net = build("resnet", SHAPE, 10, **SLIM["resnet"]).train()
    calls = list_calls(net, SHAPE, 2, "bf16", True, "fused")
    functions = [roofline.find_function(net, call, torch.bfloat16) for call in calls if call.layers]
    held = [each for function in functions if isinstance(function, nn.Module) for each in function.modules()
            if isinstance(each, roofline.Held)]  # fmt: skip
    assert {each.maps.dtype for each in held} == {torch.bfloat16}


class Residual(nn.Module):
    """Every kind of layer: convolutions, a gate, an addition and a concatenation between modules."""

    def __init__(self) -> None:
        super().__init__()
        self.separable, self.gate = depthwise_separable(3, 3), SqueezeExcitation(3, 2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))

    def forward(self, images: Tensor) -> Tensor:
        maps = images + self.gate(self.separable(images))
        return self.head(torch.cat([maps, images.relu()], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_run_alone_on_their_shapes(dtype: torch.dtype) -> None:
    net = Residual()
    rows = layers(net, SHAPE, batch=2)
    assert {"add", "mul", "cat", "relu", "depthwise", "pointwise", "linear"} <= {row.kind for row in rows}
    for row in rows:
        out = isolated(net, row, CPU, dtype)()
        assert (tuple(out.shape), out.dtype) == (row.output, dtype), row.name
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_every_layer_is_timed() -> None:
    net = Residual()
    rows = layers(net, SHAPE, batch=2)
    for dtype in ("fp32", "bf16"):
        times = time_layers(net, rows, CPU, dtype)
        assert len(times) == len(rows)
        assert min(times) > 0


def test_sweep_of_input_channels() -> None:
    """The ratio of MACs is the same throughout (C4); a separable layer always moves more bytes of maps (C8)."""
    rows = sweep(None, "fp32", batch=2)
    assert [row["in_channels"] for row in rows] == list(IN_CHANNELS)
    for row in rows:
        channels, sides = row["in_channels"], (SIDE, SIDE)
        costs = {
            "standard": closed_forms.standard(channels, OUT_CHANNELS, 3, sides, padding=1),
            "separable": closed_forms.separable(channels, OUT_CHANNELS, 3, sides, padding=1),
        }
        for name, cost in costs.items():
            assert (row[f"{name}_parameters"], row[f"{name}_macs"]) == (cost.parameters, 2 * cost.macs)
        assert row["macs_ratio"] == pytest.approx(1 / OUT_CHANNELS + 1 / 9)
        assert row["standard_seconds"] is row["separable_seconds"] is None
        maps = {name: row[f"{name}_bytes"] - 4 * cost.parameters for name, cost in costs.items()}
        # the map between, written and read
        assert maps["separable"] - maps["standard"] == 2 * 4 * 2 * channels * SIDE**2
    timed = sweep(CPU, "bf16", batch=1)
    assert all(row["standard_seconds"] and row["separable_seconds"] for row in timed)


def test_picture() -> None:
    net = Residual()
    rows = layers(net, SHAPE)
    figure = draw_roofline(MACHINE, rows, [2 * MACHINE.seconds(row, "fp32") for row in rows], "fp32")
    left, right = figure.axes
    drawn = sum(len(points.get_offsets()) for points in left.collections)
    assert drawn == sum(row.macs > 0 for row in rows)
    assert sum(len(points.get_offsets()) for points in right.collections) == len(rows)
    for points in right.collections:
        for predicted, measured in points.get_offsets():
            assert measured == pytest.approx(2 * predicted)
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert "fp32: 10 GFLOP/s" in labels
    assert "depthwise" in labels


def test_command(command: Callable[..., Outcome], tmp_path: Path) -> None:
    picture = tmp_path / "roofline.svg"
    arguments = ["model=baseline_separable", "data=mnist", "device=cpu", "batch=2"]
    outcome = command("cost", *arguments, "format=json", f"plot={picture}")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert "<svg" in picture.read_text()
    machine = found["machine"]
    for row in found["layers"]:
        least = max(
            (row["activation_bytes"] + row["weight_bytes"]) / machine["bandwidth"],
            2 * row["macs"] / machine["flops"]["fp32"],
        )
        assert row["predicted_seconds"] == pytest.approx(least)
        assert row["measured_seconds"] > 0
        assert row["flop_per_second"] == pytest.approx(2 * row["macs"] / row["measured_seconds"])
        assert row["bound"] in ("memory", "arithmetic")
    assert found["total"]["measured_seconds"] == pytest.approx(sum(row["measured_seconds"] for row in found["layers"]))
    for row in (*found["layers"], found["total"]):
        assert row["share"] == pytest.approx(row["predicted_seconds"] / row["measured_seconds"])
    steps = [(step["network"], step["part"]) for step in found["steps"]]
    nets = ("baseline_separable", "dense twin")
    assert steps == [(name, part) for part in ("training", "evaluation") for name in nets]
    separable, dense = found["steps"][:2]
    macs = found["total"]["macs"] + found["total"]["macs_backward"]
    assert sum(call["flop"] for call in separable["calls"]) == 2 * macs < sum(c["flop"] for c in dense["calls"])
    table = command("cost", *arguments)
    assert table.status == 0, table.err
    for heading in ("predicted us", "measured us", "bound by", "GB/s", "of the roof", "measured / alone and between"):
        assert heading in table.out
    rows = list(csv.DictReader(io.StringIO(command("cost", *arguments, "format=csv").out)))
    assert float(rows[0]["measured_seconds"]) > 0
    assert rows[-1]["name"] == "total"


def test_command_says_that_a_peak_is_none(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow = replace(MACHINE, bandwidths={1: 1.0}, flops={"fp32": 1.0, "bf16": 1.0})
    monkeypatch.setattr(roofline, "measure_machine", lambda device: slow)
    outcome = command("cost", "model=tiny", "data=mnist", "device=cpu", "format=json")
    assert outcome.status == 0, outcome.err
    assert "the measurement is wrong" in caplog.text
    assert "measure again" in caplog.text
    steps = json.loads(outcome.out)["steps"]
    assert {step["part"] for step in steps} == {"evaluation"}  # one image is not trained


def test_command_sweep(command: Callable[..., Outcome]) -> None:
    rows = list(csv.DictReader(io.StringIO(command("cost", "sweep=true", "format=csv").out)))
    assert [int(row["in_channels"]) for row in rows] == list(IN_CHANNELS)
    assert {row["standard_seconds"] for row in rows} == {""}
    assert {round(float(row["macs_ratio"]), 6) for row in rows} == {round(1 / OUT_CHANNELS + 1 / 9, 6)}
    outcome = command("cost", "sweep=true", "format=json", "device=cpu")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["device"]["kind"] == "cpu"
    assert all(row["seconds_ratio"] > 0 for row in found["sweep"])
    assert "C_in" in command("cost", "sweep=true", "format=markdown").out


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_gpu(command: Callable[..., Outcome], dtype: str) -> None:
    outcome = command("cost", "data=cifar10", "device=cuda", "batch=4", f"dtype={dtype}", "format=json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["machine"]["device"]["kind"] == "cuda"
    net = build("separable", (3, 32, 32), 10)
    assert len(found["layers"]) == len(layers(net, (3, 32, 32)))
    assert all(row["measured_seconds"] > 0 for row in found["layers"])
