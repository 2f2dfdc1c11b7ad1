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

from sepconv.config import MOST
from sepconv.config.rules import check, check_choice
from sepconv.networks.blocks import ConvNormActivation, Residual, conv_pool_norm_activation, sequential
from sepconv.networks.cpu import GlobalAvgPool, HalvingMaxPool
from sepconv.networks.options import Shape, find_kind

STAGES = 2  # a max pooling halves the map before each; the first comes after a block at the image's own resolution
LEAST = 3  # positions a side that a stage without padding leaves at least; below, it is padded after all


def tiny(shape: Shape, classes: int, *, stem: int, width: int, repeats: int, form: str, conv: str) -> nn.Sequential:
    """Stem, a block to `width` channels, then two stages, each one block applied `repeats` times.

    4,362 parameters at 28 x 28 x 1, 10 classes; 676 with stem=4, width=11, form=unpadded.

    Args:
        stem: channels of the first convolution and of the block that follows it, both at the image's resolution.
        width: channels of the stages.
        repeats: how often each stage's block is applied, with the same filters.
        form: padded, or unpadded: the map shrinks by two positions a convolution, while there is room; norms learn
            neither scale nor shift; the stages have no identity around their blocks, and no pooling between them.
    """
    for key, value, most in (("stem", stem, MOST), ("width", width, MOST), ("repeats", repeats, 64)):
        check(1 <= value <= most, f"model.{key}", value, f"1 to {most}")
    check_choice("model.form", form, "padded", "unpadded")
    padded, kind = form == "padded", find_kind(conv)
    norm = partial(nn.BatchNorm2d, affine=padded)
    first, entry, *others = [None] * (2 + STAGES) if padded else find_paddings(min(shape[1:]), repeats)
    parts: dict[str, nn.Module] = {
        "stem": ConvNormActivation(shape[0], stem, padding=first, norm_layer=norm, activation_layer=nn.Hardswish),
        "entry": conv_pool_norm_activation(kind.bare, stem, width, entry, norm, nn.Hardswish, ceil_mode=True),
    }
    for stage, padding in enumerate(others, 1):
        if padded and stage > 1:
            parts[f"pool{stage}"] = HalvingMaxPool(ceil_mode=True)
        blocks = [
            kind.block(width, width, padding=padding, norm_layer=norm, activation_layer=None) for _ in range(repeats)
        ]
        share_filters(blocks)
        around = Residual if padded else sequential
        parts[f"stage{stage}"] = nn.Sequential(*(around(b, activation=nn.Hardswish(inplace=True)) for b in blocks))
    return sequential(
        **parts,
        pool=GlobalAvgPool(),
        # means over a map hardly differ between images: without this norm the classifier's weights take long to grow
        norm=nn.BatchNorm2d(width, affine=False),
        flatten=nn.Flatten(),
        classifier=nn.Linear(width, classes),
    )


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
    for name, layer in list(blocks[0].named_modules()):
        if isinstance(layer, nn.Conv2d):
            for block in blocks[1:]:
                block.set_submodule(name, layer)
