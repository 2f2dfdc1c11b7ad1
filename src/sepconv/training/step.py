"""One training step, in the form that the trainer is asked for: op by op, compiled, or as one CUDA graph."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from sepconv import InputError
from sepconv.config.keys import RecipeConfig, TrainerConfig
from sepconv.data.module import ImageData
from sepconv.training.capture import CapturedStep, CudaGraph
from sepconv.training.muon import Muon


class TrainingStep:
    """From the rows of a batch (B,) to changed weights, and the batch's mean loss and number of hits.

    A function of the network, the optimizer's state, the rows and the state of the data's generator, without a
    synchronisation with the host. The learning rate is its caller's to schedule.

    Args:
        network: from normalised images to logits; it is compiled in place where `form` says so.
        normalize: from pixels, 0 to 255, to what the network sees.
        fill: (C,), the pixel that a cut-out square gets.
        data: the images on their device, and their augmentation.
        form: as `resolve_step` gives it.
        precision: Lightning's name for it, as in `sepconv.devices.resolve_precision`.
    """

    def __init__(
        self,
        network: nn.Module,
        normalize: nn.Module,
        fill: Tensor,
        data: ImageData,
        recipe: RecipeConfig,
        optimizer: Optimizer,
        form: str,
        precision: str,
    ) -> None:
        self.network, self.normalize, self.fill = network, normalize, fill
        self.data, self.optimizer = data, optimizer
        self.find_loss = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
        # no cache of weights in bf16: a replayed graph would compute with those of its capture
        self.autocast = partial(
            torch.autocast, fill.device.type, torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False
        )
        if form.startswith("compile"):
            compile_network(network)
        self.perform = self.update
        if form.endswith("graph"):
            self.perform = CapturedStep(self.update, optimizer, CudaGraph(data.generator), data.batch_size)

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self.perform(rows)

    def update(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The step, op by op."""
        images, labels = self.data.dataset[rows]
        with self.autocast():
            logits = self.network(self.normalize(self.data.augment(images, rows, self.fill)))
            loss = self.find_loss(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()


class SharedStep(TrainingStep):
    """The same step, made by several processes: each has its share of the batch.

    Args:
        backward: as Tensor.backward, for a loss whose gradients then are the mean of all processes'.
        arguments: of TrainingStep.
    """

    def __init__(self, backward: Callable[[Tensor], None], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.backward = backward

    def update(self, rows: Tensor) -> tuple[Tensor, ...]:
        ranks = self.data.ranks
        share = ranks.share(len(rows))
        images, labels = self.data.dataset[rows[share]]
        with self.autocast():
            logits = self.network(self.normalize(self.data.augment(images, rows, self.fill, share)))
            # shares can differ by an image: each image counts as much as within the whole batch
            loss = self.find_loss(logits, labels) * (len(labels) / len(rows))
        self.optimizer.zero_grad()
        self.backward(loss * ranks.count)
        self.optimizer.step()
        hits = (logits.detach().argmax(1) == labels).sum()
        loss, hits = ranks.sum(torch.stack([loss.detach().float(), hits.float()]))
        return loss, hits


def resolve_step(config: TrainerConfig, device: torch.device, optimizer: Optimizer) -> str:
    """The form that `config.step` means on `device`: `eager`, `compile`, `graph` or `compiled_graph`.

    `auto` is `graph` on CUDA, unless something asks the host in the middle of a step: `trainer.detect_anomaly`, or an
    optimizer that reads its learning rate there. Otherwise, and on several devices, it is `eager`.

    Raises InputError for a graph where there can be none, and for any other form than `eager` on several devices.
    """
    if config.devices > 1:
        if config.step not in ("auto", "eager"):
            raise InputError(
                f"trainer.step={config.step} needs one device, not trainer.devices={config.devices}: choose "
                "trainer.step=eager"
            )
        return "eager"
    obstacle = None
    if device.type != "cuda":
        obstacle = f"needs CUDA, and this runs on {device.type}: choose trainer.step=eager or compile"
    elif config.detect_anomaly:
        obstacle = "leaves no place to look at gradients: choose trainer.step=eager or trainer.detect_anomaly=false"
    elif not capturable(optimizer):
        name = type(optimizer.others if isinstance(optimizer, Muon) else optimizer).__name__
        obstacle = (
            f"cannot hold {name}, which reads its rate on the host: choose trainer.step=eager, AdamW or fused SGD"
        )
    if config.step.endswith("graph") and obstacle:
        raise InputError(f"trainer.step={config.step} {obstacle}")
    if config.step == "auto":
        return "eager" if obstacle else "graph"
    return config.step


def compile_network(net: nn.Module) -> None:
    """Compiles `net`, in place: a wrapper around it would change the names in checkpoints.

    As `net.compile()`, which copies of `net` know nothing of either, but by the forward method: torch 2.11 compiles
    nothing of an nn.Sequential otherwise.
    """
    net._compiled_call_impl = torch.compile(net.forward)


def capturable(optimizer: Optimizer) -> bool:
    """Whether `optimizer` steps on CUDA by a learning rate that is a tensor there, without asking the host.

    In torch 2.11 to 2.15: those with the option `capturable` (RMSprop and Adadelta not in their loop over parameters),
    and SGD's fused kernel; not Adagrad and Adafactor. Of sepconv.training.muon, those whose `others` do.
    """
    if isinstance(optimizer, Muon):
        return capturable(optimizer.others)
    return all(
        group.get("foreach") is not False if "capturable" in group else isinstance(optimizer, SGD) and group["fused"]
        for group in optimizer.param_groups
    )
