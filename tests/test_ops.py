import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sepconv.ops import ConvNormActivation, DepthwiseConv2d, GlobalAvgPool, Resize, depthwise_separable


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation"),
    [(3, 2, 1, 1), (3, 3, 0, 1), (3, 2, 2, 2), (5, 2, 2, 1), (2, 4, 0, 1)],
)
def test_strided_depthwise_gradients(kernel_size: int, stride: int, padding: int, dilation: int) -> None:
    """The backward pass by way of stride 1 gives what torch's own gives."""
    layer = DepthwiseConv2d(6, 12, kernel_size, stride, padding, dilation, groups=6, bias=False).double()
    images = torch.randn(2, 6, 11, 14, dtype=torch.double, requires_grad=True)
    ours = layer(images)
    theirs = F.conv2d(images, layer.weight, None, stride, padding, dilation, groups=6)
    assert "StridedDepthwise" in str(ours.grad_fn)
    assert torch.equal(ours, theirs)
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


def test_global_average() -> None:
    images = torch.randn(2, 3, 5, 7)
    assert torch.allclose(GlobalAvgPool()(images)[..., 0, 0], images.mean((2, 3)), atol=1e-6)


def test_resize() -> None:
    assert Resize(9)(torch.randn(2, 3, 16, 16)).shape == (2, 3, 9, 9)
