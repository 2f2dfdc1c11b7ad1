"""Receptive fields, in theory against hand counts and published figures, and in effect inside the theoretical ones."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import Outcome, refused
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

from sepconv.costs import plots
from sepconv.costs.counting import Layer, layers
from sepconv.costs.effective_receptive_field import central_window, effective_side, gradient_maps, spatial_layers
from sepconv.costs.plots import draw_receptive_fields
from sepconv.costs.report import add_effective_sides
from sepconv.networks import build, names
from sepconv.networks.blocks import Resize, depthwise_separable
from sepconv.networks.cpu import GlobalAvgPool


def fields(net: nn.Module, shape: tuple[int, int, int]) -> list[tuple[float, float]]:
    """(size, jump) along the height, after each layer."""
    return [(layer.sees[0].size, layer.sees[0].jump) for layer in layers(net, shape)]


def inside(mass: Tensor, layer: Layer) -> bool:
    """Whether all gradient comes from the theoretical window."""
    (top, bottom), (left, right) = central_window(layer, mass.shape)
    outside = mass.clone()
    outside[top : bottom + 1, left : right + 1] = 0
    return bool((outside == 0).all())


class Sliced(nn.Module):
    def __init__(self, kept: slice) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, images: Tensor) -> Tensor:
        return images[..., self.kept, self.kept]


# In theory


def test_sequential() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=1, dilation=2),
        nn.AvgPool2d(3, stride=2, padding=1), nn.Conv2d(2, 2, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(2, 2),
    )  # fmt: skip
    whole = float("inf")
    assert fields(net, (1, 40, 40)) == [(3, 1), (3, 1), (4, 2), (12, 2), (16, 4), (32, 4), (whole, 4), (whole, 4)]
    assert layers(net, (1, 40, 40))[-1].receptive_field((1, 40, 40)) == (40, 40)


def test_height_and_width_apart() -> None:
    (layer,) = layers(nn.Conv2d(1, 1, (1, 5), stride=(2, 3), padding=(0, 2)), (1, 20, 20))
    assert layer.receptive_field((1, 20, 20)) == (1, 5)
    assert [extent.jump for extent in layer.sees] == [2, 3]
    assert (layer.kernel, layer.stride) == ((1, 5), (2, 3))
    assert central_window(layer, (20, 20)) == [(10, 10), (7, 11)]


def test_slices() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3), Sliced(slice(-5, None, 2)), nn.Conv2d(1, 1, 2))
    (_, layer) = layers(net, (1, 12, 12))
    assert [(extent.first, extent.last, extent.jump) for extent in layer.sees] == [(5, 9, 2)] * 2


def test_padded_channels_leave_positions() -> None:
    """The shortcut of a CIFAR ResNet (option A): 3 x 3 kernels, each adding 2 jumps."""
    rows = layers(build("resnet", (3, 32, 32), 10, depth=20), (3, 32, 32))
    convolutions = [row.sees[0].size for row in rows if row.kernel == (3, 3) and row.kind != "depthwise"]
    assert convolutions == [3, *range(5, 17, 2), 17, 21, 25, 29, 33, 37, 41, 49, 57, 65, 73, 81]


def test_size_after_a_resize_to_no_whole_jump() -> None:
    net = nn.Sequential(Resize(9, 9), nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3))
    first, last = (4 / 3 - 1) / 2 - 4 / 3, (4 / 3 - 1) / 2 + 4 / 3 + 4 * 4 / 3
    assert layers(net, (1, 12, 12))[-1].sees[0].size == math.floor(round(last - first, 6)) + 1


def test_largest_over_paths() -> None:
    """A residual block sees what its longest path sees; so does a concatenation."""

    class Paths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.short = nn.Conv2d(4, 4, 1, 2)
            self.long = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            together = self.short(images) + self.long(images)
            return torch.cat([self.short(images), together], 1)

    rows = layers(Paths(), (4, 16, 16))
    sizes = [(row.kind, row.sees[0].size) for row in rows]
    assert sizes == [("pointwise", 1), ("standard", 3), ("standard", 7), ("add", 7), ("pointwise", 1), ("cat", 7)]
    assert all(row.sees[0].jump == 2 for row in rows)


@pytest.mark.parametrize(
    ("name", "field"), [("vgg16", 212), ("alexnet", 195), ("resnet18", 435), ("mobilenet_v2", 491)]
)
def test_published(name: str, field: int) -> None:
    """Before the global pooling; Araujo et al. 2019, "Computing receptive fields of convolutional neural networks",
    for the first two."""
    with torch.device("meta"):
        net = torchvision.models.get_model(name)
    found = [layer for layer in layers(net, (3, 224, 224)) if "avgpool" not in layer.name]
    assert max(layer.sees[0].size for layer in found if layer.sees[0].size < float("inf")) == field


def test_squeeze_and_excitation_sees_all() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), SqueezeExcitation(8, 4), nn.Conv2d(8, 8, 3, 2, 1))
    rows = layers(net, (3, 16, 16))
    assert rows[-1].receptive_field((3, 16, 16)) == (16, 16)
    assert rows[-1].sees[0].jump == 4


def test_channel_shuffle_leaves_positions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 3))
    assert fields(net, (3, 16, 16))[-1] == (5, 1)
    with torch.device("meta"):
        shuffling = torchvision.models.shufflenet_v2_x0_5()
    assert fields(shuffling, (3, 224, 224))[-4][0] == 527


def test_unknown_operations_mix_all_positions() -> None:
    class Transposed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.transpose(2, 3).contiguous()

    for mixing in (nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 4, 3), Transposed()):
        assert layers(nn.Sequential(nn.Conv2d(3, 4, 1), mixing), (3, 9, 9))[-1].receptive_field((3, 9, 9)) == (9, 9)


@given(
    st.lists(
        st.tuples(st.sampled_from(["conv", "max", "mean", "pad", "slice", "resize"]), st.integers(1, 4),
                  st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)),
        min_size=1, max_size=4,
    ),
    st.integers(12, 24),
)  # fmt: skip
@example([("resize", 2, 1, 0, 1), ("pad", 2, 1, 0, 1), ("conv", 2, 2, 1, 2), ("pad", 3, 1, 1, 1)], 19)
@settings(deadline=None, max_examples=60)
def test_no_pixel_outside_matters(steps: list[tuple[str, int, int, int, int]], side: int) -> None:
    """For random stacks: changing what a position does not see in theory does not change it, at any position."""
    parts: list[nn.Module] = []
    for kind, kernel, stride, padding, dilation in steps:
        padding = min(padding, kernel // 2)
        parts.append(
            {
                "conv": lambda k=kernel, s=stride, p=padding, d=dilation: nn.Conv2d(1, 1, k, s, p, d, bias=False),
                "max": lambda k=kernel, s=stride, p=padding: nn.MaxPool2d(k, s, p),
                "mean": lambda k=kernel, s=stride, p=padding: nn.AvgPool2d(k, s, p),
                "pad": lambda k=kernel, p=padding: nn.ZeroPad2d((p, k, k, p)),
                "slice": lambda k=kernel, s=stride, p=padding: Sliced(slice(p, -k, s)),
                "resize": lambda k=kernel: Resize(5 + 2 * k, 5 + 2 * k),
            }[kind]()
        )
    parts.append(nn.Conv2d(1, 1, 1, bias=False))  # a row of its own for whatever comes last
    net = nn.Sequential(*parts).double()
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    images = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    try:
        out = net(images)
    except RuntimeError:  # too small for this stack
        return
    rows = layers(net, (1, side, side))
    if not rows:
        return
    seen = rows[-1].sees
    for position in {0, out.shape[2] // 2, out.shape[2] - 1}:
        (gradient,) = torch.autograd.grad(out[0, 0, position, position], images, retain_graph=True)
        (top, bottom), (left, right) = (extent.pixels(position, side) for extent in seen)
        touched = gradient[0, 0].nonzero()
        if len(touched):
            assert top <= touched[:, 0].min()
            assert touched[:, 0].max() <= bottom
            assert left <= touched[:, 1].min()
            assert touched[:, 1].max() <= right


# In effect


@pytest.mark.parametrize(
    "geometry",
    [
        [(3, 1, 1, 1)] * 5,
        [(3, 1, 0, 1)] * 3,
        [(5, 2, 2, 1), (3, 1, 1, 1), (3, 2, 1, 1)],
        [(3, 1, 2, 2), (3, 1, 1, 1)],
        [(4, 2, 1, 1), (2, 1, 0, 1)],
    ],
)
def test_support_of_all_ones_is_the_theoretical_field(geometry: list[tuple[int, int, int, int]]) -> None:
    net = nn.Sequential(*(nn.Conv2d(1, 1, *step, bias=False) for step in geometry))
    for weight in net.parameters():
        nn.init.ones_(weight)
    rows = layers(net, (1, 41, 41))
    maps = gradient_maps(net, rows, inputs=2)
    assert list(maps) == [row.name for row in rows]
    for row in rows:
        support = maps[row.name].nonzero()
        window = [[support[:, axis].min().item(), support[:, axis].max().item()] for axis in range(2)]
        assert window == [list(pair) for pair in central_window(row, (41, 41))]
        assert row.sees[0].size == window[0][1] - window[0][0] + 1  # nothing of it is padding
        assert maps[row.name].sum() == pytest.approx(1)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("shape", [(3, 40, 33), pytest.param((1, 28, 28), marks=pytest.mark.slow)])
def test_support_stays_inside_in_every_network(name: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    net = build(name, shape, 10)
    rows = layers(net, shape)
    maps = gradient_maps(net, rows, inputs=2)
    by_name = {row.name: row for row in rows}
    assert list(maps) == list(dict.fromkeys(row.name for row in spatial_layers(rows)))
    for place, mass in maps.items():
        assert inside(mass, by_name[place]), place
        assert mass.sum() == pytest.approx(1)
        assert 1 <= effective_side(mass, by_name[place]) <= 2 * max(shape)


def test_network_is_left_as_it_was() -> None:
    net = build("separable", (1, 28, 28), 10)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    gradient_maps(net, layers(net, (1, 28, 28)), inputs=2)
    assert net.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_effective_side() -> None:
    (layer,) = layers(nn.Conv2d(1, 1, 9, padding=4), (1, 21, 21))
    mass = torch.zeros(21, 21, dtype=torch.float64)
    mass[10, 10] = 1.0
    assert effective_side(mass, layer) == 1
    mass[10, 13] = 1.0
    assert effective_side(mass, layer) == 7
    mass[6:15, 6:15] = 1.0  # 81 pixels: a square of 7 holds 49, one of 9 all
    assert effective_side(mass, layer) == 9
    conv = nn.Conv2d(1, 1, 4)
    nn.init.ones_(conv.weight)
    (layer,) = layers(nn.Sequential(conv), (1, 21, 21))
    assert effective_side(gradient_maps(nn.Sequential(conv), [layer], 1)["0"], layer) == 4


def test_no_gradient_arrives() -> None:
    """Past filters of zeros, say: then there is no effective receptive field."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    nn.init.zeros_(net[1].weight)  # type: ignore[arg-type]
    rows = layers(net, (1, 9, 9))
    result: dict[str, Any] = {"layers": [{}, {}]}
    draw = add_effective_sides(result, net, rows, torch.device("cpu"))
    assert [row["effective_receptive_field"] for row in result["layers"]] == [3, None]
    assert [panel.get_title().split()[-1] for panel in draw(plots).axes if panel.images] == ["3", "none"]


def test_effective_grows_slower_than_theory() -> None:
    """Of a stack of 12 convolutions: like the root of the depth, where the theoretical side grows like the depth."""
    torch.manual_seed(0)
    net = nn.Sequential(*(depthwise_separable(16, 16, norm_layer=None, activation_layer=None) for _ in range(12)))
    net = nn.Sequential(nn.Conv2d(1, 16, 1), net)
    rows = layers(net, (1, 49, 49))
    maps = gradient_maps(net, rows)
    theory = {row.name: row.sees[0].size for row in rows}
    sides = {row.name: effective_side(maps[row.name], row) for row in spatial_layers(rows)}
    shallow, deep = list(sides)[2], list(sides)[-1]
    assert (theory[shallow], theory[deep]) == (7, 25)
    assert sides[shallow] < sides[deep] < 0.8 * theory[deep]


def test_pooled_and_functional_networks() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True)

        def forward(self, images: Tensor) -> Tensor:
            return F.max_pool2d(self.act(self.conv(images)), 2)

    net = nn.Sequential(Functional(), nn.MaxPool2d(2), GlobalAvgPool(), nn.Flatten(), nn.Linear(4, 2))
    rows = layers(net, (1, 16, 16))
    assert [row.name for row in spatial_layers(rows)] == ["0.conv", "1"]
    maps = gradient_maps(net, rows, inputs=4)
    assert all(inside(maps[row.name], row) for row in spatial_layers(rows))


def test_picture() -> None:
    net = build("separable", (1, 28, 28), 10)
    rows = layers(net, (1, 28, 28))
    maps = gradient_maps(net, rows, inputs=2)
    figure = draw_receptive_fields(maps, rows)
    drawn = [panel for panel in figure.axes if panel.images]
    assert len(drawn) == len(maps) == 5
    for panel, (name, mass) in zip(drawn, maps.items(), strict=True):
        (top, bottom), (left, right) = central_window(next(row for row in rows if row.name == name), mass.shape)
        assert panel.get_title().startswith(name)
        (frame,) = panel.patches
        assert (frame.get_x(), frame.get_y()) == (left - 0.5, top - 0.5)
        assert (frame.get_width(), frame.get_height()) == (right - left + 1, bottom - top + 1)


def test_command(command: Callable[..., Outcome], tmp_path: Path) -> None:
    picture = tmp_path / "field.png"
    arguments = ["model=separable", "data=mnist", f"receptive_field={picture}"]
    outcome = command("cost", *arguments, "format=json")
    assert outcome.status == 0, outcome.err
    found = [row["effective_receptive_field"] for row in json.loads(outcome.out)["layers"]]
    assert sum(side is not None for side in found) == 5
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "effective" in command("cost", *arguments).out
    picture.unlink()
    picture.mkdir()
    refused(command("cost", *arguments), f"cannot write receptive_field={picture}")
