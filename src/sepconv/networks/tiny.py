"""A network of a few hundred to a few thousand parameters: separable blocks that are applied again and again.

Our own table. Within a stage all blocks share their filters, as in recurrent convolutional networks (Liang and Hu 2015;
for a sharing like this one: Savarese and Maire, arXiv 1902.09701), and have norms of their own: depth, and with it a
view of the whole digit, then costs no filters. The block is MobileNet's (Howard et al., arXiv 1704.04861, figure 3)
with the identity around it and one activation, after the sum (He et al., arXiv 1512.03385, figure 2): Hardswish (Howard
et al., arXiv 1905.02244). The form without padding, pooled once, follows the smallest network known to reach 99 % on
MNIST (github.com/JoshWarn/Parameter-Efficient-MNIST, 697 parameters), whose filters are not shared.
"""

from functools import partial

from torch import nn

from sepconv.config import check
from sepconv.networks.blocks import ConvNormActivation, HalvingMaxPool, Residual, pool_norm
from sepconv.networks.options import find_kind, make_classifier

STAGES = 2  # a max pooling halves the map before each; the first comes after a block at the image's own resolution
LEAST = 3  # positions a side that a stage without padding leaves at least; below, it is padded after all


def tiny(
    shape: tuple[int, int, int],
    classes: int,
    *,
    stem: int = 16,
    width: int = 32,
    repeats: int = 2,
    padded: bool = True,
    affine: bool = True,
    conv: str = "separable",
) -> nn.Sequential:
    """Stem, a block to `width` channels, then two stages, each one block applied `repeats` times.

    4,362 parameters at 28 x 28 x 1, 10 classes; 676 with stem=4, width=11, padded=False, affine=False.

    Args:
        stem: channels of the first convolution and of the block that follows it, both at the image's resolution.
        width: channels of the stages.
        repeats: how often each stage's block is applied, with the same filters.
        padded: whether convolutions keep the map's size. Else the map shrinks by two positions a convolution, while
            there is room, and the stages have neither an identity around their blocks nor a pooling between them.
        affine: whether norms learn a scale and a shift for each channel.
        conv: the kind of each block's convolution: separable, dense or spatial.
    """
    for key, value in (("stem", stem), ("width", width), ("repeats", repeats)):
        check(value >= 1, f"model.{key}", value, "1 or more")
    kind = find_kind(conv)
    norm = partial(nn.BatchNorm2d, affine=affine)
    pooled = partial(pool_norm, norm_layer=norm, ceil_mode=True)
    first, entry, *others = [None] * (2 + STAGES) if padded else find_paddings(min(shape[1:]), repeats)
    layers: list[nn.Module] = [
        ConvNormActivation(shape[0], stem, padding=first, norm_layer=norm, activation_layer=nn.Hardswish),
        kind.bare(stem, width, padding=entry, norm_layer=pooled, activation_layer=nn.Hardswish),
    ]
    for stage, padding in enumerate(others):
        if padded and stage > 0:
            layers.append(HalvingMaxPool(ceil_mode=True))
        blocks = [
            kind.block(width, width, padding=padding, norm_layer=norm, activation_layer=None) for _ in range(repeats)
        ]
        share_filters(blocks)
        for block in blocks:
            layers += [Residual(block) if padded else block, nn.Hardswish(inplace=True)]
    pooling, *classifier = make_classifier(width, classes)
    # means over a map hardly differ between images: without this norm the classifier's weights take long to grow
    return nn.Sequential(*layers, pooling, nn.BatchNorm2d(width, affine=False), *classifier)


def find_paddings(side: int, repeats: int) -> list[int | None]:
    """Of the two convolutions before the first pooling, and of each stage, for images of `side`.

    0 where there is room to leave padding out, else None: as much as keeps the size.
    """
    paddings: list[int | None] = []
    for convolutions in (1, 1, *[repeats] * STAGES):
        room = side - 2 * convolutions >= LEAST
        paddings.append(0 if room else None)
        if room:
            side -= 2 * convolutions
        if len(paddings) == 2:
            side = (side + 1) // 2
    return paddings


def share_filters(blocks: list[nn.Module]) -> None:
    """Has all `blocks`, of one build, use the convolutions of the first; each keeps its norms."""
    first, *others = [[part for part in block.modules() if isinstance(part, ConvNormActivation)] for block in blocks]
    for parts in others:
        for part, own in zip(parts, first, strict=True):
            part[0] = own[0]
