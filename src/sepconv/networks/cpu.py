"""torch's layers, made faster on a CPU.

Each stands for one stock layer, computes the same and has the same parameters, so that either can take the other's
place. On a GPU all of them run the stock operations. What whole blocks are made of at once is in networks/fused.
Measured: benchmarks/cpu_layers-threads-2.json.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepconv.networks import fused


class DepthwiseConv2d(nn.Conv2d, fused.Fusible):
    """For nn.Conv2d with one filter per channel or more: (B, C, H, W) to (B, multiple of C, H', W').

    It is trained by the fused kernels where they can be had and are faster (fused.ops.is_faster). What it changes
    elsewhere: but for fp32, a strided convolution's data gradient is computed at stride 1, from the output's gradient
    with zeros between its positions; several filters a channel are as many convolutions, whose maps are interleaved.
    Why: oneDNN's data gradient of a strided depthwise convolution in bf16, and its steps with two filters a channel,
    can take many times those at stride 1 and with one filter. It depends on the processor: without AVX512 only the
    second pays, and only in fp32 (benchmarks/cpu_layers-cpu-2026-11-26.json).
    """

    def forward(self, input: Tensor) -> Tensor:
        dtype = self.find_dtype(input)
        if dtype is not None and (links := fused.find_chain([self], dtype)):
            return fused.chain(links, input.to(dtype))
        weight, reduced = self.weight, torch.is_autocast_enabled("cpu")
        multiplier, strided = self.out_channels // self.in_channels, max(self.stride) > 1
        slow = strided and (reduced or input.dtype != torch.float32)
        plain = self.bias is None and self.padding_mode == "zeros" and not isinstance(self.padding, str)
        better = plain and input.device.type == "cpu"
        if not better or not (multiplier > 1 or (slow and torch.is_grad_enabled())):
            return super().forward(input)
        if reduced:
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        geometry: Any = (list(self.padding), list(self.dilation), False, [0, 0], self.groups)
        convolve = _StridedDepthwise.apply if slow else torch.convolution
        maps = [convolve(input, weight[i::multiplier], None, list(self.stride), *geometry) for i in range(multiplier)]
        if multiplier == 1:
            return maps[0]
        if input.is_contiguous(memory_format=torch.channels_last):
            return torch.stack([part.permute(0, 2, 3, 1) for part in maps], -1).flatten(3).permute(0, 3, 1, 2)
        return torch.stack(maps, 2).flatten(1, 2)


class _StridedDepthwise(torch.autograd.Function):
    """A strided convolution, with torch.convolution's arguments, whose data gradient is computed at stride 1."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: None, stride: list[int], *geometry: Any) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.geometry = stride, geometry
        return torch.convolution(input, weight, bias, stride, *geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        input, weight = ctx.saved_tensors
        padding, dilation, *_ = ctx.geometry
        gradients = torch.ops.aten.convolution_backward
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            sides = [input.shape[i + 2] + 2 * padding[i] - dilation[i] * (weight.shape[i + 2] - 1) for i in range(2)]
            spread = grad.new_zeros(grad.shape[0], *sides, grad.shape[1]).permute(0, 3, 1, 2)
            spread[:, :, :: ctx.stride[0], :: ctx.stride[1]] = grad
            grad_input, *_ = gradients(spread, input, weight, None, [1, 1], *ctx.geometry, [True, False, False])
        if ctx.needs_input_grad[1]:
            _, grad_weight, _ = gradients(grad, input, weight, None, ctx.stride, *ctx.geometry, [False, True, False])
        return grad_input, grad_weight, None, None, *[None] * len(ctx.geometry)


class GlobalAvgPool(nn.Module):
    """For nn.AdaptiveAvgPool2d(1), the mean over all positions: (B, C, H, W) to (B, C, 1, 1).

    What it changes: the gradient lies in memory as the input does. Why: the stock layer's is a view with strides of 0,
    which the kernels of the layer before, a ReLU's say, take long over on a CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and input.requires_grad:
            return _GlobalAvgPool.apply(input)
        return F.avg_pool2d(input, input.shape[-2:])


class _GlobalAvgPool(torch.autograd.Function):
    """The mean over all positions, whose gradient is laid out in memory as the input is."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.shape, ctx.format = input.shape, memory_format(input)
        return F.avg_pool2d(input, input.shape[-2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        height, width = ctx.shape[-2:]
        return (grad / (height * width)).expand(ctx.shape).contiguous(memory_format=ctx.format)


class Flatten(nn.Flatten):
    """For nn.Flatten: (B, C, H, W) to (B, C·H·W).

    What it changes: the gradient lies in memory as the input does. Why: after maps in channels-last form the stock
    layer's does not, and the layer before, a ReLU say, works on two layouts at once, which is slow on a CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and input.requires_grad and input.ndim == 4:
            return _Flatten.apply(input)
        return super().forward(input)


class _Flatten(torch.autograd.Function):
    """A flattening whose gradient is laid out in memory as its input is."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.shape, ctx.format = input.shape, memory_format(input)
        return input.flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return grad.view(ctx.shape).contiguous(memory_format=ctx.format)


def memory_format(maps: Tensor) -> torch.memory_format:
    """How `maps` (B, C, H, W) lie in memory: channels last, or contiguous for all else."""
    last = maps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class HalvingMaxPool(nn.MaxPool2d, fused.Fusible):
    """For nn.MaxPool2d(2): (B, C, H, W) to (B, C, H // 2, W // 2).

    It is computed by the fused kernels where they can be had. Else, where no gradient goes through it, it takes the
    larger of neighbours along one axis, then along the other. Why: the stock kernel notes where each maximum was. What
    compiles or exports it finds the stock layer, which other libraries have a kernel for.

    Args:
        ceil_mode: round an odd side's half up instead.
    """

    def __init__(self, ceil_mode: bool = False) -> None:
        super().__init__(2, ceil_mode=ceil_mode)

    def forward(self, input: Tensor) -> Tensor:
        height, width = (side // 2 * 2 for side in input.shape[-2:])
        whole = not self.ceil_mode or (height, width) == input.shape[-2:]
        if whole and min(height, width) > 0 and self.find_dtype(input) == input.dtype:
            return fused.halve(input)
        stock = torch.compiler.is_compiling() or input.device.type != "cpu"
        if stock or (input.requires_grad and torch.is_grad_enabled()) or not whole:
            return super().forward(input)
        rows = torch.maximum(input[..., 0:height:2, :], input[..., 1:height:2, :])
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])
