"""Muon over a network's filters, against its definition and against torch's over matrices."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome, refused
from test_training import identical, result, weights
from torch import Tensor, nn

from sepconv import networks
from sepconv.config.keys import RecipeConfig
from sepconv.config.read import read
from sepconv.training import muon
from sepconv.training.classifier import ImageClassifier
from sepconv.training.muon import Muon
from sepconv.training.recipe import build_optimizer, build_schedule, find_filters
from sepconv.training.step import capturable

FORMATS = [torch.contiguous_format, torch.channels_last]
OPTIONS = {"name": "Muon", "lr": 0.02, "weight_decay": 0.1, "others": {"name": "SGD", "lr": 0.1, "weight_decay": 0.5}}


def filters(memory_format: torch.memory_format, *shape: int) -> nn.Parameter:
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(*shape).to(memory_format=memory_format))


def gradients(weight: Tensor, steps: int) -> list[Tensor]:
    """The same values whatever the format of `weight`, in that format."""
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(weight.shape, generator=generator) for _ in range(steps)]
    return [torch.empty_like(weight).copy_(draw) for draw in draws]


def orthogonalize(matrix: Tensor) -> Tensor:
    """Five steps of the Newton-Schulz iteration with the coefficients of Jordan et al. 2024."""
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (24, 2, 3, 3), (16, 16, 1, 1)])
def test_steps_against_the_definition(memory_format: torch.memory_format, shape: tuple[int, ...]) -> None:
    """In float64; torch's iteration computes in bfloat16."""
    weight = filters(memory_format, *shape)
    bias = nn.Parameter(torch.ones(3))
    optimizer = Muon([weight], torch.optim.SGD([bias], lr=0.5), lr=0.05, weight_decay=0.1)
    expected, momentum = weight.detach().double().flatten(1), torch.zeros(shape[0], weight[0].numel()).double()
    start = expected.clone()
    for gradient in gradients(weight, 3):
        weight.grad, bias.grad = gradient, torch.full((3,), 0.25)
        optimizer.step()
        flat = gradient.double().flatten(1)
        momentum = 0.95 * momentum + 0.05 * flat
        update = orthogonalize(0.05 * flat + 0.95 * momentum)
        expected = expected * (1 - 0.05 * 0.1) - 0.05 * max(1, shape[0] / flat.shape[1]) ** 0.5 * update
    change = weight.detach().double().flatten(1) - start
    assert (change - (expected - start)).norm() < 0.02 * (expected - start).norm()
    torch.testing.assert_close(bias.detach(), torch.full((3,), 1 - 3 * 0.5 * 0.25))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (24, 2, 3, 3), (16, 16, 1, 1), (6, 1, 3, 3)])
def test_filters_step_in_place_as_torchs_matrices(
    memory_format: torch.memory_format, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To float32's rounding, with columns in the order of memory, also for a gradient in the other format."""
    monkeypatch.setattr(muon, "SMALL", 0)  # in bfloat16, as torch's
    weight = filters(memory_format, *shape)
    order = (0, 1, 2, 3) if weight.is_contiguous() else (0, 2, 3, 1)
    matrix = nn.Parameter(weight.detach().permute(order).flatten(1).clone())
    bias = nn.Parameter(torch.ones(3))
    optimizer = Muon([weight], torch.optim.SGD([bias]), lr=0.02, adjust_lr_fn="match_rms_adamw")
    reference = torch.optim.Muon([matrix], lr=0.02, adjust_lr_fn="match_rms_adamw")
    place, strides = weight.data_ptr(), weight.stride()
    for i, gradient in enumerate(gradients(weight, 4)):
        weight.grad = gradient.contiguous() if i == 3 else gradient
        matrix.grad = gradient.permute(order).flatten(1).clone()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(weight.detach().permute(order).flatten(1), matrix.detach(), rtol=1e-6, atol=1e-7)
    assert (weight.data_ptr(), weight.stride()) == (place, strides)


def test_what_muon_takes() -> None:
    net = networks.build(name="separable", shape=(1, 16, 16), classes=10)
    names = {id(p): name for name, p in net.named_parameters()}
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    first, *_, last = layers
    depthwise = {name for name, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.groups > 1}
    pointwise = layers.keys() - {first, last} - depthwise
    assert pointwise
    assert depthwise
    optimizer = build_optimizer(net, OPTIONS)
    groups = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    assert groups[0] == {f"{name}.weight" for name in pointwise}
    assert groups[1] == {f"{name}.weight" for name in {first, last} | depthwise}
    assert groups[2] == set(names.values()) - groups[0] - groups[1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.5, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.1, 0.1]
    too = build_optimizer(net, OPTIONS | {"depthwise": "muon"})
    assert {names[id(p)] for p in too.param_groups[0]["params"]} == {f"{name}.weight" for name in pointwise | depthwise}


def test_a_graph_holds_muon_if_it_holds_the_others() -> None:
    net = networks.build(name="tiny", shape=(1, 16, 16), classes=10)
    for others, right in (({"name": "AdamW", "fused": True}, True), ({"name": "SGD"}, False)):
        assert capturable(build_optimizer(net, OPTIONS | {"others": others | {"lr": 0.1}})) is right


def test_a_rate_on_the_device() -> None:
    """Steps by a tensor's value, as a captured step has it, as by the number."""
    stepped = []
    for rate in (0.25, torch.tensor(0.25)):
        weight, bias = filters(torch.channels_last, 8, 4, 3, 3), nn.Parameter(torch.ones(3))
        optimizer = Muon([weight], torch.optim.SGD([bias], fused=True), weight_decay=0.1, normalize=True)
        weight.grad, bias.grad = gradients(weight, 1)[0], torch.ones(3)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        stepped.append(weight.detach())
    assert torch.equal(*stepped)


def test_normalized_filters() -> None:
    """Before the step their norm is the root of their number, and the step is the orthogonal update alone."""
    weight = filters(torch.channels_last, 8, 4, 3, 3)
    optimizer = Muon([weight], torch.optim.SGD([nn.Parameter(torch.ones(3))]), lr=0.5, weight_decay=0, normalize=True)
    start = weight.detach().clone()
    (weight.grad,) = gradients(weight, 1)
    expected = start * 8**0.5 / start.norm() - 0.5 * orthogonalize(weight.grad.flatten(1)).view_as(start)
    optimizer.step()
    assert (weight.detach() - expected).norm() < 0.01 * expected.norm()


def test_a_schedule_scales_all_rates_alike() -> None:
    net = networks.build(name="tiny", shape=(1, 16, 16), classes=10)
    recipe = {
        "epochs": 1, "batch_size": 1, "drop_last": True, "schedule": "one_cycle", "warmup": 0.5, "augment": {},
        "optimizer": OPTIONS,
    }  # fmt: skip
    optimizer = build_optimizer(net, OPTIONS)
    scheduler = build_schedule(optimizer, read(RecipeConfig, recipe), 8)
    factors = set()
    for _ in range(8):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([rates[0], 5 * rates[0], 5 * rates[0]])
        factors.add(round(rates[0], 9))
        optimizer.step()
        scheduler.step()
    assert len(factors) > 4


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_state_dict_goes_on_exactly(memory_format: torch.memory_format, tmp_path: Path) -> None:
    net = networks.build(name="tiny", shape=(1, 16, 16), classes=10).to(memory_format=memory_format)
    options = OPTIONS | {"others": {"name": "AdamW", "lr": 0.01, "fused": True}}
    optimizer = build_optimizer(net, options)
    images = torch.randn(12, 4, 1, 16, 16)

    def train(net: nn.Module, optimizer: torch.optim.Optimizer, batches: Tensor) -> None:
        for batch in batches:
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            optimizer.step()

    train(net, optimizer, images[:6])
    torch.save(optimizer.state_dict(), tmp_path / "state")
    other = copy.deepcopy(net)
    resumed = build_optimizer(other, options)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    before = copy.deepcopy(net.state_dict())
    train(net, optimizer, images[6:])
    train(other, resumed, images[6:])
    assert identical(dict(net.state_dict()), dict(other.state_dict()))
    assert all(not torch.equal(before[f"{name}"], p) for name, p in net.named_parameters() if p.grad.abs().max() > 0)


def test_digits_with_muon(train: Callable[..., Path]) -> None:
    run = train("recipe=muon", "recipe.epochs=10")
    assert result(run)["test_accuracy"] > 0.95


def test_resume_with_muon(
    train: Callable[..., Path], command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["recipe=muon", "recipe.epochs=3", "trainer.limit_batches=4"]
    whole = train(*arguments)

    def stop(self: ImageClassifier) -> None:
        if self.current_epoch == 2:
            raise RuntimeError("the power went")
        on_train_epoch_start(self)

    on_train_epoch_start = ImageClassifier.on_train_epoch_start
    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "on_train_epoch_start", stop)
        with pytest.raises(RuntimeError, match="the power went"):
            train(*arguments)
    (stopped,) = {path.parent for path in whole.parent.glob("*/config.yaml")} - {whole}
    outcome = command("train", f"resume={stopped}")
    assert outcome.status == 0, outcome.err
    assert identical(weights(stopped), weights(whole))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("recipe.optimizer.others=null", ["recipe.optimizer.others=None", "`name`"]),
        ("recipe.optimizer.others.name=Best", ["recipe.optimizer.others.name=Best", "torch.optim"]),
        ("recipe.optimizer.others.lr=-1", ["recipe.optimizer.others.lr=-1", "above 0"]),
        ("+recipe.optimizer.others.speed=3", ["recipe.optimizer.others", "speed", "torch.optim.AdamW"]),
        ("recipe.optimizer.depthwise=both", ["recipe.optimizer.depthwise=both", "others, muon"]),
        ("+recipe.optimizer.speed=3", ["recipe.optimizer", "speed", "torch.optim.Muon"]),
        ("+recipe.optimizer.ns_steps=100", ["recipe.optimizer", "ns_steps", "below 100"]),
        ("+recipe.optimizer.ns_coefficients=[1,2]", ["recipe.optimizer", "ns_coefficients", "3 numbers"]),
        ("recipe.optimizer.weight_decay=-1", ["recipe.optimizer", "weight decay"]),
    ],
)
def test_bad_arguments(command: Callable[..., Outcome], tmp_path: Path, argument: str, words: list[str]) -> None:
    refused(command("train", "trainer=cpu", f"runs={tmp_path}", "recipe=muon", argument), *words)
    assert not list(tmp_path.iterdir())


def test_a_network_without_filters() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    assert find_filters(net, depthwise=True) == []
    with pytest.raises(ValueError, match="Muon finds no filters"):
        build_optimizer(net, OPTIONS)
