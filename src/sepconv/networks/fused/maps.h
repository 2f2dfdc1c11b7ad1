// What the kernels hand to each other: how maps are read, how their gradients are, and what a norm must keep.

#pragma once
#include "vectors.h"

// A convolution of maps (images, H, W, C) to (images, OH, OW, OC).
typedef struct {
    int64_t images, H, W, C, OH, OW, OC;
    int size, stride, pad;
} Geometry;

// What a norm is: its parameters, and what it keeps. `saved` is [5][C]: scale and shift of u = scale * y + shift, the
// mean and 1 / deviation of the batch, and what sums are taken from, for precision.
typedef struct {
    const float *weight, *bias;
    float *running_mean, *running_var;  // or null
    float momentum, epsilon;
    float *saved;
} Norm;

enum { SCALE, SHIFT, MEAN, INVERSE, ORIGIN };

// What a convolution reads: u = activate(scale * maps + shift), never written; or, where `saved` is null, the maps.
typedef struct {
    const T *maps;
    const float *saved;
    int kind;
} Input;

// A gradient of maps y: dy = p * activate_backward(g) + q * y + r, never written; or, where `numbers` is null, g.
// numbers: [5][C]: scale, shift, p, q, r.
typedef struct {
    const T *g, *maps;
    const float *numbers;
    int kind;
} Gradient;

// What a backward pass finds for the norm that its input goes through: `numbers` for the Gradient of those maps, and
// the gradients of weight and bias.
typedef struct {
    float *numbers, *weight, *bias;
} NormGradient;

// Sums are of y - origin, where origin is near the mean, so that the difference of two large sums does not cost
// precision. From sums, [2][C], of y - origin and of its square, over `count` values:
LOCAL void set_origin(Norm *norm, const double *sums, int64_t count, int64_t C);
LOCAL void conclude(Norm *norm, const double *sums, int64_t count, int64_t C);

// From sums, [2][C], of du and of du * (y - mean):
LOCAL void conclude_backward(const float *saved, const double *sums, int64_t count, int64_t C, NormGradient *result);

// Numbers of each channel, [kinds][C], with zeros up to a whole number of vectors: [blocks][kinds][V].
LOCAL float *make_blocks(const float *numbers, int64_t C, int kinds);
