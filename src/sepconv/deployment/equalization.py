"""Like ranges for the channels of a map, so that the one scale that int8 has for a map suits all of them.

Where the weights before a map make one of its channels s times smaller, and those after it are s times larger, the
network computes the same: sums, poolings and ReLU between do not change that. In int8 depthwise weights, and all that
write a map, have a scale for each such channel, so that this costs them nothing. Pointwise weights that read a map have
one scale over all its channels; there the ranges of map and weights meet halfway.

Source: Nagel et al., arXiv 1906.04721, section 4.1, with the ranges of maps as in Xiao et al., arXiv 2211.10438,
equation 4.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor

from sepconv.deployment.formats import open_session, write_onnx

Floats = NDArray[np.float32]

# operations of one map or two that give s times the output for s times the input
SCALING = ("Add", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Identity")
LEAST = 1e-3  # of the largest range; smaller ones count as this
BATCH = 100  # images that are run at once


@dataclass
class Stream:
    """Maps that sums, poolings and ReLUs join, so that a channel has one scale in all of them.

    Attributes:
        maps: their names.
        writers: the convolutions whose outputs they are.
        readers: the layers that take them.
        others: operations, or the network's own input or output, that must find them as they were.
    """

    maps: list[str] = field(default_factory=list)
    writers: list[Any] = field(default_factory=list)
    readers: list[Any] = field(default_factory=list)
    others: int = 0


def equalize(model: Any, images: Tensor) -> Any:
    """The onnx.ModelProto of a network that computes what `model` does, with maps whose channels have like ranges.

    Args:
        images: uint8 (N, C, H, W); the ranges are those that occur with them.
    """
    model = copy.deepcopy(model)
    weights = Weights(model)
    streams = [each for each in find_streams(model, weights) if each.writers and each.readers and not each.others]
    ranges = find_ranges(model, [name for stream in streams for name in stream.maps], images)
    for stream in streams:
        found = [ranges[name] for name in stream.maps]
        if len({len(each) for each in found}) > 1:  # a flattened map, whose channels are others
            continue
        scale = largest(found)
        if mixing := [weights.ranges(node) for node in stream.readers if weights.mixes(node)]:
            scale = np.sqrt(scale / largest(mixing))
        scale = scale / np.exp(np.log(scale).mean())
        for node in stream.writers:
            weights.divide_outputs(node, scale)
        for node in stream.readers:
            weights.multiply_inputs(node, scale)
    return model


class Weights:
    """The weights of an onnx.ModelProto's layers, to be read and changed in place."""

    def __init__(self, model: Any) -> None:
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.uses = Counter(name for node in model.graph.node for name in node.input)

    def known(self, node: Any) -> bool:
        """Whether a node is a layer whose weights, (outputs, inputs, ...), are known, and used by nothing else."""
        layer = node.op_type == "Conv" or (node.op_type == "Gemm" and option(node, "transB", 0) == 1)
        return layer and all(name in self.tensors and self.uses[name] == 1 for name in node.input[1:])

    def get(self, name: str) -> Floats:
        from onnx import numpy_helper

        return np.array(numpy_helper.to_array(self.tensors[name]))

    def put(self, name: str, values: Floats) -> None:
        from onnx import numpy_helper

        self.tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))

    def grouped(self, node: Any) -> Floats:
        """A layer's weights: (groups, outputs a group, inputs a group, positions of the kernel)."""
        values, groups = self.get(node.input[1]), option(node, "group", 1)
        outputs, inputs = values.shape[:2]
        return values.reshape(groups, outputs // groups, inputs, -1)

    def mixes(self, node: Any) -> bool:
        """Whether an output sees several input channels: not of a depthwise convolution."""
        return self.grouped(node).shape[2] > 1

    def ranges(self, node: Any) -> Floats:
        """The largest weight, in size, on each input channel: (channels,)."""
        result: Floats = np.abs(self.grouped(node)).max((1, 3)).flatten()
        return result

    def multiply_inputs(self, node: Any, scale: Floats) -> None:
        """Multiplies the weights on each input channel by `scale`, (channels,)."""
        grouped = self.grouped(node)
        scaled = grouped * scale.reshape(len(grouped), 1, -1, 1)
        self.put(node.input[1], scaled.reshape(self.get(node.input[1]).shape))

    def divide_outputs(self, node: Any, scale: Floats) -> None:
        """Divides a convolution's weights and biases of each output channel by `scale`, (channels,)."""
        for name in node.input[1:]:
            values = self.get(name)
            self.put(name, values / scale.reshape(-1, *[1] * (values.ndim - 1)))


def option(node: Any, name: str, default: int) -> int:
    """A whole number among a node's options."""
    return next((int(each.i) for each in node.attribute if each.name == name), default)


def find_streams(model: Any, weights: Weights) -> list[Stream]:
    """The streams of all maps of a network."""
    graph = model.graph
    inputs = {
        node.output[0]: [name for name in node.input if name and name not in weights.tensors] for node in graph.node
    }
    scaling = {
        node.output[0]
        for node in graph.node
        if node.op_type in SCALING and len(inputs[node.output[0]]) == (2 if node.op_type == "Add" else 1)
    }
    joined = DisjointSet({name for node in graph.node for name in (*node.input, *node.output)})
    for output in scaling:
        for name in inputs[output]:
            joined.merge(output, name)
    streams: defaultdict[str, Stream] = defaultdict(Stream)
    readers: defaultdict[str, set[str]] = defaultdict(set)  # by map: kinds of what takes it
    for node in graph.node:
        for name in inputs[node.output[0]]:
            readers[name].add(node.op_type)
            stream = streams[joined[name]]
            if weights.known(node):
                stream.readers.append(node)
            elif node.output[0] not in scaling:
                stream.others += 1
        stream = streams[joined[node.output[0]]]
        stream.maps.append(node.output[0])
        if node.op_type == "Conv" and weights.known(node):
            stream.writers.append(node)
        elif node.output[0] not in scaling:
            stream.others += 1
    for value in (*graph.input, *graph.output):
        streams[joined[value.name]].others += 1
    for stream in streams.values():  # what a ReLU alone takes is never in 8 bits
        stream.maps = [name for name in stream.maps if readers[name] != {"Relu"}]
    return list(streams.values())


def find_ranges(model: Any, names: Sequence[str], images: Tensor) -> dict[str, Floats]:
    """The largest value, in size, of each channel of maps (B, C, ...) with `images`, by name: (C,)."""
    import onnx

    model = copy.deepcopy(model)
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
    model.graph.output.extend(outputs)
    session = open_session(write_onnx(model))
    ranges: dict[str, Floats] = {}
    for batch in images.split(BATCH) if names else ():
        for name, maps in zip(names, session.run(names, {"pixels": np.ascontiguousarray(batch.numpy())}), strict=True):
            found = np.abs(maps).max((0, *range(2, maps.ndim)))
            ranges[name] = np.maximum(found, ranges.get(name, found))
    return ranges


def largest(ranges: Iterable[Floats]) -> Floats:
    """Of each channel the largest of several ranges (C,), each over the largest of its own, and LEAST or more."""
    result: Floats = reduce(np.maximum, (each / max(each.max(), np.finfo(np.float32).tiny) for each in ranges))
    return np.maximum(result, LEAST)
