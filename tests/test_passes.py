"""The passes of a step: by hand for blocks, and against what networks really call."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from conftest import SLIM
from torch import Tensor, nn

from sepconv.costs import counting
from sepconv.costs.passes import list_calls, update
from sepconv.networks import build, fused
from sepconv.networks.blocks import ConvNormActivation, depthwise, depthwise_separable

SHAPE = (16, 8, 8)
BY = ("torch", "fused")
MAP = 2 * 16 * 8 * 8  # elements of a map of two images


def passes(net: nn.Module, training: bool, kernels: str, image_gradient: bool = True) -> float:
    """Passes over maps of one size; weights left out."""
    calls = list_calls(net, SHAPE, 2, "fp32", training, kernels, image_gradient)
    weights = sum(layer.weights for call in calls for layer in call.layers)
    return sum(call.moved / 4 for call in calls) / MAP - weights / MAP


@pytest.mark.parametrize(
    ("make", "training", "torchs", "fuseds"),
    [
        (depthwise, True, 19, 10),  # as the table of networks/fused/__init__.py
        (ConvNormActivation, True, 6 + 13, 6 + 8),
        (depthwise_separable, True, 38, 2 + 2 + 2 + 2 + 4 + 4),
        (depthwise, False, 6, 4),
        (ConvNormActivation, False, 6, 4),
    ],
)
def test_blocks_by_hand(make: Callable[..., nn.Module], training: bool, torchs: int, fuseds: int) -> None:
    net = make(16, 16)
    assert passes(net, training, "torch") == pytest.approx(torchs)
    assert passes(net, training, "fused") == pytest.approx(fuseds)
    assert passes(fused.set_kernels(net, "torch"), training, "fused") == pytest.approx(torchs)


def test_what_no_gradient_is_needed_of() -> None:
    """Nothing goes to the images, or through a layer before all that learns."""
    net = nn.Sequential(nn.ReLU(), depthwise(16, 16))
    everything, needed = (list_calls(net, SHAPE, 2, "fp32", True, "torch", flag) for flag in (True, False))
    assert {call.name for call in everything} - {call.name for call in needed} == {
        "0, torch activation backward",
        "1.conv, torch depthwise data gradient",
    }
    assert passes(depthwise(16, 16), True, "fused", image_gradient=False) == pytest.approx(9)  # dx is not written


NETWORKS: list[tuple[str, dict[str, Any]]] = [
    *((name, SLIM.get(name, {})) for name in ("separable", "mobilenet_v2", "mobilenet_v3_small", "xception", "resnet",
                                              "tiny")),
    ("resnet", {"depth": 8, "form": "mlperf_tiny"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), NETWORKS)
@pytest.mark.parametrize("conv", ["separable", "dense"])
@pytest.mark.parametrize("training", [True, False])
def test_fused_calls_are_those_that_a_network_makes(
    name: str, options: dict[str, Any], conv: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build(name, (3, 32, 32), 10, **options | {"conv": conv}).to(memory_format=torch.channels_last)
    made: list[tuple[list[str], bool]] = []
    compute = fused.chain

    def counted(links: Sequence[fused.Link], maps: Tensor, other: Tensor | None = None) -> Tensor:
        made.append(
            ([type(layer).__name__ for link in links for layer in link if layer is not None], other is not None)
        )
        return compute(links, maps, other)

    monkeypatch.setattr(fused, "chain", counted)
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.set_grad_enabled(training):
        net.train(training)(images)
    calls = list_calls(net, (3, 32, 32), 2, "fp32", training, "fused")
    listed = []
    for call in calls:
        if (call.owner, call.direction) == ("fused", "forward"):
            kinds = [layer.kind for layer in call.layers]
            modules = [type(net.get_submodule(layer.name)).__name__ for layer in call.layers if layer.call is None]
            listed.append((modules, "add" in kinds))
    assert listed == made


@pytest.mark.parametrize("name", ["separable", "resnet", "mobilenet_v2"])
def test_arithmetic_is_that_of_the_layers(name: str) -> None:
    net = build(name, (3, 32, 32), 10, **SLIM.get(name, {}))
    total = counting.total(counting.layers(net, (3, 32, 32), 4))
    for kernels in ("torch", "fused"):
        flop = [sum(call.flop for call in list_calls(net, (3, 32, 32), 4, "bf16", t, kernels)) for t in (False, True)]
        assert flop == [2 * total.macs, 2 * (total.macs + total.macs_backward)]


def test_what_the_backward_pass_needs_is_counted_once() -> None:
    """Written maps: y, u, z by torch's kernels; of fused ones y and z; a later pass over the same is none."""
    net = depthwise(16, 16)
    made = {kernels: sum(c.made for c in list_calls(net, SHAPE, 2, "bf16", True, kernels)) for kernels in BY}
    assert made == {"torch": 3 * 2 * MAP, "fused": 2 * 2 * MAP}


def test_update() -> None:
    """AdamW reads a weight, its gradient and two moments, and writes three of them; bf16 weights are made of it."""
    net = nn.Linear(10, 10)
    net.bias.requires_grad_(False)
    assert update(net, "fp32").moved == 100 * 7 * 4
    assert update(net, "bf16").moved == 100 * (7 * 4 + 12)
