"""The passes over maps that a network makes in training and in evaluation, call of a kernel by call of a kernel."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import nn

from sepconv.costs import counting
from sepconv.costs.counting import BYTES, DTYPES, Layer
from sepconv.networks import fused
from sepconv.networks.blocks import SEQUENCES, Residual

# By who computes, then by group of layers: in each direction what is read and written, a word a map, as often as it is
# gone over. x is the group's input (an addition's: both), z its output, y what a norm takes, u what it gives; dx is the
# gradient of x. A convolution's weights are moved once beside them.
PASSES: dict[str, dict[str, dict[str, str]]] = {
    "torch": {
        "product": {"forward": "x z", "data gradient": "dz dx", "weight gradient": "x dz"},
        "depthwise": {"forward": "x z", "data gradient": "dz dx", "weight gradient": "x dz"},
        "norm": {"forward": "y  y z", "backward": "y dz  y dz dx"},
        "norm in evaluation": {"forward": "y z"},
        "activation": {"forward": "u z", "backward": "z dz dx"},
        "add": {"forward": "x z", "backward": "dz dz dz"},  # of the two gradients that meet at the fork
        "other": {"forward": "x z", "backward": "dz dx"},
    },
    # the links of a chain, each of a convolution, a norm or both, and what is done at its end, if that is a norm
    "fused": {
        "convolution": {"forward": "x y", "backward": "x dy dx"},
        "convolution norm": {"forward": "x y", "backward": "x y dy dx"},
        "norm": {"forward": "y", "backward": "y dy dx"},
        "end": {"forward": "y z", "backward": "y dz"},
        "end of a sum": {"forward": "y z z", "backward": "y z dz dz"},
    },
    "folded": {
        "product norm": {"forward": "x z"},
        "depthwise norm": {"forward": "x z"},
    },
}
# bytes that AdamW moves of a parameter; in mixed precision, also for its bf16 weight and of that one's gradient
UPDATED = {"fp32": 7 * 4, "bf16": 7 * 4 + 2 * (4 + 2)}

ACTIVATIONS = ("ReLU", "ReLU6", "Hardswish", "GELU", "SiLU", "Hardsigmoid", "Sigmoid")
PRODUCTS = ("standard", "pointwise", "grouped", "linear")


@dataclass(frozen=True)
class Call:
    """One call of a kernel, for a batch.

    Attributes:
        owner, group, direction: as in PASSES; the optimizer's group is `update`.
        moved: bytes of maps and weights, read or written.
        made: bytes of maps that a forward pass writes, each once; in training they are kept for the backward pass.
        layers: the group's, in their order; the optimizer has none.
    """

    owner: str
    group: str
    direction: str
    moved: int
    flop: int = 0
    made: int = 0
    layers: tuple[Layer, ...] = ()

    @property
    def name(self) -> str:
        """What is called, and of which layer."""
        layer = self.layers[0].name + ", " if self.layers else ""
        return f"{layer}{self.owner} {self.group} {self.direction}"


def list_calls(
    net: nn.Module,
    shape: tuple[int, int, int],
    batch: int,
    dtype: str,
    training: bool,
    kernels: str,
    image_gradient: bool = False,
) -> list[Call]:
    """The calls of a forward pass in evaluation, or of forward and backward pass in training, on images (C, H, W).

    Args:
        kernels: fused (where they have one for a layer, else torch's) or torch.
        image_gradient: as in `counting.layers`.
    """
    net = copy.deepcopy(net).train(training)
    return group(net, counting.layers(net, shape, batch, image_gradient), dtype, kernels)


def group(net: nn.Module, layers: Sequence[Layer], dtype: str, kernels: str) -> list[Call]:
    """The calls that compute `layers`, of `net` in its mode."""
    calls: list[Call] = []
    while layers:
        links, between, sums = find_chain(net, layers, dtype) if kernels == "fused" else ([], 0, 0)
        count = sum(link.layers() for link in links)
        if links:
            calls += group(net, layers[count : count + between], dtype, kernels)
            rows = [*layers[:count], *layers[count + between : count + between + sums]]
            calls += chain_calls(links, rows, sums > 0, dtype)
        else:
            count = 2 if kernels == "fused" and folds(net, layers[:2]) else 1
            calls += layer_calls(layers[:count], net.training, dtype)
        layers = layers[count + between + sums :]
    return calls


def layer_calls(layers: Sequence[Layer], training: bool, dtype: str) -> list[Call]:
    """The calls of torch's kernels on a layer, or on a convolution with a folded norm; none that nothing learns by."""
    first, last = layers[0], layers[-1]
    owner = "folded" if len(layers) > 1 else "torch"
    group = " ".join(map(family, layers))
    if group == "norm" and not training:
        group = "norm in evaluation"
    calls = []
    for direction, maps in PASSES[owner][group].items():
        gradients = {"data gradient": first.macs_data_gradient, "weight gradient": first.macs_weight_gradient}
        macs = first.macs if direction == "forward" else gradients.get(direction, first.macs_backward)
        needed = macs if first.macs else first.gradient or first.parameters
        if direction == "forward" or (training and needed):
            words = [word for word in maps.split() if first.gradient or word != "dx"]
            elements = sum(first.read if word.endswith("x") else last.written for word in words)
            moved = (elements + sum(layer.weights for layer in layers)) * BYTES[dtype]
            made = last.written * BYTES[dtype] if direction == "forward" else 0
            calls.append(Call(owner, group, direction, moved, 2 * macs, made, tuple(layers)))
    return calls


def chain_calls(links: Sequence[fused.Link], layers: Sequence[Layer], sums: bool, dtype: str) -> list[Call]:
    """The two calls of a chain of fused kernels, forward and backward."""
    moved, made, place = {"forward": 0, "backward": 0}, 0, 0
    parts = []
    for link in links:
        first = layers[place]
        names = ["convolution"] * (link.conv is not None) + ["norm"] * (link.norm is not None)
        # what an output of a stem's standard convolution sees is copied out for each, and read as channels
        copied = link.conv is not None and link.conv.groups == 1 and first.kernel != (1, 1)
        read = first.macs // first.output[1] if copied else first.read
        if copied:
            moved["forward"] += first.read + read
            made += read
        parts.append((" ".join(names), read, first.written, first.gradient))
        made += first.written if link.conv is not None else 0
        place += link.layers()
    if links[-1].norm is not None:
        parts.append(("end of a sum" if sums else "end", 0, layers[-1].written, True))
        made += layers[-1].written
    for name, read, written, gradient in parts:
        for direction, maps in PASSES["fused"][name].items():
            words = [word for word in maps.split() if gradient or word != "dx"]
            moved[direction] += sum(read if word.endswith("x") else written for word in words)
    weights = sum(layer.weights for layer in layers)
    flop = {"forward": sum(2 * layer.macs for layer in layers), "backward": sum(2 * r.macs_backward for r in layers)}
    return [
        Call("fused", "chain", direction, (moved[direction] + weights) * BYTES[dtype], flop[direction],
             made * BYTES[dtype] if direction == "forward" else 0, tuple(layers))
        for direction in moved
    ]  # fmt: skip


def update(net: nn.Module, dtype: str) -> Call:
    """The optimizer's step, AdamW's: over the parameters that learn."""
    learning = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return Call("torch", "update", "", learning * UPDATED[dtype])


def find_chain(net: nn.Module, layers: Sequence[Layer], dtype: str) -> tuple[list[fused.Link], int, int]:
    """The chain that `layers` begin with; the layers of a shortcut after it, and of an addition that it computes."""
    scope = find_scope(net, layers[0])
    if scope is None:
        return [], 0, 0
    block = net.get_submodule(scope)
    inside = list(takewhile(lambda layer: layer.call is None and find_scope(net, layer) == scope, layers))
    modules = [net.get_submodule(layer.name) for layer in inside]
    last = [name for name, _ in block.named_children()][-1:]
    own = block.get_submodule("activation") if isinstance(block, Residual) and last == ["activation"] else None
    modules = list(takewhile(lambda module: module is not own, modules))
    links = fused.find_chain(modules, DTYPES[dtype], images=not layers[0].gradient)
    after = layers[sum(link.layers() for link in links) :]
    around = f"{scope}.shortcut".lstrip(".")
    between = len(list(takewhile(lambda layer: f"{layer.name}.".startswith(f"{around}."), after)))
    adds = after[between].kind == "add" and after[between].block == scope if between < len(after) else False
    if not links or not adds or not fused.can_add(links, own):
        return links, 0, 0
    return links, between, 2 if own else 1


def find_scope(net: nn.Module, layer: Layer) -> str | None:
    """The block that computes `layer` with those around it, where kernels can; None where torch's do."""
    module = net.get_submodule(layer.name) if layer.call is None else None
    by_itself = isinstance(module, fused.Fusible) and module.kernels != "torch"
    name, scope = layer.block, layer.name if by_itself else None
    while True:
        block = net.get_submodule(name)
        if isinstance(block, fused.Fusible) and block.kernels != "torch":
            scope = name
        if not name or type(block) not in SEQUENCES:
            return scope
        name, _, part = name.rpartition(".")
        if part == "shortcut":  # which a Residual calls by itself
            return scope


def folds(net: nn.Module, layers: Sequence[Layer]) -> bool:
    """Whether a convolution has the norm after it in its weights."""
    if net.training or len(layers) < 2 or any(layer.call is not None for layer in layers):
        return False
    block = net.get_submodule(layers[1].block)
    one = layers[0].block == layers[1].block and isinstance(block, fused.Fusible) and block.kernels != "torch"
    return one and family(layers[1]) == "norm" and family(layers[0]) in ("product", "depthwise")


def family(layer: Layer) -> str:
    """A layer's name in PASSES."""
    if layer.kind in ("depthwise", "add"):
        return layer.kind
    if layer.kind in PRODUCTS:
        return "product"
    if layer.kind == "BatchNorm2d":
        return "norm"
    return "activation" if layer.kind in ACTIVATIONS else "other"
