"""A first convolution that whitens patches of the images and is not trained (recipe.whiten)."""

import math

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from sepconv import InputError
from sepconv.data.datasets import Dataset, sample
from sepconv.training.classifier import ImageClassifier

IMAGES = 500  # whose patches it looks at, at most
PATCHES = 2**19  # as many of the images as give this number of patches or more


class Whitening(Callback):
    """Freezes the first convolution and, at the start of a fresh training, gives it whitening filters.

    Args:
        fresh: False where the filters are among the weights that the training starts from.
    """

    def __init__(self, fresh: bool) -> None:
        self.fresh = fresh

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        assert isinstance(module, ImageClassifier)
        find_stem(module.net).requires_grad_(False)

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, ImageClassifier)
        if self.fresh:
            whiten(module, module.data.dataset)


def whiten(classifier: ImageClassifier, dataset: Dataset) -> None:
    """Gives the first convolution of `classifier` filters that whiten the training images of `dataset`."""
    images, _ = dataset[sample(dataset.train, IMAGES)]
    whiten_stem(classifier.net, classifier.normalize(images), classifier.recipe.whiten)


def whiten_stem(net: nn.Module, images: Tensor, deviation: float) -> None:
    """Gives the first convolution of `net` filters that whiten the patches of `images`; biases are 0.

    They are the eigenvectors of the patches' covariance, from the largest eigenvalue on, each with both signs, scaled
    so that all responses have this `deviation`; where the layer has more filters, random mixes of these. Source:
    Jordan, arXiv 2404.00498, section 3.2.

    Args:
        images: (N, C, H, W), as the network sees them.
    """
    conv = find_stem(net)
    for layer in net.children():  # what comes before the convolution: a crop, a resize
        if any(part is conv for part in layer.modules()):
            break
        images = layer(images)
    images = images[: math.ceil(PATCHES / images[0, 0].numel())]
    patches = F.unfold(images, conv.kernel_size).transpose(0, 1).flatten(1)
    # on the host: so small, it is done before a GPU has its library ready
    variances, directions = torch.linalg.eigh(torch.cov(patches).cpu())
    whitening = (directions / (variances + 1e-2).sqrt()).T.flip(0)
    pairs = torch.stack([whitening, -whitening], dim=1).flatten(0, 1)[: len(conv.weight)]
    mixes = F.normalize(torch.randn(len(conv.weight) - len(pairs), len(whitening)), dim=1) @ whitening
    with torch.no_grad():
        conv.weight.copy_((torch.cat([pairs, mixes]) * deviation).view_as(conv.weight))
        if conv.bias is not None:
            conv.bias.zero_()


def find_stem(net: nn.Module) -> nn.Conv2d:
    """The first convolution of `net`. Raises InputError for a depthwise one, which has no patches to whiten."""
    conv = next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    if conv.groups > 1:
        raise InputError("recipe.whiten needs a standard first convolution, not a depthwise one: give recipe.whiten=0")
    return conv
