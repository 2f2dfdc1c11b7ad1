"""The networks: each is a file of this folder, and in configs/model/ a file of its name with its options.

A network NAME is the function NAME in NAME.py. It takes an image's shape (channels, height, width), the number of
classes and, by name, the options that configs/model/NAME.yaml lists with their defaults; it gives a module from images
(B, C, H, W), normalised, to logits (B, classes).
"""

import inspect
from collections.abc import Callable
from dataclasses import make_dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from sepconv import InputError
from sepconv.config import CONFIGS, KERNELS, MODEL
from sepconv.config.read import complete, read
from sepconv.config.rules import check_choice
from sepconv.devices import check_memory
from sepconv.networks import fused
from sepconv.networks.separated import Separated, separated


def names() -> list[str]:
    """The networks that there are."""
    return sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))


def build(
    name: str, shape: tuple[int, int, int], classes: int, kernels: str = MODEL["kernels"], **options: Any
) -> nn.Module:
    """The network `name` for images of `shape` (channels, height, width), with defaults for what `options` leave out.

    Args:
        name: one of names(); or `separated`, which is made from another network and no choice of its own.
        kernels: that it computes by on a CPU: torch's own, or auto: the fused ones, where those can be compiled; fused
            is the same, and an error where they cannot.

    Raises:
        InputError: an unknown name; an option that the network does not have, of a wrong type or out of range;
            images too small for it; more weights than memory holds; no compiler for fused kernels.
    """
    check_choice("model.kernels", kernels, *KERNELS)
    if kernels == "fused" and not fused.library(torch.float32):
        raise InputError(
            "model.kernels=fused needs a C compiler, cc or what CC names: choose model.kernels=auto or torch"
        )
    return fused.set_kernels(make(name, shape, classes, **options), kernels)


def make(name: str, shape: tuple[int, int, int], classes: int, **options: Any) -> nn.Module:
    """The network, computing by whatever kernels."""
    if name == "separated":
        settings = read(Separated, options, prefix="model.")
        return separated(build(shape=shape, classes=classes, **settings.base), settings)
    if name not in names():  # whatever a checkpoint says, nothing else is imported
        raise InputError(f"unknown model={name}: choose from {', '.join(names())}")
    builder: Callable[..., nn.Module] = getattr(import_module(f"sepconv.networks.{name}"), name)
    parameters = inspect.signature(builder).parameters.values()
    schema = make_dataclass(name, [(p.name, p.annotation) for p in parameters if p.kind is p.KEYWORD_ONLY])
    values = complete({"name": name, **options})
    del values["name"], values["kernels"]
    factory = partial(builder, shape, classes, **vars(read(schema, values, prefix="model.")))
    shapes = check_size(name, factory)
    return shapes if torch.get_default_device().type == "meta" else factory()


def check_size(name: str, factory: Callable[[], nn.Module]) -> nn.Module:
    """The network that `factory` gives, of shapes alone. Raises InputError where it would not fit in memory."""
    remedy = "choose a smaller model.width, other options or smaller images"
    try:
        with torch.device("meta"):
            net = factory()
    except RuntimeError as error:
        if "overflow" not in str(error).lower():
            raise
        raise InputError(f"model={name} would have more weights than 64 bits count: {remedy}") from error
    size = sum(weight.nbytes for weight in net.parameters())
    check_memory(2 * size, torch.device("cpu"), f"model={name}, its weights and their gradients,", remedy)
    return net
