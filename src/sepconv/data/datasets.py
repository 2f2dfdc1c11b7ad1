"""Files to device-resident tensors, and the split into train, validation and test.

A whole set (train and test) is one uint8 tensor on the training device, and a batch is a selection of its
rows by index: there are no worker processes, and no step copies images between devices.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import datasets as tv
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.v2 import functional as tvf

from sepconv import InputError
from sepconv.config import DataConfig
from sepconv.devices import free_memory


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
        counts = torch.zeros(self.shape[0], 256, dtype=torch.float64)
        for rows in self.train.split(5000):  # in parts: bincount works on an int64 copy
            part = self.pixels[rows]
            counts += torch.stack([part[..., c].flatten().bincount(minlength=256) for c in range(self.shape[0])])
        levels = torch.arange(256, dtype=torch.float64) / 255
        share = counts / counts.sum(1, keepdim=True)
        mean = share @ levels
        deviation = (share @ levels**2 - mean**2).clamp(min=0).sqrt()
        return mean.tolist(), deviation.tolist()

    def digests(self) -> dict[str, str]:
        """SHA-256 of each part's pixels and labels, in their order: equal where training and test see the same."""
        digests = {}
        for part in ("train", "validation", "test"):
            digest = hashlib.sha256(repr(self.shape).encode())
            for rows in getattr(self, part).split(5000):
                digest.update(self.pixels[rows].numpy())
                digest.update(self.labels[rows].numpy())
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
            without usable images; a set too large for this machine's memory; a split that leaves a part empty.
    """
    if config.name not in SOURCES:
        raise InputError(f"unknown data={config.name}: choose from {', '.join(SOURCES)}")
    parts, classes = SOURCES[config.name](config)
    parts = [(resize(pixels, config.image_size), labels) for pixels, labels in parts]
    train_pixels, train_labels = parts[0]
    rows = torch.arange(len(train_labels))
    generator = torch.Generator().manual_seed(config.split_seed)
    if len(parts) == 2:
        test = torch.arange(len(parts[1][1])) + len(rows)
    else:
        rows, test = hold_out(rows, train_labels, config.test or 0, generator, "data.test")
    train, validation = hold_out(rows, train_labels, config.validation, generator, "data.validation")
    if config.train is not None:
        _, train = hold_out(train, train_labels, config.train, generator, "data.train")
    pixels = torch.cat([pixels for pixels, _ in parts]) if len(parts) > 1 else train_pixels
    labels = torch.cat([labels for _, labels in parts])
    return Dataset(config.name, tuple(classes), pixels, labels, train, validation, test)


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


def check_memory(size: int, device: torch.device) -> None:
    """Raises InputError unless `size` more bytes fit on `device`."""
    free = free_memory(device)
    if size > free:
        raise InputError(
            f"the data set takes {size / 2**20:,.0f} MiB and {device} has {free / 2**20:,.0f} MiB free: "
            "choose a smaller data.image_size or another data set"
        )


Parts = tuple[list[tuple[Tensor, Tensor]], list[str]]  # (pixels, labels) of train, perhaps of test; class names


def digits(config: DataConfig) -> Parts:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8, 0 to 16, here 0 to 255."""
    from sklearn.datasets import load_digits  # here: it takes a second to import

    bunch = load_digits()
    pixels = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[..., None]
    return [(pixels, torch.from_numpy(bunch.target).long())], [str(name) for name in bunch.target_names]


# torchvision checks MNIST's archives when it downloads them, but not the files it reads.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def mnist(config: DataConfig) -> Parts:
    """MNIST (LeCun et al. 1998): 60,000 + 10,000 images of 28 x 28."""
    return from_torchvision(tv.MNIST, config, {f"MNIST/raw/{name}": md5 for name, md5 in MNIST_MD5.items()})


def fashion_mnist(config: DataConfig) -> Parts:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 images of 28 x 28."""
    return from_torchvision(tv.FashionMNIST, config, {f"FashionMNIST/raw/{name}": None for name in MNIST_MD5})


def cifar10(config: DataConfig) -> Parts:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 images of 32 x 32 x 3."""
    return from_torchvision(tv.CIFAR10, config, cifar_files(tv.CIFAR10))


def cifar100(config: DataConfig) -> Parts:
    """CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images of 32 x 32 x 3."""
    return from_torchvision(tv.CIFAR100, config, cifar_files(tv.CIFAR100))


def cifar_files(source: type[tv.CIFAR10]) -> dict[str, str | None]:
    """The files of a CIFAR set under its root, and their checksums."""
    names = [*source.train_list, *source.test_list, [source.meta["filename"], source.meta["md5"]]]
    return {f"{source.base_folder}/{name}": md5 for name, md5 in names}


def from_torchvision(source: Callable[..., Any], config: DataConfig, files: dict[str, str | None]) -> Parts:
    """A torchvision set's two parts, downloaded first where its `files` (under the root: MD5) are missing."""
    root = Path(config.root).expanduser()
    absent = [name for name in files if not (root / name).is_file()]
    if absent and not config.download:
        raise missing(config, root, "data.download=false")
    for name, md5 in files.items():
        if md5 and name not in absent and not check_integrity(root / name, md5):
            raise damaged(root / name)
    try:
        train, test = (source(root, train=part, download=bool(absent)) for part in (True, False))
    except OSError as error:  # no network, or a folder that cannot be written
        raise missing(config, root, str(error)) from error
    except Exception as error:  # torchvision raises whatever its parsers do
        if absent:
            raise missing(config, root, str(error)) from error
        raise damaged(root / next(iter(files))) from error
    parts = []
    for part in (train, test):
        pixels, labels = torch.as_tensor(part.data), torch.as_tensor(part.targets)
        if len(pixels) != len(labels) or labels.min() < 0 or labels.max() >= len(part.classes):
            raise damaged(root / next(iter(files)))
        parts.append((pixels if pixels.ndim == 4 else pixels[..., None], labels))
    return parts, train.classes


def missing(config: DataConfig, root: Path, reason: str) -> InputError:
    """The error for files that are neither there nor to be had."""
    reason = " ".join(reason.split())
    return InputError(
        f"{config.name} is not in {root.absolute()} and was not downloaded ({reason}): "
        "set data.root to the folder that holds it, or choose data=digits, which needs no files"
    )


def damaged(path: Path) -> InputError:
    """The error for a file that is there but is not what it should be."""
    return InputError(f"{path.absolute()} or a file beside it is damaged: delete it, and it is downloaded again")


def folder(config: DataConfig) -> Parts:
    """One's own images, a directory per class: under `root`, or under `root/train` and `root/test`."""
    root = Path(config.root).expanduser()
    side = config.image_size
    if side is None:
        raise InputError("data=folder needs data.image_size: images of one size make one tensor")
    if not root.is_dir():
        raise InputError(f"data.root={root} is no directory: give one that holds a directory of images per class")
    parts, classes = [], None
    for top in [root / "train", root / "test"] if (root / "test").is_dir() else [root]:
        try:
            images = tv.ImageFolder(str(top))
        except FileNotFoundError as error:  # its message goes over several lines
            kinds = ", ".join(ending.lstrip(".") for ending in IMG_EXTENSIONS)
            raise InputError(f"{top} needs at least one image ({kinds}) in each class's directory") from error
        if len(images.classes) < 2:
            raise InputError(f"{top} holds one class, {images.classes[0]}: a classifier needs two or more")
        if classes not in (None, images.classes):
            raise InputError(f"the classes under {root}/train and {root}/test differ: {classes} and {images.classes}")
        classes = images.classes
        check_memory(len(images) * side * side * 3, torch.device("cpu"))
        pixels = torch.empty(len(images), side, side, 3, dtype=torch.uint8)
        for i, (path, _) in enumerate(images.samples):
            pixels[i] = read_image(path, side)
        parts.append((pixels, torch.tensor(images.targets)))
    assert classes is not None
    return parts, classes


def read_image(path: str, side: int) -> Tensor:
    """The image file as RGB, uint8 (side, side, 3): its shorter side resized, the rest cropped evenly."""
    try:
        with Image.open(path) as image:
            picture = tvf.center_crop(tvf.resize(image.convert("RGB"), [side], antialias=True), [side, side])
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as an image ({reason}): repair or remove it") from error
    return torch.from_numpy(np.array(picture))


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
