"""What TensorBoard shows of a run beside its curves: images, filters, gradients, costs, mistakes.

What cannot be drawn or written is missing there, with a line in the run's log, and the run goes on.
"""

import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from sepconv.costs.report import layer_markdown
from sepconv.data.datasets import Dataset, sample
from sepconv.data.transforms import Augmenter
from sepconv.terminal import kept
from sepconv.text import shorten, tell_apart
from sepconv.training.classifier import ImageClassifier

# What to see first: tags of TensorBoard's "custom scalars" tab, each chart with all runs that are selected.
LAYOUT = {
    "Comparison": {
        "validation accuracy": ["Multiline", ["accuracy/validation"]],
        "validation loss": ["Multiline", ["loss/validation"]],
        "images/s in training": ["Multiline", ["images_per_second/train"]],
    },
    "Training": {
        "accuracy": ["Multiline", ["accuracy/train"]],
        "loss": ["Multiline", ["loss/train"]],
        "learning rate": ["Multiline", ["learning_rate"]],
        "gradient norm by depth": ["Multiline", ["gradient_norm/.*"]],
    },
}
SHOWN = 64  # images of the augmented batch
MISTAKES = 24
DEPTHWISE = 4  # depthwise layers whose filters are shown, from the first
CURVES = 20  # classes with a precision-recall curve, from the first
LONGEST = 40  # characters of a class's name


def timed(hook: Callable[..., None]) -> Callable[..., None]:
    """Adds what `hook` takes to the dashboard's `seconds`."""

    @wraps(hook)
    def wrapper(self: "Dashboard", *arguments: Any) -> None:
        started = time.perf_counter()
        hook(self, *arguments)
        self.seconds += time.perf_counter() - started

    return wrapper


class Dashboard(Callback):
    """Writes at the ends of epochs and of the test, never within a step; `seconds` is what that took."""

    def __init__(self, writer: SummaryWriter, dataset: Dataset) -> None:
        self.writer, self.dataset = writer, dataset
        self.seconds = 0.0

    @timed
    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, ImageClassifier)
        if trainer.current_epoch == 0 and trainer.max_epochs != 1:
            self.introduce(module)
        with kept("the norms of the gradients"):
            # of the epoch's last step
            weights = [(name, p.grad) for name, p in module.net.named_parameters() if p.ndim > 1 and p.grad is not None]
            norms = torch.stack([grad.norm() for _, grad in weights]).tolist()
            for depth, ((name, _), norm) in enumerate(zip(weights, norms, strict=True)):
                self.writer.add_scalar(f"gradient_norm/{depth:02d} {name}", norm, module.global_step)

    def introduce(self, module: ImageClassifier) -> None:
        """What does not change: early in a long training, but not within the time of one that is a single epoch."""
        with kept("the cost of each layer"):
            self.writer.add_custom_scalars(LAYOUT)
            self.writer.add_text("cost", layer_markdown(module.net, self.dataset.shape))
        with kept("the pictures of training images"):
            self.show_batch(module)

    def show_batch(self, module: ImageClassifier) -> None:
        """Some training images, as they are and as the recipe augments them, by draws that are not training's."""
        dataset = module.data.dataset
        rows = sample(dataset.train, SHOWN)
        images, _ = dataset[rows]
        generator = torch.Generator(images.device).manual_seed(0)
        augment = Augmenter(module.recipe.augment, len(dataset.labels), generator)
        changed = augment(images, rows, module.fill)
        for name, pictures in (("original", images), ("augmented", changed)):
            self.writer.add_image(f"images/{name}", grid(pictures.float() / 255))

    def show_test(self, trainer: L.Trainer, module: ImageClassifier) -> None:
        """What the test showed, once its figures are recorded."""
        if trainer.max_epochs == 1:
            self.introduce(module)
        step = trainer.fit_loop.epoch_loop.global_step
        with kept("the pictures of filters"):
            for tag, image in filters(module.net).items():
                self.writer.add_image(f"filters/{tag}", image, step)
        probabilities = torch.cat(module.scores).softmax(1).cpu()
        rows = self.dataset.test[: len(probabilities)]
        images, labels = self.dataset.pixels[rows], self.dataset.labels[rows]
        classes = [shorten(name, LONGEST) for name in tell_apart(self.dataset.classes)]
        with kept("the confusion matrix"):
            self.writer.add_figure("test/confusion", draw_confusion(probabilities.argmax(1), labels, classes), step)
        with kept("the picture of mistakes"):
            self.writer.add_figure("test/mistakes", draw_mistakes(probabilities, images, labels, classes), step)
        with kept("the precision-recall curves"):
            for i, name in enumerate(classes[:CURVES]):
                self.writer.add_pr_curve(f"precision_recall/{name}", labels == i, probabilities[:, i], step)


def grid(images: Tensor, columns: int = 8, side: int = 64) -> Tensor:
    """Images (B, C, H, W), 0 to 1, as one (C', H', W'), each enlarged to `side` or so without smoothing."""
    factor = max(1, round(side / images.shape[-1]))
    large = images.cpu().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return make_grid(large, nrow=columns, padding=4, pad_value=1.0)


def filters(net: nn.Module) -> dict[str, Tensor]:
    """Pictures of the kernels of the first convolution and the first depthwise ones, each from its least to its most.

    A kernel of three channels is shown in colour; one of more, channel by channel.
    """
    convolutions = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    depthwise = [(name, m) for name, m in convolutions if m.groups == m.in_channels > 1]
    layers = {f"first layer {name}": m for name, m in convolutions[:1]}
    layers |= {f"depthwise {name}": m for name, m in depthwise[:DEPTHWISE]}
    pictures = {}
    for tag, conv in layers.items():
        kernels = conv.weight.detach().float().cpu()
        if kernels.shape[1] != 3:
            kernels = kernels.reshape(-1, 1, *kernels.shape[2:])
        low, high = (f(kernels, dim=(1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
        pictures[tag] = grid((kernels - low) / (high - low).clamp(min=1e-12), columns=16, side=24)
    return pictures


def draw_confusion(predicted: Tensor, labels: Tensor, classes: Sequence[str]) -> Figure:
    """How many images of each class (rows) were taken for each (columns); hits, which would outshine all, are pale."""
    count = len(classes)
    matrix = (labels * count + predicted).bincount(minlength=count**2).view(count, count)
    figure = Figure(figsize=(7, 6.5), dpi=90)  # a constrained layout would draw it twice
    axes = figure.subplots(gridspec_kw={"left": 0.2, "bottom": 0.2, "right": 0.96, "top": 0.94})
    mistakes = matrix.float().fill_diagonal_(0)
    axes.imshow(mistakes.numpy(), cmap="Blues")
    few = count <= 20
    if few:
        axes.set_xticks(range(count), classes, rotation=90 if max(map(len, classes)) > 3 else 0, parse_math=False)
        axes.set_yticks(range(count), classes, parse_math=False)
        for row in range(count):
            for column in range(count):
                if value := int(matrix[row, column]):
                    dark = mistakes[row, column] > mistakes.max() / 2
                    axes.text(column, row, str(value), ha="center", va="center", color="white" if dark else "black")
    accuracy = float(matrix.diagonal().sum() / matrix.sum())
    axes.set(xlabel="taken for", ylabel="is", title=f"test images by class, {accuracy:.2%} on the diagonal")
    return figure


def draw_mistakes(probabilities: Tensor, images: Tensor, labels: Tensor, classes: Sequence[str]) -> Figure:
    """The wrongly classified images (N, H, W, C) that the network was surest of."""
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[confidence[wrong].argsort(descending=True)][:MISTAKES]
    columns, rows, wide, high = MISTAKES // 4, 4, 1.3, 1.5  # of a place, in sides of an image
    figure = Figure(figsize=(9, 7), dpi=90)
    # one panel for all: one for each takes longer to draw
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.92))
    axes.axis("off")
    for place, row in enumerate(order.tolist()):
        left, top = place % columns * wide, place // columns * high
        axes.imshow(images[row].squeeze(-1).numpy(), "gray", vmin=0, vmax=255, extent=(left, left + 1, top + 1, top))
        title = f"{classes[int(labels[row])]}, taken\nfor {classes[int(predicted[row])]}, {confidence[row]:.0%}"
        axes.text(left + 0.5, top - 0.05, title, ha="center", va="bottom", fontsize="small", parse_math=False)
    axes.set(xlim=(1 - wide, columns * wide), ylim=(rows * high - 0.4, -0.4))
    figure.suptitle(f"the surest of {len(wrong):,} mistakes on {len(labels):,} test images")
    return figure
