"""The MNIST example of github.com/pytorch/examples, as it trains: its network, Adadelta, a rate that falls by epochs,
dropout, a DataLoader over PIL images, fp32.

It is written anew, after the example's description; what it shares with our own training are the images and their
split. After each epoch it is validated, where the example tests.
"""

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from sepconv import InputError
from sepconv.benchmark.template import Pictures, make_transform
from sepconv.data.datasets import Dataset

BATCH_SIZE, EVALUATION_BATCH = 64, 1000
RATE, FALL = 1.0, 0.7  # of Adadelta; times as much with each epoch

Loader = DataLoader[tuple[torch.Tensor, int]]


def make_network(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The example's network for images of `shape` (channels, height, width). Raises InputError where they are small."""
    channels, height, width = shape
    if min(height, width) < 6:
        raise InputError(f"images of {height} x {width} are too small for PyTorch's example: 6 x 6 or more")
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, classes),
    )  # fmt: skip


def train(net: nn.Module, dataset: Dataset, epochs: int, device: torch.device) -> dict[str, Any]:
    """Trains `net` on `dataset`.

    Gives `fit_seconds`, validation included, `val_accuracies` after each epoch, the last one as `val_accuracy`, and
    `test_accuracy`.
    """
    transform = make_transform(dataset)
    training = DataLoader(Pictures(dataset, dataset.train, transform), BATCH_SIZE, shuffle=True)
    validation, test = (DataLoader(Pictures(dataset, rows, transform), EVALUATION_BATCH)
                        for rows in (dataset.validation, dataset.test))  # fmt: skip
    net = net.to(device)
    optimizer = torch.optim.Adadelta(net.parameters(), lr=RATE)
    scheduler = StepLR(optimizer, step_size=1, gamma=FALL)
    started = time.perf_counter()
    accuracies = []
    for _ in range(epochs):
        train_epoch(net, training, optimizer, device)
        accuracies.append(measure_accuracy(net, validation, device))
        scheduler.step()
    fit_seconds = time.perf_counter() - started
    return {"fit_seconds": fit_seconds, "val_accuracies": accuracies, "val_accuracy": accuracies[-1],
            "test_accuracy": measure_accuracy(net, test, device)}  # fmt: skip


def train_epoch(net: nn.Module, loader: Loader, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    net.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(net(images.to(device)), labels.to(device)).backward()
        optimizer.step()


@torch.no_grad()
def measure_accuracy(net: nn.Module, loader: Loader, device: torch.device) -> float:
    net.eval()
    hits = sum(int((net(images.to(device)).argmax(1).cpu() == labels).sum()) for images, labels in loader)
    return round(hits / len(loader.dataset), 6)  # type: ignore[arg-type]
