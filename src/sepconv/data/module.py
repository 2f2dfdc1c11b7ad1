"""The one data module: a data set on the device, and the order in which training sees it."""

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sepconv import InputError
from sepconv.config.keys import RecipeConfig
from sepconv.data.datasets import Dataset
from sepconv.data.transforms import Augmenter
from sepconv.devices import check_memory
from sepconv.ranks import ALONE, Ranks

GROUPS = 20  # parts that an epoch's batches are handed over in
PIXELS = 2**21  # at most, at a time in evaluation: 2000 images of 32 x 32


class Batches:
    """`rows` in parts of `size`: int64 (size,) on their device."""

    def __init__(self, rows: Tensor, size: int) -> None:
        self.rows, self.size, self.count = rows, size, len(rows)

    def __len__(self) -> int:
        return math.ceil(self.count / self.size)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.rows.split(self.size)


class ShuffledBatches(Batches):
    """`count` of `rows`, drawn anew each time, in as many passes over them as that takes.

    They are drawn when the first part is asked for, because Lightning makes iterators that it does not use. Its
    checkpoints hold `state_dict`, so that an epoch goes on after the parts that it has had.
    """

    def __init__(self, rows: Tensor, size: int, count: int, generator: torch.Generator) -> None:
        super().__init__(rows, size)
        self.count, self.generator = count, generator
        self.before = generator.get_state()  # the epoch's rows are drawn
        self.given = 0  # parts of the epoch
        self.skipped = 0  # parts that the epoch had before a resume

    def __iter__(self) -> Iterator[Tensor]:
        skipped, self.skipped = self.skipped, 0
        if skipped:
            now = self.generator.get_state()  # some of the epoch's augmentation is drawn already
            self.generator.set_state(self.before)
            rows = self.draw()
            self.generator.set_state(now)
        else:
            self.before = self.generator.get_state()
            rows = self.draw()
        for number, part in enumerate(rows.split(self.size)):
            if number >= skipped:
                self.given = number + 1
                yield part

    def draw(self) -> Tensor:
        count, device = len(self.rows), self.rows.device
        passes = math.ceil(self.count / count)
        order = [torch.randperm(count, generator=self.generator, device=device) for _ in range(passes)]
        return self.rows[torch.cat(order)][: self.count]

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "given": self.given % len(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["given"]
        now = self.generator.get_state()
        restore(self.generator, state_dict["before"])
        self.before = self.generator.get_state()
        self.generator.set_state(now)


def restore(generator: torch.Generator, state: Tensor) -> None:
    """Gives `generator` a recorded `state`, or, where that is another kind of device's, one that follows from it."""
    state = state.cpu()
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
    else:
        generator.manual_seed(zlib.crc32(state.numpy().data))


def count_images(dataset: Dataset, recipe: RecipeConfig) -> int:
    """Images that an epoch of `recipe` trains on. Raises InputError where there are too few for a batch."""
    if recipe.batch_size > len(dataset.train):
        raise InputError(
            f"recipe.batch_size={recipe.batch_size} is larger than the training set: "
            f"{dataset.name} has {len(dataset.train)} images to train on"
        )
    count = recipe.epoch_images or len(dataset.train)
    return count - count % recipe.batch_size if recipe.drop_last else count


def evaluation_batch(device: torch.device, shape: Sequence[int]) -> int:
    """Images of `shape` (channels, height, width) at a time in evaluation, on which accuracy does not depend.

    Few launches on a GPU, a CPU's caches; fewer of large images, whose maps would not fit in memory.
    """
    _, height, width = shape
    return max(1, min(2000 if device.type == "cuda" else 500, PIXELS // (height * width)))


class ImageData(L.LightningDataModule):
    """A Dataset on `device`, and the generator behind all that is random in its order and augmentation.

    Checkpoints hold the generator's state and the augmenter's, so that a training step is a function of the network,
    the batch's rows and this state.

    The training loader gives the rows of several batches at a time, GROUPS times an epoch: what Lightning's loop costs,
    a few tenths of a millisecond, is paid once for all of them.

    Args:
        recipe: says the size of the batches, the length of an epoch and the augmentation.
        seed: of the generator.
        limit: use at most so many batches of each part.
        ranks: the processes that train on it, of whom each has all images. Each is given all rows of training, in the
            same order, and its share of those of evaluation.

    Raises:
        InputError: too few images for a batch, or for the device's memory too many.
    """

    def __init__(
        self,
        dataset: Dataset,
        recipe: RecipeConfig,
        device: torch.device,
        seed: int = 0,
        limit: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        count = count_images(dataset, recipe)
        self.batch_size, self.limit, self.ranks = recipe.batch_size, limit, ranks
        self.count = count if limit is None else min(count, limit * recipe.batch_size)  # images of an epoch
        self.steps = math.ceil(self.count / recipe.batch_size)  # of an epoch
        self.check_sizes(recipe, dataset.shape, device)
        self.dataset = dataset.to(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.augment = Augmenter(recipe.augment, len(dataset.labels), self.generator)

    def check_sizes(self, recipe: RecipeConfig, shape: tuple[int, int, int], device: torch.device) -> None:
        """Raises InputError where an epoch's order, or a batch with a crop's padding, cannot fit on `device`."""
        order = 3 * 8 * self.count  # bytes: as it is drawn, joined and looked up
        check_memory(order, device, f"the order of recipe.epoch_images={self.count}", "choose fewer")
        channels, height, width = shape
        crop = recipe.augment.crop
        padded = self.batch_size * channels * (height + 2 * crop) * (width + 2 * crop)
        check_memory(padded, device, f"a batch padded by recipe.augment.crop={crop}", "choose fewer pixels")

    @property
    def images(self) -> dict[str, int]:
        """Images of an epoch, of validation and of the test that are used."""
        train = min(self.count, len(self.dataset.train))
        return {"train": train, **{part: len(self.evaluated(part)) for part in ("validation", "test")}}

    def train_dataloader(self) -> Batches:
        size = math.ceil(self.steps / GROUPS) * self.batch_size
        return ShuffledBatches(self.dataset.train, size, self.count, self.generator)

    def val_dataloader(self) -> Batches:
        return self.share("validation")

    def test_dataloader(self) -> Batches:
        return self.share("test")

    def share(self, part: str) -> Batches:
        """This process's share of the images that `evaluated` gives."""
        rows = self.evaluated(part)
        return Batches(rows[self.ranks.share(len(rows))], evaluation_batch(rows.device, self.dataset.shape))

    def evaluated(self, part: str) -> Tensor:
        """The rows of `part` (validation, test) that are used."""
        rows: Tensor = getattr(self.dataset, part)
        return rows if self.limit is None else rows[: self.limit * evaluation_batch(rows.device, self.dataset.shape)]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "augment": self.augment.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        restore(self.generator, state_dict["generator"])
        self.augment.load_state_dict(state_dict["augment"])
