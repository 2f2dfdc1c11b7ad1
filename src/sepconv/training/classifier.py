"""The one LightningModule: any network, trained by any recipe."""

import logging
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sepconv import InputError, networks
from sepconv.config import RecipeConfig, read
from sepconv.data.datasets import Dataset, sample
from sepconv.data.module import GROUPS, ImageData
from sepconv.data.transforms import augment, normalize_moments, views
from sepconv.training.recipe import build_optimizer, build_schedule, initialize, stem, whiten
from sepconv.training.step import CapturedStep, CudaGraph, compile_network

log = logging.getLogger(__name__)

WHITENED = 500  # images whose patches recipe.whiten looks at, at most
CHECK_EVERY = 100  # steps between looks at the loss: a look waits for the device


class Diverged(InputError):
    """The training loss became NaN or infinite."""


class ImageClassifier(L.LightningModule):
    """Classifies images with the network that `model` names.

    Its hyper-parameters are plain values, so that a checkpoint alone rebuilds it under weights-only loading:
    `ImageClassifier.load_from_checkpoint(path, weights_only=True)`.

    Args:
        model: `name` in sepconv.models and that network's options.
        recipe: the fields of RecipeConfig.
        images: `shape` (channels, height, width), the number of `classes`, and `mean` and `deviation`, per channel,
            of the training pixels, from 0 to 1.

    Raises:
        InputError: for a network that cannot be built.
    """

    def __init__(self, model: dict[str, Any], recipe: dict[str, Any], images: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.automatic_optimization = False  # the whole step is ours: one function, to be captured as one graph
        self.form = "eager"  # of the training step, as sepconv.capture resolves it
        self.captured: CapturedStep | None = None
        self.recipe = read(RecipeConfig, recipe)
        build = partial(networks.build, shape=tuple(images["shape"]), classes=images["classes"])
        self.net = build(**model)
        self.proxy = None  # chooses the images to train on
        if self.recipe.proxy is not None:
            try:
                self.proxy = build(**self.recipe.proxy)
            except InputError as error:
                raise InputError(f"recipe.proxy: {error}") from error
        for net in self.trained:
            initialize(net, self.recipe.initialization)
            if self.recipe.whiten:
                stem(net).requires_grad_(False)
        self.unwhitened = self.trained if self.recipe.whiten else []  # networks that wait for their whitening filters
        unit = self.recipe.normalize == "unit"
        mean = torch.zeros(images["shape"][0]) if unit else torch.tensor(images["mean"])
        deviation = torch.ones(images["shape"][0]) if unit else torch.tensor(images["deviation"])
        deviation = torch.where(deviation > 0, deviation, 1.0)  # a channel that never varies carries nothing
        # (pixel / 255 - mean) / deviation as one multiplication and addition
        self.scale: Tensor
        self.offset: Tensor
        self.fill: Tensor
        self.register_buffer("scale", (1 / (255 * deviation)).view(-1, 1, 1))
        self.register_buffer("offset", (-mean / deviation).view(-1, 1, 1))
        self.register_buffer("fill", torch.tensor(images["mean"]) * 255)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) for images (B, C, H, W) with pixels from 0 to 255."""
        return self.net(self.standardize(images))

    def standardize(self, images: Tensor) -> Tensor:
        """What the network sees of images (B, C, H, W) with pixels from 0 to 255."""
        images = normalize_moments(images) if self.recipe.normalize == "moments" else images.float()
        return torch.addcmul(self.offset, images, self.scale)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build_optimizer(self.trained, self.recipe.optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": build_schedule(optimizer, self.recipe, self.total_steps),
        }

    @property
    def trained(self) -> list[nn.Module]:
        """What the optimizer steps on: the network, and the proxy if there is one."""
        return [self.net] if self.proxy is None else [self.net, self.proxy]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        assert self.trainer.max_epochs is not None
        return self.data.steps * self.trainer.max_epochs

    @property
    def data(self) -> ImageData:
        """The data module that the trainer runs on."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        if self.recipe.channels_last:
            for net in self.trained:
                net.to(memory_format=torch.channels_last)

    def whiten(self, dataset: Dataset) -> None:
        """Gives the networks that wait for them the whitening filters of the images of `dataset`, on its device."""
        if self.unwhitened:
            images, _ = dataset[sample(dataset.train, WHITENED)]
            inputs = self.standardize(images)
            for net in self.unwhitened:
                whiten(net, inputs, self.recipe.whiten)
        self.unwhitened = []

    def take(self, origin: "ImageClassifier") -> None:
        """Takes the weights of the network of `origin`."""
        self.net.load_state_dict(origin.net.state_dict())
        self.unwhitened = [net for net in self.unwhitened if net is not self.net]

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        self.unwhitened = []  # the filters are among what is loaded
        return super().load_state_dict(*arguments, **options)

    def on_fit_start(self) -> None:
        self.whiten(self.data.dataset)
        if self.form.startswith("compile"):
            for net in self.trained:
                compile_network(net)
        if self.form.endswith("graph"):
            update = partial(self.update, generator=self.data.generator)
            graph = CudaGraph(self.data.generator)
            self.captured = CapturedStep(update, self.optimizer, graph, self.data.batch_size)

    def on_fit_end(self) -> None:
        self.captured = None  # and its memory

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer itself, without Lightning around it."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer

    def training_step(self, rows: Tensor, batch_idx: int) -> None:
        """As many steps as `rows` has batches."""
        # counts steps as Lightning's own optimizer would, which takes a quarter of a millisecond more for each
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for batch in rows.split(self.data.batch_size):
            progress.increment_ready()
            loss, hits = self.step(batch, self.data.generator)
            self.losses.append(loss)
            self.hits.append(hits)
            self.sizes.append(self.count_hardest(len(batch)))
            progress.increment_completed()

    def step(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One training step, from the rows of a batch (B,) to changed weights: its mean loss and number of hits.

        A function of the network (with its optimizer), the rows and the generator's state, without a
        synchronisation with the host.
        """
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LRScheduler)
        loss, hits = self.update(rows, generator) if self.captured is None else self.captured(rows)
        self.rates.append(float(scheduler.get_last_lr()[0]))
        scheduler.step()
        return loss, hits

    def update(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The part of a step that the device does, at the schedule's present learning rate."""
        images, labels = self.data.training_images(rows)
        inputs = self.standardize(augment(images, self.recipe.augment, generator, self.fill))
        if self.proxy is not None:
            hardest = self.find_hardest(self.proxy, inputs, labels)
            inputs, labels = inputs[hardest], labels[hardest]
        find_loss = partial(F.cross_entropy, target=labels, label_smoothing=self.recipe.label_smoothing)
        logits = self.net(inputs)
        loss = find_loss(logits)
        total = loss if self.proxy is None else loss + find_loss(self.proxy(inputs))
        optimizer = self.optimizer
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    @torch.no_grad()
    def find_hardest(self, proxy: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Places (B·hardest,) in a batch of the images whose losses under `proxy` are the largest.

        Source: airbench96_faster of KellerJordan/cifar10-airbench; the principle: Jiang et al., arXiv 1910.00762.

        Args:
            inputs: (B, C, H, W), as the network sees them.
        """
        losses = F.cross_entropy(proxy(inputs), labels, reduction="none", label_smoothing=self.recipe.label_smoothing)
        return losses.topk(self.count_hardest(len(labels)), sorted=False).indices

    def count_hardest(self, images: int) -> int:
        """Of a batch's `images`, how many are trained on."""
        return max(round(self.recipe.hardest * images), 1)

    def on_train_epoch_start(self) -> None:
        # of each step of the epoch; left on the device, so that a step does not wait for it
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.sizes: list[int] = []
        self.rates: list[float] = []
        self.checked = 0  # steps whose loss was looked at

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        # before the epoch's validation, so that no checkpoint of a diverged network is written
        steps = len(self.losses)
        if steps - self.checked >= CHECK_EVERY or steps == self.data.steps:
            recent = torch.stack(self.losses[self.checked :])
            if not recent.isfinite().all():
                bad = self.checked + int(recent.isfinite().int().argmin()) + 1
                raise Diverged(
                    f"the loss became {float(self.losses[bad - 1])} in epoch {self.current_epoch + 1}, step {bad}: "
                    "lower recipe.optimizer.lr; the last checkpoint written is from before"
                )
            self.checked = steps

    def on_train_epoch_end(self) -> None:
        losses, hits = torch.stack(self.losses).cpu(), torch.stack(self.hits).cpu()
        sizes = torch.tensor(self.sizes)
        last = self.global_step
        writer = self.logger.experiment if isinstance(self.logger, TensorBoardLogger) else None
        for part in torch.arange(len(losses)).tensor_split(min(GROUPS, len(losses))):
            step = last - len(losses) + int(part[-1]) + 1
            if writer:
                writer.add_scalar("loss/train", float(losses[part].mean()), step)
                writer.add_scalar("accuracy/train", float(hits[part].sum() / sizes[part].sum()), step)
                writer.add_scalar("learning_rate", self.rates[int(part[-1])], step)
        accuracy = float(hits.sum() / sizes.sum())
        validation = self.trainer.callback_metrics["accuracy/validation"]
        log.info(
            "epoch %d: train loss %.4f, accuracy %.4f; validation accuracy %.4f",
            self.current_epoch + 1, float(losses.mean()), accuracy, validation,
        )  # fmt: skip

    def on_validation_model_zero_grad(self) -> None:
        """Keeps the last step's gradients, whose norms are shown at the epoch's end."""

    def on_validation_epoch_start(self) -> None:
        self.evaluated: list[Tensor] = []
        self.scores: list[Tensor] = []  # logits of each batch of the test, in the order of the images
        self.tta_hits: list[Tensor] = []  # of each batch of the test, by the mean logits of its views

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        images, labels = self.data.dataset[rows]
        logits = self(images).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        hits = (logits.argmax(1) == labels).sum()
        self.evaluated.append(torch.stack([loss, hits, torch.full_like(loss, len(rows))]))
        if self.trainer.testing:
            self.scores.append(logits)

    def on_validation_epoch_end(self) -> None:
        loss, hits, count = torch.stack(self.evaluated).double().sum(0).tolist()
        part = "test" if self.trainer.testing else "validation"
        self.log_dict({f"loss/{part}": loss / count, f"accuracy/{part}": hits / count}, prog_bar=True)
        if self.tta_hits:
            self.log("accuracy/test_tta", float(torch.stack(self.tta_hits).sum()) / count)

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def test_step(self, rows: Tensor, batch_idx: int) -> None:
        self.validation_step(rows, batch_idx)
        if self.recipe.tta != "none":
            images, labels = self.data.dataset[rows]
            (_, first), *others = views(images, self.recipe.tta)
            mean = first * self.scores[-1]
            for view, share in others:
                mean += share * self(view).float()
            self.tta_hits.append((mean.argmax(1) == labels).sum())
