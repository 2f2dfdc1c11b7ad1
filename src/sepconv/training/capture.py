"""A training step as one CUDA graph that is replayed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

WARM_UP = 3  # steps made before the capture: by then libraries have chosen their kernels and have their workspaces

Step = Callable[[Tensor], tuple[Tensor, ...]]


class CudaGraph:
    """Records what a function does on the device as one CUDA graph.

    Args:
        generator: what the function draws from beside the device's default generator, which torch sees to itself.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.stream = torch.cuda.Stream()

    def warm_up(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Calls `function` on the stream of the capture, so that nothing is bound to another."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = function()
        current.wait_stream(self.stream)
        return outputs

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """What does again, at one launch, what `function` does on the device; recording it does nothing there.

        Each replay draws from the generators, and takes them on, as a call of `function` would. Autocast must not
        cache weights, or a replay would compute with the capture's: Lightning's does not.
        """
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, stream=self.stream):
            function()
        return graph.replay


class CapturedStep:
    """A training step as one CUDA graph: one launch for all of its kernels, without a synchronisation with the host.

    It stands for the step that it captures: called with a batch's rows, it has the same effect and results. The first
    WARM_UP calls make the step as it is. These are steps of the training like any other: the optimizer's state comes
    about in them (made within the capture it would start anew at each replay), and as a capture computes nothing,
    there is nothing to undo. Batches of another size than `batch_size`, an epoch's last, are not replayed either.

    The optimizer's groups keep plain learning rates, for the schedule to change and checkpoints to hold; within the
    step they are tensors on the device, written before each step, as a graph would keep a number for ever.

    Args:
        step: from rows (B,) to figures of the step, such as its loss; it changes weights by `optimizer.step()`.
        graph: made for the generator that `step` draws from.
    """

    def __init__(self, step: Step, optimizer: Optimizer, graph: CudaGraph, batch_size: int) -> None:
        self.step, self.optimizer, self.graph = step, optimizer, graph
        self.warm_up = WARM_UP  # steps left of it
        self.replay: Callable[[], None] | None = None
        device = optimizer.param_groups[0]["params"][0].device
        self.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        # the graph reads these and writes those, wherever it is replayed
        self.rows = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.figures: tuple[Tensor, ...] = ()

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            rate.fill_(group["lr"])
        if len(rows) != len(self.rows):
            return self.run(rows)
        if self.warm_up:
            self.warm_up -= 1
            return self.graph.warm_up(partial(self.run, rows))
        self.rows.copy_(rows)
        if self.replay is None:
            self.optimizer.zero_grad()  # the gradients are then the graph's own tensors
            self.replay = self.graph.record(self.run_on_static)
        self.replay()
        return tuple(figure.clone() for figure in self.figures)

    def run_on_static(self) -> None:
        """The step, from `self.rows` to `self.figures`."""
        self.figures = self.run(self.rows)

    def run(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The step, op by op, as the graph makes it."""
        with self.on_device():
            return self.step(rows)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Within it, the optimizer has its learning rates and all of its state on the device."""
        groups = self.optimizer.param_groups
        plain = [dict(group) for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = rate.is_cuda
        for parameter, state in self.optimizer.state.items():
            if "step" in state:  # on the host, where a checkpoint was resumed
                state["step"] = state["step"].to(parameter.device)
        try:
            yield
        finally:
            for group, options in zip(groups, plain, strict=True):
                group.update(options)
