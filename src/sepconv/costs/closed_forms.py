"""What a layer costs by its closed form (claims C1 to C5), without a network.

A kernel is K x K, an output H x W; 1 MAC (multiply-accumulate) is 2 FLOP; positions of padding count like others.
`sides` are the height and width of a layer's input. Shapes that cannot be raise InputError.
"""

from dataclasses import dataclass
from fractions import Fraction

from sepconv import InputError


@dataclass(frozen=True)
class Cost:
    """Of one layer: weights, biases left out, and MACs of a forward pass over one image."""

    parameters: int
    macs: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.macs + other.macs)


def output_sides(
    sides: tuple[int, int], kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> tuple[int, int]:
    """Height and width of a convolution's output: floor((side + 2p - d(K - 1) - 1) / s) + 1.

    Raises InputError for a stride, kernel, padding or dilation that cannot be, or a kernel beyond the padded input.
    """
    for name, value, least in (("kernel_size", kernel_size, 1), ("stride", stride, 1), ("padding", padding, 0),
                               ("dilation", dilation, 1)):  # fmt: skip
        if value < least:
            raise InputError(f"{name}={value} is out of range: {least} or more")
    reach = dilation * (kernel_size - 1) + 1
    if reach > min(sides) + 2 * padding:
        raise InputError(
            f"a kernel over {reach} x {reach} positions is larger than the padded input, "
            f"{sides[0] + 2 * padding} x {sides[1] + 2 * padding}: choose a smaller kernel or more padding"
        )
    height, width = ((side + 2 * padding - reach) // stride + 1 for side in sides)
    return height, width


def standard(
    in_channels: int, out_channels: int, kernel_size: int, sides: tuple[int, int], stride: int = 1, padding: int = 0,
    dilation: int = 1, groups: int = 1,
) -> Cost:  # fmt: skip
    """A standard convolution: K²·C_in·C_out parameters, H·W·C_in·C_out·K² MACs (claim C1).

    Where it works in groups, both are divided by their number.
    """
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        if value < 1:
            raise InputError(f"{name}={value} is out of range: 1 or more")
    if in_channels % groups or out_channels % groups:
        raise InputError(
            f"groups={groups} does not divide both in_channels={in_channels} and out_channels={out_channels}: "
            "choose a common divisor"
        )
    height, width = output_sides(sides, kernel_size, stride, padding, dilation)
    parameters = kernel_size**2 * in_channels * out_channels // groups
    return Cost(parameters, height * width * parameters)


def depthwise(
    channels: int, kernel_size: int, sides: tuple[int, int], stride: int = 1, padding: int = 0, dilation: int = 1
) -> Cost:
    """A depthwise convolution, a filter per channel: K²·C_in parameters, H·W·C_in·K² MACs (claim C2)."""
    return standard(channels, channels, kernel_size, sides, stride, padding, dilation, groups=channels)


def pointwise(in_channels: int, out_channels: int, sides: tuple[int, int]) -> Cost:
    """A 1 x 1 convolution: C_in·C_out parameters, H·W·C_in·C_out MACs (claim C3)."""
    return standard(in_channels, out_channels, 1, sides)


def separable(
    in_channels: int, out_channels: int, kernel_size: int, sides: tuple[int, int], stride: int = 1, padding: int = 0,
    dilation: int = 1,
) -> Cost:  # fmt: skip
    """A depthwise, then a pointwise convolution: C_in·(K² + C_out) parameters, H·W·C_in·(K² + C_out) MACs (C4)."""
    outer = output_sides(sides, kernel_size, stride, padding, dilation)
    inner = depthwise(in_channels, kernel_size, sides, stride, padding, dilation)
    return inner + pointwise(in_channels, out_channels, outer)


def separable_ratio(out_channels: int, kernel_size: int) -> Fraction:
    """A separable convolution's cost over a standard one's: 1/C_out + 1/K², of parameters and of MACs (C4, C5)."""
    return Fraction(1, out_channels) + Fraction(1, kernel_size**2)
