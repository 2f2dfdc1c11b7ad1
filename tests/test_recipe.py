import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import data_config
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from sepconv import InputError
from sepconv.config.keys import RecipeConfig
from sepconv.config.read import read
from sepconv.costs import counting
from sepconv.data.datasets import load, sample
from sepconv.data.module import ImageData
from sepconv.data.transforms import make_normalization
from sepconv.networks import build
from sepconv.networks.blocks import Resize
from sepconv.networks.cpu import DepthwiseConv2d
from sepconv.study.claims.lab import without_weight_decay
from sepconv.study.separate import scale_rates
from sepconv.training.classifier import ImageClassifier
from sepconv.training.recipe import build_optimizer, build_schedule, initialize
from sepconv.training.step import TrainingStep
from sepconv.training.train import check_trainable
from sepconv.training.whitening import find_stem, whiten_stem


@pytest.mark.parametrize(("channels", "filters", "pairs"), [(1, 32, 9), (3, 24, 12)])
def test_whitening_filters(channels: int, filters: int, pairs: int) -> None:
    """Responses of one deviation, in pairs of both signs, uncorrelated between pairs; the strongest directions."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(channels, filters, 3))
    images = F.avg_pool2d(torch.randn(200, channels, 20, 20), 3, 1)  # neighbours correlate
    whiten_stem(net, 5 * images, 0.5)
    with torch.no_grad():
        responses = net(5 * images).transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(responses[: 2 * pairs])
    one, other = responses[0 : 2 * pairs : 2], responses[1 : 2 * pairs : 2]
    torch.testing.assert_close(one, -other, rtol=0, atol=1e-5)
    torch.testing.assert_close(correlation[::2, ::2], torch.eye(pairs), rtol=0, atol=0.05)
    torch.testing.assert_close(responses.std(1), torch.full((filters,), 0.5), rtol=0.15, atol=0)
    # no patch varies more along any direction than along the first filter
    patches = F.unfold(5 * images, 3).transpose(1, 2).flatten(0, 1)
    first = net[0].weight[0].detach().flatten()
    largest = torch.linalg.eigvalsh(torch.cov(patches.T))[-1]
    torch.testing.assert_close((patches @ first).var() / first.square().sum(), largest, rtol=1e-3, atol=0)


def test_a_whitening_layer_is_not_trained(train: Callable[..., Path]) -> None:
    run = train("model=baseline", "recipe.whiten=0.5", "recipe.epochs=2", "trainer.limit_batches=3")
    dataset = load(data_config("digits"))
    states = [
        torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"] for name in ("best", "last")
    ]
    one, other = (state["net.conv1.conv.weight"] for state in states)
    assert torch.equal(one, other)
    net = build("baseline", dataset.shape, len(dataset.classes))
    torch.manual_seed(0)
    mean, deviation = dataset.statistics()
    images = (dataset[sample(dataset.train, 500)][0] / 255 - mean[0]) / deviation[0]
    whiten_stem(net, images, 0.5)
    ours, theirs = (filters[:18].flatten(1) for filters in (one, find_stem(net).weight.detach()))  # but for signs
    torch.testing.assert_close(ours.T @ ours, theirs.T @ theirs, rtol=1e-3, atol=1e-3)
    assert f'"parameters": {counting.parameters(net)},' in (run / "result.json").read_text()  # frozen ones too


def test_whitening_of_what_the_convolution_sees() -> None:
    """Behind a resize, and by images of all classes where these come one after another."""
    net = nn.Sequential(Resize(10, 10), nn.Sequential(nn.Conv2d(1, 18, 3)))
    images = 5 * F.avg_pool2d(torch.randn(200, 1, 22, 22), 3, 1)
    whiten_stem(net, images, 0.5)
    with torch.no_grad():
        responses = net(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(responses.std(1), torch.full((18,), 0.5), rtol=0.15, atol=0)
    rows = torch.arange(1000, 5000)  # of four classes, say
    assert (sample(rows, 400) // 1000).bincount().tolist()[1:] == [100] * 4
    assert torch.equal(sample(rows, 10_000), rows)


def test_a_depthwise_convolution_is_not_whitened() -> None:
    keys = {"epochs": 1, "batch_size": 10, "drop_last": True, "optimizer": {"name": "SGD"}, "schedule": "constant"}
    recipe = read(RecipeConfig, {**keys, "augment": {}, "whiten": 0.5})
    images = {"shape": [3, 16, 16], "classes": list("0123456789"), "mean": [0.5] * 3, "deviation": [1.0] * 3}
    classifier = ImageClassifier({"name": "separable", "stem": "separable"}, asdict(recipe), images)
    data = ImageData(load(data_config("digits")), recipe, torch.device("cpu"))
    with pytest.raises(InputError, match="needs a standard first convolution"):
        check_trainable(classifier, data, devices=1)


def test_dirac_initialization() -> None:
    """The first filters of dense and pointwise convolutions pass their channel on; depthwise ones are torch's."""
    net = build("airbench", (3, 32, 32), 10, conv="separable")
    torch.manual_seed(0)
    images = torch.randn(2, 16, 6, 6)
    before = [layer.weight.clone() for layer in net.modules() if isinstance(layer, DepthwiseConv2d)]
    initialize(net, "dirac")
    assert all(
        torch.equal(one, layer.weight)
        for one, layer in zip(before, [m for m in net.modules() if isinstance(m, DepthwiseConv2d)], strict=True)
    )
    assert float(net[-1].weight.detach().std()) == pytest.approx(1 / 256, rel=0.1)
    for conv in (nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(16, 8, 1)):
        initialize(conv, "dirac")
        passed = min(conv.out_channels, 16)
        assert conv.bias is not None
        assert torch.equal(conv(images)[:, :passed], images[:, :passed])
        assert conv.weight[passed:].numel() == 0 or conv.weight[passed:].std() > 0.01


@pytest.mark.parametrize("warmup", [0.0, 0.2, 1.0])
def test_linear_schedule(warmup: float) -> None:
    recipe = {"epochs": 1, "batch_size": 1, "drop_last": True, "schedule": "linear", "warmup": warmup, "augment": {},
              "optimizer": {"name": "SGD"}}  # fmt: skip
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=2.0)
    scheduler = build_schedule(optimizer, read(RecipeConfig, recipe), 9)
    rates = []
    for _ in range(9):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    peak = {0.0: 0, 0.2: 1, 1.0: 8}[warmup]
    assert max(rates) == rates[peak] <= 2.0
    assert min(rates) > 0
    for part in (rates[: peak + 1], rates[peak:]):
        steps = torch.tensor(part).diff()
        torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("warmup", [0.1, 0.25, 0.5])
def test_one_cycle_is_torchs(warmup: float) -> None:
    """Over one step more, whose rate of 0 no step has: torch's cycle ends at its last step, and its rise one before."""
    steps = 40
    recipe = {"epochs": 1, "batch_size": 1, "schedule": "one_cycle", "warmup": warmup, "augment": {},
              "optimizer": {"name": "SGD"}}  # fmt: skip
    ours, theirs = (torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=2.0) for _ in range(2))
    schedules = [
        build_schedule(ours, read(RecipeConfig, recipe), steps),
        OneCycleLR(theirs, 2.0, steps + 1, pct_start=(warmup * steps + 1) / (steps + 1), cycle_momentum=False,
                   div_factor=25, final_div_factor=math.inf),
    ]  # fmt: skip
    rates = []
    for _ in range(steps):
        rates.append([schedule.get_last_lr()[0] for schedule in schedules])
        for optimizer, schedule in zip((ours, theirs), schedules, strict=True):
            optimizer.step()
            schedule.step()
    assert [one for one, _ in rates] == pytest.approx([other for _, other in rates])
    assert rates[0][0] == 2.0 / 25
    assert max(rates)[0] == rates[int(warmup * steps)][0] == 2.0


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing(smoothing: float) -> None:
    """Of a label's share so much is spread over all classes: what a step does."""
    recipe = {"epochs": 1, "batch_size": 100, "augment": {}, "optimizer": {"name": "SGD", "lr": 0.5},
              "label_smoothing": smoothing, "schedule": "constant"}  # fmt: skip
    config = read(RecipeConfig, recipe)
    data = ImageData(load(data_config("digits")), config, torch.device("cpu"))
    net, rows = nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), data.dataset.train[:100]
    images, labels = data.dataset[rows]
    logits = net(images / 255)
    scores = logits.log_softmax(1)
    expected = -(1 - smoothing) * scores[torch.arange(100), labels].mean() - smoothing * scores.mean()
    gradient = torch.autograd.grad(expected, net[1].weight)[0]
    weights = net[1].weight.detach().clone()
    optimizer = build_optimizer(net, config.optimizer)
    step = TrainingStep(net, make_normalization("unit", [0.0], [1.0]), torch.zeros(1), data, config, optimizer, "eager",
                        "32-true")  # fmt: skip
    loss, hits = step(rows)
    torch.testing.assert_close(loss, expected.detach())
    assert int(hits) == int((logits.argmax(1) == labels).sum())
    torch.testing.assert_close(net[1].weight.detach(), weights - 0.5 * gradient)


def test_options_of_biases_and_norms() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    options = {"name": "SGD", "lr": 0.1, "momentum": 0.5, "weight_decay": 0.2}
    plain = build_optimizer(net, options).param_groups
    own = build_optimizer(net, options | {"biases": {"lr": 3.0, "weight_decay": 0.01}}).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in plain] == [(0.1, 0.2), (0.1, 0.0)]
    assert [(group["lr"], group["weight_decay"]) for group in own] == [(0.1, 0.2), (3.0, 0.01)]
    assert {weight.ndim for weight in own[0]["params"]} == {2, 4}
    assert {weight.ndim for weight in own[1]["params"]} == {1}
    with pytest.raises(InputError, match=r"unknown recipe\.optimizer\.biases\.speed"):
        build_optimizer(net, options | {"biases": {"speed": 3}})
    nested = {"name": "Muon", "lr": 0.02, "others": options | {"biases": {"lr": 3.0, "weight_decay": 0.01}}}
    scaled, undecayed = scale_rates(nested, 0.1), without_weight_decay(nested)
    assert (scaled["lr"], scaled["others"]["lr"], scaled["others"]["biases"]["lr"]) == (0.002, 0.01, 0.3)
    assert scaled["others"]["name"] == "SGD"
    assert (undecayed["others"]["weight_decay"], undecayed["others"]["biases"]["weight_decay"]) == (0, 0)
    assert undecayed["others"]["biases"]["lr"] == 3.0
