"""A network of a few hundred to a few thousand parameters: separable blocks that are applied again and again.

Our own table. Within a stage all blocks share their filters, as in recurrent convolutional networks (Liang and Hu 2015;
for a sharing like this one: Savarese and Maire, arXiv 1902.09701), and have norms of their own: depth, and with it a
view of the whole digit, then costs no filters. The block is MobileNet's (Howard et al., arXiv 1704.04861, figure 3)
with the identity around it and one activation, after the sum (He et al., arXiv 1512.03385, figure 2): Hardswish (Howard
et al., arXiv 1905.02244).
"""

from functools import partial

from torch import nn

from sepconv.config import check
from sepconv.models.options import find_kind, make_classifier
from sepconv.ops import ConvNormActivation, Residual, pool_norm

STAGES = 2  # a max pooling halves the map before each; the first comes after a block at the image's own resolution


def tiny(
    shape: tuple[int, int, int],
    classes: int,
    *,
    stem: int = 16,
    width: int = 32,
    repeats: int = 2,
    conv: str = "separable",
) -> nn.Sequential:
    """Stem, a block to `width` channels, then two stages, each one block applied `repeats` times.

    4,362 parameters at 28 x 28 x 1, 10 classes.

    Args:
        stem: channels of the first convolution and of the block that follows it, both at the image's resolution.
        width: channels of the stages.
        repeats: how often each stage's block is applied, with the same filters.
        conv: the kind of each block's convolution: separable, dense or spatial.
    """
    for key, value in (("stem", stem), ("width", width), ("repeats", repeats)):
        check(value >= 1, f"model.{key}", value, "1 or more")
    kind = find_kind(conv)
    layers: list[nn.Module] = [
        ConvNormActivation(shape[0], stem, activation_layer=nn.Hardswish),
        kind.bare(stem, width, norm_layer=partial(pool_norm, ceil_mode=True), activation_layer=nn.Hardswish),
    ]
    for stage in range(STAGES):
        if stage > 0:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        blocks = [kind.block(width, width, activation_layer=None) for _ in range(repeats)]
        share_filters(blocks)
        for block in blocks:
            layers += [Residual(block), nn.Hardswish(inplace=True)]
    pooling, *classifier = make_classifier(width, classes)
    # means over a map hardly differ between images: without this norm the classifier's weights take long to grow
    return nn.Sequential(*layers, pooling, nn.BatchNorm2d(width, affine=False), *classifier)


def share_filters(blocks: list[nn.Module]) -> None:
    """Has all `blocks`, of one build, use the convolutions of the first; each keeps its norms."""
    first, *others = [[part for part in block.modules() if isinstance(part, ConvNormActivation)] for block in blocks]
    for parts in others:
        for part, own in zip(parts, first, strict=True):
            part[0] = own[0]
