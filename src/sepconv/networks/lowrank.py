"""Trained convolutions as products of cheaper ones, by truncated singular value decompositions (SVD) of their weights.

A K x K convolution from C_in to C_out channels, K²·C_in·C_out multiply-accumulates (MACs) a position, at rank r:

method         SVD of                                    layers                                  MACs a position
spatial        each 2-D kernel, K x K                    K x 1, C_in to C_in·C_out·r channels    2·K·C_in·C_out·r
                                                         (each alone); 1 x K, their sums
spatial_joint  all kernels at once, C_in·K x K·C_out     K x 1, C_in to r; 1 x K, r to C_out     K·(C_in + C_out)·r
depthwise      each input channel's kernels, K² x C_out  r filters a channel; 1 x 1, to C_out    (K² + C_out)·C_in·r

At full rank (the smaller side of the matrix) the layers compute the same function; below it, no other layers of that
form have weights nearer to the convolution's (Eckart and Young 1936). `spatial` separates exactly at rank 1 what is a
product of a column and a row; it saves MACs only below rank K/2, and its many maps take so much memory and time that
it runs as the one convolution that it multiplies out to (KernelWise).
`spatial_joint` shares r maps among all kernels: scheme 2 of Jaderberg et al., arXiv 1405.3866, in the closed form of
Tai et al., arXiv 1511.06067. On a depthwise convolution, one filter a channel, it is the same as `spatial`.
`depthwise` is the network decoupling of Guo et al., arXiv 1808.05517: r depthwise separable convolutions, summed.
"""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sepconv.networks.cpu import DepthwiseConv2d

METHODS = ("spatial", "spatial_joint", "depthwise")
MOST_MAPS = 2**26  # bytes of maps between the two steps of KernelWise, which take images in parts of so many


def find_separable(net: nn.Module, method: str) -> dict[str, nn.Conv2d]:
    """The convolutions of `net` that `method` separates, by name: dense or depthwise ones with something to separate.

    `spatial` and `spatial_joint` leave kernels with a side of 1, `depthwise` those and one filter per channel; all of
    them leave what is not trained (recipe.whiten): its parts would be.
    """

    def divisible(conv: nn.Conv2d) -> bool:
        if conv.groups not in (1, conv.in_channels) or not conv.weight.requires_grad:
            return False
        return full_rank(conv, method) > 1 if method == "depthwise" else min(conv.kernel_size) > 1

    return {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d) and divisible(layer)}


def put(net: nn.Module, name: str, factors: nn.Module) -> None:
    """Has `factors` take the place of the layer `name` of `net`, wherever that layer is used."""
    replaced = net.get_submodule(name)
    for place, layer in list(net.named_modules(remove_duplicate=False)):
        if layer is replaced:
            net.set_submodule(place, factors)


def sides(conv: nn.Conv2d, method: str) -> tuple[int, int]:
    """Rows and columns of the matrices that `method` decomposes."""
    inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    height, width = conv.kernel_size
    if method == "spatial":
        return height, width
    if method == "spatial_joint":
        return inputs * height, width * outputs
    return height * width, outputs


def full_rank(conv: nn.Conv2d, method: str) -> int:
    """The rank at which `method` reproduces `conv` whatever its weights: the matrices' smaller side."""
    return min(sides(conv, method))


def matrices(conv: nn.Conv2d, method: str) -> Tensor:
    """The weight (C_out, C_in / groups, K, K) as the matrices (N, rows, columns) that `method` decomposes."""
    rows, columns = sides(conv, method)
    weight = conv.weight.detach()
    if method == "spatial":
        return weight.reshape(-1, rows, columns)
    # (groups, C_in / groups, K, K, C_out / groups)
    grouped = weight.unflatten(0, (conv.groups, -1)).permute(0, 2, 3, 4, 1)
    return grouped.reshape(-1, rows, columns)


def make_factors(conv: nn.Conv2d, method: str, rank: int) -> nn.Sequential:
    """The layers that `conv` becomes at `rank`, with its stride, padding, dilation and bias, and new weights.

    Their names are vertical and horizontal, or depthwise and pointwise, as those of the separable blocks.
    """
    (height, width), stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    padding: Any = (0, 0) if conv.padding == "valid" else conv.padding  # two numbers, or "same"
    above, beside = (padding, padding) if isinstance(padding, str) else ((padding[0], 0), (0, padding[1]))
    column = {"kernel_size": (height, 1), "stride": (stride[0], 1), "padding": above, "dilation": (dilation[0], 1)}
    row = {"kernel_size": (1, width), "stride": (1, stride[1]), "padding": beside, "dilation": (1, dilation[1])}
    whole = {"kernel_size": (height, width), "stride": stride, "padding": padding, "dilation": dilation}
    if method == "spatial":
        # each input channel's columns, for every output channel; then each output channel's rows, summed
        maps = conv.out_channels * (conv.in_channels // conv.groups) * rank
        first, second = column | {"groups": conv.in_channels}, row | {"groups": conv.out_channels}
    elif method == "spatial_joint":
        maps = conv.groups * rank
        first, second = column | {"groups": conv.groups}, row | {"groups": conv.groups}
    else:
        maps = conv.in_channels * rank
        first, second = whole | {"groups": conv.in_channels}, {"kernel_size": 1, "groups": conv.groups}
    names = ("depthwise", "pointwise") if method == "depthwise" else ("vertical", "horizontal")
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    steps[names[0]] = convolution(conv, conv.in_channels, maps, bias=False, **first)
    mixed = method == "spatial" and conv.in_channels > conv.groups
    if mixed:  # from the order of input channels, then of output channels, to the other
        steps["shuffle"] = nn.ChannelShuffle(conv.in_channels)
    steps[names[1]] = convolution(conv, maps, conv.out_channels, bias=conv.bias is not None, **second)
    factors = KernelWise(steps, conv) if mixed else nn.Sequential(steps)
    return factors.train(conv.training)


def convolution(like: nn.Conv2d, in_channels: int, out_channels: int, **geometry: Any) -> nn.Conv2d:
    """A convolution with the padding mode, device and type of `like`."""
    kind = DepthwiseConv2d if geometry["groups"] == in_channels > 1 else nn.Conv2d
    device, dtype = like.weight.device, like.weight.dtype
    return kind(in_channels, out_channels, padding_mode=like.padding_mode, device=device, dtype=dtype, **geometry)


class KernelWise(nn.Sequential):
    """The steps of `spatial` in the place of a dense convolution: vertical, shuffle, horizontal.

    They run as the convolution that they multiply out to, with the same function and gradients, and without their
    C_in·C_out·r maps. The steps themselves run where `stepwise` is set, to be timed; on the meta device, where they are
    counted; and where one of them was separated further.

    Args:
        steps: by name.
        conv: what they stand for: its geometry, not its weights.
    """

    vertical: nn.Conv2d
    horizontal: nn.Conv2d
    stepwise = False

    def __init__(self, steps: OrderedDict[str, nn.Module], conv: nn.Conv2d) -> None:
        super().__init__(steps)
        self.product = (copy.deepcopy(conv).to("meta"),)  # in a tuple: not a part of this module, whose weights are its

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "meta":
            return super().forward(input)
        if self.stepwise or not self.is_whole():
            maps = 4 * max(step.weight.shape[0] for step in self.modules() if isinstance(step, nn.Conv2d))
            size = max(1, MOST_MAPS // (maps * input.shape[2] * input.shape[3]))
            return torch.cat([super(KernelWise, self).forward(part) for part in input.split(size)])
        parameters = {"weight": self.weight()}
        if self.horizontal.bias is not None:
            parameters["bias"] = self.horizontal.bias
        return functional_call(self.product[0], parameters, (input,))

    def is_whole(self) -> bool:
        """Whether neither step was separated further."""
        return isinstance(self.vertical, nn.Conv2d) and isinstance(self.horizontal, nn.Conv2d)

    def weight(self) -> Tensor:
        """The weight (C_out, C_in, K, K) of the one convolution."""
        inputs, outputs = self.vertical.in_channels, self.horizontal.out_channels
        columns = self.vertical.weight.reshape(inputs, outputs, -1, self.vertical.kernel_size[0])
        rows = self.horizontal.weight.reshape(outputs, -1, inputs, self.horizontal.kernel_size[1])
        # (C_out, C_in, r, K, K); by products one by one, which autocast leaves as exact as the weights are
        products = columns.transpose(0, 1)[..., None] * rows.transpose(1, 2)[..., None, :]
        return products.sum(2)


def multiply_out(net: nn.Module) -> nn.Module:
    """A copy of `net`, of shapes alone, in which what runs as one convolution (KernelWise) is that convolution."""
    copied = copy.deepcopy(net).to("meta")
    for name, layer in list(copied.named_modules()):
        if isinstance(layer, KernelWise) and layer.is_whole():
            put(copied, name, layer.product[0])
    return copied


class Decomposition:
    """The SVD of a convolution's weights by a method: its factors at every rank, and what they leave out."""

    def __init__(self, conv: nn.Conv2d, method: str) -> None:
        self.conv, self.method = conv, method
        self.left, self.values, self.right = torch.linalg.svd(matrices(conv, method).double(), full_matrices=False)

    @property
    def full(self) -> int:
        """The full rank."""
        return self.values.shape[-1]

    def error(self, rank: int) -> float:
        """The squared Frobenius norm of what `rank` leaves out of the weights: the discarded singular values'."""
        return float(self.values[:, rank:].square().sum())

    def weight(self, rank: int) -> Tensor:
        """The weight (C_out, C_in / groups, K, K) of a convolution that computes what the layers at `rank` do."""
        conv = self.conv
        product = (self.left[:, :, :rank] * self.values[:, None, :rank]) @ self.right[:, :rank]
        if self.method != "spatial":  # from (groups, C_in / groups, K, K, C_out / groups)
            inputs = conv.in_channels // conv.groups
            grouped = product.reshape(conv.groups, inputs, *conv.kernel_size, -1)
            product = grouped.permute(0, 4, 1, 2, 3)
        return product.reshape(conv.weight.shape).to(conv.weight.dtype)

    def factors(self, rank: int) -> nn.Sequential:
        """The layers at `rank`, the singular values divided evenly between the two."""
        conv = self.conv
        scale = self.values[:, :rank].sqrt()
        left, right = self.left[:, :, :rank] * scale[:, None], scale[:, :, None] * self.right[:, :rank]
        inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        height, width = conv.kernel_size
        if self.method == "spatial":
            # (C_out, inputs, K, r) to (inputs, C_out, r, K), and (C_out, inputs, r, K) to (C_out, r, inputs, K)
            first = left.unflatten(0, (-1, inputs)).permute(1, 0, 3, 2)
            second = right.unflatten(0, (-1, inputs)).transpose(1, 2)
        elif self.method == "spatial_joint":
            # (groups, inputs·K, r) to (groups, r, inputs, K), and (groups, r, K·outputs) to (groups, outputs, r, K)
            first = left.unflatten(1, (inputs, height)).permute(0, 3, 1, 2)
            second = right.unflatten(2, (width, outputs)).permute(0, 3, 1, 2)
        else:
            # (C_in, K·K, r) to (C_in, r, K·K), and (groups, inputs·r, outputs) to (groups, outputs, inputs·r)
            first = left.transpose(1, 2)
            second = right.reshape(conv.groups, inputs * rank, outputs).transpose(1, 2)
        factors = make_factors(conv, self.method, rank)
        with torch.no_grad():
            for parameter, values in zip(factors.parameters(), (first, second, conv.bias), strict=False):
                parameter.copy_(values.reshape(parameter.shape))
        return factors
