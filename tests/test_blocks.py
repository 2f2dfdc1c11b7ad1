import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from sepconv import InputError
from sepconv.networks.blocks import (
    KINDS,
    ConvNormActivation,
    Residual,
    Resize,
    Size,
    conv_pool_norm_activation,
    depthwise,
    depthwise_separable,
    inverted_residual,
    pair,
    pointwise,
    sequential,
    spatially_separable,
)
from sepconv.networks.cpu import DepthwiseConv2d


def test_separable_is_depthwise_then_pointwise() -> None:
    block = depthwise_separable(5, 7, stride=2, norm_layer=None, activation_layer=None, between=False)
    depthwise, pointwise = (layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    images = torch.randn(2, 5, 9, 9)
    # the same as a dense convolution with the product of the two steps' weights
    dense = torch.einsum("oi,ikl->oikl", pointwise.weight[:, :, 0, 0], depthwise.weight[:, 0])
    assert torch.allclose(block(images), F.conv2d(images, dense, pointwise.bias, 2, 1), atol=1e-5)
    assert depthwise.bias is None


def test_separable_parameters_and_layers() -> None:
    block = depthwise_separable(16, 32)
    layers = {name: type(layer).__name__ for name, layer in block.named_modules() if not list(layer.children())}
    assert list(layers.items()) == [
        ("depthwise.conv", "DepthwiseConv2d"), ("depthwise.norm", "BatchNorm2d"), ("depthwise.activation", "ReLU"),
        ("pointwise.conv", "Conv2d"), ("pointwise.norm", "BatchNorm2d"), ("pointwise.activation", "ReLU"),
    ]  # fmt: skip
    assert sum(p.numel() for p in block.parameters()) == 9 * 16 + 16 * 32 + 2 * (16 + 32)
    assert block(torch.randn(2, 16, 8, 8)).shape == (2, 32, 8, 8)


def test_conv_norm_activation_parts() -> None:
    assert ConvNormActivation(3, 4).conv.bias is None
    assert ConvNormActivation(3, 4, norm_layer=None).conv.bias is not None
    for arguments, names in (
        ({}, ["conv", "norm", "activation"]),
        ({"norm_layer": None}, ["conv", "activation"]),
        ({"activation_layer": None}, ["conv", "norm"]),
        ({"norm_layer": None, "activation_layer": None}, ["conv"]),
    ):
        assert [name for name, _ in ConvNormActivation(3, 4, **arguments).named_children()] == names  # type: ignore[arg-type]


def convolutions(net: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def fill(net: nn.Module) -> nn.Module:
    """Norms at values that tell them from one another, in evaluation mode, in double precision."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return net.double().eval()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"kernel_size": (3, 1), "stride": (2, 1)},
        {"kernel_size": (1, 5), "dilation": (1, 2)},
        {"kernel_size": 3, "padding": (0, 2), "groups": 2},
        {"kernel_size": 5, "stride": 2, "groups": 4, "activation_layer": nn.Hardswish, "norm_layer": None},
    ],
)
def test_conv_norm_activation_is_torchvisions(arguments: dict[str, Any]) -> None:
    block, reference = ConvNormActivation(4, 8, **arguments), Conv2dNormActivation(4, 8, **arguments)
    reference.load_state_dict(dict(zip(reference.state_dict(), fill(block).state_dict().values(), strict=True)))
    images = torch.randn(2, 4, 11, 12, dtype=torch.double)
    assert torch.equal(block(images), reference.double().eval()(images))


def test_depthwise_and_pointwise() -> None:
    block = depthwise(6, 18, 5, 2)
    assert parameters(block) == 25 * 18 + 2 * 18
    assert isinstance(block.conv, DepthwiseConv2d)
    images = torch.randn(2, 6, 9, 9)
    assert block(images).shape == (2, 18, 5, 5)
    alone = images.clone()
    alone[:, 1:] = 0  # the first channel's three filters see nothing else
    assert torch.equal(block.conv(alone)[:, :3], block.conv(images)[:, :3])
    mixing = pointwise(6, 8, norm_layer=None, activation_layer=None)
    dense = nn.Linear(6, 8)
    dense.load_state_dict({"weight": mixing.conv.weight[:, :, 0, 0], "bias": mixing.conv.bias})
    assert torch.allclose(mixing(images), dense(images.movedim(1, -1)).movedim(-1, 1), atol=1e-6)


def test_depth_multiplier() -> None:
    block = depthwise_separable(5, 7, 3, depth_multiplier=4, norm_layer=None, between=False)
    assert [tuple(conv.weight.shape) for conv in convolutions(block)] == [(20, 1, 3, 3), (7, 20, 1, 1)]
    images = torch.randn(2, 5, 8, 8)
    assert block(images).shape == (2, 7, 8, 8)
    # each of the four sums over channels of its own filters, one a channel
    filters, mixing = (conv.weight for conv in convolutions(block))
    dense = torch.einsum("omi,mikl->oikl", mixing.view(7, 4, 5), filters.view(4, 5, 3, 3))
    assert torch.allclose(block(images), F.relu(F.conv2d(images, dense, convolutions(block)[1].bias, 1, 1)), atol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("between", [True, False])
def test_separable_residual(kernel_size: int, between: bool) -> None:
    block = fill(Residual(depthwise_separable(6, 6, kernel_size, between=between)))
    plain = depthwise_separable(6, 6, kernel_size, between=between).double().eval()
    plain.load_state_dict(block.state_dict())  # the parts have the same names
    images = torch.randn(2, 6, 7, 9, dtype=torch.double)
    assert torch.allclose(block(images), plain(images) + images, rtol=1e-12)


def test_spatially_separable_is_a_dense_convolution() -> None:
    """Without anything between, the two steps are one convolution: of rank 1 with one channel."""
    cases: list[tuple[int, int, Size, Size, Size | None]] = [
        (1, 1, 3, 1, None), (3, 5, 5, 2, None), (4, 2, 3, 2, 0),
        (3, 4, (3, 5), (1, 2), None), (3, 4, (5, 3), 2, (0, 1)),
    ]  # fmt: skip
    for channels, out_channels, size, stride, padding in cases:
        block = spatially_separable(
            channels, out_channels, size, stride, padding, norm_layer=None, activation_layer=None, between=False
        )
        column, row = convolutions(block)
        assert column.bias is None
        height, width = pair("kernel_size", size, 1)
        assert parameters(block) == channels * (height * channels + width * out_channels) + out_channels
        dense = torch.einsum("omk,mil->oilk", row.weight[:, :, 0], column.weight[:, :, :, 0])
        if channels == 1:
            assert torch.linalg.matrix_rank(dense[0, 0]) == 1
        images = torch.randn(2, channels, 10, 13)
        expected = F.conv2d(images, dense, row.bias, stride, (height // 2, width // 2) if padding is None else padding)
        assert torch.allclose(block(images), expected, atol=1e-5)


def test_inverted_residual_is_torchvisions() -> None:
    for channels, out_channels, expansion, stride in [(8, 8, 1, 1), (8, 8, 6, 1), (8, 16, 6, 1), (8, 8, 3, 2)]:
        block = fill(inverted_residual(channels, out_channels, expansion * channels, stride=stride))
        reference = InvertedResidual(channels, out_channels, stride, expansion)
        reference.load_state_dict(dict(zip(reference.state_dict(), block.state_dict().values(), strict=True)))
        images = torch.randn(2, channels, 9, 9, dtype=torch.double)
        assert torch.allclose(block(images), reference.double().eval()(images), rtol=1e-12)
        assert isinstance(block, Residual) == (stride == 1 and channels == out_channels)
    assert not isinstance(inverted_residual(8, 8, 16, kernel_size=2), Residual)


def test_inverted_residual_squeeze_excite_weighs_channels() -> None:
    block = fill(inverted_residual(8, 12, 64, squeeze=True))
    assert [name for name, _ in block.named_children()] == ["expansion", "depthwise", "squeeze", "projection"]
    squeeze = block.get_submodule("squeeze")
    assert isinstance(squeeze, SqueezeExcitation)
    assert squeeze.fc1.weight.shape == (16, 64, 1, 1)
    plain = nn.Sequential(*(layer for layer in block if layer is not squeeze))  # type: ignore[attr-defined]
    images = torch.randn(2, 8, 6, 6, dtype=torch.double)
    assert not torch.allclose(block(images), plain(images))
    nn.init.zeros_(squeeze.fc2.weight)
    nn.init.constant_(squeeze.fc2.bias, 10)  # saturated: weights of 1
    assert torch.allclose(block(images), plain(images), rtol=1e-12)


@pytest.mark.parametrize("expanded", [8, 20])  # with as many channels, too, there is an expansion
@pytest.mark.parametrize("stride", [1, 2])
def test_inverted_residual_with_the_depthwise_convolution_first(expanded: int, stride: int) -> None:
    """Against PyTorch's own functions: one activation, after the expansion."""
    block = fill(inverted_residual(8, 8, expanded, 5, stride, activation_layer=nn.Hardswish, depthwise_first=True))
    assert [name for name, _ in block.named_children()][:3] == ["depthwise", "expansion", "projection"]
    images = torch.randn(2, 8, 9, 9, dtype=torch.double)
    maps = images
    for step in ("depthwise", "expansion", "projection"):
        conv, norm = block.get_submodule(f"{step}.conv"), block.get_submodule(f"{step}.norm")
        maps = norm(F.conv2d(maps, conv.weight, None, conv.stride, conv.padding, 1, conv.groups))
        maps = F.hardswish(maps) if step == "expansion" else maps
    assert torch.allclose(block(images), maps + images if stride == 1 else maps, rtol=1e-12)
    assert isinstance(block, Residual) == (stride == 1)


@pytest.mark.parametrize("conv", KINDS)
@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, None])
def test_pooling_comes_before_norm_and_activation(conv: str, norm_layer: type[nn.Module] | None) -> None:
    convolution = KINDS[conv].bare
    block = conv_pool_norm_activation(convolution, 4, 8, None, norm_layer, nn.Hardswish)
    plain = convolution(4, 8, norm_layer=norm_layer, activation_layer=nn.Hardswish)
    plain.load_state_dict(dict(zip(plain.state_dict(), fill(block).state_dict().values(), strict=True)))
    *steps, last = [name for name, _ in block.named_children() if name not in ("norm", "activation")]
    assert last == "pool"
    assert (
        steps
        == {"separable": ["depthwise", "pointwise"], "dense": ["conv"], "spatial": ["vertical", "horizontal"]}[conv]
    )
    images = torch.randn(2, 4, 7, 8, dtype=torch.double)
    layers = [block.get_submodule(step) for step in steps]
    maps = F.max_pool2d(nn.Sequential(*layers)(images), 2)
    if norm_layer is not None:
        maps = block.get_submodule("norm")(maps)
    assert torch.equal(block(images), F.hardswish(maps))
    odd = conv_pool_norm_activation(convolution, 4, 8, ceil_mode=True)
    assert odd(torch.randn(2, 4, 7, 8)).shape == (2, 8, 4, 4)


def test_parts_of_a_residual_block() -> None:
    """The shortcut is around the block's parts; the activation is of the sum."""
    block, shortcut = sequential(one=nn.Conv2d(3, 4, 1), other=nn.Conv2d(4, 4, 3, padding=1)), nn.Conv2d(3, 4, 1)
    images = torch.randn(2, 3, 5, 5)
    expected = F.relu(block(images) + shortcut(images))
    residual = Residual(block, shortcut, nn.ReLU())
    assert [name for name, _ in residual.named_children()] == ["one", "other", "shortcut", "activation"]
    assert torch.equal(residual(images), expected)
    with pytest.raises(TypeError, match="activation"):
        Residual(ConvNormActivation(3, 3), activation=nn.ReLU())


@pytest.mark.parametrize("conv", KINDS)
def test_kinds_share_a_signature_and_differ_in_their_convolutions(conv: str) -> None:
    kind = KINDS[conv]
    expected = {
        "separable": ([(4, 1, 3, 3), (8, 4, 1, 1)], [(4, 1, 3, 3)]),
        "dense": ([(8, 4, 3, 3)], [(4, 4, 3, 3)]),
        "spatial": ([(4, 4, 3, 1), (8, 4, 1, 3)], [(4, 4, 3, 1), (4, 4, 1, 3)]),
    }[conv]
    block, bare, step = (
        build(4, channels, 3, 2, 1, norm_layer=nn.BatchNorm2d, activation_layer=nn.ReLU6)
        for build, channels in ((kind.block, 8), (kind.bare, 8), (kind.step, 4))
    )
    for net, shapes in ((block, expected[0]), (bare, expected[0]), (step, expected[1])):
        assert [tuple(conv.weight.shape) for conv in convolutions(net)] == shapes
        assert net(torch.randn(2, 4, 9, 7)).shape == (2, shapes[-1][0], 5, 4)
    for net, count in ((block, len(expected[0])), (bare, 1)):
        assert sum(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()) == count
        assert sum(isinstance(layer, nn.ReLU6) for layer in net.modules()) == count
    unpadded = kind.bare(4, 8, 3, 1, 0, norm_layer=None)
    assert unpadded(torch.randn(2, 4, 9, 7)).shape == (2, 8, 7, 5)
    assert [conv.bias is not None for conv in convolutions(unpadded)] == [False] * (len(expected[0]) - 1) + [True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvNormActivation(4, 8, stride=0), "stride=0 is out of range: a whole number"),
        (lambda: ConvNormActivation(4, 8, stride=(1, -1)), "stride=(1, -1)"),
        (lambda: ConvNormActivation(4, 8, 0), "kernel_size=0"),
        (lambda: ConvNormActivation(4, 8, (3, 0)), "kernel_size=(3, 0)"),
        (lambda: ConvNormActivation(4, 8, (3, 3, 3)), "kernel_size=(3, 3, 3)"),
        (lambda: ConvNormActivation(4, 8, 2.5), "kernel_size=2.5"),
        (lambda: ConvNormActivation(4, 8, dilation=0), "dilation=0"),
        (lambda: ConvNormActivation(4, 8, padding=-1), "padding=-1"),
        (lambda: ConvNormActivation(0, 8), "in_channels=0 is out of range: 1 or more"),
        (lambda: ConvNormActivation(4, 0), "out_channels=0"),
        (lambda: ConvNormActivation(4, 8, groups=0), "groups=0"),
        (lambda: ConvNormActivation(4, 8, groups=3), "in_channels=4 is out of range: a multiple of groups=3"),
        (lambda: ConvNormActivation(4, 6, groups=4), "out_channels=6 is out of range: a multiple of groups=4"),
        (lambda: depthwise(4, 6), "out_channels=6"),
        (lambda: pointwise(4, 8, stride=0), "stride=0"),
        (lambda: depthwise_separable(4, 8, depth_multiplier=0), "depth_multiplier=0 is out of range: 1 or more"),
        (lambda: depthwise_separable(4, 8, stride=0), "stride=0"),
        (lambda: spatially_separable(4, 8, 0), "kernel_size=0"),
        (lambda: spatially_separable(4, 8, stride=0), "stride=0"),
        (lambda: spatially_separable(4, 8, padding=-1), "padding=-1"),
        (lambda: inverted_residual(4, 8, 0), "expanded=0 is out of range: 1 or more channels"),
        (lambda: inverted_residual(4, 8, 16, stride=0), "stride=0"),
        (lambda: inverted_residual(4, 0, 16), "out_channels=0"),
    ],
)
def test_arguments_that_cannot_be(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_resize() -> None:
    assert Resize(9, 12)(torch.randn(2, 3, 16, 16)).shape == (2, 3, 9, 12)
