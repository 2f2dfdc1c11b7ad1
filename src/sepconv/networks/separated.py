"""Any network with convolutions separated: what scripts/separate.py records, and trains further."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from sepconv import InputError
from sepconv.config.rules import check, check_choice
from sepconv.networks.lowrank import METHODS, find_separable, full_rank, make_factors, put


@dataclass(kw_only=True)
class Separated:
    """The options of a separated network."""

    base: dict[str, Any]  # the network separated: its `name` and options
    method: str  # of networks/lowrank.py
    ranks: dict[str, int]  # the rank of each layer separated, by its name in the base

    def __post_init__(self) -> None:
        check_choice("model.method", self.method, *METHODS)


def separated(net: nn.Module, options: Separated) -> nn.Module:
    """`net` with the layers of `options.ranks` replaced, in place, by their separated forms with new weights.

    Raises InputError for a layer that the method does not separate, or a rank out of its range.
    """
    choices = find_separable(net, options.method)
    for name, rank in options.ranks.items():
        if name not in choices:
            raise InputError(f"unknown model.ranks.{name}: {options.method} separates {', '.join(choices) or 'none'}")
        full = full_rank(choices[name], options.method)
        check(1 <= rank <= full, f"model.ranks.{name}", rank, f"1 to {full}")
        put(net, name, make_factors(choices[name], options.method, rank))
    return net
