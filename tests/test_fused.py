"""The fused kernels against torch's own, and both against float64."""

import copy
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from conftest import Outcome, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sepconv import InputError
from sepconv.benchmark import cpu_kernels
from sepconv.benchmark.journal import Journal
from sepconv.config.keys import TrainerConfig
from sepconv.costs.roofline import Machine
from sepconv.networks import build, fused
from sepconv.networks.airbench import gelu
from sepconv.networks.blocks import (
    ConvNormActivation,
    Residual,
    conv_pool_norm_activation,
    depthwise,
    depthwise_separable,
    inverted_residual,
    pointwise,
    sequential,
)
from sepconv.networks.cpu import DepthwiseConv2d
from sepconv.networks.fused import library, ops
from sepconv.networks.fused.build import FLAGS
from sepconv.training import checkpoints

pytestmark = pytest.mark.skipif(library(torch.float32) is None, reason="no C compiler")

LAST = torch.channels_last
ACTIVATIONS = [None, nn.ReLU, nn.ReLU6, nn.Hardswish, gelu]
# where gradients jump: a value that near falls on either side, by rounding
KINKS = {nn.ReLU: [0], nn.ReLU6: [0, 6], nn.Hardswish: [-3, 3]}


def set_kernels(net: nn.Module, kernels: str) -> nn.Module:
    return fused.set_kernels(copy.deepcopy(net), kernels)


def run(net: nn.Module, maps: Tensor, grad: Tensor, dtype: torch.dtype, learns: bool = True) -> list[Tensor]:
    """Output, gradients of the maps, if those `learns`, and parameters, and buffers, after a step in `dtype`."""
    double = dtype == torch.float64
    net, maps = (net.double(), maps.double()) if double else (net, maps.clone(memory_format=LAST))
    maps.requires_grad_(learns)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = net(maps)
    output.backward(grad.to(output.dtype))
    gradients = [each.grad for each in (maps, *net.parameters()) if each.grad is not None]
    return [output.detach(), *gradients, *(b for b in net.buffers() if b.is_floating_point())]


def errors(net: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Relative errors (2, figures) of the fused kernels and of torch's, against float64."""
    torch.manual_seed(seed)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1, 0.5)
            nn.init.normal_(norm.bias)
            assert norm.running_mean is not None
            norm.running_mean.normal_()
    net = net.to(memory_format=LAST).train()
    maps = (torch.randn(shape) + 0.5).to(dtype).float().contiguous(memory_format=LAST)
    grad = torch.randn_like(set_kernels(net, "torch")(maps)).to(dtype).float()
    if isinstance(net, ConvNormActivation) and (kinks := KINKS.get(type(getattr(net, "activation", None)))):
        double = set_kernels(net, "torch").double()
        values = double.norm(double.conv(maps.double()))
        for kink in kinks:
            grad[(values - kink).abs() < 0.1] = 0
    exact = run(set_kernels(net, "torch"), maps, grad, torch.float64)
    results = (run(set_kernels(net, kernels), maps, grad, dtype) for kernels in ("auto", "torch"))
    return torch.tensor(
        [
            [float((a.double() - b).norm() / b.norm().clamp(min=1e-9)) for a, b in zip(r, exact, strict=True)]
            for r in results
        ]
    )


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(16, 70),
    sides=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    size=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
    padded=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_as_exact_as_torch(
    channels: int, sides: tuple[int, int], size: int, stride: int, padded: bool, activation: Any, dtype: torch.dtype
) -> None:
    """Outputs, gradients and running statistics, over draws of the maps."""
    padding = None if padded else 0
    nets: list[Callable[[], nn.Module]] = [
        lambda: depthwise(channels, channels, size, stride, padding, activation_layer=activation),
        lambda: pointwise(channels, channels + 3, activation_layer=activation),
    ]
    for make in nets:
        torch.manual_seed(0)
        net = make()
        mean = (
            torch.stack([errors(net, (8, channels, *sides), dtype, seed) for seed in range(4)]).square().mean(0).sqrt()
        )
        ours, torchs = mean
        floor = 3e-7 if dtype == torch.float32 else 4e-3  # of a figure that torch has by luck
        assert (ours <= torch.maximum(1.5 * torchs, torch.tensor(floor))).all(), (ours / torchs, torchs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "out_channels"), [(1, 1), (2, 40), (5, 3), (15, 1), (62, 1), (17, 33)])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_number_of_channels(channels: int, out_channels: int, size: int, stride: int, dtype: torch.dtype) -> None:
    """Fewer than a vector holds, or no multiple of it: errors against the largest value, as single ones are near 0."""
    torch.manual_seed(0)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for make in (
        lambda: depthwise(channels, channels, size, stride, activation_layer=gelu),
        lambda: pointwise(channels, out_channels, activation_layer=gelu),
    ):
        net = make().to(memory_format=LAST)
        maps = torch.randn(8, channels, 9, 7).to(dtype).float().contiguous(memory_format=LAST)
        grad = torch.randn_like(set_kernels(net, "torch")(maps)).to(dtype).float()
        exact = run(set_kernels(net, "torch"), maps, grad, torch.float64)
        for ours, true in zip(run(set_kernels(net, "auto"), maps, grad, dtype), exact, strict=True):
            assert (ours.double() - true).abs().max() <= bound * max(1, true.abs().max(), grad.norm() / channels**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda: depthwise_separable(16, 24, activation_layer=gelu),
        lambda: sequential(one=depthwise_separable(16, 20, activation_layer=gelu), other=depthwise(20, 20, 5, 2)),
        lambda: inverted_residual(16, 16, 40, activation_layer=gelu),
        lambda: inverted_residual(16, 24, 40, 5, 2, activation_layer=gelu),
        lambda: Residual(depthwise_separable(16, 16, between=False, activation_layer=None)),
        lambda: Residual(ConvNormActivation(16, 16, activation_layer=gelu)),
        lambda: Residual(nn.Sequential(nn.BatchNorm2d(16))),
        lambda: conv_pool_norm_activation(depthwise_separable, 16, 24, activation_layer=gelu),
        lambda: conv_pool_norm_activation(ConvNormActivation, 16, 24, activation_layer=gelu),
        lambda: nn.Sequential(depthwise(16, 16, norm_layer=None, activation_layer=None), pointwise(16, 8)),
    ],
)
def test_every_form_of_a_block(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    """Chains of several blocks, residual sums, poolings between convolution and norm, maps of few positions.

    Their activation has no kink, on either side of which a value could fall by rounding.
    """
    for side in (9, 2):
        draws = torch.stack([errors(make(), (24, 16, side, side), dtype, seed) for seed in range(4)])
        ours, torchs = draws.square().mean(0).sqrt()
        floor = 1e-6 if dtype == torch.float32 else 2e-2
        assert (ours <= torch.maximum(1.5 * torchs, torch.tensor(floor))).all(), (side, ours, torchs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_stems(size: int, stride: int, dtype: torch.dtype) -> None:
    """A standard convolution of images, of which no gradient is asked for: its patches are copied out."""
    torch.manual_seed(0)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for channels, out_channels, padding in ((1, 17, size - 1), (3, 5, 0), (3, 16, 1)):
        net = ConvNormActivation(channels, out_channels, size, stride, padding, activation_layer=gelu)
        net = net.to(memory_format=LAST)
        assert len(ops.find_chain([*net.children()], dtype, images=True)) == 1
        images = torch.randn(5, channels, 9, 7).to(dtype).float().contiguous(memory_format=LAST)
        grad = torch.randn_like(set_kernels(net, "torch")(images)).to(dtype).float()
        exact = run(set_kernels(net, "torch"), images, grad, torch.float64, learns=False)
        for ours, true in zip(run(set_kernels(net, "auto"), images, grad, dtype, learns=False), exact, strict=True):
            assert (ours.double() - true).abs().max() <= bound * max(1, true.abs().max(), grad.norm())


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolutions_of_images(stride: int) -> None:
    """They put out no more than there is room for."""
    net = pointwise(8, 64, stride).to(memory_format=LAST)
    images = torch.randn(4, 8, 16, 16).contiguous(memory_format=LAST)
    with torch.no_grad():
        ours, torchs = (set_kernels(net, kernels)(images) for kernels in ("auto", "torch"))
    torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Residual(nn.Sequential(depthwise(16, 16), pointwise(16, 16, activation_layer=None)), None, nn.ReLU()),
        lambda: Residual(ConvNormActivation(16, 16)),
        lambda: conv_pool_norm_activation(depthwise_separable, 16, 24),
    ],
)
def test_forms_with_a_kink(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    """The same with ReLU, on few maps: on many, some value falls on the other side."""
    for side in (9, 2):
        draws = torch.stack([errors(make(), (4, 16, side, side), dtype, seed) for seed in range(4)])
        ours, torchs = draws.square().mean(0).sqrt()
        floor = 1e-6 if dtype == torch.float32 else 2e-2
        assert (ours <= torch.maximum(1.5 * torchs, torch.tensor(floor))).all(), (side, ours, torchs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConvNormActivation(16, 16, groups=16, norm_layer=None, activation_layer=None, bias=False),
        lambda: depthwise_separable(16, 8, between=False, norm_layer=None, activation_layer=None, bias=False),
        lambda: depthwise_separable(16, 8, activation_layer=None),
    ],
)
def test_what_a_chain_puts_out_may_be_overwritten(make: Callable[[], nn.Module]) -> None:
    """By an activation in place that is no part of it."""
    net = nn.Sequential(make(), nn.ReLU(inplace=True)).to(memory_format=LAST)
    maps = torch.randn(4, 16, 6, 6).contiguous(memory_format=LAST)
    grad = torch.randn_like(set_kernels(net, "torch")(maps))
    ours, torchs = (run(set_kernels(net, kernels), maps, grad, torch.float32) for kernels in ("auto", "torch"))
    torch.testing.assert_close(ours, torchs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_residual_sums_are_activated(activation: type[nn.Module]) -> None:
    """By the chain itself; where the sum is near a kink, no gradient is asked for."""
    torch.manual_seed(0)
    layers = nn.Sequential(depthwise(16, 16, activation_layer=gelu), pointwise(16, 16, activation_layer=None))
    for shortcut in (None, depthwise(16, 16, activation_layer=None)):
        net = Residual(layers, shortcut, activation()).to(memory_format=LAST)
        maps = torch.randn(8, 16, 6, 6).contiguous(memory_format=LAST)
        double = set_kernels(net, "torch").double()
        sums = double[1](double[0](maps.double())) + double.shortcut(maps.double())
        grad = torch.randn_like(maps)
        for kink in KINKS[activation]:
            grad[(sums - kink).abs() < 1e-3] = 0
        ours, torchs = (run(set_kernels(net, kernels), maps, grad, torch.float32) for kernels in ("auto", "torch"))
        torch.testing.assert_close(ours, torchs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_each_time(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        net = nn.Sequential(depthwise(24, 24), pointwise(24, 20)).to(memory_format=LAST)
        maps = torch.randn(9, 24, 7, 7).contiguous(memory_format=LAST)
        grad = torch.randn(9, 20, 7, 7)
        one, other = (run(copy.deepcopy(net), maps, grad, torch.bfloat16) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("bias", [None, True])
def test_evaluation_folds_the_norms(bias: bool | None) -> None:
    standard = ConvNormActivation(16, 8, activation_layer=nn.Hardswish, bias=bias)
    net = nn.Sequential(depthwise(16, 16, bias=bias), standard).to(memory_format=LAST)
    maps = torch.randn(3, 16, 6, 6).contiguous(memory_format=LAST)
    for _ in range(3):
        net(maps)
    net.eval()
    with torch.no_grad():
        folded, plain = (set_kernels(net, kernels)(maps) for kernels in ("auto", "torch"))
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("conv", ["dense", "separable"])
def test_a_bias_before_a_norm(conv: str) -> None:
    """Its convolution is torch's, the norm after it fused: the same step, and the same network in evaluation."""
    torch.manual_seed(0)
    net = build("resnet", (3, 16, 16), 10, depth=8, form="mlperf_tiny", conv=conv).to(memory_format=LAST)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias)
    images = torch.randn(8, 3, 16, 16).contiguous(memory_format=LAST)
    results, trained = [], [set_kernels(net, kernels) for kernels in ("auto", "torch")]
    for each in trained:
        output = each(images)
        F.cross_entropy(output, torch.arange(8)).backward()
        gradients = {name: p.grad for name, p in each.named_parameters() if not name.endswith("conv.bias")}
        results.append((output, gradients, dict(each.named_buffers())))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(*(each.eval()(images) for each in trained), atol=1e-4, rtol=1e-3)


def test_both_kernels_have_the_same_network(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes of what a checkpoint holds; and a short training ends about alike."""
    arguments = ["recipe.epochs=1", "recipe.precision=fp32", "trainer.limit_batches=5"]
    states = [
        checkpoints.load(train(f"model.kernels={kernels}", *arguments) / "checkpoints/last.ckpt")["state_dict"]
        for kernels in ("fused", "torch")
    ]
    assert [(name, value.shape) for name, value in states[0].items()] == [(n, v.shape) for n, v in states[1].items()]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], atol=2e-2, rtol=2e-2)


def test_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Outcome], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same by torch's own kernels, with a line in the log; what asks for nothing but fused ones is refused."""
    monkeypatch.setenv("CC", "no-such-compiler")
    library.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert library(torch.float32) is None
        assert "no C compiler" in caplog.text
        net = build("separable", (1, 28, 28), 10).to(memory_format=LAST)
        loss = F.cross_entropy(net(torch.randn(4, 1, 28, 28)), torch.arange(4))
        loss.backward()
        assert torch.isfinite(loss)
        outcome = command("train", "model.kernels=fused", f"runs={tmp_path}")
        refused(outcome, "model.kernels=fused needs a C compiler")
    finally:
        library.cache_clear()


def test_a_kernel_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A compiler that fails, or a home that cannot be written, leaves torch's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sepconv.networks.fused.build.FLAGS", ["--no-such-flag"])
    library.cache_clear()
    try:
        assert library(torch.float32) is None
    finally:
        library.cache_clear()


def test_compilers_and_homes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """CC may be a command with arguments; what does not run, and no home to keep the library in, leave torch's own."""
    compiler, wrong = os.environ.get("CC", "cc"), tmp_path / "wrong"
    wrong.write_bytes(b"no program")
    wrong.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sepconv.networks.fused.build.FLAGS", [*FLAGS, "-O0"])  # which is built sooner
    try:
        for command, there in ((f"env {compiler}", True), ("", False), ("cc '", False), (str(wrong), False)):
            monkeypatch.setenv("CC", command)
            library.cache_clear()
            assert (library(torch.float32) is not None) == there
        monkeypatch.setenv("CC", compiler)
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
        library.cache_clear()
        with caplog.at_level(logging.INFO):
            assert library(torch.float32) is None
        assert "cannot be built (Could not determine home directory.)" in caplog.text
    finally:
        library.cache_clear()


def test_what_has_no_kernel_is_left_to_torch() -> None:
    for layer in (
        nn.GELU("tanh"),
        nn.SiLU(),
        nn.BatchNorm2d(4).eval(),
        nn.BatchNorm2d(4, affine=False),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 32, 3, groups=16, bias=False),
        nn.Conv2d(16, 16, 3, 3, groups=16, bias=False),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(512, 1024, 1, bias=False),
    ):
        assert not ops.has_kernel(layer)
    for layer in (
        nn.Conv2d(5, 5, 3, groups=5, bias=False),
        nn.Conv2d(16, 8, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.GELU(),
    ):
        assert ops.has_kernel(layer)
    assert ops.has_kernel(nn.Conv2d(3, 8, 3, 2, bias=False), images=True)
    assert not ops.has_kernel(nn.Conv2d(8, 4, 1, 2, bias=False), images=True)  # it is no product of all positions
    assert ops.find_dtype(torch.zeros(1, 16, 4, 4)) is None  # not channels last
    assert ops.find_dtype(torch.zeros(1, 16, 4, 4, device="meta")) is None
    assert ops.find_dtype(torch.zeros(1, 16, 4, 4, dtype=torch.float64).contiguous(memory_format=LAST)) is None


def test_chains() -> None:
    """What stands between convolutions ends a chain, and a chain of no gain is left to torch."""
    conv, norm, relu, pool = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
    step = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
    assert ops.find_chain([step, norm, relu, conv, norm, pool]) == [(step, norm, relu), (conv, norm, None)]
    assert ops.find_chain([step, conv, pool, norm]) == [(step, None, None), (conv, None, None)]
    assert ops.find_chain([norm, relu, step, relu]) == [(None, norm, relu), (step, None, None)]
    assert ops.find_chain([conv, relu]) == ops.find_chain([relu, norm]) == ops.find_chain([]) == []


def test_what_torch_is_faster_at() -> None:
    """A strided depthwise convolution by itself, in fp32."""
    step, norm = nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(16)
    assert ops.find_chain([step]) == []
    assert ops.find_chain([norm]) == [(None, norm, None)]
    assert ops.find_chain([step], torch.bfloat16) == [(step, None, None)]
    assert ops.find_chain([step, norm]) == [(step, norm, None)]
    net = DepthwiseConv2d(16, 16, 3, 2, 1, groups=16, bias=False)
    maps = torch.randn(2, 16, 6, 6, requires_grad=True).contiguous(memory_format=LAST)
    assert "Chain" not in str(net(maps).grad_fn)
    with torch.autocast("cpu", torch.bfloat16):
        assert "Chain" in str(net(maps).grad_fn)


def test_hooks_are_called() -> None:
    """A module that somebody listens to is called by itself, and computes the same."""
    net = sequential(one=depthwise_separable(16, 16), other=depthwise_separable(16, 16)).to(memory_format=LAST)
    maps = torch.randn(2, 16, 6, 6).contiguous(memory_format=LAST)
    plain = net(maps)
    for name in ("one", "other.depthwise", "other.pointwise.norm"):
        called: list[str] = []
        handle = net.get_submodule(name).register_forward_hook(lambda *_, name=name, called=called: called.append(name))
        torch.testing.assert_close(net(maps), plain, atol=1e-5, rtol=1e-4)
        handle.remove()
        assert called == [name]
    net.one.register_full_backward_pre_hook(lambda module, grads: called.append("back"))
    net(maps).sum().backward()
    assert called[1:] == ["back"]
    names = ("other.pointwise.conv", "other.pointwise.norm")
    heard: list[str] = []
    for name in names:
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: heard.append(name))
    with torch.no_grad():
        net.eval()(maps)
    assert heard == [*names]


def test_what_torch_refuses_is_refused() -> None:
    """A norm of one value a channel, and maps that are smaller than a kernel."""
    for block in (depthwise(16, 16, 3, 2), pointwise(16, 8)):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            block(torch.randn(1, 16, 1, 1).contiguous(memory_format=LAST))
    for activation in (nn.ReLU, None):
        norm = nn.BatchNorm2d if activation else None
        block = depthwise(16, 16, 5, padding=0, norm_layer=norm, activation_layer=activation)
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            block(torch.randn(2, 16, 3, 3).contiguous(memory_format=LAST))


def test_maps_of_other_shapes() -> None:
    """What does not fit is refused, and what is added has the sum's shape: no kernel reads beyond its maps."""
    maps = torch.randn(2, 8, 6, 6).contiguous(memory_format=LAST)
    for wrong in (depthwise(16, 16), pointwise(16, 8), nn.BatchNorm2d(16)):
        with pytest.raises(RuntimeError, match="channels, not of 8"):
            sequential(layer=wrong)(maps)
    layers = pointwise(8, 8, activation_layer=None)
    with pytest.raises(RuntimeError, match="must match the existing size"):
        Residual(layers, nn.MaxPool2d(2))(maps)
    net, grad = Residual(layers, nn.AdaptiveAvgPool2d(1)), torch.randn_like(maps)
    ours, torchs = (run(set_kernels(net, kernels), maps, grad, torch.float32) for kernels in ("auto", "torch"))
    torch.testing.assert_close(ours, torchs, atol=2e-5, rtol=1e-4)


def test_kernels_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """suite=cpu_kernels measures those that a block calls in training, and sets them against the machine's peaks."""
    called: list[str] = []
    call = ops.call
    monkeypatch.setattr(ops, "call", lambda name, *given: called.append(name) or call(name, *given))
    net = depthwise_separable(16, 16).to(memory_format=LAST)
    net(torch.randn(2, 16, 8, 8).contiguous(memory_format=LAST).requires_grad_()).sum().backward()
    expected = called.copy()
    machine = Machine({"kind": "cpu"}, {2**20: 1e12}, {"fp32": 1e13, "bf16": 1e13})
    monkeypatch.setattr("sepconv.costs.roofline.measure_machine", lambda device: machine)
    monkeypatch.setattr("sepconv.costs.roofline.LEAST", 0)
    monkeypatch.setattr(cpu_kernels, "BLOCKS", ((16, 8), (20, 4)))
    config: Any = SimpleNamespace(trainer=TrainerConfig(accelerator="cpu"))
    rows = cpu_kernels.measure(config, Journal())["kernels"]
    assert [row["kernel"] for row in rows] == 4 * expected
    assert sum(row["passes"] for row in rows[:6]) == 16
    for row in rows:
        assert row["share_of_bandwidth"] == pytest.approx(row["bytes_per_second"] / 1e12)
    product = rows[1]
    assert product["share_of_arithmetic"] == pytest.approx(2 * 128 * 64 * 16**2 / product["milliseconds"] / 1e10)
    monkeypatch.setattr(cpu_kernels, "find_device", lambda trainer: torch.device("cuda"))
    with pytest.raises(InputError, match="suite=cpu_kernels measures a CPU, and trainer means cuda: give trainer=cpu"):
        cpu_kernels.measure(config, Journal())
