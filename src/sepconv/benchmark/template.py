"""A training as Lightning templates set it up: PIL images through torchvision's transforms, a DataLoader, automatic
optimization, torchmetrics.

What it shares with our own training are the network, the images and their split.
"""

import tempfile
import time

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
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


class Pipeline(L.LightningDataModule):
    """A DataLoader for each part, of the main process: `num_workers=0`, as templates leave it."""

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        super().__init__()
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*dataset.statistics())])
        self.batch_size = batch_size
        self.train, self.validation, self.test = (
            Pictures(dataset, rows, transform) for rows in (dataset.train, dataset.validation, dataset.test)
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(self.validation, self.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(self.test, self.batch_size)


class Classifier(L.LightningModule):
    """Trains `net` with Adam at torch's defaults."""

    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        self.net = net
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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def train(net: nn.Module, dataset: Dataset, batch_size: int, epochs: int, accelerator: str) -> dict[str, float]:
    """Trains `net` on `dataset`, in fp32, with checkpoints and a TensorBoard log in a folder that is not kept.

    Gives `fit_seconds`, of `Trainer.fit`, and `test_accuracy`, of the checkpoint that validated best.
    """
    terminal.quiet()
    data, classifier = Pipeline(dataset, batch_size), Classifier(net, len(dataset.classes))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, logger = ModelCheckpoint(folder, monitor="val/accuracy", mode="max"), TensorBoardLogger(folder)
        trainer = L.Trainer(accelerator=accelerator, devices=1, max_epochs=epochs, callbacks=checkpoint, logger=logger,
                            enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        started = time.perf_counter()
        trainer.fit(classifier, data)
        fit_seconds = time.perf_counter() - started
        (figures,) = trainer.test(ckpt_path="best", weights_only=True, datamodule=data, verbose=False)
    return {"fit_seconds": fit_seconds, "test_accuracy": round(figures["test/accuracy"], 6)}
