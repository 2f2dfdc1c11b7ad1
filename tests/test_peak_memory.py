"""The peak of live maps by hand, and against a walk over torch's graph that frees each buffer after its last use."""

import csv
import io
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from conftest import SLIM, Outcome
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from sepconv.costs import counting
from sepconv.costs.peak_memory import live_bytes, live_maps
from sepconv.costs.report import layer_markdown
from sepconv.networks import build, names
from sepconv.networks.blocks import KINDS, ConvNormActivation, Residual, inverted_residual, sequential
from sepconv.networks.cpu import GlobalAvgPool
from sepconv.networks.resnet import Subsampling

Shape = tuple[int, int, int]

aten = torch.ops.aten
# of the networks below, what reads one map and takes each element by itself
IN_PLACE = {
    aten.native_batch_norm, aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_, aten.hardswish, aten.hardswish_,
    aten.hardsigmoid, aten.hardsigmoid_, aten.gelu, aten.silu, aten.silu_, aten.sigmoid,
}  # fmt: skip


def live(net: nn.Module, shape: Shape, batch: int = 1) -> dict[str, int]:
    """Bytes in int8 that are alive while each layer runs, by its name."""
    rows = counting.layers(net, shape, batch)
    maps = live_maps(rows, (batch, *shape))
    return {row.name: live_bytes(each, "int8") for row, each in zip(rows, maps, strict=True)}


def simulated_peak(net: nn.Module, shape: Shape) -> int:
    """The peak in int8 of an allocator that walks over the graph of torch's operations, and counts readers.

    What an operation writes gets a buffer, unless it may overwrite the one it reads; a buffer is freed after its last
    reader.
    """
    with torch.no_grad():
        graph = make_fx(net.to("meta").eval())(torch.empty(1, *shape, device="meta")).graph
    buffer: dict[Node, int] = {}  # by the map that is in it
    size: list[int] = []
    readers: list[int] = []
    free: set[int] = set()
    peak = 0

    def is_view(node: Node) -> bool:
        return "getitem" in node.name or (isinstance(node.target, torch._ops.OpOverload) and node.target.is_view)

    def count_readers(node: Node) -> int:
        """Operations that read a map, or a view of it."""
        return sum(count_readers(user) if is_view(user) else 1 for user in node.users)

    def allocate(node: Node) -> None:
        value = node.meta["val"]
        buffer[node] = len(size)
        size.append((value[0] if isinstance(value, tuple | list) else value).numel())
        readers.append(count_readers(node))

    for node in graph.nodes:
        sources = list(dict.fromkeys(each for each in node.all_input_nodes if each in buffer))
        if node.op == "placeholder":
            allocate(node)
        elif node.op == "call_function" and is_view(node) and sources:
            buffer[node] = buffer[sources[0]]
        elif node.op == "call_function" and sources:
            held = {buffer[source] for source in sources}
            (first,) = held if len(held) == 1 else (None,)
            operation = node.target.overloadpacket
            if operation in IN_PLACE and first is not None and readers[first] == 1:
                buffer[node], readers[first] = first, count_readers(node) + 1
            else:
                allocate(node)
            peak = max(peak, sum(size) - sum(size[each] for each in free))
            for each in held:
                readers[each] -= 1
                free |= {each} if readers[each] == 0 else set()
    return peak


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(
            pytest.param(name, {"conv": conv, **SLIM.get(name, {})}, marks=[pytest.mark.slow] * (conv != "separable"))
            for name in names()
            for conv in KINDS
        ),
        ("resnet", {"depth": 8, "form": "mlperf_tiny"}),
    ],
)
def test_networks_against_an_allocator(name: str, options: dict[str, Any]) -> None:
    net = build(name, (3, 32, 32), 10, kernels="torch", **options)
    assert max(live(net, (3, 32, 32)).values()) == simulated_peak(net, (3, 32, 32))


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_large",
        "squeezenet1_1",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("densenet121", "googlenet", "efficientnet_b0")),
    ],
)
def test_torchvision_against_an_allocator(name: str) -> None:
    """Concatenations, several branches, gates."""
    arguments = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        net = torchvision.models.get_model(name, **arguments).eval()
    assert max(live(net, (3, 64, 64)).values()) == simulated_peak(net, (3, 64, 64))


def test_chain_by_hand() -> None:
    """Images of 3 x 8 x 8 to 8 maps of 8 x 8, halved, to 4 numbers."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 4)
    )
    expected = {"0": 192 + 512, "1": 512, "2": 512, "3": 512 + 128, "5": 128 + 4}
    assert live(net, (3, 8, 8)) == expected
    assert live(net, (3, 8, 8), batch=5) == {name: 5 * size for name, size in expected.items()}
    rows = counting.layers(net, (3, 8, 8))
    for dtype, itemsize in (("int8", 1), ("bf16", 2), ("fp32", 4)):
        sizes = [live_bytes(maps, dtype) for maps in live_maps(rows, (1, 3, 8, 8))]
        assert sizes == [itemsize * size for size in expected.values()]
    assert [each.layer for each in live_maps(rows, (1, 3, 8, 8))[3]] == ["0", "3"]


def test_residual_block_by_hand() -> None:
    """The input stays while the block runs; the addition writes a map of its own, which the activation overwrites."""
    block = sequential(conv1=ConvNormActivation(4, 4), conv2=ConvNormActivation(4, 4, activation_layer=None))
    images, one = 3 * 6 * 6, 4 * 6 * 6
    assert live(nn.Sequential(nn.Conv2d(3, 4, 1), Residual(block, activation=nn.ReLU())), (3, 6, 6)) == {
        "0": images + one,
        "1.conv1.conv": 2 * one,
        "1.conv1.norm": 2 * one,
        "1.conv1.activation": 2 * one,
        "1.conv2.conv": 3 * one,
        "1.conv2.norm": 2 * one,
        "1.add": 3 * one,
        "1.activation": one,
    }


def test_subsampling_shortcut_by_hand() -> None:
    """It reads the block's input once the block is done, and writes maps as large as the block's."""
    block = ConvNormActivation(4, 8, stride=2, norm_layer=None, activation_layer=None)
    source, made = 4 * 6 * 6, 8 * 3 * 3
    sizes = live(Residual(block, Subsampling(4, 8, 2)), (4, 6, 6))
    assert sizes == {"conv": source + made, "shortcut": source + 2 * made, "add": 3 * made}


def test_inverted_residual_with_squeeze_excite_by_hand() -> None:
    """The map that is weighed stays while the gate is made, and the block's input until the end."""
    source, wide, gate, hidden = 4 * 5 * 5, 16 * 5 * 5, 16, 8
    sizes = live(inverted_residual(4, 4, 16, squeeze=True), (4, 5, 5))
    assert sizes == {
        "expansion.conv": source + wide,
        "expansion.norm": source + wide,
        "expansion.activation": source + wide,
        "depthwise.conv": source + 2 * wide,
        "depthwise.norm": source + wide,
        "depthwise.activation": source + wide,
        "squeeze.avgpool": source + wide + gate,
        "squeeze.fc1": source + wide + gate + hidden,
        "squeeze.activation": source + wide + hidden,
        "squeeze.fc2": source + wide + hidden + gate,
        "squeeze.scale_activation": source + wide + gate,
        "squeeze.mul": source + 2 * wide + gate,
        "projection.conv": 2 * source + wide,
        "projection.norm": 2 * source,
        "add": 3 * source,
    }


def test_activation_of_a_map_that_is_read_later_writes_another() -> None:
    """As in Xception: the shortcut takes what the block's first activation takes too."""
    block = sequential(activation=nn.ReLU(), conv=nn.Conv2d(4, 4, 1))
    one = 4 * 6 * 6
    sizes = live(nn.Sequential(nn.Conv2d(4, 4, 1), Residual(block)), (4, 6, 6))
    assert sizes == {"0": 2 * one, "1.activation": 2 * one, "1.conv": 3 * one, "1.add": 3 * one}


class Views(nn.Module):
    """Works on views of what it gets: a crop, and the two halves of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(2, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        one, two = self.conv(images[..., :4, :4]).chunk(2, 1)
        other = self.other(two)
        return torch.cat([one.relu(), other], 1).mul(2).transpose(2, 3).contiguous()


def test_views_by_hand() -> None:
    """A crop holds the whole image, a half its whole map; what is made of a half, or in another order, is a map."""
    one, half = 4 * 4 * 4, 2 * 4 * 4
    assert live(Views(), (4, 6, 6)) == {
        "conv": 4 * 6 * 6 + one,
        "other": one + half,
        "relu": one + 2 * half,
        "cat": 2 * half + one,
        "mul": one,
        "clone": 2 * one,
    }


def test_of_one_layer() -> None:
    assert live(GlobalAvgPool(), (4, 6, 6)) == {"": 4 * 6 * 6 + 4}


def test_mlperf_tiny_by_hand() -> None:
    """Its image classification network: three maps of 16 x 32 x 32 in the first block; 32 x 16 x 16 are half of one."""
    sizes = live(build("resnet", (3, 32, 32), 10, depth=8, form="mlperf_tiny"), (3, 32, 32))
    one = 16 * 32 * 32
    assert max(sizes.values()) == sizes["blocks.0.conv2.conv"] == sizes["blocks.0.add"] == 3 * one == 49_152
    assert sizes["blocks.1.conv2.conv"] == sizes["blocks.1.shortcut.conv"] == 2 * one
    assert sizes["blocks.2.shortcut.conv"] == one


# The command


def run(command: Callable[..., Outcome], *arguments: object) -> str:
    outcome = command("cost", "model=resnet", "data=cifar10", "dtype=int8", *arguments)
    assert outcome.status == 0, outcome.err
    return outcome.out


def test_command(command: Callable[..., Outcome]) -> None:
    """Three maps of 16 x 32 x 32 in the first block, in every format; the weights are a byte each."""
    found = json.loads(run(command, "format=json"))
    maps = ["stem.conv", "blocks.0.conv1.conv", "blocks.0.conv2.conv"]
    assert found["peak"] == {
        "bytes": 49_152,
        "layer": "blocks.0.conv2.conv",
        "maps": [{"layer": name, "shape": [16, 32, 32], "bytes": 16_384} for name in maps],
    }
    sizes = [row["live_bytes"] for row in found["layers"]]
    assert max(sizes) == found["total"]["live_bytes"] == 49_152
    assert sizes[0] == (3 + 16) * 32**2
    assert found["layers"][0]["weight_bytes"] == math.prod((16, 3, 3, 3))
    rows = list(csv.DictReader(io.StringIO(run(command, "format=csv"))))
    assert [int(row["live_bytes"]) for row in rows] == [*sizes, 49_152]
    line = "Peak of live maps: 49,152 bytes, in blocks.0.conv2.conv: stem.conv (16 x 32 x 32), blocks.0.conv1.conv ("
    for form in ("table", "markdown"):
        out = run(command, f"format={form}")
        assert line in out
        (total,) = (row for row in out.splitlines() if row.strip("| ").startswith("total"))
        assert " 48.0 " in total
    assert json.loads(run(command, "format=json", "batch=3"))["peak"]["bytes"] == 3 * 49_152


def test_sweep_in_int8(command: Callable[..., Outcome]) -> None:
    bytes_ = {}
    for dtype in ("int8", "fp32"):
        outcome = command("cost", "sweep=true", "format=json", f"dtype={dtype}")
        bytes_[dtype] = [record["standard_bytes"] for record in json.loads(outcome.out)["sweep"]]
    assert bytes_["fp32"] == [4 * size for size in bytes_["int8"]]


def test_tensorboards_table() -> None:
    """It has the column, of maps in fp32, and the peak in its total."""
    table = layer_markdown(build("resnet", (3, 32, 32), 10), (3, 32, 32)).splitlines()
    place = table[2].split("|").index(" live maps KiB ")
    assert table[-1].split("|")[place].strip() == "192.0"
