"""The networks, one file per family, each a visible table of blocks.

Every builder takes an image's shape (channels, height, width), the number of classes and its own options, and
gives a module from images (B, C, H, W), normalised, to logits (B, classes).
"""

import inspect
from collections.abc import Callable
from dataclasses import make_dataclass
from typing import Any

from torch import nn

from sepconv import InputError
from sepconv.config import read
from sepconv.networks.airbench import airbench
from sepconv.networks.baseline import baseline, baseline_separable
from sepconv.networks.mobilenet_v1 import mobilenet_v1
from sepconv.networks.mobilenet_v2 import mobilenet_v2
from sepconv.networks.mobilenet_v3_small import mobilenet_v3_small
from sepconv.networks.resnet import resnet
from sepconv.networks.separable import separable
from sepconv.networks.separated import Separated, separated
from sepconv.networks.tiny import tiny
from sepconv.networks.xception import xception

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "baseline": baseline,
    "baseline_separable": baseline_separable,
    "separable": separable,
    "tiny": tiny,
    "airbench": airbench,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_small": mobilenet_v3_small,
    "xception": xception,
    "resnet": resnet,
}


def build(name: str, shape: tuple[int, int, int], classes: int, **options: Any) -> nn.Module:
    """The network `name` for images of `shape` (channels, height, width).

    Args:
        name: of NETWORKS; or `separated`, which is made from another network and no choice of its own.

    Raises:
        InputError: an unknown name; an option that the network does not have, of a wrong type or out of range;
            images too small for it.
    """
    if name == "separated":
        chosen = read(Separated, options, prefix="model.")
        return separated(build(shape=shape, classes=classes, **chosen.base), chosen)
    if name not in NETWORKS:
        raise InputError(f"unknown model={name}: choose from {', '.join(NETWORKS)}")
    builder = NETWORKS[name]
    own = [p for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    schema = make_dataclass(name, [(p.name, p.annotation, p.default) for p in own])
    return builder(shape, classes, **vars(read(schema, options, prefix="model.")))
