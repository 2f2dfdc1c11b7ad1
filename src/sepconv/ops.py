"""The blocks that networks are made of, all over one conv-norm-activation block.

Feature maps are (B, C, H, W). A standard convolution costs K²·C_in·C_out parameters and H·W times as many
multiply-accumulates (MACs), for an output of H x W; the two steps of a depthwise separable one cost K²·C_in and
C_in·C_out: 1/C_out + 1/K² of that.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = Callable[..., nn.Module]


class ConvNormActivation(nn.Sequential):
    """A convolution, then a normalisation, then an activation: (B, in_channels, H, W) to (B, out_channels, H', W').

    torchvision's Conv2dNormActivation, with the same arguments, but for a depthwise convolution that trains fast on
    a CPU too (see DepthwiseConv2d).

    Args:
        padding: in pixels; None keeps H' = ceil(H / stride) for odd kernels.
        norm_layer: None leaves it out, and gives the convolution a bias unless `bias` says otherwise.
        activation_layer: None leaves it out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        norm_layer: Layer | None = nn.BatchNorm2d,
        activation_layer: Layer | None = nn.ReLU,
        dilation: int = 1,
        bias: bool | None = None,
    ) -> None:
        if padding is None:
            padding = (kernel_size - 1) // 2 * dilation
        if bias is None:
            bias = norm_layer is None
        conv = DepthwiseConv2d if groups == in_channels > 1 else nn.Conv2d
        layers: list[nn.Module] = [
            conv(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        ]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation_layer is not None:
            layers.append(activation_layer(inplace=True))
        super().__init__(*layers)


def depthwise_separable(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | None = None,
    norm_layer: Layer | None = nn.BatchNorm2d,
    activation_layer: Layer | None = nn.ReLU,
    between: bool = True,
) -> nn.Sequential:
    """A depthwise convolution, one filter per channel, then a pointwise (1 x 1) one that mixes channels.

    (B, in_channels, H, W) to (B, out_channels, H', W'). Source: Howard et al., arXiv 1704.04861, figure 3.

    Args:
        padding: in pixels; None keeps H' = ceil(H / stride) for odd kernels.
        between: normalise and activate between the two steps too, as MobileNet does. Else nothing comes between
            them, and a bias, where there is no norm, only after the second, as in Keras's SeparableConv2D.
    """
    depthwise = ConvNormActivation(
        in_channels,
        in_channels,
        kernel_size,
        stride,
        padding,
        groups=in_channels,
        norm_layer=norm_layer if between else None,
        activation_layer=activation_layer if between else None,
        bias=None if between else False,
    )
    pointwise = ConvNormActivation(
        in_channels, out_channels, 1, norm_layer=norm_layer, activation_layer=activation_layer
    )
    return nn.Sequential(depthwise, pointwise)


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with one filter per channel, and a backward pass that does not stall on a CPU.

    On a CPU, oneDNN's data gradient of a strided depthwise convolution is 10 (fp32) to 100 and more (bf16) times
    slower than its forward pass; the gradient of the same convolution at stride 1 is not. So here a strided one
    spreads its output's gradient over the stride-1 output, zeros between, and takes that way back.
    """

    def forward(self, input: Tensor) -> Tensor:
        strided = max(self.stride) > 1 and self.bias is None and self.padding_mode == "zeros"
        if not (strided and input.device.type == "cpu" and torch.is_grad_enabled()):
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        geometry = (list(self.padding), list(self.dilation), False, [0, 0], self.groups)
        return _StridedDepthwise.apply(input, weight, list(self.stride), geometry)


class _StridedDepthwise(torch.autograd.Function):
    """A strided convolution whose data gradient is computed at stride 1."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: list[int], geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.geometry = stride, geometry
        return torch.ops.aten.convolution(input, weight, None, stride, *geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        input, weight = ctx.saved_tensors
        convolution_backward = torch.ops.aten.convolution_backward
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            padding, dilation = ctx.geometry[:2]
            sides = [input.shape[i + 2] + 2 * padding[i] - dilation[i] * (weight.shape[i + 2] - 1) for i in range(2)]
            spread = grad.new_zeros(grad.shape[0], sides[0], sides[1], grad.shape[1]).permute(0, 3, 1, 2)
            spread[:, :, :: ctx.stride[0], :: ctx.stride[1]] = grad
            grad_input = convolution_backward(spread, input, weight, None, [1, 1], *ctx.geometry, [True, False, False])[
                0
            ]
        if ctx.needs_input_grad[1]:
            grad_weight = convolution_backward(
                grad, input, weight, None, ctx.stride, *ctx.geometry, [False, True, False]
            )[1]
        return grad_input, grad_weight, None, None


class GlobalAvgPool(nn.Module):
    """The mean over all positions: (B, C, H, W) to (B, C, 1, 1).

    As nn.AdaptiveAvgPool2d(1), whose gradient is a view with strides of 0 that a CPU's kernels take 20 times as
    long over (2 ms for (128, 128, 7, 7) in bf16, 2 cores).
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(input, input.shape[-2:])


class Resize(nn.Module):
    """Images (B, C, H, W) to (B, C, side, side), bilinear and antialiased: MobileNet's resolution multiplier."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)

    def extra_repr(self) -> str:
        return str(self.side)
