import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from omegaconf import OmegaConf

from sepconv import InputError, cost
from sepconv.models import NETWORKS, build
from sepconv.recipe import initialize

CASES = [
    ("baseline", {}),
    ("baseline_separable", {}),
    ("separable", {}),
    ("separable", {"width": 0.5, "resolution": 0.75}),
]


def test_every_network_has_a_config_of_its_name() -> None:
    files = {path.stem: OmegaConf.load(path) for path in (REPOSITORY / "configs/model").glob("*.yaml")}
    assert files.keys() == NETWORKS.keys()
    for name, config in files.items():
        assert config.name == name
        build(shape=(1, 28, 28), classes=10, **config)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("baseline", 121_930, 26 * 26 * 9 * 32 + 11 * 11 * 9 * 32 * 64 + 1600 * 64 + 64 * 10),
        ("baseline_separable", 105_834, 26 * 26 * 9 * 32 + 11 * 11 * (9 * 32 + 32 * 64) + 1600 * 64 + 64 * 10),
    ],
)
def test_keras_example_counts(name: str, parameters: int, macs: int) -> None:
    net = build(name, (1, 28, 28), 10)
    assert cost.parameters(net) == parameters
    assert cost.macs(net, (1, 28, 28)) == macs


def test_separable_counts() -> None:
    net = build("separable", (1, 28, 28), 10)
    assert cost.parameters(net) <= 35_000
    channels, weights, macs = 32, 9 * 32 + 2 * 32, 14 * 14 * 9 * 32
    for out_channels, side in ((64, 14), (64, 7), (96, 7), (128, 7)):
        step = 9 * channels + channels * out_channels
        weights += step + 2 * (channels + out_channels)
        macs += side * side * step
        channels = out_channels
    assert cost.parameters(net) == weights + 128 * 10 + 10
    assert cost.macs(net, (1, 28, 28)) == macs + 128 * 10


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 10), ((3, 32, 32), 7), ((2, 19, 23), 3)])
def test_learns(name: str, options: dict[str, float], shape: tuple[int, int, int], classes: int) -> None:
    """Every parameter gets a gradient, and steps on a fixed batch lower its loss."""
    torch.manual_seed(0)
    net = build(name, shape, classes, **options)
    images, labels = torch.randn(16, *shape), torch.arange(16) % classes
    losses = []
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(5):
        logits = net(images)
        assert logits.shape == (16, classes)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        for parameter_name, parameter in net.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().max() > 0, parameter_name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_width_scales_channels_and_resolution_scales_work() -> None:
    shape = (1, 28, 28)
    net, wide, small = (build("separable", shape, 10, **o) for o in ({}, {"width": 2.0}, {"resolution": 0.5}))
    assert cost.parameters(small) == cost.parameters(net)
    assert cost.macs(small, shape) < 0.32 * cost.macs(net, shape)
    assert wide[-1].in_features == 2 * net[-1].in_features


def test_costs_do_not_change_the_network() -> None:
    net = build("separable", (1, 28, 28), 10)
    before = copy.deepcopy(net.state_dict())
    cost.macs(net, (1, 28, 28))
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_glorot_is_keras_distribution() -> None:
    """Uniform up to sqrt(6 / (fan in + fan out)), the fans as Keras counts them, depthwise kernels included."""
    net = build("baseline_separable", (1, 28, 28), 10)
    initialize(net, "glorot_uniform")
    limits = {  # first convolution and depthwise (as many fans), pointwise, dense, dense
        (32, 1, 3, 3): (6 / (9 * 1 + 9 * 32)) ** 0.5,
        (64, 32, 1, 1): (6 / (32 + 64)) ** 0.5,
        (64, 1600): (6 / (1600 + 64)) ** 0.5,
        (10, 64): (6 / (64 + 10)) ** 0.5,
    }
    for weight in (p.detach() for p in net.parameters() if p.ndim > 1):
        limit = limits[tuple(weight.shape)]
        assert 0.9 * limit < weight.abs().max() <= limit
        assert weight.std() == pytest.approx(limit / 3**0.5, rel=0.15)
    assert all((p == 0).all() for p in net.parameters() if p.ndim == 1)


def test_option_errors() -> None:
    with pytest.raises(InputError, match=r"unknown key model.widht: did you mean model.width\?"):
        build("separable", (1, 28, 28), 10, widht=1)
    with pytest.raises(InputError, match="unknown model=nonsense: choose from baseline"):
        build("nonsense", (1, 28, 28), 10)
