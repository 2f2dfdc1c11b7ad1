"""What a network costs, layer by layer: parameters, multiply-accumulates (MACs), bytes, and its receptive field.

Everything is counted on the meta device, from shapes alone: nothing is computed, and no image is held in memory.
1 MAC is 2 FLOP; positions of padding count like others. MACs are those of convolutions and matrix products: what
else a layer computes is small beside the bytes that it moves, and counts as none.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from sepconv import InputError
from sepconv.costs.receptive_field import ELEMENTWISE, IMAGE, PER_POSITION, Field, output_field, sliding_windows

aten = torch.ops.aten

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# of one element; int8, in which networks are deployed, is counted and not computed in, and all weights as such, though
# a deployment holds biases in 32 bits
BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {"int8": 1}
IMAGES = -1  # the images' place before the list of layers


@dataclass
class Layer:
    """A layer's cost, for a batch: a module without children, or an operation between modules, such as an addition.

    Shapes are (B, C, H, W), or (B, C) after flattening.
    """

    name: str  # of the module; an operation's own after that of the module that it is in
    kind: str  # standard, depthwise, pointwise, grouped, linear, or a class's or an operation's name
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    kernel: tuple[int, int] | None = None  # of a convolution or a pooling
    stride: tuple[int, int] | None = None
    parameters: int = 0  # those of a module that is called twice count the first time
    macs: int = 0
    macs_data_gradient: int = 0  # none where nothing before the layer learns, as in the first
    macs_weight_gradient: int = 0
    gradient: bool = False  # whether training needs that of its input
    block: str = ""  # the module that calls it
    read: int = 0  # elements of its input maps
    written: int = 0  # elements of its output maps
    weights: int = 0  # elements of its parameters and buffers
    sees: Field = IMAGE  # what a position of its output sees of the image
    # places in the list of the convolutions before it, with nothing but per-position layers between
    fed_by: frozenset[int] = frozenset()
    inputs: frozenset[int] = frozenset()  # places in the list of the layers whose maps it reads; IMAGES for the images
    elementwise: bool = True  # whether each element of its output is made of one of each map that it reads
    call: Any = field(default=None, repr=False)  # the operation; None for a module
    arguments: tuple[Any, ...] = field(default=(), repr=False)  # positional and by name, on the meta device

    @property
    def macs_backward(self) -> int:
        return self.macs_data_gradient + self.macs_weight_gradient

    def activation_bytes(self, dtype: str) -> int:
        """Bytes of maps read and written, each element once."""
        return (self.read + self.written) * BYTES[dtype]

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of weights read, each once."""
        return self.weights * BYTES[dtype]

    def bytes(self, dtype: str) -> int:
        """Bytes that a forward pass moves at least."""
        return self.activation_bytes(dtype) + self.weight_bytes(dtype)

    def intensity(self, dtype: str) -> float:
        """FLOP per byte of a forward pass."""
        return 2 * self.macs / max(1, self.bytes(dtype))

    def receptive_field(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Height and width in pixels; those of the image, of `shape`, where a position sees all of it."""
        sizes = (extent.size for extent in self.sees)
        height, width = (side if math.isinf(size) else int(size) for size, side in zip(sizes, shape[1:], strict=True))
        return height, width


def parameters(net: nn.Module) -> int:
    """The number of parameters, trained or frozen."""
    return sum(p.numel() for p in net.parameters())


def macs(net: nn.Module, shape: tuple[int, int, int]) -> int:
    """MACs of a forward pass over one image of `shape` (channels, height, width): convolutions and matrix products."""
    return sum(layer.macs for layer in layers(net, shape))


def layers(net: nn.Module, shape: tuple[int, int, int], batch: int = 1, image_gradient: bool = False) -> list[Layer]:
    """The layers of `net`, in the order that they run in, in evaluation, on `batch` images of `shape` (C, H, W).

    A layer that moves nothing in evaluation (flattening, dropout) is left out. Counts are for the whole batch.

    Args:
        image_gradient: count the gradient of the images too, as of maps: for layers that stand within a network.

    Raises:
        InputError: images of this shape do not go through the network.
    """
    meta = copy.deepcopy(net).to("meta").eval()
    try:
        images = torch.empty(batch, *shape, device="meta")
        recorder = _Recorder(meta, images, image_gradient)
        with torch.no_grad(), recorder:
            meta(images)
    except RuntimeError as error:  # torch's answer to shapes that do not fit
        reason = str(error).splitlines()[0]
        size = f"{shape[1]} x {shape[2]} x {shape[0]}"
        raise InputError(f"images of {size} do not go through this network ({reason}): choose another size") from error
    return recorder.layers


def training_bytes(net: nn.Module, shape: tuple[int, int, int], batch: int, dtype: str) -> int:
    """Bytes that a training step on `batch` images of `shape` (C, H, W) takes at least.

    These are the weights, their gradients, and the maps in `dtype` that convolutions and matrix products keep for the
    gradients of their weights.
    """
    kept = sum(layer.read for layer in layers(net, shape, batch) if layer.macs_weight_gradient)
    return 2 * BYTES["fp32"] * parameters(net) + BYTES[dtype] * kept


def total(rows: Sequence[Layer]) -> Layer:
    """The sum over layers, from the first one's input to the last one's output."""
    names = ("parameters", "macs", "macs_data_gradient", "macs_weight_gradient", "read", "written", "weights")
    sums = {name: sum(getattr(layer, name) for layer in rows) for name in names}
    return Layer("total", "", rows[0].input, rows[-1].output, **sums, sees=rows[-1].sees)


@dataclass
class _State:
    """What is known of a tensor while the network runs."""

    field: Field | None  # None: it does not depend on the image
    learns: bool  # whether a gradient must reach it
    fed_by: frozenset[int] = frozenset()  # as of a layer
    made_by: int = IMAGES  # place in the list of the layer whose map it is, or is a view of
    weight: Tensor | None = None  # the parameter or buffer that it is a view of


class _Recorder(TorchDispatchMode):
    """Follows every operation of a network, and puts each to the layer that it belongs to."""

    def __init__(self, net: nn.Module, images: Tensor, image_gradient: bool) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.states = WeakTensorKeyDictionary()
        self.states[images] = _State(IMAGE, learns=image_gradient)
        self.counted: set[int] = set()  # parameters, by id
        self.path = [""]
        self.open: Layer | None = None  # the layer that runs now
        self.weights: list[Tensor] = []  # its parameters and buffers
        self.moves = False  # whether it moves data
        for name, module in net.named_modules():
            module.register_forward_pre_hook(partial(self.enter, name), with_kwargs=True)
            module.register_forward_hook(self.leave)

    def enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.path.append(name)
        if not list(module.children()):
            tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
            kind = "linear" if isinstance(module, nn.Linear) else type(module).__name__
            self.begin(name, kind, None, (args, kwargs), tensors)

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.path.pop()
        if self.open is not None:
            self.end(out)

    def begin(self, name: str, kind: str, call: Any, arguments: tuple[Any, ...], weights: list[Tensor]) -> None:
        states = [self.state(tensor) for tensor in tensors_in(arguments)]
        fed_by = frozenset[int]().union(*(state.fed_by for state in states))
        gradient = any(state.learns for state in states if state.field is not None)
        block = self.path[-1] if call is not None else self.path[-2]
        self.open = Layer(name, kind, gradient=gradient, block=block, fed_by=fed_by, call=call, arguments=arguments)
        self.weights, self.moves = weights, False

    def end(self, out: Any) -> None:
        """Closes the open layer, and adds it to the list if it moves data."""
        layer, self.open = self.open, None
        assert layer is not None
        if not self.moves:
            return
        maps = [tensor for tensor in tensors_in(layer.arguments) if self.state(tensor).field is not None]
        outputs = tensors_in(out)
        sees = self.state(outputs[0]).field
        assert sees is not None
        parameters = [p for p in self.weights if isinstance(p, nn.Parameter) and id(p) not in self.counted]
        self.counted |= {id(p) for p in parameters}
        layer.input, layer.output, layer.sees = tuple(maps[0].shape), tuple(outputs[0].shape), sees
        if 0 in layer.output:  # torch 2.11 does not object on the meta device
            raise RuntimeError(f"{layer.name} would put out nothing")
        layer.parameters = sum(p.numel() for p in parameters)
        layer.read, layer.written = (sum(tensor.numel() for tensor in tensors) for tensors in (maps, outputs))
        layer.weights = sum(tensor.numel() for tensor in self.weights)
        self.layers.append(layer)

    def state(self, tensor: Tensor) -> _State:
        return self.states.get(tensor) or _State(None, learns=tensor.requires_grad, weight=tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        before = [self.state(tensor) for tensor in tensors]  # an operation in place changes its input's state
        out = func(*args, **kwargs)
        maps = [(t, state.field) for t, state in zip(tensors, before, strict=True) if state.field is not None]
        if not maps:  # a weight in another shape, or a constant
            for tensor in tensors_in(out):
                weight = before[0].weight if func.is_view else tensor
                self.states[tensor] = _State(None, any(state.learns for state in before), weight=weight)
            return out
        defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
        arguments = defaults | dict(zip(defaults, args, strict=False)) | kwargs
        operation = func.overloadpacket
        pointwise = torch.Tag.pointwise in func.tags
        place = len(self.layers)  # the open layer's
        between_modules = self.open is None and not func.is_view
        if between_modules:
            weights = [state.weight for state in before if state.weight is not None]
            name = operation.__name__.strip("_")
            self.begin(f"{self.path[-1]}.{name}".lstrip("."), name, func, (args, kwargs), weights)
        if self.open is not None and not func.is_view:
            self.moves = True
            self.open.inputs |= {state.made_by for state in before if state.field is not None} - {place}
            # a copy is made to have the elements in another order
            self.open.elementwise &= operation in ELEMENTWISE or (pointwise and operation is not aten.clone)
            self.count(operation, arguments, out)
        if operation is aten.convolution:
            fed_by = frozenset([place])
        else:
            keeps_positions = pointwise or func.is_view or operation in PER_POSITION
            fed_by = frozenset().union(*(state.fed_by for state in before if keeps_positions))
        made_by = self.state(maps[0][0]).made_by if func.is_view else place
        for tensor in tensors_in(out):
            field = output_field(operation, pointwise, arguments, maps, tensor)
            self.states[tensor] = _State(field, any(state.learns for state in before), fed_by, made_by)
        if between_modules:
            self.end(out)
        return out

    def count(self, operation: Any, arguments: dict[str, Any], out: Any) -> None:
        """Adds an operation's MACs, forward and backward, to the open layer.

        Each gradient of a product takes as many MACs as the product: every pair of factors meets once in each. So a
        depthwise convolution's backward pass is twice its forward pass, as a standard one's.
        """
        layer = self.open
        assert layer is not None
        if operation is aten.convolution:
            a, b = arguments["input"], arguments["weight"]
            transposed, groups = arguments["transposed"], arguments["groups"]
            macs = (a if transposed else out).numel() * math.prod(b.shape[1:])
            layer.kind = convolution_kind(b, groups, a.shape[1])
        elif operation in PRODUCTS:
            first, second = PRODUCTS[operation]
            a, b = arguments[first], arguments[second]
            macs = out.numel() * a.shape[-1]
        else:
            macs = 0
        if windows := sliding_windows(operation, arguments):
            layer.kernel, layer.stride = ((windows[0][i], windows[1][i]) for i in range(2))
        if macs:
            layer.macs += macs
            for factor in (self.state(a), self.state(b)):
                if factor.learns and factor.field is None:
                    layer.macs_weight_gradient += macs
                elif factor.learns:
                    layer.macs_data_gradient += macs


# matrix products, and the names of their factors
PRODUCTS = {
    aten.mm: ("self", "mat2"),
    aten.addmm: ("mat1", "mat2"),
    aten.bmm: ("self", "mat2"),
    aten.baddbmm: ("batch1", "batch2"),
}


def convolution_kind(weight: Tensor, groups: int, in_channels: int) -> str:
    """Depthwise (a group per channel), pointwise (1 x 1), grouped or standard."""
    if groups > 1:
        return "depthwise" if groups == in_channels else "grouped"
    return "pointwise" if math.prod(weight.shape[2:]) == 1 else "standard"


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
