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
    Crop,
    DepthwiseConv2d,
    Flatten,
    GlobalAvgPool,
    HalvingMaxPool,
    Residual,
    Resize,
    depthwise,
    depthwise_separable,
    inverted_residual,
    pointwise,
    spatially_separable,
)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (3, 3, 0, 1), (3, 2, 2, 2), (5, 2, 2, 1), (2, 4, 0, 1)],
)
def test_depthwise_gradients(
    kernel_size: int, stride: int, padding: int, dilation: int, multiplier: int, layout: torch.memory_format
) -> None:
    """Our ways give what torch's own gives, forward and backward."""
    out_channels = 6 * multiplier
    layer = DepthwiseConv2d(6, out_channels, kernel_size, stride, padding, dilation, groups=6, bias=False).double()
    images = torch.randn(2, 6, 11, 14, dtype=torch.double).to(memory_format=layout).requires_grad_()
    ours = layer(images)
    theirs = F.conv2d(images, layer.weight, None, stride, padding, dilation, groups=6)
    if multiplier == 1 and stride > 1:
        assert "StridedDepthwise" in str(ours.grad_fn)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert ours.is_contiguous(memory_format=layout)
    gradient = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, [images, layer.weight], gradient) for y in (ours, theirs)), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_strided_depthwise_under_autocast() -> None:
    layer = DepthwiseConv2d(8, 8, 3, 2, 1, groups=8, bias=False)
    images = torch.randn(2, 8, 10, 10, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(images)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    reference = torch.autograd.grad(F.conv2d(images, layer.weight, None, 2, 1, 1, 8).sum(), [images, layer.weight])
    for ours, theirs in zip((images.grad, layer.weight.grad), reference, strict=True):
        assert ours is not None
        assert (ours - theirs).norm() / theirs.norm() < 0.02


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
    kinds = [type(layer).__name__ for part in block for layer in part]  # type: ignore[attr-defined]
    assert kinds == ["DepthwiseConv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU"]
    assert sum(p.numel() for p in block.parameters()) == 9 * 16 + 16 * 32 + 2 * (16 + 32)
    assert block(torch.randn(2, 16, 8, 8)).shape == (2, 32, 8, 8)


def test_conv_norm_activation_bias() -> None:
    assert ConvNormActivation(3, 4)[0].bias is None
    assert ConvNormActivation(3, 4, norm_layer=None)[0].bias is not None
    assert len(ConvNormActivation(3, 4, norm_layer=None, activation_layer=None)) == 1


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
    ours, theirs = ConvNormActivation(4, 8, **arguments), Conv2dNormActivation(4, 8, **arguments)
    theirs.load_state_dict(fill(ours).state_dict())
    images = torch.randn(2, 4, 11, 12, dtype=torch.double)
    assert torch.equal(ours(images), theirs.double().eval()(images))


def test_depthwise_and_pointwise() -> None:
    block = depthwise(6, 18, 5, 2)
    assert parameters(block) == 25 * 18 + 2 * 18
    assert isinstance(block[0], DepthwiseConv2d)
    images = torch.randn(2, 6, 9, 9)
    assert block(images).shape == (2, 18, 5, 5)
    alone = images.clone()
    alone[:, 1:] = 0  # the first channel's three filters see nothing else
    assert torch.equal(block[0](alone)[:, :3], block[0](images)[:, :3])
    mixing = pointwise(6, 8, norm_layer=None, activation_layer=None)
    dense = nn.Linear(6, 8)
    dense.load_state_dict({"weight": mixing[0].weight[:, :, 0, 0], "bias": mixing[0].bias})
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
    block = fill(depthwise_separable(6, 6, kernel_size, between=between, residual=True))
    plain = depthwise_separable(6, 6, kernel_size, between=between).double().eval()
    plain.load_state_dict({key.removeprefix("layers."): value for key, value in block.state_dict().items()})
    images = torch.randn(2, 6, 7, 9, dtype=torch.double)
    assert torch.allclose(block(images), plain(images) + images, rtol=1e-12)


def test_spatially_separable_is_a_dense_convolution() -> None:
    """Without anything between, the two steps are one convolution: of rank 1 with one channel."""
    for channels, out_channels, size, stride, padding in [(1, 1, 3, 1, None), (3, 5, 5, 2, None), (4, 2, 3, 2, 0)]:
        block = spatially_separable(
            channels, out_channels, size, stride, padding, norm_layer=None, activation_layer=None, between=False
        )
        column, row = convolutions(block)
        assert column.bias is None
        assert parameters(block) == size * channels * (channels + out_channels) + out_channels
        dense = torch.einsum("omk,mil->oilk", row.weight[:, :, 0], column.weight[:, :, :, 0])
        if channels == 1:
            assert torch.linalg.matrix_rank(dense[0, 0]) == 1
        images = torch.randn(2, channels, 10, 13)
        expected = F.conv2d(images, dense, row.bias, stride, size // 2 if padding is None else padding)
        assert torch.allclose(block(images), expected, atol=1e-5)


def test_inverted_residual_is_torchvisions() -> None:
    for channels, out_channels, expansion, stride in [(8, 8, 1, 1), (8, 8, 6, 1), (8, 16, 6, 1), (8, 8, 3, 2)]:
        ours = fill(inverted_residual(channels, out_channels, expansion * channels, stride=stride))
        theirs = InvertedResidual(channels, out_channels, stride, expansion)
        theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
        images = torch.randn(2, channels, 9, 9, dtype=torch.double)
        assert torch.allclose(ours(images), theirs.double().eval()(images), rtol=1e-12)
        assert isinstance(ours, Residual) == (stride == 1 and channels == out_channels)


def test_inverted_residual_squeeze_excite_weighs_channels() -> None:
    block = fill(inverted_residual(8, 12, 64, squeeze=True))
    (squeeze,) = (layer for layer in block.modules() if isinstance(layer, SqueezeExcitation))
    assert squeeze.fc1.weight.shape == (16, 64, 1, 1)
    plain = nn.Sequential(*(layer for layer in block if layer is not squeeze))  # type: ignore[attr-defined]
    images = torch.randn(2, 8, 6, 6, dtype=torch.double)
    assert not torch.allclose(block(images), plain(images))
    nn.init.zeros_(squeeze.fc2.weight)
    nn.init.constant_(squeeze.fc2.bias, 10)  # saturated: weights of 1
    assert torch.allclose(block(images), plain(images), rtol=1e-12)


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
        (lambda: depthwise_separable(4, 8, residual=True), "not 4 to 8 channels"),
        (lambda: depthwise_separable(4, 4, stride=2, residual=True), "stride=2"),
        (lambda: depthwise_separable(4, 4, 2, residual=True), "kernel_size=2"),
        (lambda: depthwise_separable(4, 4, padding=0, residual=True), "padding=0"),
        (lambda: spatially_separable(4, 8, 0), "kernel_size=0"),
        (lambda: spatially_separable(4, 8, stride=0), "stride=0"),
        (lambda: spatially_separable(4, 8, padding=-1), "padding=(-1, 0)"),
        (lambda: inverted_residual(4, 8, 0), "expanded=0 is out of range: 1 or more channels"),
        (lambda: inverted_residual(4, 8, 16, stride=0), "stride=0"),
        (lambda: inverted_residual(4, 0, 16), "out_channels=0"),
    ],
)
def test_arguments_that_cannot_be(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_global_average() -> None:
    images = torch.randn(2, 3, 5, 7)
    assert torch.allclose(GlobalAvgPool()(images)[..., 0, 0], images.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_global_pooling_gradient(layout: torch.memory_format) -> None:
    images = torch.randn(2, 3, 5, 7, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    pooled = GlobalAvgPool()(images)
    gradient = torch.randn_like(pooled)
    (ours,) = torch.autograd.grad(pooled, images, gradient)
    (theirs,) = torch.autograd.grad(images.mean((2, 3), keepdim=True), images, gradient)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert ours.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_flatten(layout: torch.memory_format) -> None:
    images = torch.randn(2, 3, 5, 7).contiguous(memory_format=layout).requires_grad_()
    flat = Flatten()(images)
    assert torch.equal(flat, nn.Flatten()(images))
    gradient = torch.randn_like(flat)
    (ours,) = torch.autograd.grad(flat, images, gradient)
    assert torch.equal(ours, gradient.view(2, 3, 5, 7))
    assert ours.is_contiguous(memory_format=layout)


def test_crop() -> None:
    images = torch.randn(2, 3, 5, 7)
    assert torch.equal(Crop(4, 6)(images), images[:, :, :4, :6])


def test_resize() -> None:
    assert Resize(9)(torch.randn(2, 3, 16, 16)).shape == (2, 3, 9, 9)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("sides", [(6, 8), (7, 8), (6, 9), (7, 9)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_halving_max_pool(ceil_mode: bool, sides: tuple[int, int], memory_format: torch.memory_format) -> None:
    """torch's, bit for bit and in the same format, with and without a gradient."""
    images = torch.randn(2, 3, *sides).bfloat16().to(memory_format=memory_format)
    pool, reference = HalvingMaxPool(ceil_mode), nn.MaxPool2d(2, ceil_mode=ceil_mode)
    expected = reference(images)
    assert torch.equal(pool(images), expected)
    assert pool(images).stride() == expected.stride()
    gradients = []
    for module in (pool, reference):
        leaf = images.clone().requires_grad_()
        assert torch.equal(module(leaf), expected)
        module(leaf).float().square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
