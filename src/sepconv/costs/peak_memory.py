"""The peak memory of a network's maps, which decides whether it runs on a microcontroller.

A map is alive from the layer that makes it to the last one that reads it. The peak is the largest sum of the maps that
are alive at once, over the layers in their order. Weights do not count: they are read where they are stored.

Source: Liberis, Dudziak and Lane, arXiv 2010.14246 (uNAS), and the `resource_models` of its repository. Three things
differ, as TensorFlow Lite for Microcontrollers has them: the order is the network's own, not the best one; the images
are a map, of the type of all others; an addition writes a map of its own.

Layers are executed as a deployed network's:

- What takes each element of one map by itself (a norm, whose statistics are known; an activation) is fused into the
  operator before, and writes in the place of what it reads; but where a later layer reads that too, it writes a map.
- Additions, products of a map and a gate (squeeze-excite), concatenations and all others read maps and write another.
- A view (a flattening, a crop) is no map: what it views is alive, whole, while the view is read.
- A layer of several operations is one operator: what it holds meanwhile beside input and output does not count.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sepconv.costs.counting import BYTES, IMAGES, Layer


class Map(NamedTuple):
    """A map in memory."""

    layer: str  # that makes it; `images` for those
    shape: tuple[int, ...]  # (B, C, H, W), or (B, C) after flattening
    elements: int


def live_maps(layers: Sequence[Layer], images: tuple[int, ...]) -> list[list[Map]]:
    """Of each layer, the maps that are alive while it runs, in the order in which they are made.

    Args:
        layers: all that a network has, as `counting.layers` gives them. The last one makes the network's output.
        images: shape of the images that they were counted on, (B, C, H, W).
    """
    maps = {IMAGES: Map("images", images, math.prod(images))}
    maps |= {place: Map(layer.name, layer.output, layer.written) for place, layer in enumerate(layers)}
    last_read = {place: place for place in maps}  # of each map; itself where none reads it
    for place, layer in enumerate(layers):
        last_read |= dict.fromkeys(layer.inputs, place)
    held = {IMAGES: IMAGES}  # of each map, that in whose place it is
    for place, layer in enumerate(layers):
        source, *others = layer.inputs
        fused = layer.elementwise and not others and maps[source].elements == layer.written
        held[place] = held[source] if fused and last_read[source] == place else place
    end: dict[int, int] = {}
    for place, first in held.items():
        end[first] = max(end.get(first, first), last_read[place])
    return [[maps[first] for first in end if first <= place <= end[first]] for place in range(len(layers))]


def live_bytes(maps: Iterable[Map], dtype: str) -> int:
    """Bytes of maps that are alive at once."""
    return BYTES[dtype] * sum(each.elements for each in maps)
