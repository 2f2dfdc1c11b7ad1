import copy
import inspect
import re
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import SLIM
from torch import nn

from sepconv import InputError
from sepconv.config.read import complete, defaults
from sepconv.costs import counting
from sepconv.networks import build, names
from sepconv.networks.baseline import Crop
from sepconv.networks.blocks import KINDS, ConvNormActivation, Residual
from sepconv.networks.cpu import GlobalAvgPool
from sepconv.training.recipe import initialize

IMAGENET: dict[str, dict[str, Any]] = {
    name: {**SLIM[name], "form": "imagenet"}
    for name in ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "xception")
} | {"resnet": {"depth": 18, "width": 0.25, "form": "imagenet"}}
MLPERF_TINY = {"depth": 8, "form": "mlperf_tiny"}
CASES = [
    *((name, {"conv": conv, **SLIM.get(name, {})}) for name in names() for conv in KINDS),
    *IMAGENET.items(),
    ("separable", {"width": 0.5, "resolution": 0.75}),
    *(("tiny", {"form": "unpadded", "conv": conv}) for conv in KINDS),
    *(("resnet", {**MLPERF_TINY, "conv": conv}) for conv in KINDS),
]


@pytest.mark.parametrize("name", names())
def test_every_config_builds_the_network_of_its_name(name: str) -> None:
    """And lists all of its options: no default stands in the code."""
    assert defaults(name)["name"] == name
    module = import_module(f"sepconv.networks.{name}")
    options = inspect.getfullargspec(getattr(module, name))
    assert options.kwonlyargs == [key for key in defaults(name) if key != "name"]
    assert options.kwonlydefaults is None
    assert str(build(**defaults(name), shape=(3, 32, 32), classes=10)) == str(build(name, (3, 32, 32), 10))


@pytest.mark.parametrize("name", names())
def test_layers_are_named_by_what_they_are(name: str) -> None:
    net = build(name, (3, 32, 32), 10, **SLIM.get(name, {}))
    assert [name for name, _ in net.named_children()][-1] == "classifier"
    for layer, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and "squeeze" not in layer:
            assert re.fullmatch(r"(\w+\.)+conv", layer), layer
    assert not any(key[0].isdigit() for key in net.state_dict())


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("baseline", 121_930, 26 * 26 * 9 * 32 + 11 * 11 * 9 * 32 * 64 + 1600 * 64 + 64 * 10),
        ("baseline_separable", 105_834, 26 * 26 * 9 * 32 + 11 * 11 * (9 * 32 + 32 * 64) + 1600 * 64 + 64 * 10),
    ],
)
def test_keras_example_counts(name: str, parameters: int, macs: int) -> None:
    net = build(name, (1, 28, 28), 10)
    assert counting.parameters(net) == parameters
    assert counting.macs(net, (1, 28, 28)) == macs


def test_keras_example_with_options() -> None:
    net = build("baseline_separable", (1, 28, 28), 10, hidden=18, depth_multiplier=2)
    filters, pointwise, dense = 9 * 32 * 2, 64 * 64 + 64, 1600 * 18 + 18 + 18 * 10 + 10
    assert counting.parameters(net) == 320 + filters + pointwise + dense == 34_064
    with pytest.raises(InputError, match=r"model.depth_multiplier=2 is out of range: 1 where model.conv=dense"):
        build("baseline_separable", (1, 28, 28), 10, conv="dense", depth_multiplier=2)


@pytest.mark.parametrize("name", ["baseline", "baseline_separable"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 13, 16), (1, 26, 22)])
def test_trimmed_keras_example_is_the_same_function(name: str, shape: tuple[int, int, int]) -> None:
    whole, trimmed = (build(name, shape, 10, trim=trim) for trim in (False, True))
    fewer = counting.macs(trimmed, shape) < counting.macs(whole, shape)
    assert fewer == (shape != (1, 26, 22))  # whose maps are halved without a rest
    for net in (whole, trimmed):
        net.double()
    trimmed.load_state_dict(dict(zip(trimmed.state_dict(), whole.state_dict().values(), strict=True)))
    images = torch.randn(4, *shape, dtype=torch.double)
    logits = [net(images) for net in (whole, trimmed)]
    assert torch.allclose(*logits, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(out.square().sum(), list(net.parameters()))
        for out, net in zip(logits, (whole, trimmed), strict=True)
    ]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_crop() -> None:
    images = torch.randn(2, 3, 5, 7)
    assert torch.equal(Crop(4, 6)(images), images[:, :, :4, :6])


def test_older_runs_networks_are_completed() -> None:
    """An option that came later has its default."""
    older = {"name": "baseline", "conv": "dense"}
    whole = {"kernels": "auto", "name": "baseline", "conv": "dense", "hidden": 64, "trim": False}
    assert complete(older) == complete(whole) == whole
    assert complete({"name": "separated", "base": older, "ranks": {}})["base"] == whole
    assert complete({"name": "gone", "depth": 3}) == {"kernels": "auto", "name": "gone", "depth": 3}


def test_airbench_counts() -> None:
    """Those of airbench94_muon.py: stem with bias, six convolutions, norms with scales, a dense layer without bias."""
    channels, sides = (24, 64, 64, 256, 256, 256, 256), (31, 15, 15, 7, 7, 3)
    filters = [9 * a * b for a, b in pairwise(channels)]
    net = build("airbench", (3, 32, 32), 10)
    assert counting.parameters(net) == 12 * 24 + 24 + sum(filters) + 2 * sum(channels[1:]) + 2560
    convolutions = sum(side**2 * count for side, count in zip(sides, filters, strict=True))
    assert counting.macs(net, (3, 32, 32)) == 31**2 * 12 * 24 + convolutions + 2560
    assert counting.parameters(net) == 1_972_792


def test_widened_airbench() -> None:
    """Its depthwise steps make as many maps as their blocks have outputs, or more."""
    net = build("airbench", (3, 32, 32), 10, form="96", width=0.5625, conv="separable", widen=True)
    steps = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)][1:]
    pairs = [
        (tuple(a.weight.shape[:2]), tuple(b.weight.shape[:2])) for a, b in zip(steps[::2], steps[1::2], strict=True)
    ]
    assert pairs == [
        ((72, 1), (72, 72)), *[((72, 1), (72, 72))] * 2,
        ((216, 1), (216, 216)), *[((216, 1), (216, 216))] * 2,
        ((432, 1), (288, 432)), *[((288, 1), (288, 288))] * 2,
    ]  # fmt: skip
    assert counting.parameters(net) <= 500_000
    with pytest.raises(InputError, match=r"model.widen=True is out of range: false where model.conv=dense"):
        build("airbench", (3, 32, 32), 10, widen=True)


def test_mlperf_tiny_counts() -> None:
    """By hand, and as Keras counts the reference's: with the running means and variances of its norms."""
    net = build("resnet", (3, 32, 32), 10, **MLPERF_TINY)
    # filters, outputs, side of the map: stem, then of each stack two 3 x 3 convolutions, and a 1 x 1 one around
    normed = [(9 * 3, 16, 32), (9 * 16, 16, 32), (9 * 16, 16, 32), (9 * 16, 32, 16), (9 * 32, 32, 16), (9 * 32, 64, 8),
              (9 * 64, 64, 8)]  # fmt: skip
    around = [(16, 32, 16), (32, 64, 8)]
    learned = sum((seen + 1) * outs for seen, outs, _ in normed + around) + 2 * sum(outs for _, outs, _ in normed)
    assert counting.parameters(net) == learned + 64 * 10 + 10 == 78_186
    macs = sum(side**2 * seen * outs for seen, outs, side in normed + around)
    assert counting.macs(net, (3, 32, 32)) == macs + 64 * 10 == 12_501_632
    statistics = sum(buffer.numel() for name, buffer in net.named_buffers() if "running" in name)
    assert counting.parameters(net) + statistics == 78_186 + 480 == 78_666
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 9
    assert all(layer.bias is not None for layer in convolutions)


def test_separable_counts() -> None:
    net = build("separable", (1, 28, 28), 10)
    assert counting.parameters(net) <= 35_000
    channels, weights, macs = 32, 9 * 32 + 2 * 32, 14 * 14 * 9 * 32
    for out_channels, side in ((64, 14), (64, 7), (96, 7), (128, 7)):
        step = 9 * channels + channels * out_channels
        weights += step + 2 * (channels + out_channels)
        macs += side * side * step
        channels = out_channels
    assert counting.parameters(net) == weights + 128 * 10 + 10
    assert counting.macs(net, (1, 28, 28)) == macs + 128 * 10


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize(
    ("shape", "classes"),
    [
        ((2, 19, 23), 3),
        pytest.param((1, 28, 28), 10, marks=pytest.mark.slow),
        pytest.param((3, 32, 32), 7, marks=pytest.mark.slow),
    ],
)
def test_learns(name: str, options: dict[str, Any], shape: tuple[int, int, int], classes: int) -> None:
    """Every parameter gets a gradient, and steps on a fixed batch lower its loss.

    That of a convolution's bias is zero but for rounding where a norm takes the mean away.
    """
    torch.manual_seed(0)
    net = build(name, shape, classes, **options)
    blocks = [(path, block) for path, block in net.named_modules() if isinstance(block, ConvNormActivation)]
    without_effect = {f"{path}.conv.bias" for path, block in blocks if hasattr(block, "norm")}
    images, labels = torch.randn(16, *shape), torch.arange(16) % classes
    losses = []
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(5):
        logits = net(images)
        assert logits.shape == (16, classes)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        for parameter_name, parameter in net.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().max() > 0 or parameter_name in without_effect, parameter_name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, SLIM.get(name, {})) for name in names()), *IMAGENET.items(), ("resnet", MLPERF_TINY)],
)
def test_twins_differ_in_the_convolution_alone(name: str, options: dict[str, Any]) -> None:
    """Kinds of convolution share depth and widths; after the stem, each has only its own kernels."""
    shape = (3, 33, 33)
    maps: dict[str, list[torch.Size]] = {}
    kernels: dict[str, list[tuple[tuple[int, int], bool]]] = {}
    for conv in KINDS:
        net = build(name, shape, 10, **{**options, "conv": conv})
        maps[conv], kernels[conv] = [], []
        for path, layer in net.named_modules():
            if "." not in path or path.rpartition(".")[2].isdigit():  # parts of the network, and its blocks
                layer.register_forward_hook(lambda _, __, output, conv=conv: maps[conv].append(output.shape))
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1:
                kernels[conv].append((layer.kernel_size, layer.groups == layer.in_channels > 1))
        net.eval()(torch.randn(1, *shape))
    assert maps["separable"] == maps["dense"] == maps["spatial"]
    stem = 2 if name == "xception" else 1
    assert kernels["separable"][:stem] == kernels["dense"][:stem] == kernels["spatial"][:stem]
    dense = [size for size, _ in kernels["dense"][stem:]]
    assert kernels["dense"][stem:] == [(size, False) for size in dense]
    assert kernels["separable"][stem:] == [(size, True) for size in dense]
    assert kernels["spatial"][stem:] == [(side, False) for size, _ in dense for side in ((size, 1), (1, size))]
    assert all(height == width > 1 for height, width in dense)


def test_staged_is_any_table() -> None:
    """By default that of the separable network; inverted residuals where a row has an expansion."""
    for conv in KINDS:
        assert str(build("staged", (1, 28, 28), 10, conv=conv)) == str(build("separable", (1, 28, 28), 10, conv=conv))
    rows = [{"channels": 16}, {"channels": 16, "blocks": 2, "expansion": 3, "kernel_size": 5, "squeeze": True}]
    net = build("staged", (1, 28, 28), 10, stem=8, stages=rows, residual=True, activation="hardswish")
    plain, *inverted = net.blocks
    assert not isinstance(plain, Residual)  # it changes the number of channels
    for block in inverted:
        assert isinstance(block, Residual)
        assert dict(block.named_children()).keys() == {"expansion", "depthwise", "squeeze", "projection", "shortcut"}
        assert block.get_submodule("depthwise.conv").weight.shape == (48, 1, 5, 5)
    assert not any(isinstance(layer, nn.ReLU) for name, layer in net.named_modules() if "squeeze" not in name)
    rows = [{"channels": 16}, {"channels": 16, "expansion": 3, "kernel_size": 5, "depthwise_first": True}]
    block = build("staged", (1, 28, 28), 10, stem=8, stages=rows).blocks[-1]
    assert [name for name, _ in block.named_children()] == ["depthwise", "expansion", "projection", "shortcut"]
    assert block.get_submodule("depthwise.conv").weight.shape == (16, 1, 5, 5)


def test_baseline_separable_is_the_baseline_with_the_option() -> None:
    one, other = build("baseline", (1, 28, 28), 10, conv="separable"), build("baseline_separable", (1, 28, 28), 10)
    assert repr(one) == repr(other)


def test_tiny_shares_filters_within_a_stage() -> None:
    """More repeats cost norms alone; each block has its own, and its own part of the filters' gradient."""
    net = build("tiny", (1, 28, 28), 10)
    stem, entry, head = 9 * 16 + 32, 9 * 16 + 16 * 32 + 64, 32 * 10 + 10
    filters, norms = 9 * 32 + 32 * 32, 4 * 32
    assert counting.parameters(net) == stem + entry + 2 * (filters + 2 * norms) + head == 4_362
    assert counting.parameters(build("tiny", (1, 28, 28), 10, repeats=3)) == 4_362 + 2 * norms
    net(torch.randn(4, 1, 28, 28)).square().mean().backward()
    blocks = [layer for layer in net.modules() if isinstance(layer, Residual)]
    weights = [{name: p for name, p in block.named_parameters() if p.ndim == 4} for block in blocks]
    assert len(weights) == 4
    for stage in (weights[:2], weights[2:]):
        assert all(stage[0][name] is stage[1][name] for name in stage[0])
    assert len({id(p) for stage in weights for p in stage.values()}) == 4
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_unpadded_tiny_counts() -> None:
    """By hand: 28 to 26 to 24, pooled to 12, then 10, 8, 6, 4, by filters for two and two; no norm learns anything."""
    net = build("tiny", (1, 28, 28), 10, stem=4, width=11, form="unpadded")
    entry, step = 9 * 4 + 4 * 11, 9 * 11 + 11 * 11
    assert counting.parameters(net) == 9 * 4 + entry + 2 * step + 11 * 10 + 10 == 676
    work = 26**2 * 9 * 4 + 24**2 * entry + (10**2 + 8**2 + 6**2 + 4**2) * step + 11 * 10
    assert counting.macs(net, (1, 28, 28)) == work == 118_046
    assert not any(isinstance(layer, Residual) for layer in net.modules())


@pytest.mark.parametrize(("shape", "side"), [((1, 28, 28), 4), ((3, 32, 20), 4), ((1, 16, 16), 6), ((1, 5, 5), 2)])
def test_unpadded_tiny_is_padded_where_there_is_no_room(shape: tuple[int, int, int], side: int) -> None:
    net = build("tiny", shape, 10, form="unpadded")
    sides: list[int] = []
    (pooling,) = (layer for layer in net.children() if isinstance(layer, GlobalAvgPool))
    pooling.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    net(torch.randn(2, *shape))
    assert sides == [side]


@pytest.mark.parametrize("sides", [(1, 4, 9, 10), pytest.param(range(1, 13), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_images_too_small_are_refused_when_it_is_built(
    name: str, options: dict[str, Any], sides: Sequence[int]
) -> None:
    """What can be built runs, however small the images are."""
    built = []
    for side in sides:
        shape = (1, side, side + side % 2)
        try:
            with torch.device("meta"):
                net = build(name, shape, 3, **options)
        except InputError as error:
            assert re.search(rf"images of {side} x \d+ are too small .* \d+ x \d+ or more", str(error))  # noqa: PT017
            continue
        built.append(side)
        assert net.eval()(torch.empty(2, *shape, device="meta")).shape == (2, 3)
    smallest = {"baseline": 10, "baseline_separable": 10, "airbench": 9, "xception": 7 if "form" in options else 5}
    assert built == [side for side in sides if side >= smallest.get(name, 1)]


@pytest.mark.parametrize("name", IMAGENET)
def test_small_form_halves_less_often(name: str) -> None:
    """At 32 pixels the global pooling meets 4 x 4 positions (ResNet's 8 x 8), in ImageNet's form one."""
    sides = []
    for options in (SLIM[name], IMAGENET[name]):
        net = build(name, (3, 32, 32), 10, **options)
        (pooling,) = (layer for layer in net.children() if isinstance(layer, GlobalAvgPool))
        pooling.register_forward_pre_hook(lambda _, inputs: sides.append(tuple(inputs[0].shape[2:])))
        net.eval()(torch.randn(1, 3, 32, 32))
    assert sides == [(8, 8) if name == "resnet" else (4, 4), (1, 1)]


def test_resolution_scales_both_sides() -> None:
    """Images keep their form."""
    net = build("separable", (3, 32, 48), 10, resolution=0.5)
    assert net.get_submodule("resize")(torch.zeros(1, 3, 32, 48)).shape == (1, 3, 16, 24)


def test_width_scales_channels_and_resolution_scales_work() -> None:
    shape = (1, 28, 28)
    net, wide, small = (build("separable", shape, 10, **o) for o in ({}, {"width": 2.0}, {"resolution": 0.5}))
    assert counting.parameters(small) == counting.parameters(net)
    assert counting.macs(small, shape) < 0.32 * counting.macs(net, shape)
    assert wide.classifier.in_features == 2 * net.classifier.in_features


def test_costs_do_not_change_the_network() -> None:
    net = build("separable", (1, 28, 28), 10)
    before = copy.deepcopy(net.state_dict())
    counting.macs(net, (1, 28, 28))
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_glorot_is_keras_distribution() -> None:
    """Uniform up to sqrt(6 / (fan in + fan out)), the fans as Keras counts them, depthwise kernels included."""
    net = build("baseline_separable", (1, 28, 28), 10)
    initialize(net, "glorot_uniform")
    limits = {  # first convolution and depthwise (as many fans), pointwise, dense, dense
        (32, 1, 3, 3): (6 / (9 * 1 + 9 * 32)) ** 0.5,
        (64, 32, 1, 1): (6 / (32 + 64)) ** 0.5,
        (64, 1600): (6 / (1600 + 64)) ** 0.5,
        (10, 64): (6 / (64 + 10)) ** 0.5,
    }
    for weight in (p.detach() for p in net.parameters() if p.ndim > 1):
        limit = limits[tuple(weight.shape)]
        assert 0.9 * limit < weight.abs().max() <= limit
        assert weight.std() == pytest.approx(limit / 3**0.5, rel=0.15)
    assert all((p == 0).all() for p in net.parameters() if p.ndim == 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("separable", {"widht": 1}, "unknown key model.widht: did you mean model.width?"),
        ("nonsense", {}, "unknown model=nonsense: choose from airbench, baseline"),
        ("blocks", {}, "unknown model=blocks: choose from airbench, baseline"),
        ("../evil", {}, "unknown model=../evil"),
        ("baseline", {"conv": "fast"}, "unknown model.conv=fast: choose from separable, dense, spatial"),
        ("mobilenet_v2", {"form": "large"}, "unknown model.form=large: choose from imagenet, small"),
        ("mobilenet_v2", {"width": 0}, "model.width=0.0 is out of range: above 0"),
        ("mobilenet_v3_small", {"resolution": 9}, "model.resolution=9.0 is out of range: above 0, at most 8"),
        ("xception", {"width": -1}, "model.width=-1.0"),
        ("resnet", {"depth": 21}, "model.depth=21 is out of range: 6n + 2, such as 20"),
        ("resnet", {"depth": 2}, "model.depth=2 "),
        ("resnet", {"form": "imagenet"}, "model.depth=20 is out of range: 18 or 34"),
        ("resnet", {"form": "mlperf_tiny"}, "model.depth=20 is out of range: 8 with model.form=mlperf_tiny"),
        ("resnet", {"form": "large"}, "unknown model.form=large: choose from imagenet, small, mlperf_tiny"),
        ("staged", {"stages": []}, "model.stages=[] is out of range: one or more"),
        ("staged", {"stages": [{"channels": 8}, {}]}, "model.stages[1].channels is missing"),
        ("staged", {"stages": [{"channels": 8, "block": 2}]}, "did you mean model.stages[0].blocks?"),
        ("staged", {"stages": [{"channels": 8, "kernel_size": 4}]}, "model.stages[0].kernel_size=4"),
        ("staged", {"stages": [{"channels": 8, "squeeze": True}]}, "model.stages[0].squeeze=True is out of range"),
        ("staged", {"stages": [{"channels": 8, "depthwise_first": True}]}, "depthwise_first=True is out of range"),
        ("staged", {"activation": "elu"}, "unknown model.activation=elu: choose from relu, hardswish"),
    ],
)
def test_option_errors(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build(name, (1, 28, 28), 10, **options)


def test_separable_options() -> None:
    """Depth repeats a block at stride 1, residuals surround those that keep their shape, the stem is of its kind."""
    plain, deep = build("separable", (1, 28, 28), 10), build("separable", (1, 28, 28), 10, depth=3)
    # at each place of the table two more blocks of its own width: K²·C + C² weights, and norms of 2·C each
    added = sum(2 * (9 * c + c * c + 4 * c) for c in (64, 64, 96, 128))
    assert counting.parameters(deep) == counting.parameters(plain) + added
    assert counting.layers(deep, (1, 28, 28))[-1].input == counting.layers(plain, (1, 28, 28))[-1].input
    with_ = build("separable", (1, 28, 28), 10, depth=3, residual=True)
    assert sum(isinstance(layer, Residual) for layer in with_.modules()) == 8
    assert counting.parameters(with_) == counting.parameters(deep)
    assert not any(isinstance(layer, Residual) for layer in deep.modules())
    stem = build("separable", (3, 32, 32), 10, stem="separable")
    assert [layer.kind for layer in counting.layers(stem, (3, 32, 32)) if layer.macs][:2] == ["depthwise", "pointwise"]
