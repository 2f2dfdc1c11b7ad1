"""A training as Lightning templates set it up: PIL images through torchvision's transforms, a DataLoader, automatic
optimization, torchmetrics; and the same at its fastest: images as tensors in memory, bf16, channels last, a learning
rate that falls.

What it shares with our own training are the network, by torch's kernels, the images and their split.
"""

import copy
import tempfile
import time
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset
from torch.utils.data import Dataset as MapDataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms

from sepconv import terminal
from sepconv.data.datasets import Dataset

Batch = tuple[Tensor, Tensor]


class Pictures(MapDataset[tuple[Tensor, int]]):
    """Some `rows` of a Dataset, each an image on its own, made as torchvision's MNIST and CIFAR10 make theirs."""

    def __init__(self, dataset: Dataset, rows: Tensor, transform: transforms.Compose) -> None:
        self.pixels, self.labels = dataset.pixels[rows].numpy(), dataset.labels[rows].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.pixels[index]
        image = Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])
        return self.transform(image), self.labels[index]


def make_transform(dataset: Dataset) -> transforms.Compose:
    """What makes of a picture a tensor (channels, height, width), of mean 0 and deviation 1."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(*dataset.statistics())])


class Pipeline(L.LightningDataModule):
    """A DataLoader for each part, of the main process: `num_workers=0`, as templates leave it."""

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        super().__init__()
        self.batch_size, transform = batch_size, make_transform(dataset)
        self.train, self.validation, self.test = (
            Pictures(dataset, rows, transform) for rows in (dataset.train, dataset.validation, dataset.test)
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(self.validation, self.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(self.test, self.batch_size)


class InMemory(L.LightningDataModule):
    """The same images as tensors, standardized once, batch by batch, channels last."""

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        super().__init__()
        mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in dataset.statistics())

        def standardize(rows: Tensor) -> TensorDataset:
            pixels, labels = dataset[rows]
            images = ((pixels.float() / 255 - mean) / deviation).contiguous(memory_format=torch.channels_last)
            return TensorDataset(images, labels)

        self.batch_size = batch_size
        self.train, self.validation, self.test = map(standardize, (dataset.train, dataset.validation, dataset.test))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.load(self.train, RandomSampler(self.train))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.load(self.validation, SequentialSampler(self.validation))

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.load(self.test, SequentialSampler(self.test))

    def load(self, images: TensorDataset, sampler: RandomSampler | SequentialSampler) -> DataLoader[tuple[Tensor, ...]]:
        """A batch at a time, at once: a list of places picks it."""
        return DataLoader(images, sampler=BatchSampler(sampler, self.batch_size, drop_last=False), batch_size=None)


class Classifier(L.LightningModule):
    """Trains `net` with Adam, at torch's defaults or, given a `rate`, at that, which falls to 0 by a cosine."""

    def __init__(self, net: nn.Module, classes: int, rate: float | None = None) -> None:
        super().__init__()
        self.net, self.rate = net, rate
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def measure(self, batch: Batch, part: str, accuracy: MulticlassAccuracy) -> Tensor:
        """The loss of a batch, logged, and with it the epoch's accuracy."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy(logits, labels)
        self.log(f"{part}/loss", loss, on_step=part == "train", on_epoch=True)
        self.log(f"{part}/accuracy", accuracy, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.measure(batch, "train", self.train_accuracy)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.measure(batch, "val", self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.measure(batch, "test", self.test_accuracy)

    def configure_optimizers(self) -> Any:
        if self.rate is None:
            return torch.optim.Adam(self.parameters())
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        scheduler = CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train(
    net: nn.Module, dataset: Dataset, batch_size: int, epochs: int, accelerator: str, rate: float | None = None
) -> dict[str, Any]:
    """Trains `net` on `dataset`, with checkpoints and a TensorBoard log in a folder that is not kept.

    Two batches by a copy come first and are not counted.

    Args:
        rate: the learning rate to begin with, of the fast form; None: the form of templates, in fp32.

    Gives `fit_seconds`, of `Trainer.fit`, `val_accuracy`, the best of its epochs, `test_accuracy`, of that checkpoint,
    and `precision`.
    """
    terminal.quiet()
    precision: Any = "32-true" if rate is None else "bf16-mixed"
    if rate is not None:
        net = net.to(memory_format=torch.channels_last)
    data = Pipeline(dataset, batch_size) if rate is None else InMemory(dataset, batch_size)

    def fit(net: nn.Module, folder: str, **options: Any) -> tuple[L.Trainer, ModelCheckpoint]:
        checkpoint, logger = ModelCheckpoint(folder, monitor="val/accuracy", mode="max"), TensorBoardLogger(folder)
        trainer = L.Trainer(accelerator=accelerator, devices=1, max_epochs=epochs, callbacks=checkpoint, logger=logger,
                            precision=precision, enable_progress_bar=False, enable_model_summary=False,
                            **options)  # fmt: skip
        trainer.fit(Classifier(net, len(dataset.classes), rate), data)
        return trainer, checkpoint

    with tempfile.TemporaryDirectory() as folder:
        fit(copy.deepcopy(net), folder, limit_train_batches=2, limit_val_batches=1)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        trainer, checkpoint = fit(net, folder)
        fit_seconds = time.perf_counter() - started
        (figures,) = trainer.test(ckpt_path="best", weights_only=True, datamodule=data, verbose=False)
    return {"fit_seconds": fit_seconds, "val_accuracy": round(float(checkpoint.best_model_score or 0), 6),
            "test_accuracy": round(figures["test/accuracy"], 6), "precision": precision}  # fmt: skip
