"""Training's blocks on a CPU, fused: fewer passes over the maps.

Small networks train at the speed of memory, not of arithmetic: what a block costs is how often its maps are read and
written. Passes over maps of one size, forward and backward, in training (a norm's statistics are of the batch, so they
must be known before the first value can be normalised):

    depthwise, norm, activation                      torch         fused
    convolve x to y                                  x, y          x, y        statistics of y on the way
    statistics of y                                  y             -
    normalise                                        y, u          y, z        activated on the way
    activate                                         u, z          -
    backward: activation                             z, dz, du     -           its mask is computed again, from y
    norm's sums                                      y, du         y, dz
    norm                                             y, du, dy     -           dy is never written: it is made
    convolution's data gradient                      dy, dx        y, dz, dx   row by row from y and dz, where the
    convolution's weight gradient                    x, dy         x           convolution needs it, for both gradients
    passes                                           19            10

    another convolution, norm, activation            torch         fused
    statistics, normalise, activate                  y, y, u, u, z      y, y, z
    backward: activation, norm's sums, norm          z, dz, du, y, du, y, du, dy      y, dz, y, dz, dy
    passes, beside the convolution's own             13            8

The products of pointwise and standard convolutions stay with torch. The source is fused.c, compiled at first use
(build.py); where that is not possible, torch's own kernels do the same. Parameters, buffers and checkpoints are the
same for both, and `model.kernels=torch` leaves the fused ones out.
"""

from sepconv.networks.fused.build import library
from sepconv.networks.fused.ops import Fusible, Link, can_add, chain, find_chain, halve, has_hooks, set_kernels

__all__ = ["Fusible", "Link", "can_add", "chain", "find_chain", "halve", "has_hooks", "library", "set_kernels"]
