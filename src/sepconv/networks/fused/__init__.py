"""Training on a CPU by chains of layers, fused: fewer passes over the maps.

Small networks train at the speed of memory as much as of arithmetic: what a layer costs is also how often its maps are
read and written. A norm's statistics are of the whole batch, so they must be known before the first value can be
normalised; all else can be done on the way. A chain is convolutions, depthwise and pointwise, each with a norm and an
activation after it or none, one after the other through a network (ops.find_chain). Its passes over maps, where the
convolution makes y of what it reads: of x, or of what the norm and activation before make of x:

    a convolution, norm, activation, forward         torch           fused
    convolve                                         u, y            x, y        x is normalised and activated as it is
    statistics of y                                  y               -           read; statistics of y on the way
    normalise                                        y, v            -
    activate                                         v, z            -
    backward
    activation                                       z, dz, dv       -           its mask is computed again
    norm's sums                                      y, dv           -           found when dv was written
    norm                                             y, dv, dy       -           dy is made as needed, from dv and y
    gradient of the input                            dy, du          dv, y, x, dx    dx: before the norm and activation
    gradient of the filters                          dy, u           -           in the same pass; its sums too
    passes                                           19              6

    where a chain ends                               torch           fused
    normalise, activate, and a residual sum          -, 3            y, z, and what is added
    backward: the norm's sums, and the sum's mask    -, 3            y, dz, and z, dv
    where it begins with another's convolution       -               y; dv, y, dy

A separable block alone takes 16 passes, 38 by torch's kernels; in a chain of many, 12.

    vectors.h     vectors of values, activations
    maps.h        how kernels say what they read
    norm.c        the passes of a norm alone: where a chain begins and ends
    depthwise.c   depthwise convolution
    pointwise.c   pointwise convolution, and a stem's standard one as one
    products.h    its products of matrices: by vectors, or by the tile registers that some processors have
    pool.c        halving max pooling
    build.py      compiles these with the machine's C compiler at first use
    ops.py        calls them, as functions that torch differentiates

Why C: its compiler is on most machines that train, it builds in seconds, and nothing else is to be installed. Where it
cannot be had, torch's own kernels do the same, as for all other layers, layouts and devices, and for the little that
they are faster at (ops.is_faster). Parameters, buffers and checkpoints are the same for both, and
`model.kernels=torch` leaves the fused ones out.
"""

from sepconv.networks.fused.build import library
from sepconv.networks.fused.ops import Fusible, Link, can_add, chain, find_chain, halve, has_hooks, set_kernels

__all__ = ["Fusible", "Link", "can_add", "chain", "find_chain", "halve", "has_hooks", "library", "set_kernels"]
