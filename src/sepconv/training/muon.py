"""Muon for convolutional networks: torch's, with filters as matrices, beside a plain optimizer for all else."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim._muon import _adjust_lr

SMALL = 2**21  # multiply-accumulates of a product of matrices


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
        # what torch's looks at when it steps
        if not 0 <= arguments.get("ns_steps", 5) < 100:
            raise ValueError("ns_steps must be from 0 to below 100")
        if len(arguments.get("ns_coefficients", (0, 0, 0))) != 3:
            raise ValueError("ns_coefficients must be three numbers")
        checked = torch.optim.Muon([as_matrix(weight) for weight in filters], **arguments)
        self.others = others
        group = checked.param_groups[0] | {"params": filters, "normalize": normalize}
        super().__init__([group, *others.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group, *rest = self.param_groups
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if weights:
            self.step_filters(weights, group)
        # groups and state are this optimizer's, whom schedules and checkpoints know; the other borrows them
        self.others.param_groups, self.others.state = rest, self.state
        self.others.step()
        return loss

    def step_filters(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """As torch.optim.Muon, but for all filters at once, and by a rate that may be on the device."""
        matrices = [as_matrix(weight) for weight in weights]
        gradients = [weight.grad.permute(axes(weight)).flatten(1) for weight in weights if weight.grad is not None]
        for weight, matrix in zip(weights, matrices, strict=True):
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(matrix)
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = momenta
        if group["nesterov"]:
            directions = list(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        with torch.autocast(matrices[0].device.type, enabled=False):  # it would have all products in its own precision
            steps = orthogonalize(directions, group["ns_coefficients"], group["ns_steps"], group["eps"])
        if group["normalize"]:
            norms = torch._foreach_norm(matrices)
            torch._foreach_div_(norms, [len(matrix) ** 0.5 for matrix in matrices])
            torch._foreach_div_(matrices, norms)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_mul_(steps, [-_adjust_lr(1.0, group["adjust_lr_fn"], matrix.shape) for matrix in matrices])
        torch._foreach_mul_(steps, group["lr"])
        torch._foreach_add_(matrices, steps)


def orthogonalize(
    matrices: list[Tensor], coefficients: tuple[float, float, float], steps: int, eps: float
) -> list[Tensor]:
    """Of each of `matrices`, nearly the orthogonal factor, by Newton-Schulz iterations, as float32.

    Matrices of one shape are one stack: a deep network's many small ones then take few kernels. They are multiplied in
    bfloat16, or on a CPU, if they are small, in float32: there a (64, 64) takes 0.10 ms, and 0.27 in bfloat16.
    """
    a, b, c = coefficients
    stacks: dict[torch.Size, list[int]] = defaultdict(list)
    for place, matrix in enumerate(matrices):
        stacks[matrix.shape].append(place)
    factors = list(matrices)
    for (rows, columns), places in stacks.items():
        x = torch.stack([matrices[place] for place in places])
        if not (x.device.type == "cpu" and x.numel() * min(rows, columns) <= SMALL):
            x = x.bfloat16()
        if rows > columns:
            x = x.mT
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        if rows > columns:
            x = x.mT
        for place, factor in zip(places, x.float(), strict=True):
            factors[place] = factor
    return factors


def as_matrix(weight: Tensor) -> Tensor:
    """`weight` (out, ...), detached, in place as (out, rest).

    The columns are in the order of memory, which channels last permutes: an orthogonal factor is permuted with them.
    """
    return weight.detach().permute(axes(weight)).view(len(weight), -1)


def axes(weight: Tensor) -> tuple[int, ...]:
    """The dimensions of `weight` in the order of memory."""
    return tuple(range(weight.ndim)) if weight.is_contiguous() else (0, 2, 3, 1)
