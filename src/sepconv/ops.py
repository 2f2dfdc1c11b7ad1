"""The blocks that networks are made of, all over torchvision's one conv-norm-activation block.

Feature maps are (B, C, H, W). A standard convolution costs K²·C_in·C_out parameters and H·W times as many
multiply-accumulates (MACs), for an output of H x W; the two steps of a depthwise separable one cost K²·C_in and
C_in·C_out: 1/C_out + 1/K² of that.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

Layer = Callable[..., nn.Module]


def depthwise_separable(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | None = None,
    norm_layer: Layer | None = nn.BatchNorm2d,
    activation_layer: Layer | None = nn.ReLU,
    between: bool = True,
) -> nn.Sequential:
    """A depthwise convolution, one filter per channel, then a pointwise (1 x 1) one that mixes channels.

    (B, in_channels, H, W) to (B, out_channels, H', W'). Source: Howard et al., arXiv 1704.04861, figure 3.

    Args:
        padding: in pixels; the default keeps H' = ceil(H / stride) for odd kernels.
        between: normalise and activate between the two steps too, as MobileNet does; else, the pointwise step
            has the block's only bias, as Keras's SeparableConv2D (and no norm comes between).
    """
    depthwise = Conv2dNormActivation(
        in_channels,
        in_channels,
        kernel_size,
        stride,
        padding,
        groups=in_channels,
        norm_layer=norm_layer if between else None,
        activation_layer=activation_layer if between else None,
        bias=False if not between else None,
    )
    pointwise = Conv2dNormActivation(
        in_channels, out_channels, 1, norm_layer=norm_layer, activation_layer=activation_layer
    )
    return nn.Sequential(depthwise, pointwise)


class Resize(nn.Module):
    """Images (B, C, H, W) to (B, C, side, side), bilinear and antialiased: MobileNet's resolution multiplier."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)

    def extra_repr(self) -> str:
        return str(self.side)
