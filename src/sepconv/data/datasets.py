"""Data sets as device-resident tensors, and the split into train, validation and test.

A whole set (train and test) is one uint8 tensor on the training device, and a batch is a selection of its
rows by index: there are no worker processes, and no step copies images between devices.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from sepconv import InputError
from sepconv.config import PARTS
from sepconv.config.keys import DataConfig
from sepconv.config.rules import check
from sepconv.data.folder import folder
from sepconv.data.published import Parts, cifar10, cifar100, fashion_mnist, mnist
from sepconv.devices import check_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Labelled images and their split; a selection by an index tensor is a batch."""

    name: str
    classes: tuple[str, ...]
    pixels: Tensor  # uint8 (N, H, W, C)
    labels: Tensor  # int64 (N,)
    train: Tensor  # int64: rows of the training part
    validation: Tensor  # int64: rows held out of train, for decisions
    test: Tensor  # int64: rows of the test set

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        _, height, width, channels = self.pixels.shape
        return channels, height, width

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images, uint8 (B, C, H, W) with channels last in memory, and labels, int64 (B,), of `rows` (B,)."""
        return self.pixels.index_select(0, rows).permute(0, 3, 1, 2), self.labels.index_select(0, rows)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over the training part, for pixels from 0 to 1."""
        channels, height, width = self.shape
        counts = torch.zeros(channels, 256, dtype=torch.float64)
        for rows in self.train.split(max(1, 2**22 // (height * width))):  # in parts: bincount works on an int64 copy
            part = self.pixels[rows]
            counts += torch.stack([part[..., c].flatten().bincount(minlength=256) for c in range(channels)])
        levels = torch.arange(256, dtype=torch.float64) / 255
        share = counts / counts.sum(1, keepdim=True)
        mean = share @ levels
        deviation = (share @ levels**2 - mean**2).clamp(min=0).sqrt()
        return mean.tolist(), deviation.tolist()

    def digests(self) -> dict[str, str]:
        """SHA-256 of each part's pixels and labels, in their order: equal where training and test see the same."""
        digests = {}
        for part in PARTS:
            digest = hashlib.sha256(repr(self.shape).encode())
            for rows in getattr(self, part).split(5000):
                digest.update(self.pixels[rows].numpy().data)
                digest.update(self.labels[rows].numpy().data)
            digests[part] = digest.hexdigest()
        return digests

    def to(self, device: torch.device) -> "Dataset":
        """The same set on `device`. Raises InputError where its memory does not hold it."""
        if device.type != self.pixels.device.type:  # `cuda` is `cuda:0`
            check_memory(self.pixels.numel(), device)
        tensors = ("pixels", "labels", "train", "validation", "test")
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in tensors}
        return replace(self, **moved)


def load(config: DataConfig) -> Dataset:
    """The data set that `config` names, on the CPU.

    Raises:
        InputError: an unknown name; files that are missing and cannot be downloaded, or are damaged; a folder
            without usable images; a set too large for this machine's memory; a split that leaves a part empty,
            or is the source's own.
    """
    if config.name not in SOURCES:
        raise InputError(f"unknown data={config.name}: choose from {', '.join(SOURCES)}")
    if config.test is not None and config.name not in ("digits", "folder"):
        raise InputError(f"data.test={config.test} is for digits and folder; {config.name} has a test set of its own")
    parts, classes = SOURCES[config.name](config)
    images = [resize(pixels, config.image_size) for pixels, _ in parts.values()]
    pixels = torch.cat(images) if len(images) > 1 else images[0]
    labels = torch.cat([labels for _, labels in parts.values()])
    sizes = [len(labels) for _, labels in parts.values()]
    rows = dict(zip(parts, torch.arange(len(labels)).split(sizes), strict=True))
    generator = torch.Generator().manual_seed(config.split_seed)
    for part, amount in (("test", config.test or 0), ("validation", config.validation)):
        if part not in rows:
            rows["train"], rows[part] = hold_out(rows["train"], labels, amount, generator, f"data.{part}")
    if config.train is not None:
        right = f"fewer than the {len(rows['train'])} images that there are to train on, or null for all"
        check(config.train < len(rows["train"]), "data.train", config.train, right)
        _, rows["train"] = hold_out(rows["train"], labels, config.train, generator, "data.train")
    if unseen := sorted(set(range(len(classes))) - set(labels[rows["train"]].tolist())):
        names = ", ".join(classes[i] for i in unseen[:5]) + ("" if len(unseen) < 6 else f" and {len(unseen) - 5} more")
        log.warning("no image is trained on of %d of %d classes: %s", len(unseen), len(classes), names)
    return Dataset(config.name, tuple(classes), pixels, labels, **rows)


def sample(rows: Tensor, count: int) -> Tensor:
    """Up to `count` of `rows`, evenly spread: of all classes, where one comes after another."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long().to(rows.device)]


def hold_out(
    rows: Tensor, labels: Tensor, amount: float, generator: torch.Generator, key: str
) -> tuple[Tensor, Tensor]:
    """Splits `rows` at random into the kept and the held out, each class in its share (stratified).

    Args:
        rows: int64 (N,), rows of `labels`.
        amount: how many rows (1 or more) or what share of them (below 1) to hold out.
        key: the configuration key that sets `amount`, for the error.

    Raises:
        InputError: one of the two parts would be empty.
    """
    count = round(amount * len(rows)) if amount < 1 else int(amount)
    if not 0 < count < len(rows):
        raise InputError(f"{key}={amount} holds out {count} of {len(rows)} images: leave some on both sides")
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    order = shuffled[labels[shuffled].argsort(stable=True)]  # class by class, at random within a class
    # `count` places spread evenly over that order take each class in its share, to within one image.
    held = torch.zeros(len(rows), dtype=torch.bool)
    held[(torch.arange(count, dtype=torch.float64) + 0.5).mul(len(rows) / count).long()] = True
    return order[~held].sort().values, order[held].sort().values


def resize(pixels: Tensor, side: int | None) -> Tensor:
    """Images uint8 (N, H, W, C), resized (bilinear, antialiased) to (N, side, side, C) where they differ."""
    if side is None or tuple(pixels.shape[1:3]) == (side, side):
        return pixels
    check_memory(len(pixels) * side * side * pixels.shape[3] * 5, torch.device("cpu"))
    parts = [
        tvf.resize(part.permute(0, 3, 1, 2), [side, side], antialias=True).permute(0, 2, 3, 1).contiguous()
        for part in pixels.split(5000)
    ]
    return torch.cat(parts)


def digits(config: DataConfig) -> Parts:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8, 0 to 16, here 0 to 255."""
    from sklearn.datasets import load_digits  # here: it takes a second to import

    bunch = load_digits()
    pixels = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[..., None]
    return {"train": (pixels, torch.from_numpy(bunch.target).long())}, [str(name) for name in bunch.target_names]


SOURCES: dict[str, Callable[[DataConfig], Parts]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "folder": folder,
}


# (channels, height, width) of an image, and classes, of the sets whose files need not be read to know them
SHAPES: dict[str, tuple[tuple[int, int, int], int]] = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}


def image_shape(config: DataConfig) -> tuple[tuple[int, int, int], int]:
    """(channels, height, width) of the images that `load` gives, and the number of classes, without their files.

    Raises InputError for an unknown name, and for a folder, whose classes only its files tell.
    """
    if config.name not in SHAPES:
        if config.name in SOURCES:
            raise InputError(f"data={config.name}: its shape is in its files; give shape=[3,32,32] classes=10, say")
        raise InputError(f"unknown data={config.name}: choose from {', '.join(SOURCES)}")
    (channels, height, width), classes = SHAPES[config.name]
    side = config.image_size
    return (channels, side or height, side or width), classes
