"""Muon for convolutional networks: torch's, with filters as matrices, beside a plain optimizer for all else."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Muon(Optimizer):
    """Steps along the orthogonalised momentum of filters (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    A layer's filters (out, in, K, K) are the matrix (out, in·K·K), as there; torch.optim.Muon steps on it. The first
    group of parameters is the filters', the rest are those of `others`, and each has a learning rate and options of
    its own, so that a schedule scales all rates alike.

    Args:
        filters: of two dimensions or more, contiguous or channels last.
        others: steps on the rest of the network.
        arguments: of torch.optim.Muon.

    Raises:
        ValueError, TypeError: for arguments that torch.optim.Muon refuses.
    """

    def __init__(self, filters: list[nn.Parameter], others: Optimizer, **arguments: Any) -> None:
        self.muon = torch.optim.Muon([as_matrix(weight) for weight in filters], **arguments)
        self.others = others
        super().__init__([self.muon.param_groups[0] | {"params": filters}, *others.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # groups and state are this optimizer's, whom schedules and checkpoints know; the two that step borrow them
        group, *rest = self.param_groups
        matrices = {as_matrix(weight): weight for weight in group["params"] if weight.grad is not None}
        self.muon.param_groups = [group | {"params": list(matrices)}]
        self.muon.state = defaultdict(dict, {matrix: self.state[weight] for matrix, weight in matrices.items()})
        self.muon.step()
        self.muon.zero_grad()  # the gradients' memory is the network's to free
        self.others.param_groups, self.others.state = rest, self.state
        self.others.step()
        return loss


def as_matrix(weight: Tensor) -> Tensor:
    """`weight` (out, ...) in place as (out, rest), and its gradient with it.

    The columns are in the order of memory, which channels last permutes: an orthogonal factor is permuted with them.
    """
    order = range(weight.ndim) if weight.is_contiguous() else (0, 2, 3, 1)
    matrix = weight.detach().permute(*order).view(len(weight), -1)
    if weight.grad is not None:
        matrix.grad = weight.grad.permute(*order).reshape(len(weight), -1)
    return matrix
