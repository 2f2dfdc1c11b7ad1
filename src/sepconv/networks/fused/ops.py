"""A chain of convolutions, norms and activations as one function that torch differentiates."""

import ctypes
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sepconv.networks.fused.build import library

# as vectors.h numbers them
ACTIVATIONS: dict[type, int] = {type(None): 0, nn.ReLU: 1, nn.ReLU6: 2, nn.Hardswish: 3, nn.GELU: 4}
OF_SUMS = (nn.ReLU, nn.ReLU6)  # those whose gradient can be told from what they put out
SAVED = 5  # numbers a channel that a norm keeps for its backward pass
# Weights of a pointwise convolution, at most: those whose gradient's sums stay in a core's cache. Torch takes others.
MOST_WEIGHTS = 2**18
# Values that an output of a standard convolution sees, up to which they are copied out for each: those of a stem.
MOST_SEEN = 64


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


def has_kernel(layer: nn.Module, images: bool = False) -> bool:
    """Whether the kernels compute a layer, in training: a depthwise or pointwise convolution, a norm, an activation.

    Args:
        images: whether it takes images, of which no gradient is asked for: then a standard convolution, too, of few
            channels, whose patches are copied out.
    """
    if not layer.training or has_hooks(layer):
        return False
    if type(layer) in ACTIVATIONS:
        return getattr(layer, "approximate", "none") == "none"
    if isinstance(layer, nn.BatchNorm2d):
        kept = layer.running_mean is not None and layer.momentum is not None
        return layer.affine and kept and layer.weight.dtype == torch.float32
    if not isinstance(layer, nn.Conv2d) or layer.bias is not None or layer.weight.dtype != torch.float32:
        return False
    size, stride, pad = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    if layer.padding_mode != "zeros" or layer.dilation != (1, 1) or not isinstance(pad, int):
        return False
    if (
        layer.kernel_size != (size, size)
        or layer.stride != (stride, stride)
        or layer.padding != (pad, pad)
        or pad >= size
    ):
        return False
    if layer.groups == 1:
        seen, alone = size**2 * layer.in_channels, size == stride == 1
        return (alone or (images and size > 1 and seen <= MOST_SEEN)) and layer.out_channels * seen <= MOST_WEIGHTS
    return size in (3, 5) and stride in (1, 2) and layer.in_channels == layer.out_channels == layer.groups


def has_hooks(module: nn.Module) -> bool:
    """Whether something waits for a module to be called."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def find_chain(layers: Sequence[nn.Module], dtype: torch.dtype = torch.float32, images: bool = False) -> list["Link"]:
    """The links of the longest chain that `layers` begin with; none where torch's own kernels are as fast or faster.

    Args:
        dtype: that the kernels would compute in.
        images: as has_kernel, of the first of them.
    """
    links: list[Link] = []
    rest = deque(layers)

    def take(kind: type | tuple[type, ...]) -> Any:
        first = images and len(rest) == len(layers)
        return rest.popleft() if rest and isinstance(rest[0], kind) and has_kernel(rest[0], first) else None

    while True:
        conv = take(nn.Conv2d)
        norm = take(nn.BatchNorm2d) if conv or not links else None
        if conv is None and norm is None:
            break
        links.append(Link(conv, norm, take(tuple(ACTIVATIONS)) if norm else None))
    return links if is_faster(links, dtype) else []


def is_faster(links: Sequence["Link"], dtype: torch.dtype) -> bool:
    """Whether a chain is worth it: without a norm, not pointwise convolutions alone, nor a strided one alone in fp32.

    The strided one took longer than by torch (benchmarks/cpu_layers-threads-2-6e425f6.json: depthwise, stride 2).
    """
    if any(link.norm for link in links):
        return True
    depthwise = [link.conv for link in links if link.conv is not None and link.conv.groups > 1]
    strided = any(max(conv.stride) > 1 for conv in depthwise)
    return len(depthwise) > 0 and (len(links) > 1 or dtype == torch.bfloat16 or not strided)


def can_add(links: Sequence["Link"], activation: nn.Module | None) -> bool:
    """Whether a chain can add other maps to what its last norm puts out, and compute the activation of the sum."""
    alone = links[-1].norm is not None and links[-1].activation is None
    return alone and (activation is None or (isinstance(activation, OF_SUMS) and has_kernel(activation)))


class Geometry(ctypes.Structure):
    """maps.h's Geometry."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "H", "W", "C", "OH", "OW", "OC")),
        *((name, ctypes.c_int) for name in ("size", "stride", "pad")),
    )


class Norm(ctypes.Structure):
    """maps.h's Norm."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "running_mean", "running_var")),
        *((name, ctypes.c_float) for name in ("momentum", "epsilon")),
        ("saved", ctypes.c_void_p),
    )


class Input(ctypes.Structure):
    """maps.h's Input."""

    _fields_ = (("maps", ctypes.c_void_p), ("saved", ctypes.c_void_p), ("kind", ctypes.c_int))


class Gradient(ctypes.Structure):
    """maps.h's Gradient."""

    _fields_ = (*((name, ctypes.c_void_p) for name in ("g", "maps", "numbers")), ("kind", ctypes.c_int))


class NormGradient(ctypes.Structure):
    """maps.h's NormGradient."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("numbers", "weight", "bias"))


COUNT, TENSOR, POINTER = ctypes.c_int64, ctypes.c_void_p, ctypes.POINTER
FORWARD = (POINTER(Geometry), POINTER(Input), TENSOR, POINTER(Norm), TENSOR)
BACKWARD = (POINTER(Geometry), POINTER(Gradient), POINTER(Input), *[TENSOR] * 4, POINTER(NormGradient))
FUNCTIONS: dict[str, tuple[Any, ...]] = {  # the library's, and what they take before the number of threads
    "norm_statistics": (COUNT, COUNT, TENSOR, POINTER(Norm)),
    "depthwise_forward": FORWARD,
    "pointwise_forward": FORWARD,
    "finish_forward": (COUNT, COUNT, POINTER(Input), TENSOR, TENSOR),
    "finish_backward": (COUNT, COUNT, TENSOR, POINTER(Input), TENSOR, TENSOR, POINTER(NormGradient)),
    "depthwise_backward": BACKWARD,
    "pointwise_backward": BACKWARD,
    "norm_backward": (COUNT, COUNT, POINTER(Gradient), TENSOR),
    "read_patches": (POINTER(Geometry), TENSOR, TENSOR),
    "pool_forward": (POINTER(Geometry), TENSOR, TENSOR),
    "pool_backward": (POINTER(Geometry), TENSOR, TENSOR, TENSOR),
}


@cache
def find_function(name: str, dtype: torch.dtype) -> Any:
    """A function of the library for maps of `dtype`."""
    found = getattr(library(dtype), name)
    found.argtypes, found.restype = (*FUNCTIONS[name], ctypes.c_int), None
    return found


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Calls a function of the library for maps of `dtype`, on as many threads as torch. A tensor is its address."""
    values = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    find_function(name, dtype)(*values, torch.get_num_threads())


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Link(NamedTuple):
    """A convolution, a norm of what it puts out and an activation of that; either of the first two, or both."""

    conv: nn.Conv2d | None
    norm: nn.BatchNorm2d | None
    activation: nn.Module | None = None

    @property
    def kind(self) -> int:
        return ACTIVATIONS[type(self.activation)]

    def layers(self) -> int:
        """How many layers it stands for."""
        return sum(layer is not None for layer in self)

    def parameters(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The filters, and the norm's weight and bias."""
        weight = None if self.conv is None else self.conv.weight
        return (weight, None, None) if self.norm is None else (weight, self.norm.weight, self.norm.bias)


def chain(links: Sequence[Link], maps: Tensor, other: Tensor | None = None) -> Tensor:
    """`links`, one after the other, in training: maps (B, C, H, W), channels last, to (B, C', H', W').

    Args:
        other: added to what the last norm puts out, before its activation, which is one of OF_SUMS or none.

    Raises:
        ValueError: as the norm would, for a single value a channel.
        RuntimeError: as torch would, for maps of other channels or smaller than a kernel, and what cannot be added.
    """
    parameters = [parameter for link in links for parameter in link.parameters()]
    return Chain.apply(links, maps, other, *parameters)


class Reading(NamedTuple):
    """How maps are read: as they are, or through a norm (its `saved`) and an activation."""

    maps: Tensor
    saved: Tensor | None = None
    kind: int = 0

    def structure(self) -> Input:
        return Input(address(self.maps), address(self.saved), self.kind)


class NormResult(NamedTuple):
    """What is found for a norm on the way back: what the gradient of its maps is made with, its own gradients."""

    numbers: Tensor
    weight: Tensor
    bias: Tensor

    def structure(self) -> NormGradient:
        return NormGradient(*map(address, self))


class Chain(torch.autograd.Function):
    """The passes of __init__.py's table, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, links: Sequence[Link], maps: Tensor, other: Tensor | None, *parameters: Tensor | None
    ) -> Tensor:
        ctx.links, ctx.same, ctx.adds = links, other is maps, other is not None
        maps = channels_last(maps)
        dtype, reads, ctx.geometries = maps.dtype, [Reading(maps)], []
        weights = [None if weight is None else weight.permute(0, 2, 3, 1).contiguous() for weight in parameters[::3]]
        for link, weight in zip(links, weights, strict=True):
            geometry = None if link.conv is None else measure(link.conv, maps.shape)
            if link.conv is not None and geometry is not None and link.conv.groups == 1 and geometry.size > 1:
                patches, geometry = read_patches(geometry, maps)
                reads = [Reading(patches)]
            if geometry is not None:
                maps = room_for((geometry.images, geometry.OC, geometry.OH, geometry.OW), dtype)
            saved, norm = (None, None) if link.norm is None else take_note(link.norm, maps)
            if link.conv is None:
                call("norm_statistics", dtype, *sizes(maps), maps, norm)
            else:
                call(f"{kernel_of(link.conv)}_forward", dtype, geometry, reads[-1].structure(), weight, norm, maps)
            reads.append(Reading(maps, saved, link.kind))
            ctx.geometries.append(geometry)
        last, out = reads[-1], maps
        if last.saved is not None:
            out = room_for(maps.shape, dtype)
            other = None if other is None else channels_last(other.expand_as(maps))
            call("finish_forward", dtype, *sizes(maps), last.structure(), other, out)
        of_sum = out if ctx.adds and last.kind else None
        # what is put out as it is, by a convolution without a norm, is not needed: the next layer may overwrite it
        kept = [read.maps for read in reads[:-1]] + [None if out is maps else maps]
        ctx.save_for_backward(*kept, *(read.saved for read in reads), *weights, of_sum)
        ctx.dtype = dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        links, (*tensors, of_sum) = ctx.links, ctx.saved_tensors
        kinds = [0, *(link.kind for link in links)]
        maps, saved, weights = (tensors[i * len(kinds) : (i + 1) * len(kinds)] for i in range(3))
        reads = [*map(Reading, maps, saved, kinds)]
        results = [None if read.saved is None else find_room(read.saved) for read in reads]
        last, dtype = reads[-1], ctx.dtype
        grad: Tensor | None = channels_last(grads[0].to(dtype))
        if results[-1] is not None:
            dsum, found = None if of_sum is None else torch.empty_like(last.maps), results[-1].structure()
            call("finish_backward", dtype, *sizes(last.maps), grad, last.structure(), of_sum, dsum, found)
            grad = grad if dsum is None else dsum
        dother, kind = (grad, 0) if ctx.adds else (None, last.kind)
        parameters: list[Tensor | None] = []
        for place in reversed(range(len(links))):
            link, read, result, own = links[place], reads[place], results[place], results[place + 1]
            gradient = Gradient(address(grad), address(reads[place + 1].maps), own and address(own.numbers), kind)
            dmaps = room_for(read.maps.shape, dtype) if place or ctx.needs_input_grad[1] else None
            dweight = None
            if link.conv is not None:
                weight, on_the_way = weights[place], None
                dweight = torch.empty_like(weight)
                if ctx.same and not place:  # what is added is the maps too: one gradient for both
                    on_the_way, dother = dother, None
                given = gradient, read.structure(), weight, on_the_way, dmaps, dweight, result and result.structure()
                call(f"{kernel_of(link.conv)}_backward", dtype, ctx.geometries[place], *given)
            elif dmaps is not None:
                call("norm_backward", dtype, *sizes(read.maps), gradient, dmaps)
            dfilters = None if dweight is None else dweight.permute(0, 3, 1, 2)
            parameters = [dfilters, own and own.weight, own and own.bias, *parameters]
            grad, kind = dmaps, 0
        return None, grad, dother, *parameters


class Halving(torch.autograd.Function):
    """The largest of each 2 x 2 positions."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        batch, channels, height, width = maps.shape
        maps, sides = channels_last(maps), (height // 2, width // 2)
        ctx.geometry = Geometry(batch, height, width, channels, *sides, channels, 2, 2, 0)
        out = room_for((batch, channels, *sides), maps.dtype)
        call("pool_forward", maps.dtype, ctx.geometry, maps, out)
        ctx.save_for_backward(maps)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        grad, dmaps = channels_last(grads[0].to(maps.dtype)), room_for(maps.shape, maps.dtype)
        call("pool_backward", maps.dtype, ctx.geometry, grad, maps, dmaps)
        return dmaps


def halve(maps: Tensor) -> Tensor:
    """The largest of each 2 x 2 positions: maps (B, C, H, W), channels last, to (B, C, H // 2, W // 2)."""
    return Halving.apply(maps)


def kernel_of(conv: nn.Conv2d) -> str:
    return "pointwise" if conv.groups == 1 else "depthwise"


def sizes(maps: Tensor) -> tuple[int, int]:
    """Positions and channels."""
    return maps.numel() // maps.shape[1], maps.shape[1]


def channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def room_for(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for maps of `shape` (B, C, H, W), channels last."""
    return torch.empty(*shape, dtype=dtype, memory_format=torch.channels_last)


def find_room(saved: Tensor) -> NormResult:
    return NormResult(torch.empty_like(saved), torch.empty_like(saved[0]), torch.empty_like(saved[0]))


def measure(conv: nn.Conv2d, shape: Sequence[int]) -> Geometry:
    """What `conv` makes of maps of `shape` (B, C, H, W).

    Raises RuntimeError as the layer itself would: for maps of other channels, or smaller than its kernel.
    """
    batch, channels, height, width = shape
    if channels != conv.in_channels:
        raise RuntimeError(f"expected maps of {conv.in_channels} channels, not of {channels}")
    size, stride, pad = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    if min(height, width) + 2 * pad < size:
        raise RuntimeError(f"Kernel size can't be greater than actual input size: {size}, maps of {height} x {width}")
    sides = [(side + 2 * pad - size) // stride + 1 for side in (height, width)]
    return Geometry(batch, height, width, channels, *sides, conv.out_channels, size, stride, pad)


def read_patches(geometry: Geometry, images: Tensor) -> tuple[Tensor, Geometry]:
    """What each output of a standard convolution sees, as channels: (B, size * size * C, OH, OW); it is pointwise then.

    `images` are (B, C, H, W), channels last.
    """
    batch, seen = geometry.images, geometry.size**2 * geometry.C
    patches = room_for((batch, seen, geometry.OH, geometry.OW), images.dtype)
    call("read_patches", images.dtype, geometry, images, patches)
    return patches, Geometry(batch, geometry.OH, geometry.OW, seen, geometry.OH, geometry.OW, geometry.OC, 1, 1, 0)


def take_note(norm: nn.BatchNorm2d, maps: Tensor) -> tuple[Tensor, Norm]:
    """Room for what `norm` keeps of a batch of `maps`, and itself for the kernels, which fill it. The batch is counted.

    Raises, as the layer would, RuntimeError for maps of other channels, ValueError for a single value a channel.
    """
    positions, channels = sizes(maps)
    if channels != norm.num_features:
        raise RuntimeError(f"expected maps of {norm.num_features} channels, not of {channels}")
    if positions == 1:
        raise ValueError("Expected more than 1 value per channel when training")
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    assert norm.momentum is not None
    saved = torch.empty(SAVED, channels, dtype=torch.float32)
    tensors = [address(tensor) for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    return saved, Norm(*tensors, norm.momentum, norm.eps, saved.data_ptr())
