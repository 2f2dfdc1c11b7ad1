"""The fused kernels as functions that torch differentiates."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sepconv.networks.fused.build import library

# as fused.c numbers them
ACTIVATIONS: dict[type, int] = {type(None): 0, nn.ReLU: 1, nn.ReLU6: 2, nn.Hardswish: 3, nn.GELU: 4}
SAVED = 5  # numbers a channel that a normalisation keeps for its backward pass
SMALLEST = 16  # channels of a depthwise convolution: the widest vector's


class Fusible:
    """A layer or block that the kernels compute where they can.

    Attributes:
        kernels: auto, fused, or torch, which is not to.
    """

    kernels = "auto"

    def find_dtype(self, maps: Tensor) -> torch.dtype | None:
        """The type that the kernels compute `maps` in; None where torch's own are to."""
        return None if self.kernels == "torch" else find_dtype(maps)


def set_kernels(net: nn.Module, kernels: str) -> nn.Module:
    """`net`, whose layers and blocks are to compute by `kernels`."""
    for module in net.modules():
        if isinstance(module, Fusible):
            module.kernels = kernels
    return net


def find_dtype(maps: Tensor) -> torch.dtype | None:
    """The type that the kernels compute maps (B, C, H, W) in; None where they do not: off the CPU, in other layouts."""
    if maps.device.type != "cpu" or maps.ndim != 4 or torch.compiler.is_compiling() or type(maps) is not Tensor:
        return None
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else maps.dtype
    valid = dtype in (torch.float32, torch.bfloat16) and maps.dtype in (torch.float32, dtype) and maps.numel() > 0
    last = maps.is_contiguous(memory_format=torch.channels_last)
    return dtype if valid and last and library(dtype) else None


def has_kernel(layer: nn.Module | None) -> bool:
    """Whether a layer is one that the kernels compute: a depthwise convolution, a norm in training, an activation."""
    if isinstance(layer, nn.Conv2d):
        (size, _), (stride, _) = layer.kernel_size, layer.stride
        pad = layer.padding[0]
        return (
            layer.in_channels == layer.out_channels == layer.groups >= SMALLEST
            and layer.kernel_size in ((3, 3), (5, 5))
            and layer.stride == (stride, stride)
            and layer.padding == (pad, pad)
            and isinstance(pad, int)
            and pad < size
            and layer.dilation == (1, 1)
            and layer.bias is None
            and layer.padding_mode == "zeros"
            and layer.weight.dtype == torch.float32
        )
    if isinstance(layer, nn.BatchNorm2d):
        kept = layer.running_mean is not None and layer.momentum is not None
        return layer.training and layer.affine and kept and layer.weight.dtype == torch.float32
    return type(layer) in ACTIVATIONS and getattr(layer, "approximate", "none") == "none"


def norm_activation(maps: Tensor, norm: nn.BatchNorm2d, activation: nn.Module | None) -> Tensor:
    """`activation(norm(maps))`, in training: maps (B, C, H, W), channels last."""
    count(norm, maps.numel() // maps.shape[1])
    return NormActivation.apply(maps, norm.weight, norm.bias, norm, ACTIVATIONS[type(activation)])


def depthwise_norm_activation(
    maps: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, activation: nn.Module | None
) -> Tensor:
    """`activation(norm(conv(maps)))`, in training: maps (B, C, H, W), channels last, to (B, C, H', W')."""
    geometry = measure(maps, conv)
    count(norm, geometry.images * geometry.OH * geometry.OW)
    kind = ACTIVATIONS[type(activation)]
    return DepthwiseNormActivation.apply(maps, conv.weight, norm.weight, norm.bias, geometry, norm, kind)


def depthwise(maps: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv(maps)`: maps (B, C, H, W), channels last, to (B, C, H', W')."""
    return Depthwise.apply(maps, conv.weight, measure(maps, conv))


def add_activation(one: Tensor, other: Tensor, activation: nn.Module) -> Tensor:
    """`activation(one + other)`, for ReLU and ReLU6: maps (B, C, H, W), channels last."""
    return AddActivation.apply(one, other, ACTIVATIONS[type(activation)])


def count(norm: nn.BatchNorm2d, positions: int) -> None:
    """Notes one more batch, of so many values a channel. Raises ValueError, as the layer would, for a single one."""
    if positions == 1:
        raise ValueError("Expected more than 1 value per channel when training")
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


class Norm(ctypes.Structure):
    """fused.c's Norm."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("running_mean", ctypes.c_void_p),
        ("running_var", ctypes.c_void_p),
        ("momentum", ctypes.c_float),
        ("epsilon", ctypes.c_float),
        ("saved", ctypes.c_void_p),
    )


class Geometry(ctypes.Structure):
    """fused.c's Geometry."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "H", "W", "C", "OH", "OW")),
        *((name, ctypes.c_int) for name in ("size", "stride", "pad")),
    )


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def call(function: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Calls a function of the library for maps of `dtype`: tensors by their addresses, on as many threads as torch."""
    kernels = library(dtype)
    assert kernels is not None
    addresses = (address(value) if value is None or isinstance(value, Tensor) else value for value in arguments)
    getattr(kernels, function)(*addresses, torch.get_num_threads())


def describe(norm: nn.BatchNorm2d, saved: Tensor) -> Any:
    """`norm` for the kernels, which update its running statistics."""
    assert norm.momentum is not None
    tensors = [address(t) for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    return ctypes.byref(Norm(*tensors, norm.momentum, norm.eps, address(saved)))


def channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def measure(maps: Tensor, conv: nn.Conv2d) -> Geometry:
    """What `conv` makes of `maps`. Raises RuntimeError as the layer itself would: for maps smaller than its kernel."""
    batch, channels, height, width = maps.shape
    size, stride, pad = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    if min(height, width) + 2 * pad < size:
        raise RuntimeError(f"Kernel size can't be greater than actual input size: {size}, maps of {height} x {width}")
    sides = [(side + 2 * pad - size) // stride + 1 for side in (height, width)]
    return Geometry(batch, height, width, channels, *sides, size, stride, pad)


def room_for(geometry: Geometry, maps: Tensor) -> Tensor:
    """Memory for what a convolution makes of `maps`, channels last."""
    return maps.new_empty(geometry.images, geometry.OH, geometry.OW, geometry.C).permute(0, 3, 1, 2)


class NormActivation(torch.autograd.Function):
    """activate(normalize(maps)), with the statistics of the batch: maps (B, C, H, W), channels last."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, kind: int) -> Tensor:
        maps = channels_last(maps)
        channels = maps.shape[1]
        ctx.sizes = ctypes.c_int64(maps.numel() // channels), ctypes.c_int64(channels)
        saved, out = weight.new_empty(SAVED, channels), torch.empty_like(maps)
        call("norm_forward", maps.dtype, maps, *ctx.sizes, describe(norm, saved), kind, out)
        ctx.save_for_backward(maps, saved)
        ctx.kind = kind
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        maps, saved = ctx.saved_tensors
        grad = channels_last(grads[0].to(maps.dtype))
        dmaps, dweight, dbias = torch.empty_like(maps), torch.empty_like(saved[0]), torch.empty_like(saved[0])
        call("norm_backward", maps.dtype, grad, maps, *ctx.sizes, saved, ctx.kind, dmaps, dweight, dbias)
        return dmaps, dweight, dbias, None, None


class DepthwiseNormActivation(torch.autograd.Function):
    """activate(normalize(depthwise convolution of maps)), with the statistics of the batch."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, filters: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry,
                norm: nn.BatchNorm2d, kind: int) -> Tensor:  # fmt: skip
        maps, filters, convolved = channels_last(maps), filters.contiguous(), room_for(geometry, maps)
        saved, out = weight.new_empty(SAVED, maps.shape[1]), torch.empty_like(convolved)
        call("depthwise_norm_forward", maps.dtype, ctypes.byref(geometry), maps, filters, describe(norm, saved), kind,
             convolved, out)  # fmt: skip
        ctx.save_for_backward(maps, filters, convolved, saved)
        ctx.geometry, ctx.kind = geometry, kind
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        maps, filters, convolved, saved = ctx.saved_tensors
        grad = channels_last(grads[0].to(maps.dtype))
        dmaps = torch.empty_like(maps) if ctx.needs_input_grad[0] else None
        dfilters, dweight, dbias = torch.empty_like(filters), torch.empty_like(saved[0]), torch.empty_like(saved[0])
        call("depthwise_norm_backward", maps.dtype, ctypes.byref(ctx.geometry), grad, convolved, maps, filters, saved,
             ctx.kind, dmaps, dfilters, dweight, dbias)  # fmt: skip
        return dmaps, dfilters, dweight, dbias, None, None, None


class Depthwise(torch.autograd.Function):
    """A depthwise convolution."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, filters: Tensor, geometry: Geometry) -> Tensor:
        maps, filters, out = channels_last(maps), filters.contiguous(), room_for(geometry, maps)
        call("depthwise_forward", maps.dtype, ctypes.byref(geometry), maps, filters, out)
        ctx.save_for_backward(maps, filters)
        ctx.geometry = geometry
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        maps, filters = ctx.saved_tensors
        grad = channels_last(grads[0].to(maps.dtype))
        dmaps = torch.empty_like(maps) if ctx.needs_input_grad[0] else None
        dfilters = torch.empty_like(filters)
        call("depthwise_backward", maps.dtype, ctypes.byref(ctx.geometry), grad, maps, filters, dmaps, dfilters)
        return dmaps, dfilters, None


class AddActivation(torch.autograd.Function):
    """activate(one + other), whose gradient needs nothing but the sum's activation."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, kind: int) -> Tensor:
        one, other = channels_last(one), channels_last(other)
        out = torch.empty_like(one)
        call("add_forward", one.dtype, one, other, ctypes.c_int64(one.numel()), kind, out)
        ctx.save_for_backward(out)
        ctx.kind = kind
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (out,) = ctx.saved_tensors
        grad, gradient = channels_last(grads[0].to(out.dtype)), torch.empty_like(out)
        call("add_backward", out.dtype, grad, out, ctypes.c_int64(out.numel()), ctx.kind, gradient)
        return gradient, gradient, None
