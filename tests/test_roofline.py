"""The roofline: what is computed from measurements, and that everything is measured. No test asserts on a time."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from sepconv.costs import closed_forms, roofline
from sepconv.costs.counting import layers
from sepconv.costs.plots import draw_roofline
from sepconv.costs.roofline import IN_CHANNELS, OUT_CHANNELS, SIDE, Machine, isolated, sweep, time_layers
from sepconv.networks import build
from sepconv.networks.blocks import depthwise_separable

CPU = torch.device("cpu")
MACHINE = Machine({"kind": "cpu", "name": "paper", "threads": 1}, bandwidth=1e9, flops={"fp32": 1e10, "bf16": 4e10})
SHAPE = (3, 16, 16)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small copies and products: that they run is tested, not what they reach."""
    monkeypatch.setattr(roofline, "COPIED", {"cpu": 2**20, "cuda": 2**20})
    monkeypatch.setattr(roofline, "MATRIX", {"cpu": 64, "cuda": 64})
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
        slower = replace(MACHINE, bandwidth=1e-3)
        assert slower.bound(some, "fp32") == "memory"
        assert slower.seconds(some, "fp32") > MACHINE.seconds(some, "fp32")


def test_machine_is_measured() -> None:
    machine = roofline.measure_machine(CPU)
    assert machine.device["kind"] == "cpu"
    assert machine.flops.keys() == {"fp32", "bf16"}
    assert min(machine.bandwidth, *machine.flops.values()) > 0


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
    assert found["network_seconds"] > 0
    table = command("cost", *arguments)
    assert table.status == 0, table.err
    for heading in ("predicted us", "measured us", "bound by", "GB/s"):
        assert heading in table.out
    rows = list(csv.DictReader(io.StringIO(command("cost", *arguments, "format=csv").out)))
    assert float(rows[0]["measured_seconds"]) > 0
    assert rows[-1]["name"] == "total"


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
