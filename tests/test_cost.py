"""Costs against hand counts, closed forms, torch's own counter and published figures."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torchvision
from conftest import REPOSITORY, Outcome, data_config, real, refused
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sepconv import InputError
from sepconv.costs import closed_forms, counting
from sepconv.costs.closed_forms import Cost, output_sides, separable_ratio
from sepconv.costs.counting import layers, total
from sepconv.costs.report import twin_record
from sepconv.costs.twin import closed_form, compare_blocks, dense_twin, separable_pairs
from sepconv.data.datasets import SHAPES, image_shape, load
from sepconv.networks import build, names
from sepconv.networks.blocks import ConvNormActivation
from sepconv.networks.cpu import DepthwiseConv2d, GlobalAvgPool

Command = Callable[..., Outcome]
IMAGENET = (3, 224, 224)


def torchvision_net(name: str) -> nn.Module:
    """A network of torchvision's on the meta device, without weights."""
    with torch.device("meta"):
        return torchvision.models.get_model(name)


def counted(net: nn.Module, shape: tuple[int, ...], backward: bool = False) -> int:
    """MACs of a forward pass over one image, and of the backward pass where wanted, by torch's counter."""
    net = net.to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        out = net(torch.empty(1, *shape, device="meta"))
        if backward:
            out.sum().backward()
    return counter.get_total_flops() // 2


# The closed forms


def test_worked_example() -> None:
    """5 x 5 x 3 to 4 maps by a 3 x 3 kernel, without padding and with one pixel of it (claim C6)."""
    assert closed_forms.standard(3, 4, 3, (5, 5)) == Cost(108, 972)
    assert closed_forms.depthwise(3, 3, (5, 5)) == Cost(27, 243)
    assert closed_forms.pointwise(3, 4, (3, 3)) == Cost(12, 108)
    assert closed_forms.separable(3, 4, 3, (5, 5)) == Cost(39, 351)
    assert closed_forms.standard(3, 4, 3, (5, 5), padding=1).macs == 2700
    assert closed_forms.separable(3, 4, 3, (5, 5), padding=1).macs == 975
    assert separable_ratio(4, 3) == Fraction(39, 108) == Fraction(351, 972)


def test_ratio() -> None:
    """8 to 9 times fewer for K = 3 and C_out = 256 (claim C4); K² is only the limit (claim C5)."""
    assert 8 < 1 / separable_ratio(256, 3) < 9
    assert separable_ratio(256, 3) > Fraction(1, 9)
    assert separable_ratio(10**9, 3) - Fraction(1, 9) == Fraction(1, 10**9)
    assert separable_ratio(1, 3) > 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: closed_forms.standard(3, 4, 7, (5, 5)), "7 x 7 positions is larger than the padded input, 5 x 5"),
        (
            lambda: closed_forms.standard(3, 4, 3, (5, 5), dilation=3),
            "7 x 7 positions is larger than the padded input, 5 x 5",
        ),
        (lambda: closed_forms.separable(3, 4, 5, (2, 9), padding=1), "larger than the padded input, 4 x 11"),
        (lambda: closed_forms.standard(3, 4, 3, (5, 5), stride=0), "stride=0 is out of range: 1 or more"),
        (lambda: closed_forms.depthwise(3, 0, (5, 5)), "kernel_size=0"),
        (lambda: closed_forms.depthwise(3, 3, (5, 5), padding=-1), "padding=-1 is out of range: 0 or more"),
        (lambda: closed_forms.separable(3, 4, 3, (5, 5), dilation=0), "dilation=0"),
        (lambda: closed_forms.standard(6, 4, 3, (5, 5), groups=4), "groups=4 does not divide both in_channels=6"),
        (lambda: closed_forms.standard(4, 6, 3, (5, 5), groups=4), "groups=4 does not divide both"),
        (lambda: closed_forms.standard(4, 6, 3, (5, 5), groups=0), "groups=0"),
        (lambda: closed_forms.pointwise(0, 6, (5, 5)), "in_channels=0"),
        (lambda: closed_forms.pointwise(3, 0, (5, 5)), "out_channels=0"),
    ],
)
def test_impossible_shapes(call: Callable[[], Cost], words: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


geometries = st.fixed_dictionaries(
    {
        "kernel_size": st.integers(1, 5),
        "stride": st.integers(1, 4),
        "padding": st.integers(0, 4),
        "dilation": st.integers(1, 3),
    }
)
sides = st.tuples(st.integers(1, 20), st.integers(1, 20))
channels = st.integers(1, 6)


def possible(sides: tuple[int, int], geometry: dict[str, int]) -> bool:
    return geometry["dilation"] * (geometry["kernel_size"] - 1) + 1 <= min(sides) + 2 * geometry["padding"]


@given(channels, channels, st.integers(1, 6), sides, geometries)
@settings(deadline=None, max_examples=150)
def test_standard_against_counters(
    ins: int, outs: int, groups: int, sides: tuple[int, int], geometry: dict[str, int]
) -> None:
    """The closed form, the layer's row, torch's counter and torch's output shape agree."""
    assume(possible(sides, geometry))
    ins, outs = ins * groups, outs * groups
    conv = nn.Conv2d(ins, outs, groups=groups, bias=False, **geometry)  # type: ignore[arg-type]
    expected = closed_forms.standard(ins, outs, sides=sides, groups=groups, **geometry)
    (layer,) = layers(conv, (ins, *sides))
    assert Cost(layer.parameters, layer.macs) == expected
    assert counted(conv, (ins, *sides)) == expected.macs
    assert (
        layer.output
        == (1, outs, *output_sides(sides, **geometry))
        == conv(torch.empty(layer.input, device="meta")).shape
    )
    assert layer.macs_weight_gradient == layer.macs
    assert layer.macs_data_gradient == 0  # the first layer


@given(channels, sides, geometries)
@settings(deadline=None, max_examples=100)
def test_depthwise_against_counters(ins: int, sides: tuple[int, int], geometry: dict[str, int]) -> None:
    assume(possible(sides, geometry))
    conv = DepthwiseConv2d(ins, ins, groups=ins, bias=False, **geometry)  # type: ignore[arg-type]
    expected = closed_forms.depthwise(ins, sides=sides, **geometry)
    assert counting.parameters(conv) == expected.parameters
    assert counting.macs(conv, (ins, *sides)) == counted(conv, (ins, *sides)) == expected.macs


@given(channels, channels, sides, geometries)
@settings(deadline=None, max_examples=100)
def test_separable_against_counters(ins: int, outs: int, sides: tuple[int, int], geometry: dict[str, int]) -> None:
    """The two layers together, and their exact ratio to the standard convolution."""
    assume(possible(sides, geometry))
    net = nn.Sequential(
        nn.Conv2d(ins, ins, groups=ins, bias=False, **geometry),  # type: ignore[arg-type]
        nn.Conv2d(ins, outs, 1, bias=False),
    )
    expected = closed_forms.separable(ins, outs, sides=sides, **geometry)
    assert Cost(counting.parameters(net), counting.macs(net, (ins, *sides))) == expected
    assert counted(net, (ins, *sides)) == expected.macs
    standard = closed_forms.standard(ins, outs, sides=sides, **geometry)
    ratio = separable_ratio(outs, geometry["kernel_size"])
    assert Fraction(expected.parameters, standard.parameters) == Fraction(expected.macs, standard.macs) == ratio


@given(sides, geometries)
@settings(deadline=None, max_examples=100)
def test_impossible_where_torch_fails(sides: tuple[int, int], geometry: dict[str, int]) -> None:
    conv = nn.Conv2d(2, 3, **geometry)  # type: ignore[arg-type]
    if possible(sides, geometry):
        assert conv(torch.empty(1, 2, *sides)).shape[2:] == output_sides(sides, **geometry)
    else:
        with pytest.raises(InputError):
            closed_forms.standard(2, 3, sides=sides, **geometry)
        with pytest.raises(InputError, match="do not go through this network"):
            layers(conv, (2, *sides))


# Networks


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 48), pytest.param((3, 32, 32), marks=pytest.mark.slow)])
def test_networks_against_torch(name: str, shape: tuple[int, int, int]) -> None:
    net = build(name, shape, 10)
    rows = layers(net, shape)
    assert counting.macs(net, shape) == total(rows).macs == counted(net, shape)
    assert total(rows).parameters == counting.parameters(net) == sum(p.numel() for p in net.parameters())
    assert rows[0].input == (1, *shape)
    assert rows[-1].output == (1, 10)
    assert total(rows).receptive_field(shape) == shape[1:]
    first = next(layer for layer in rows if layer.macs)
    assert total(rows).macs_backward == 2 * total(rows).macs - first.macs


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "densenet121", "vit_b_16"])
def test_torchvision_against_torch(name: str) -> None:
    net = torchvision_net(name)
    sums = total(layers(net, IMAGENET))
    assert sums.parameters == sum(p.numel() for p in net.parameters())
    assert sums.macs == counted(net, IMAGENET)


def test_mobilenet_v2_published() -> None:
    """3.5 M parameters and 300.8 M MACs at 224 x 224, as torchvision states them for its weights."""
    sums = total(layers(torchvision_net("mobilenet_v2"), IMAGENET))
    assert sums.parameters == 3_504_872
    assert sums.macs == counted(torchvision_net("mobilenet_v2"), IMAGENET) == 300_774_272


def test_batch_multiplies_all_but_weights() -> None:
    net = build("separable", (3, 32, 32), 10)
    one, many = (total(layers(net, (3, 32, 32), batch)) for batch in (1, 16))
    for name in ("macs", "macs_backward", "read", "written"):
        assert getattr(many, name) == 16 * getattr(one, name)
    assert (many.parameters, many.weights) == (one.parameters, one.weights)
    assert many.intensity("fp32") > one.intensity("fp32")


# The backward pass


@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_backward_against_torch(name: str) -> None:
    """Dense networks, whose backward pass torch counts right; the first layer needs no data gradient."""
    net = torchvision_net(name)
    sums = total(layers(net, IMAGENET))
    assert sums.macs + sums.macs_backward == counted(net, IMAGENET, backward=True)


@given(channels, channels, sides, geometries)
@settings(deadline=None, max_examples=50)
def test_backward_of_dense_layers_against_torch(
    ins: int, outs: int, sides: tuple[int, int], geometry: dict[str, int]
) -> None:
    assume(possible(sides, geometry))
    net = nn.Sequential(nn.Conv2d(ins, 3, 1), nn.ReLU(), nn.Conv2d(3, outs, **geometry), nn.Flatten(), nn.LazyLinear(5))  # type: ignore[arg-type]
    net(torch.zeros(1, ins, *sides))
    sums = total(layers(net, (ins, *sides)))
    assert sums.macs + sums.macs_backward == counted(net, (ins, *sides), backward=True)


def test_backward_of_depthwise() -> None:
    """K² MACs for each position and channel of the output, in each gradient."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), DepthwiseConv2d(8, 8, 3, 2, 1, groups=8))
    first, second = layers(net, (3, 9, 11), batch=2)
    assert second.kind == "depthwise"
    assert second.macs == second.macs_data_gradient == second.macs_weight_gradient == 2 * 8 * 5 * 6 * 9
    assert (first.macs_data_gradient, first.macs_weight_gradient) == (0, 2 * 9 * 11 * 3 * 8)


def test_gradient_of_the_images() -> None:
    """Asked for, as of a layer within a network, the first layer's data gradient counts too."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    plain, within = layers(net, (3, 9, 9)), layers(net, (3, 9, 9), image_gradient=True)
    assert [row.gradient for row in plain] == [False, True, True]
    assert [row.gradient for row in within] == [True, True, True]
    assert (plain[0].macs_data_gradient, within[0].macs_data_gradient) == (0, plain[0].macs)
    assert total(within).macs_backward == total(plain).macs_backward + plain[0].macs == 2 * total(plain).macs


def test_frozen_layers_take_no_gradient() -> None:
    """No weight gradient for a frozen layer, and no data gradient before the first layer that learns."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    net[0].requires_grad_(False)
    rows = layers(net, (3, 9, 9))
    assert rows[0].macs_backward == 0
    assert (rows[1].macs_data_gradient, rows[1].macs_weight_gradient) == (0, rows[1].macs)
    assert rows[2].macs_backward == 2 * rows[2].macs
    net.requires_grad_(True)[1].requires_grad_(False)
    assert [row.macs_backward for row in layers(net, (3, 9, 9))] == [rows[0].macs, rows[1].macs, 2 * rows[2].macs]
    assert [row.parameters for row in rows] == [224, 584, 584]
    assert [row.weights for row in rows] == [224, 584, 584]


# Bytes


def test_bytes_and_intensity() -> None:
    (layer,) = layers(nn.Conv2d(3, 4, 3, bias=False), (3, 5, 5))
    assert (layer.read, layer.written, layer.weights) == (75, 36, 108)
    assert layer.activation_bytes("fp32") == 4 * 111
    assert layer.weight_bytes("bf16") == 2 * 108
    assert layer.bytes("fp32") == 4 * 219
    assert layer.intensity("fp32") == 2 * 972 / (4 * 219)
    assert layer.intensity("bf16") == 2 * layer.intensity("fp32")


def test_layers_without_arithmetic() -> None:
    """A norm reads four vectors; an addition reads two maps; flattening and dropout move nothing."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout()

        def forward(self, images: Tensor) -> Tensor:
            return (self.drop(self.norm(images)) + images).flatten(1)

    norm, addition = layers(nn.Sequential(Residual()), (3, 5, 5))
    assert (norm.name, norm.kind, norm.read, norm.written, norm.weights) == ("0.norm", "BatchNorm2d", 75, 75, 12)
    assert (addition.name, addition.kind, addition.read, addition.written, addition.weights) == (
        "0.add",
        "add",
        150,
        75,
        0,
    )
    assert (norm.macs, addition.macs, norm.parameters) == (0, 0, 6)


def test_functional_layers_count() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel, self.matrix = nn.Parameter(torch.zeros(4, 3, 3, 3)), nn.Parameter(torch.zeros(7, 4))
            self.conv = nn.Conv2d(4, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.conv(self.conv(F.conv2d(images, self.kernel)))
            return F.linear(maps.mean((2, 3)), self.matrix)

    net = Functional()
    rows = layers(net, (3, 9, 9))
    assert [(row.name, row.kind) for row in rows] == [
        ("convolution", "standard"), ("conv", "standard"), ("conv", "standard"), ("mean", "mean"), ("mm", "mm"),
    ]  # fmt: skip
    assert [row.parameters for row in rows] == [108, 148, 0, 0, 28]
    assert [row.weights for row in rows] == [108, 148, 148, 0, 28]
    assert total(rows).macs == counted(net, (3, 9, 9)) == 49 * 108 + 25 * 144 + 9 * 144 + 28


def test_images_too_small() -> None:
    with pytest.raises(InputError, match="images of 5 x 5 x 3 do not go through this network") as error:
        layers(nn.Conv2d(3, 4, 7), (3, 5, 5))
    assert "\n" not in str(error.value)


# The dense twin


def test_comparison_of_blocks() -> None:
    """Blocks that both have are compared as a whole; without biases and norms the ratio is the closed form."""

    def stack(conv: Callable[..., nn.Module]) -> nn.Sequential:
        plain = {"norm_layer": None, "activation_layer": None}
        return nn.Sequential(
            ConvNormActivation(3, 8, bias=False, **plain),  # type: ignore[arg-type]
            nn.Sequential(conv(8, 16), conv(16, 32)),
            GlobalAvgPool(), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip

    def separable(ins: int, outs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(ins, ins, 3, 1, 1, groups=ins, bias=False), nn.Conv2d(ins, outs, 1, bias=False))

    net, dense = stack(separable), stack(lambda ins, outs: nn.Conv2d(ins, outs, 3, 1, 1, bias=False))
    first, second, whole = compare_blocks(net, dense, (3, 12, 12))
    assert [block.block for block in (first, second, whole)] == ["1.0", "1.1", "total"]
    for block, outs in ((first, 16), (second, 32)):
        assert block.parameter_ratio == block.mac_ratio == pytest.approx(float(separable_ratio(outs, 3)))
        assert block.closed_form == float(separable_ratio(outs, 3))
    assert whole.macs == counting.macs(net, (3, 12, 12))
    assert whole.dense_macs == counting.macs(dense, (3, 12, 12))
    both = 144 * 9 * (8 * 16 + 16 * 32)
    assert whole.closed_form == pytest.approx((first.macs + second.macs) / both)


def test_comparison_with_several_filters_a_channel() -> None:
    """The dense twin has none of the options for them; the closed form counts each."""
    for model, shape in (
        ({"name": "baseline_separable", "depth_multiplier": 2}, (1, 28, 28)),
        ({"name": "airbench", "conv": "separable", "form": "96", "width": 0.5, "widen": True}, (3, 32, 32)),
    ):
        net = build(shape=shape, classes=10, **model)
        twin = dense_twin(model, shape, 10)
        assert twin is not None
        assert not any(layer.groups > 1 for layer in twin.modules() if isinstance(layer, nn.Conv2d))
        *blocks, _ = compare_blocks(net, twin, shape)
        for block in blocks:
            assert block.mac_ratio == pytest.approx(block.closed_form)


def test_comparison_of_baseline() -> None:
    shape = (1, 28, 28)
    only, whole = compare_blocks(build("baseline_separable", shape, 10), build("baseline", shape, 10), shape)
    assert only.block == "conv2"
    assert (only.macs, only.dense_macs) == (121 * 32 * (9 + 64), 121 * 32 * 64 * 9)
    assert only.mac_ratio == pytest.approx(float(separable_ratio(64, 3)))
    assert (whole.parameters, whole.dense_parameters) == (105_834, 121_930)


def test_pairs_in_inverted_residuals() -> None:
    """Norms, activations and squeeze-excitation's gate come between; the gate's own 1 x 1 convolutions are none."""
    for name, blocks in (("mobilenet_v2", 17), ("mobilenet_v3_small", 11)):
        for side in (224, 32):  # at 32 the last maps are 1 x 1, like the gates
            pairs = separable_pairs(layers(torchvision_net(name), (3, side, side)))
            assert len(pairs) == blocks
            assert all(a.output[1:] == b.input[1:] and ".fc" not in b.name for a, b, _ in pairs)
    assert closed_form([]) is None


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (each == "xception")) for each in names()]
)
def test_networks_beside_their_dense_twins(name: str) -> None:
    shape = (3, 32, 32)
    found = twin_record({"name": name}, build(name, shape, 10), shape, 10)
    if not found["comparison"]:
        assert name in found["no_comparison"]
        return
    whole = found["comparison"][-1]
    assert whole["block"] == "total"
    assert whole["macs"] == counting.macs(build(name, shape, 10), shape)
    for block in found["comparison"][:-1]:
        assert block["macs"] < block["dense_macs"]
        assert block["parameters"] < block["dense_parameters"]


# Image shapes


def test_shapes_are_those_of_the_data() -> None:
    for name in ("digits", "mnist", "cifar10"):
        dataset = load(data_config("digits") if name == "digits" else real(name))
        assert image_shape(data_config(name)) == (dataset.shape, len(dataset.classes))
    assert image_shape(data_config("mnist", image_size=40)) == ((1, 40, 40), 10)
    assert SHAPES.keys() == {path.stem for path in (REPOSITORY / "configs/data").glob("*.yaml")} - {"folder"}


# The command


def run(command: Command, *arguments: object) -> str:
    outcome = command("cost", *arguments)
    assert outcome.status == 0, outcome.err
    return outcome.out


def test_command_table(command: Command) -> None:
    out = run(command, "model=separable", "data=cifar10")
    net = build("separable", (3, 32, 32), 10)
    last = next(line for line in out.splitlines() if "total" in line)
    assert f"{counting.parameters(net):,}" in last
    assert f"{counting.macs(net, (3, 32, 32)):,}" in last
    assert "3 x 32 x 32" in out
    for row in layers(net, (3, 32, 32)):
        assert f"\n {row.name} " in out


def test_command_json(command: Command) -> None:
    found: dict[str, Any] = json.loads(
        run(command, "model=baseline", "shape=[1,28,28]", "classes=10", "format=json", "batch=2")
    )
    rows = layers(build("baseline", (1, 28, 28), 10), (1, 28, 28), 2)
    assert [row["name"] for row in found["layers"]] == [row.name for row in rows]
    assert found["total"]["parameters"] == 121_930
    assert found["total"]["macs"] == sum(row["macs"] for row in found["layers"]) == total(rows).macs
    assert found["total"]["macs_backward"] == total(rows).macs_backward
    assert [row["receptive_field"] for row in found["layers"][:3]] == [[3, 3], [4, 4], [4, 4]]
    assert "machine" not in found


def test_command_of_a_run(command: Command) -> None:
    """Its network, on its images or others of as many channels."""
    given = REPOSITORY / "pretrained" / "small_mnist"
    found = json.loads(run(command, f"run={given}", "format=json"))
    assert (found["model"], found["shape"], found["classes"]) == ("tiny", [1, 28, 28], 10)
    recorded = json.loads((given / "result.json").read_text())
    assert {key: found["total"][key] for key in ("parameters", "macs")} == {
        key: recorded[key] for key in ("parameters", "macs")
    }
    larger = json.loads(run(command, f"run={given}", "shape=[1,56,56]", "classes=26", "format=json"))
    assert (larger["shape"], larger["classes"]) == ([1, 56, 56], 26)
    assert larger["total"]["macs"] > 3 * found["total"]["macs"]
    for argument in ("model=separable", "model.stem=8", "data=mnist", "++data.image_size=8"):
        refused(command("cost", f"run={given}", argument), "has its own network and images", f"leave {argument} out")
    refused(command("cost", f"run={given.parent}"), f"{given.parent} is no run")


def test_command_csv_and_markdown(command: Command) -> None:
    rows = list(csv.DictReader(io.StringIO(run(command, "model=baseline", "data=mnist", "format=csv"))))
    assert rows[-1]["name"] == "total"
    assert int(rows[-1]["parameters"]) == 121_930 == sum(int(row["parameters"]) for row in rows[:-1])
    assert rows[0]["output"] == "32x26x26"
    out = run(command, "model=baseline", "data=mnist", "format=markdown")
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == len(rows) + 2
    assert len({line.count("|") for line in table}) == 1
    assert "121,930" in table[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=nonsense"], ["unknown model=nonsense", "baseline"]),
        (["data=nonsense"], ["unknown data=nonsense", "cifar10"]),
        (["format=xml"], ["unknown format=xml", "table, json, csv, markdown"]),
        (["dtype=int3"], ["unknown dtype=int3", "fp32, bf16"]),
        (["device=abacus"], ["unknown device=abacus", "cpu, cuda"]),
        (["model=baseline", "data.image_size=8"], ["8 x 8", "too small"]),
        (["+model.expansion=3"], ["unknown key model.expansion"]),
        (["batch=0"], ["batch=0", "1 or more"]),
        (["shape=[3,32]"], ["shape=[3, 32]", "[channels,height,width]"]),
        (["shape=[3,0,32]"], ["shape=[3, 0, 32]"]),
        (["classes=0"], ["classes=0"]),
        (["data=folder", "data.root=/d"], ["data=folder", "shape=[3,32,32] classes=10"]),
        (["plot=/tmp/a.png"], ["plot=", "device=cpu"]),
        (["dtype=int8", "device=cpu"], ["dtype=int8", "not measured", "leave device= out", "fp32 or bf16"]),
        (["dtype=int8", "device=cpu", "sweep=true"], ["dtype=int8", "not measured"]),
        (["device=cpu", "plot=/tmp/a.txt"], ["plot=/tmp/a.txt", ".png"]),
        (["receptive_field=/nowhere/a.png"], ["receptive_field=/nowhere/a.png", "folder"]),
        (["receptive_field=a.png", "shape=[3,1,1]"], ["receptive_field=", "larger images"]),
        (["shape=32"], ["shape takes a list: shape=[...]"]),
        (["shape={a: 1}"], ["shape takes a list: shape=[...]"]),
        (["shape=[[3],[32],[32]]"], ["shape=[[3], [32], [32]] has a list", "where there can be none"]),
        (["shape=[3,4000000000,4000000000]"], ["shape=[3, 4000000000, 4000000000]", "1 to 1000000"]),
        (["device=cpu", "batch=1000000000"], ["MiB", "choose a smaller batch"]),
        (["sweep=true", "device=cpu", "batch=1000000000"], ["MiB", "choose a smaller batch"]),
        (["sweep=true", "receptive_field=a.png"], ["receptive_field=", "sweep=true", "leave one out"]),
        (["sweep=true", "device=cpu", "plot=a.png"], ["plot=", "sweep=true"]),
        (["sweep=true", "shape=[3,32,32]"], ["shape=", "sweep=true"]),
        (["sweep=true", "classes=3"], ["classes=", "sweep=true"]),
        (["sweep=true", "run=/nowhere"], ["run=", "sweep=true"]),
        (["layout=3"], ["unknown key layout"]),
    ],
)
def test_command_bad_input(command: Command, arguments: list[str], words: list[str]) -> None:
    refused(command("cost", *arguments), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_command_without_cuda(command: Command) -> None:
    refused(command("cost", "device=cuda"), "device=cuda", "no CUDA device", "device=cpu")


def test_lightning_and_matplotlib_are_not_waited_for() -> None:
    code = "import sepconv.costs.report, sys; print({'lightning', 'matplotlib', 'scipy'} & sys.modules.keys())"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"


def test_help_waits_for_nothing(command: Command) -> None:
    out = run(command, "--help")
    assert "python scripts/cost.py model=" in out
    assert "receptive_field" in out
