import ctypes
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from sepconv import InputError, devices
from sepconv.benchmark import cpu_layers
from sepconv.benchmark.journal import Journal
from sepconv.config.keys import TrainerConfig
from sepconv.networks.cpu import DepthwiseConv2d, Flatten, GlobalAvgPool, HalvingMaxPool


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (3, 3, 0, 1), (3, 2, 2, 2), (5, 2, 2, 1), (2, 4, 0, 1)],
)
def test_depthwise_gradients(
    kernel_size: int, stride: int, padding: int, dilation: int, multiplier: int, layout: torch.memory_format
) -> None:
    """What torch's own layer gives, forward and backward."""
    out_channels = 6 * multiplier
    layer = DepthwiseConv2d(6, out_channels, kernel_size, stride, padding, dilation, groups=6, bias=False).double()
    images = torch.randn(2, 6, 11, 14, dtype=torch.double).to(memory_format=layout).requires_grad_()
    output = layer(images)
    expected = F.conv2d(images, layer.weight, None, stride, padding, dilation, groups=6)
    if multiplier == 1 and stride > 1:
        assert "StridedDepthwise" in str(output.grad_fn)
    assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)
    assert output.is_contiguous(memory_format=layout)
    gradient = torch.randn_like(output)
    for a, b in zip(
        *(torch.autograd.grad(y, [images, layer.weight], gradient) for y in (output, expected)), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_strided_depthwise_under_autocast() -> None:
    layer = DepthwiseConv2d(8, 8, 3, 2, 1, groups=8, bias=False)
    images = torch.randn(2, 8, 10, 10, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(images)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    reference = torch.autograd.grad(F.conv2d(images, layer.weight, None, 2, 1, 1, 8).sum(), [images, layer.weight])
    for gradient, expected in zip((images.grad, layer.weight.grad), reference, strict=True):
        assert gradient is not None
        assert (gradient - expected).norm() / expected.norm() < 0.02


def test_global_average() -> None:
    images = torch.randn(2, 3, 5, 7)
    assert torch.allclose(GlobalAvgPool()(images)[..., 0, 0], images.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_global_pooling_gradient(layout: torch.memory_format) -> None:
    images = torch.randn(2, 3, 5, 7, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    pooled = GlobalAvgPool()(images)
    gradient = torch.randn_like(pooled)
    (output,) = torch.autograd.grad(pooled, images, gradient)
    (expected,) = torch.autograd.grad(images.mean((2, 3), keepdim=True), images, gradient)
    assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)
    assert output.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_flatten(layout: torch.memory_format) -> None:
    images = torch.randn(2, 3, 5, 7).contiguous(memory_format=layout).requires_grad_()
    flat = Flatten()(images)
    assert torch.equal(flat, nn.Flatten()(images))
    gradient = torch.randn_like(flat)
    (output,) = torch.autograd.grad(flat, images, gradient)
    assert torch.equal(output, gradient.view(2, 3, 5, 7))
    assert output.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("sides", [(6, 8), (7, 8), (6, 9), (7, 9)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_halving_max_pool(ceil_mode: bool, sides: tuple[int, int], memory_format: torch.memory_format) -> None:
    """torch's, bit for bit and in the same format, with and without a gradient."""
    images = torch.randn(2, 3, *sides).bfloat16().to(memory_format=memory_format)
    pool, reference = HalvingMaxPool(ceil_mode), nn.MaxPool2d(2, ceil_mode=ceil_mode)
    expected = reference(images)
    assert torch.equal(pool(images), expected)
    assert pool(images).stride() == expected.stride()
    gradients = []
    for module in (pool, reference):
        leaf = images.clone().requires_grad_()
        assert torch.equal(module(leaf), expected)
        module(leaf).float().square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer beside torch's own, which computes the same, in both precisions."""
    small = {name: case._replace(shape=(2, *case.shape[1:])) for name, case in cpu_layers.CASES.items()}
    for case in small.values():
        layer, stock = case.layer(), case.stock()
        stock.load_state_dict(layer.state_dict())
        images = torch.randn(case.shape)
        torch.testing.assert_close(layer(images), stock(images), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(cpu_layers, "CASES", small)
    monkeypatch.setattr("sepconv.benchmark.networks.TURN", 0.001)
    config = SimpleNamespace(rounds=3, trainer=TrainerConfig(accelerator="cpu"))
    record = cpu_layers.measure(config, Journal())  # type: ignore[arg-type]
    assert [(row["layer"], row["precision"]) for row in record["layers"]] == [
        (name, precision) for name in small for precision in ("fp32", "bf16")
    ]
    for row in record["layers"]:
        times = (row["milliseconds"][key]["turns"] for key in ("layer", "torch"))
        ratio = row["times_as_fast"]
        assert ratio["turns"] == [b / a for a, b in zip(*times, strict=True)]
        assert ratio["quartiles"][0] <= ratio["median"] <= ratio["quartiles"][1]
    console = Console(width=200, record=True)
    console.print(cpu_layers.table(record))
    assert console.export_text().count("HalvingMaxPool") == 2
    monkeypatch.setattr(cpu_layers, "find_device", lambda trainer: torch.device("cuda"))
    with pytest.raises(InputError, match="suite=cpu_layers measures a CPU, and trainer means cuda: give trainer=cpu"):
        cpu_layers.measure(config, Journal())  # type: ignore[arg-type]


def test_a_processor_has_its_family_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two designs of one name are told apart; where nothing is known of it, the platform's name is."""
    monkeypatch.setattr(devices, "Path", lambda path: tmp_path / "cpuinfo")
    assert devices.name_processor() == (platform.processor() or platform.machine())
    core = "processor\t: {}\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
    (tmp_path / "cpuinfo").write_text(f"{core.format(0)}\n{core.format(1)}")
    assert devices.name_processor() == "AMD EPYC (family 25, model 17)"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some name\n")
    assert devices.name_processor() == "Some name"


def test_memory_that_maps_are_in_comes_in_large_pages_and_is_not_taken_before() -> None:
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not hasattr(ctypes.CDLL(None), "mallopt") or not pages.exists() or "[never]" in pages.read_text():
        pytest.skip("this machine has no glibc, or makes no large pages")
    code = """
import re
from pathlib import Path

import torch

from sepconv.devices import prepare_memory


def count(file, key):
    return sum(int(size) for size in re.findall(rf"^{key}:\\s*(\\d+) kB", Path(file).read_text(), re.M))


used = count("/proc/self/status", "VmRSS")
prepare_memory()
taken = count("/proc/self/status", "VmRSS") - used
maps = torch.ones(2**24)  # 64 MB
print(taken, count("/proc/self/smaps", "AnonHugePages"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken, large = map(int, done.stdout.split())
    assert taken < 2**13
    assert large > 2**13
