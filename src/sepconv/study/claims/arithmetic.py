"""Claims C1 to C6, which no training is needed for: closed forms against counts by torch and by hand."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sepconv.costs import closed_forms, counting
from sepconv.costs.closed_forms import Cost
from sepconv.study.claims.finding import Cell, Finding, Number
from sepconv.study.claims.lab import Lab

LAYERS = ((1, 32, 3, 28), (3, 16, 5, 32), (64, 128, 3, 14), (256, 256, 3, 7))  # channels in and out, kernel, side


def standard_cost(lab: Lab) -> Finding:
    """A standard convolution has K²·C_in·C_out weights, and does as many MACs at each output position."""
    return against_torch("standard", closed_forms.standard)


def depthwise_cost(lab: Lab) -> Finding:
    """A depthwise convolution, a filter a channel, has K²·C_in weights and does as many MACs a position."""
    return against_torch("depthwise", lambda ins, outs, size, sides: closed_forms.depthwise(ins, size, sides))


def pointwise_cost(lab: Lab) -> Finding:
    """A pointwise convolution is one dense layer at every position: C_in·C_out weights and MACs a position."""
    finding = against_torch("pointwise", lambda ins, outs, size, sides: closed_forms.pointwise(ins, outs, sides))
    conv, images = nn.Conv2d(5, 7, 1).double(), torch.randn(2, 5, 6, 6, dtype=torch.double)
    dense = F.linear(images.permute(0, 2, 3, 1), conv.weight[:, :, 0, 0], conv.bias).permute(0, 3, 1, 2)
    difference = float((conv(images) - dense).detach().abs().max())
    name = "against a dense layer at every position: largest difference"
    finding.rows = [*finding.rows, [name, "", "", "", Number(difference, ".0e")]]
    if difference > 1e-12:
        finding.verdict = "false"
    return finding


def against_torch(kind: str, form: Callable[[int, int, int, tuple[int, int]], Cost]) -> Finding:
    """A closed form against the parameters of torch's layer, and the MACs that torch's own counter gives it."""
    rows: list[list[Cell]] = []
    right = True
    for ins, outs, kernel_size, side in LAYERS:
        size = 1 if kind == "pointwise" else kernel_size
        groups = ins if kind == "depthwise" else 1
        layer = nn.Conv2d(ins, ins if kind == "depthwise" else outs, size, bias=False, groups=groups)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            layer(torch.zeros(1, ins, side, side))
        expected = form(ins, outs, size, (side, side))
        counted = Cost(counting.parameters(layer), counter.get_total_flops() // 2)
        right &= expected == counted
        rows.append([
            f"{size} x {size}, {ins} to {layer.out_channels}, {side} x {side}",
            expected.parameters, expected.macs, counted.parameters, counted.macs,
        ])  # fmt: skip
    return Finding(
        "The closed form against torch's layers: their number of weights, and torch's own count of operations.",
        ["layer", "parameters", "MACs", "parameters counted", "MACs counted"], rows, "true" if right else "false",
    )  # fmt: skip


def separable_ratio(lab: Lab) -> Finding:
    """Depthwise and pointwise together cost 1/C_out + 1/K² of the standard layer: 8 to 9 times less for K = 3 and
    C_out = 256.
    """
    rows: list[list[Cell]] = []
    right, factors = True, []
    for size, outs in ((3, 64), (3, 256), (3, 1024), (5, 256)):
        standard = closed_forms.standard(64, outs, size, (32, 32), padding=size // 2)
        separable = closed_forms.separable(64, outs, size, (32, 32), padding=size // 2)
        ratio = closed_forms.separable_ratio(outs, size)
        right &= separable.macs == ratio * standard.macs
        if size == 3:
            factors.append(float(1 / ratio))
        rows.append([size, outs, standard.macs, separable.macs, Number(float(ratio), ".4f"),
                     Number(float(1 / ratio), ".2f")])  # fmt: skip
    right &= 8 < factors[1] < 9
    return Finding(
        "Exact fractions: the two steps' MACs over the standard layer's, for 64 channels in, 32 x 32 out.",
        ["K", "C_out", "standard MACs", "separable MACs", "ratio", "times fewer"], rows, "true" if right else "false",
    )  # fmt: skip


def factor_of_kernel_area(lab: Lab) -> Finding:
    """The parameters shrink by a factor of K²."""
    rows: list[list[Cell]] = []
    shares = []
    for outs in (4, 16, 64, 256, 1024, 65536):
        factor = float(1 / closed_forms.separable_ratio(outs, 3))
        shares.append(factor / 9)
        rows.append([outs, Number(factor, ".2f"), Number(factor / 9, ".1%")])
    right = all(a < b for a, b in pairwise(shares)) and shares[-1] > 0.999
    return Finding(
        "The exact factor 1 / (1/C_out + 1/K²) for K = 3, beside K² = 9.", ["C_out", "times fewer", "of K²"], rows,
        "true when C_out is large" if right else "false",
    )  # fmt: skip


def worked_example(lab: Lab) -> Finding:
    """In the worked example, 5 x 5 x 3 to 4 maps, a separable layer has 39 weights for 108, 351 MACs for 972."""
    layers = {
        "standard": (closed_forms.standard(3, 4, 3, (5, 5)), Cost(108, 972)),
        "depthwise": (closed_forms.depthwise(3, 3, (5, 5)), Cost(27, 243)),
        "pointwise": (closed_forms.pointwise(3, 4, (3, 3)), Cost(12, 108)),
        "separable": (closed_forms.separable(3, 4, 3, (5, 5)), Cost(39, 351)),
        "standard, padding 1": (closed_forms.standard(3, 4, 3, (5, 5), padding=1), Cost(108, 2700)),
        "separable, padding 1": (closed_forms.separable(3, 4, 3, (5, 5), padding=1), Cost(39, 975)),
    }
    rows: list[list[Cell]] = [
        [name, form.parameters, form.macs, by_hand.parameters, by_hand.macs] for name, (form, by_hand) in layers.items()
    ]
    right = all(form == by_hand for form, by_hand in layers.values())
    return Finding(
        "The cost library against a count by hand: 5 x 5 x 3 in, 3 x 3 kernel, 4 maps out.",
        ["layer", "parameters", "MACs", "parameters by hand", "MACs by hand"], rows, "true" if right else "false",
    )  # fmt: skip
