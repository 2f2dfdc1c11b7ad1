"""The networks against other people's implementations: the same sizes, and the same outputs with the same weights."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn

from sepconv.costs import counting
from sepconv.networks import build

WEIGHTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


class MLPerfTiny(nn.Module):
    """MLPerf Tiny's image classification reference, layer by layer in the order of its Keras code."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        wide = (3, 16, 16, 16, 32, 32, 64, 64)
        strides = (1, 1, 1, 2, 1, 2, 1)
        sizes = zip(wide[:-1], wide[1:], strides, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(ins, outs, 3, stride, padding=1) for ins, outs, stride in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outs) for outs in wide[1:])
        self.around2, self.around3 = nn.Conv2d(16, 32, 1, 2), nn.Conv2d(32, 64, 1, 2)
        self.dense = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        def normed(place: int, maps: Tensor) -> Tensor:
            return self.norms[place](self.convs[place](maps))

        x = F.relu(normed(0, images))
        x = F.relu(x + normed(2, F.relu(normed(1, x))))
        y = normed(4, F.relu(normed(3, x)))
        x = F.relu(self.around2(x) + y)
        y = normed(6, F.relu(normed(5, x)))
        x = F.relu(self.around3(x) + y)
        return self.dense(x.mean((2, 3)))


# our network, its options (form: imagenet unless given), the other implementation
REFERENCES: dict[str, tuple[str, dict[str, Any], Callable[[], nn.Module]]] = {
    "mobilenet_v1": ("mobilenet_v1", {}, lambda: timm.create_model("mobilenetv1_100")),
    "mobilenet_v2": ("mobilenet_v2", {}, lambda: tv.mobilenet_v2(dropout=0)),
    "mobilenet_v3_small": ("mobilenet_v3_small", {}, lambda: tv.mobilenet_v3_small(dropout=0)),
    "xception": ("xception", {}, lambda: timm.create_model("legacy_xception")),
    "resnet18": ("resnet", {"depth": 18}, tv.resnet18),
    "resnet34": ("resnet", {"depth": 34}, tv.resnet34),
    "mlperf_tiny": ("resnet", {"depth": 8, "form": "mlperf_tiny"}, lambda: MLPerfTiny(1000)),
}


def called(net: nn.Module, images: Tensor) -> list[nn.Module]:
    """The layers of `net` that hold weights, in the order in which a forward pass calls them."""
    order: list[nn.Module] = []
    hooks = [
        layer.register_forward_hook(lambda layer, *_: order.append(layer))
        for layer in net.modules()
        if isinstance(layer, WEIGHTED)
    ]
    net.eval()(images)
    for hook in hooks:
        hook.remove()
    return order


def copy_weights(source: nn.Module, target: nn.Module, images: Tensor) -> None:
    """Copies every parameter and buffer, layer by layer in the order of the calls."""
    sources, targets = called(source, images), called(target, images)
    kinds = [
        [next(kind for kind in WEIGHTED if isinstance(layer, kind)) for layer in net] for net in (sources, targets)
    ]
    assert kinds[0] == kinds[1]
    for one, other in zip(sources, targets, strict=True):
        other.load_state_dict(one.state_dict())  # strict: the same names and shapes
    copied = {id(p) for layer in targets for p in layer.parameters()}
    assert copied == {id(p) for p in target.parameters()}


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (each == "xception")) for each in REFERENCES]
)
@torch.no_grad()
def test_reference(name: str) -> None:
    """As many parameters, and with the reference's weights its outputs, and its statistics after a training step."""
    torch.manual_seed(0)
    ours, options, make = REFERENCES[name]
    reference = make().double()
    net = build(ours, (3, 96, 96), 1000, **{"form": "imagenet"} | options).double()
    assert counting.parameters(net) == sum(p.numel() for p in reference.parameters())
    for layer in reference.modules():
        if isinstance(layer, nn.BatchNorm2d):  # at their initial values they would prove little
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.5)
            nn.init.normal_(layer.running_mean, std=0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    images = torch.randn(4, 3, 96, 96, dtype=torch.double)
    copy_weights(reference, net, images[:1])
    for training in (False, True, False):  # the last time with statistics that the second pass changed
        expected, logits = (model.train(training)(images) for model in (reference, net))
        assert expected.std() > 1e-3
        assert (logits - expected).abs().max() < 1e-10 * max(1, expected.abs().max())


@pytest.mark.parametrize(
    ("name", "options", "parameters", "macs"),
    [
        ("mobilenet_v1", {}, 4.2e6, 569e6),  # Howard et al. 2017, table 4
        ("mobilenet_v1", {"conv": "dense"}, 29.3e6, 4866e6),  # the same table, "Conv MobileNet"
        ("mobilenet_v1", {"width": 0.5}, 1.3e6, 149e6),  # table 6
        ("mobilenet_v1", {"resolution": 160 / 224}, 4.2e6, 290e6),  # table 7
        ("mobilenet_v2", {}, 3.4e6, 300e6),  # Sandler et al. 2018, table 4
        ("mobilenet_v3_small", {}, 2.5e6, 56e6),  # Howard et al. 2019, table 3
        ("resnet", {"depth": 18}, None, 1.8e9),  # He et al. 2016, table 1, whose FLOPs are multiply-adds
        ("resnet", {"depth": 34}, None, 3.6e9),
    ],
)
def test_published_costs(name: str, options: dict[str, object], parameters: float | None, macs: float) -> None:
    """What the papers state at 224 pixels, as far as they state it."""
    net = build(name, (3, 224, 224), 1000, form="imagenet", **options)
    assert parameters is None or counting.parameters(net) == pytest.approx(parameters, rel=0.035)
    assert counting.macs(net, (3, 224, 224)) == pytest.approx(macs, rel=0.02)


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 0.27e6), (32, 0.46e6), (44, 0.66e6), (56, 0.85e6), (110, 1.7e6)]
)
def test_published_resnets(depth: int, parameters: float) -> None:
    """He et al. 2016, table 6."""
    net = build("resnet", (3, 32, 32), 10, depth=depth)
    assert counting.parameters(net) == pytest.approx(parameters, rel=0.02)
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in net.modules()) == depth
