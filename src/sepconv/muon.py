"""Muon for convolutional networks: torch's, with filters as matrices, beside a plain optimizer for all else."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Muon(Optimizer):
    """Steps along the orthogonalised momentum of filters (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    A layer's filters (out, in, K, K) are the matrix (out, in·K·K), as there. The first group of parameters is the
    filters', the rest are those of `others`, and each has a learning rate and options of its own, so that a schedule
    scales all rates alike. A rate may be a tensor on the device: nothing asks the host for it, and a CUDA graph can
    hold the step, if it can hold that of `others`.

    Args:
        filters: of two dimensions or more, contiguous or channels last.
        others: steps on the rest of the network.
        normalize: before each step, scale a layer's filters to a norm of sqrt(out), as airbench94_muon does: where a
            norm follows, which takes no notice of their scale, the learning rate is then the step's share of it.
        arguments: of torch.optim.Muon.

    Raises:
        ValueError, TypeError: for arguments that torch.optim.Muon refuses.
    """

    def __init__(
        self, filters: list[nn.Parameter], others: Optimizer, normalize: bool = False, **arguments: Any
    ) -> None:
        self.muon = torch.optim.Muon([as_matrix(weight) for weight in filters], **arguments)
        self.others = others
        group = self.muon.param_groups[0] | {"params": filters, "normalize": normalize}
        super().__init__([group, *others.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # groups and state are this optimizer's, whom schedules and checkpoints know; the two that step borrow them
        group, *rest = self.param_groups
        weights = [weight for weight in group["params"] if weight.grad is not None]
        # torch's Muon reads its rate on the host: so it steps from 0 at a rate of 1, and the step is scaled here
        steps = [step_of(weight) for weight in weights]
        self.muon.param_groups = [group | {"params": steps, "lr": 1.0, "weight_decay": 0.0}]
        self.muon.state = defaultdict(dict, {step: self.state[w] for step, w in zip(steps, weights, strict=True)})
        self.muon.step()
        for weight, step in zip(weights, steps, strict=True):
            if group["normalize"]:
                weight.mul_(len(weight) ** 0.5 / weight.norm())
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            as_matrix(weight).add_(step.mul_(group["lr"]))
        self.others.param_groups, self.others.state = rest, self.state
        self.others.step()
        return loss


def step_of(weight: Tensor) -> Tensor:
    """Zeros (out, rest), with the gradient of `weight` (out, ...), whatever its format."""
    assert weight.grad is not None
    step = torch.zeros_like(as_matrix(weight))
    step.grad = weight.grad.permute(axes(weight)).reshape(step.shape)
    return step


def as_matrix(weight: Tensor) -> Tensor:
    """`weight` (out, ...), detached, in place as (out, rest).

    The columns are in the order of memory, which channels last permutes: an orthogonal factor is permuted with them.
    """
    return weight.detach().permute(axes(weight)).view(len(weight), -1)


def axes(weight: Tensor) -> tuple[int, ...]:
    """The dimensions of `weight` in the order of memory."""
    return tuple(range(weight.ndim)) if weight.is_contiguous() else (0, 2, 3, 1)
