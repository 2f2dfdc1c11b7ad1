"""How a network is trained: its initial weights, optimizer and learning-rate schedule."""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sepconv import InputError
from sepconv.config.keys import RecipeConfig
from sepconv.config.rules import check, check_choice
from sepconv.text import shorten
from sepconv.training.muon import Muon


def initialize(net: nn.Module, scheme: str) -> None:
    """Draws the initial weights of every convolution and dense layer of `net`, in place, with biases of 0.

    Args:
        scheme: of INITIALIZERS; or `torch`, which leaves each layer as torch made it, biases too.
    """
    if scheme == "torch":
        return
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            INITIALIZERS[scheme](layer)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def glorot_uniform(layer: nn.Conv2d | nn.Linear) -> None:
    """Keras's default (Glorot and Bengio 2010, equation 16)."""
    # a depthwise kernel's fans are swapped between Keras and torch; their sum, which counts, is the same where
    # each channel has one filter
    nn.init.xavier_uniform_(layer.weight)


def kaiming_normal(layer: nn.Conv2d | nn.Linear) -> None:
    """By fan-out (He et al. 2015), dense layers N(0, 0.01²), as torchvision's MobileNets; but by the fan of a group.

    torch's own count makes a depthwise layer's outputs so small that a batch norm's running variance, which starts at
    1, takes long to get there.
    """
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
    else:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        with torch.no_grad():
            layer.weight.mul_(layer.groups**0.5)


def dirac(layer: nn.Conv2d | nn.Linear) -> None:
    """The first filters of each convolution that is not depthwise pass an input channel on, one each.

    The other filters are torch's; dense layers N(0, 1/in²). Source: Jordan, arXiv 2404.00498, section 3.3, and
    airbench94_muon's last layer.
    """
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=1 / layer.in_features)
    elif layer.groups == 1:
        nn.init.dirac_(layer.weight[: layer.in_channels])


INITIALIZERS: dict[str, Callable[[nn.Conv2d | nn.Linear], None]] = {
    "glorot_uniform": glorot_uniform,
    "kaiming_normal": kaiming_normal,
    "dirac": dirac,
}


def build_optimizer(net: nn.Module, options: dict[str, Any]) -> Optimizer:
    """The optimizer `options["name"]` of torch.optim over `net`, with its other options as arguments.

    Weight decay spares biases and norms. `Muon` takes filters only (see find_filters), and for the rest needs the
    options `others`: those of another optimizer, its name among them.

    Raises InputError for an unknown name, and for an argument that is unknown, or that a step cannot be made with.
    """
    trial = assemble_optimizer(stand_in(next(net.parameters()).device), options)
    for group in trial.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    try:
        trial.step()  # some arguments are looked at only here
    except Exception as error:
        raise refusal("recipe.optimizer", options["name"], error) from error
    return assemble_optimizer(net, options)


def stand_in(device: torch.device) -> nn.Module:
    """A network with what optimizers tell apart (a first convolution, filters, biases), made without random numbers."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1, device="meta"), nn.Conv2d(2, 2, 1, device="meta"))
    for layer in net:
        for name, weight in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(torch.ones(weight.shape, device=device)))
    return net


def assemble_optimizer(net: nn.Module, options: dict[str, Any]) -> Optimizer:
    """As `build_optimizer`, without a trial."""
    parameters = list(net.parameters())
    if options["name"] != "Muon":
        return make_optimizer(parameters, options, "recipe.optimizer")
    arguments = {key: value for key, value in options.items() if key not in ("name", "others", "depthwise")}
    depthwise = options.get("depthwise", "others")
    check_choice("recipe.optimizer.depthwise", depthwise, "others", "muon")
    filters = find_filters(net, depthwise == "muon")
    if not filters:
        raise InputError("recipe.optimizer.name=Muon finds no filters in this network: choose another optimizer")
    taken = {id(weight) for weight in filters}
    rest = [p for p in parameters if id(p) not in taken]
    others = make_optimizer(rest, options["others"], "recipe.optimizer.others")
    check_arguments(torch.optim.Muon, arguments, "recipe.optimizer")
    check_kind("recipe.optimizer.normalize", arguments.get("normalize", False), False)
    try:
        return Muon(filters, others, **arguments)
    except Exception as error:
        raise refusal("recipe.optimizer", "Muon", error) from error


def make_optimizer(parameters: list[nn.Parameter], options: dict[str, Any], key: str) -> Optimizer:
    """The optimizer of torch.optim that `options`, under the configuration's `key`, ask for, over `parameters`.

    Those of one dimension, biases and norms, are a group without weight decay, and with the options `biases`, if any.
    """
    arguments = dict(options)
    name, biases = arguments.pop("name"), arguments.pop("biases", {})
    kind = getattr(torch.optim, str(name), None)
    if not (inspect.isclass(kind) and issubclass(kind, Optimizer)):
        raise InputError(f"unknown {key}.name={name}: give one of torch.optim, such as AdamW, Adam or SGD")
    check_arguments(kind, arguments, key)
    check_arguments(kind, biases, f"{key}.biases")
    groups: list[dict[str, Any]] = [{"params": [p for p in parameters if p.ndim > 1]}]
    if alone := [p for p in parameters if p.ndim <= 1]:
        groups.append({"params": alone, "weight_decay": 0.0, **biases})
    try:
        optimizer = kind(groups, **arguments)
    except Exception as error:
        raise refusal(key, name, error) from error
    if unknown := biases.keys() - optimizer.defaults.keys():
        raise InputError(f"unknown {key}.biases.{min(unknown)}: see torch.optim.{name}")
    return optimizer


def check_arguments(kind: type[Optimizer], arguments: dict[str, Any], key: str) -> None:
    """Raises InputError where an argument is not of its default's kind: torch takes the word `false` for a yes."""
    if arguments.get("capturable"):
        raise InputError(f"{key}.capturable=true is trainer.step=graph's to set: leave it out")
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in arguments and parameter.default is not inspect.Parameter.empty:
            check_kind(f"{key}.{name}", arguments[name], parameter.default)
            if name in ("foreach", "fused") and arguments[name] is not None:
                check_kind(f"{key}.{name}", arguments[name], False)


def check_kind(key: str, value: Any, default: Any) -> None:
    """Raises InputError unless `value` is what `default` is: true or false, a number, or as many of them."""
    if isinstance(default, bool):
        check(isinstance(value, bool), key, value, "true or false")
    elif isinstance(default, int | float):
        check(isinstance(value, int | float) and not isinstance(value, bool), key, value, "a number")
    elif isinstance(default, tuple):
        right = f"a list of {len(default)} numbers"
        check(isinstance(value, list | tuple) and len(value) == len(default), key, value, right)
        for each, one in zip(value, default, strict=True):
            check_kind(key, each, one)


def refusal(key: str, name: str, error: Exception) -> InputError:
    """The error for arguments that torch.optim's `name` does not take."""
    reason = shorten(str(error).partition("\n")[0], 200)
    if unexpected := re.search(r"unexpected keyword argument '(\w+)'", reason):
        argument = unexpected[1]
        return InputError(f"unknown {key}.{argument}: torch.optim.{name} has none; ~{key}.{argument} leaves it out")
    return InputError(f"{key} cannot be made ({reason}): see torch.optim.{name}")


def find_filters(net: nn.Module, depthwise: bool) -> list[nn.Parameter]:
    """The weights of `net` that Muon takes: those of all convolutions but the first, which is next to the pixels.

    Dense layers are left out: of the Keras example's it took a sixth of a CPU's step, for no more accuracy.

    Args:
        depthwise: take depthwise (and grouped) convolutions too, as C x K² matrices. Their channels do not mix, so
            that to make the filters of different ones orthogonal relates what has nothing in common.
    """
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    return [layer.get_parameter("weight") for layer in convolutions[1:] if depthwise or layer.groups == 1]


def build_schedule(optimizer: Optimizer, recipe: RecipeConfig, steps: int) -> LRScheduler:
    """The learning rate over `steps` optimizer steps, to be stepped after each: `constant`, `one_cycle` or `linear`.

    One cycle goes up from a 25th of the rate over the first `warmup` of the steps and down to nothing over the rest,
    along half cosines (Smith, arXiv 1708.07120, in the form that torch and fastai gave it). With no warm-up it is
    cosine annealing. `linear` goes up from nothing and down to nothing along straight lines.
    """

    def one_cycle(step: int) -> float:
        progress = step / steps
        if progress < recipe.warmup:
            return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * progress / recipe.warmup)) / 2
        return (1 + math.cos(math.pi * (progress - recipe.warmup) / max(1 - recipe.warmup, 1 / steps))) / 2

    def linear(step: int) -> float:
        progress = (step + 1) / (steps + 1)  # no step is at a rate of 0
        if progress < recipe.warmup:
            return progress / recipe.warmup
        return (1 - progress) / max(1 - recipe.warmup, 1 / (steps + 1))

    forms: dict[str, Callable[[int], float]] = {"constant": lambda step: 1.0, "one_cycle": one_cycle, "linear": linear}
    return LambdaLR(optimizer, forms[recipe.schedule])
