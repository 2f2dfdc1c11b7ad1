"""What a network costs: parameters, and multiply-accumulates (MACs) of a forward pass over one image."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(net: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def macs(net: nn.Module, shape: tuple[int, int, int]) -> int:
    """MACs of a forward pass over one image of `shape` (channels, height, width): convolutions and matrix products.

    Counted by torch's own counter, which counts 2 FLOP a MAC, on the meta device: nothing is computed.
    """
    meta = copy.deepcopy(net).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() // 2
