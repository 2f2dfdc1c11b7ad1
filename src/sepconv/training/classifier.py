"""The one LightningModule: any network, trained by any recipe."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sepconv import InputError, networks
from sepconv.config import PARTS
from sepconv.config.keys import RecipeConfig
from sepconv.config.read import read
from sepconv.config.rules import check_shape
from sepconv.data.datasets import Dataset
from sepconv.data.module import ImageData
from sepconv.data.transforms import classify_views, make_normalization
from sepconv.text import tell_apart
from sepconv.training.callbacks import Diverged
from sepconv.training.recipe import assemble_optimizer, build_schedule, initialize
from sepconv.training.step import SharedStep, TrainingStep


class ImageClassifier(L.LightningModule):
    """Classifies images with the network that `model` names.

    Its hyper-parameters are plain values, so that a checkpoint alone rebuilds it under weights-only loading:
    `ImageClassifier.load_from_checkpoint(path, weights_only=True)`.

    Args:
        model: `name` in sepconv.networks and that network's options.
        recipe: the fields of RecipeConfig.
        images: their `shape` (channels, height, width), the names of their `classes`, `mean` and `deviation`, per
            channel, of the training pixels, from 0 to 1, and `digests` by part, to know them again.

    Raises:
        InputError: for a network that cannot be built.
    """

    fill: Tensor

    def __init__(self, model: dict[str, Any], recipe: dict[str, Any], images: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.automatic_optimization = False  # the whole step is one function, to be captured as one graph
        self.form = "eager"  # of the training step, as sepconv.training.step resolves it
        self.recipe = read(RecipeConfig, recipe)
        self.net = networks.build(shape=tuple(images["shape"]), classes=len(images["classes"]), **model)
        initialize(self.net, self.recipe.initialization)
        self.normalize = make_normalization(self.recipe.normalize, images["mean"], images["deviation"])
        self.register_buffer("fill", torch.tensor(images["mean"]) * 255)  # the pixel of a cut-out square

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) for images (B, C, H, W) with pixels from 0 to 255."""
        return self.net(self.normalize(images))

    @property
    def data(self) -> ImageData:
        """The data module that the trainer runs on."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self.trainer.max_epochs is not None
        optimizer = assemble_optimizer(self.net, self.recipe.optimizer)  # tried before a training begins
        schedule = build_schedule(optimizer, self.recipe, self.data.steps * self.trainer.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def setup(self, stage: str) -> None:
        if self.recipe.channels_last:
            self.net.to(memory_format=torch.channels_last)

    def on_fit_start(self) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        parts = (
            self.net, self.normalize, self.fill, self.data, self.recipe, optimizer, self.form, self.trainer.precision
        )  # fmt: skip
        several = self.data.ranks.count > 1
        self.step = SharedStep(self.manual_backward, *parts) if several else TrainingStep(*parts)

    def on_fit_end(self) -> None:
        del self.step  # and the memory of its graph

    def training_step(self, rows: Tensor, batch_idx: int) -> dict[str, Any]:
        """As many steps as `rows` has batches: of each the loss and the hits, (steps,), and the last learning rate."""
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LRScheduler)
        # counts steps as Lightning's own optimizer would, which takes a quarter of a millisecond more for each
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        figures = []
        for batch in rows.split(self.data.batch_size):
            progress.increment_ready()
            rate = float(scheduler.get_last_lr()[0])
            try:
                figures.append(self.step(batch))
            except RuntimeError as error:  # of trainer.detect_anomaly
                if "returned nan values" not in str(error):
                    raise
                raise Diverged(
                    f"a gradient became nan in epoch {self.current_epoch + 1}: {str(error).rstrip('.')}; the run's "
                    "train.log has where that was called; a lower recipe.optimizer.lr may help"
                ) from error
            scheduler.step()
            progress.increment_completed()
        losses, hits = map(torch.stack, zip(*figures, strict=True))
        return {"loss": losses, "hits": hits, "rate": rate}

    def on_validation_model_zero_grad(self) -> None:
        """Keeps the last step's gradients, whose norms are shown at the epoch's end."""

    def on_validation_epoch_start(self) -> None:
        self.sums: dict[str, list[Tensor]] = {}  # by metric, over the images of each batch
        self.scores: list[Tensor] = []  # logits of each batch, in the order of the images; at the end of all

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        images, labels = self.data.dataset[rows]
        logits = self(images).float()
        self.add(metrics(logits, labels), logits)

    def on_validation_epoch_end(self) -> None:
        part, ranks = "test" if self.trainer.testing else "validation", self.data.ranks
        images = len(self.data.evaluated(part))
        self.scores = [ranks.join(torch.cat(self.scores), images)]
        sums = {name: float(torch.stack(values).cpu().double().sum()) for name, values in self.sums.items()}
        means = {name: ranks.total(value, self.device) / images for name, value in sums.items()}
        self.log_dict({f"{name}/{part}": mean for name, mean in means.items()}, prog_bar=True)

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def test_step(self, rows: Tensor, batch_idx: int) -> None:
        images, labels = self.data.dataset[rows]
        views = {}
        if self.recipe.tta == "none":
            logits = self(images).float()
        else:
            logits, mean = classify_views(self, images, self.recipe.tta)
            views = {"accuracy_tta": metrics(mean, labels)["accuracy"]}
        self.add(metrics(logits, labels) | views, logits)

    @property
    def predictions(self) -> Tensor:
        """Of each test image, in the last test or validation on them, its class as predicted and as it is: int64 (2, N)
        on the CPU.
        """
        predicted = torch.cat([logits.argmax(1) for logits in self.scores])
        dataset = self.data.dataset
        return torch.stack([predicted, dataset.labels[dataset.test[: len(predicted)]]]).cpu()

    def add(self, sums: dict[str, Tensor], logits: Tensor) -> None:
        """Adds a batch to what the epoch's end reports."""
        for name, value in sums.items():
            self.sums.setdefault(name, []).append(value)
        self.scores.append(logits)


def metrics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums over the images of a batch, whose means are reported: logits (B, classes), labels (B,)."""
    return {
        "loss": F.cross_entropy(logits, labels, reduction="sum"),
        "accuracy": (logits.argmax(1) == labels).sum(),
    }


def describe_images(dataset: Dataset) -> dict[str, Any]:
    """What an ImageClassifier knows of its images, in plain values."""
    mean, deviation = dataset.statistics()
    return {
        "shape": list(dataset.shape),
        "classes": list(dataset.classes),
        "mean": mean,
        "deviation": deviation,
        "digests": dataset.digests(),
    }


def check_description(images: Any) -> None:
    """Raises InputError unless `images` are as `describe_images` gives them."""
    kinds = {"shape": int, "classes": str, "mean": float, "deviation": float, "digests": str}
    valid = isinstance(images, dict) and images.keys() == kinds.keys()
    for key, kind in kinds.items():
        values = images[key] if valid else []
        if isinstance(values, dict) and key == "digests" and values.keys() == set(PARTS):
            values = list(values.values())
        valid = valid and isinstance(values, list) and all(type(value) is kind for value in values)
    if not valid:
        raise InputError(f"no description of images ({str(images)[:100]})")
    check_shape("shape", images["shape"])
    if not len(images["mean"]) == len(images["deviation"]) == images["shape"][0] or not images["classes"]:
        raise InputError(f"images of {images['shape'][0]} channels with the mean and deviation of others")


def name_kind(images: dict[str, Any]) -> str:
    """The kind of images that a network takes, in words."""
    channels, height, width = images["shape"]
    return f"{height} x {width} x {channels} images of {len(images['classes'])} classes"


def explain_difference(recorded: dict[str, Any], found: dict[str, Any], parts: Sequence[str] = PARTS) -> str:
    """In what `found` images are not the `recorded` ones; empty where they are, class by class and pixel by pixel.

    Args:
        recorded, found: as `describe_images` gives them.
        parts: that are compared.
    """
    if recorded["shape"] != found["shape"] or len(recorded["classes"]) != len(found["classes"]):
        return f"{name_kind(recorded)} then, {name_kind(found)} now"
    for place, (then, now) in enumerate(zip(recorded["classes"], found["classes"], strict=True)):
        if then != now:
            return "class {} was '{}' and is '{}'".format(place, *tell_apart([then, now]))
    changed = [part for part in parts if recorded["digests"].get(part) != found["digests"][part]]
    return f"the images of {' and '.join(changed)} differ" if changed else ""
