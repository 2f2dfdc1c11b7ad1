"""The processes that train one network, one for each device, as each of them knows them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this one is; by default the only one, which exchanges nothing."""

    rank: int = 0
    count: int = 1

    def share(self, total: int) -> slice:
        """Which of `total` rows are this process's: of all processes in order, as many each, or one more."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the processes' `values`, through which gradients go."""
        return values if self.count == 1 else _Sum.apply(values)

    def total(self, value: float, device: torch.device) -> float:
        """The sum of the processes' numbers, which `device` adds up."""
        return value if self.count == 1 else float(self.sum(torch.tensor(value, dtype=torch.float64, device=device)))

    def join(self, own: Tensor, total: int) -> Tensor:
        """All of `total` rows, in order, of which each process has `own`, its share."""
        if self.count == 1:
            return own
        # a sum, as gathering needs equal shares on some backends
        rows = own.new_zeros(total, *own.shape[1:])
        rows[self.share(total)] = own
        return self.sum(rows)


class _Sum(torch.autograd.Function):
    """A sum over processes, whose gradient is one: torch.distributed.nn has it too, but is deprecated in torch 2.15."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return _Sum.apply(grad)


ALONE = Ranks()
