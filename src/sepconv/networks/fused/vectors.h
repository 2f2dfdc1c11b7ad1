// What the kernels share: vectors of values, activations, the work of a thread.
//
// Maps are channels last, (images, height, width, channels), of type T: bf16 where BF16 is defined, else float. All
// sums are of floats, gathered in doubles, in an order that depends on the number of threads alone. Vectors are GCC's
// and Clang's vector extensions: V floats, as the processor has them.

#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __AVX2__
#include <immintrin.h>
#endif
#ifdef __AVX512F__
#define V 16
#elif defined(__AVX__)
#define V 8
#else
#define V 4
#endif
#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline))  // has the registers for itself
#define LOCAL __attribute__((visibility("hidden")))
#define AHEAD 2048  // values that a pass over maps in their order asks for before their turn

typedef float vf __attribute__((vector_size(4 * V), aligned(4)));
typedef int32_t vi __attribute__((vector_size(4 * V)));
typedef uint32_t vu __attribute__((vector_size(4 * V)));
typedef uint16_t vh __attribute__((vector_size(2 * V), aligned(2)));

INLINE vf get(const float *p) { return *(const vf *)p; }
INLINE void put(float *p, vf v) { *(vf *)p = v; }

// The same, in a register: compilers would read it from memory for each of its uses.
INLINE vf hold(const float *p) {
    vf v = get(p);
#ifdef __AVX512F__
    __asm__("" : "+v"(v));
#endif
    return v;
}

// What maps hold: T, and V of them, vt. widen makes floats of them, narrow makes them of floats, to the nearest.
#ifdef BF16
typedef uint16_t T;
typedef vh vt;

INLINE vu extend(vh v) {
#if V == 16  // compilers widen the halves one by one
    return (vu)_mm512_cvtepu16_epi32((__m256i)v);
#elif defined(__AVX2__)
    return (vu)_mm256_cvtepu16_epi32((__m128i)v);
#else
    return __builtin_convertvector(v, vu);
#endif
}

INLINE vf widen(vt v) { return (vf)(extend(v) << 16); }

INLINE vt narrow(vf v) {
#ifdef __AVX512BF16__
    __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    vt result;
    memcpy(&result, &half, sizeof half);
    return result;
#else
    vu bits = (vu)v, nan = (vu)(v != v);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // of two to the even one
    return __builtin_convertvector((bits & ~nan) | (nan & 0x7fc0), vh);
#endif
}
#else
typedef float T;
typedef vf vt;

INLINE vf widen(vt v) { return v; }
INLINE vt narrow(vf v) { return v; }
#endif

// The first `count` values at p, and zeros; and those of v alone written. count may be V or more.
INLINE vf load(const T *p, int64_t count) {
    if (count >= V) return widen(*(const vt *)p);
#if V == 16 && defined(BF16) && defined(__AVX512BW__) && defined(__AVX512VL__)
    return widen((vt)_mm256_maskz_loadu_epi16((1u << count) - 1, p));
#elif V == 16 && !defined(BF16)
    return (vf)_mm512_maskz_loadu_ps((1u << count) - 1, p);
#else
    vt t = {0};
    memcpy(&t, p, count * sizeof(T));
    return widen(t);
#endif
}

INLINE void store(T *p, vt v, int64_t count) {
    if (count >= V) {
        *(vt *)p = v;
        return;
    }
#if V == 16 && defined(BF16) && defined(__AVX512BW__) && defined(__AVX512VL__)
    _mm256_mask_storeu_epi16(p, (1u << count) - 1, (__m256i)v);
#elif V == 16 && !defined(BF16)
    _mm512_mask_storeu_ps(p, (1u << count) - 1, (__m512)v);
#else
    memcpy(p, &v, count * sizeof(T));
#endif
}

// The activations, of values that may be NaN, and their gradients: that of z = activate(u), given u and that of z.
enum { NONE, RELU, RELU6, HARDSWISH, GELU };
INLINE vf where(vi condition, vf yes, vf no) { return (vf)(((vi)yes & condition) | ((vi)no & ~condition)); }

INLINE vf clamp(vf u, float most) {
    vf zero = {0}, limit = zero + most;
    return where(u > most, limit, where(u <= 0.0f, zero, u));
}

// exp(v) for v <= 0, to 2e-7 of it: 2^n times a polynomial of what is left, of at most half a ln 2.
INLINE vf exponential(vf v) {
    vf zero = {0}, least = zero - 87.0f;
    v = where(v < least, least, v);
    vi n = __builtin_convertvector(v * 1.44269504f - 0.5f, vi);  // towards 0
    vf whole = __builtin_convertvector(n, vf), r = v - whole * 0.693359375f + whole * 2.12194440e-4f;
    vf e =
        ((((r * 1.9875691e-4f + 1.3981999e-3f) * r + 8.3334519e-3f) * r + 4.1665795e-2f) * r + 0.16666665f) * r + 0.5f;
    e = e * r * r + r + 1.0f;
    return e * (vf)((n + 127) << 23);
}

// The normal distribution's function at u, given d = exp(-u * u / 2), to 1e-7 (Abramowitz and Stegun, 7.1.26).
INLINE vf distribution(vf u, vf d) {
    vf zero = {0}, x = where(u < 0.0f, -u, u) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * x);
    vf tail =
        ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t * d * 0.5f;
    return where(u < 0.0f, tail, zero + 1.0f - tail);
}

INLINE vf activate(vf u, int kind) {
    vf zero = {0};
    if (kind == RELU) return where(u <= 0.0f, zero, u);
    if (kind == RELU6) return clamp(u, 6.0f);
    if (kind == HARDSWISH) return u * clamp(u + 3.0f, 6.0f) * (1.0f / 6.0f);
    if (kind == GELU) return u * distribution(u, exponential(u * u * -0.5f));
    return u;
}

INLINE vf activate_backward(vf u, vf g, int kind) {
    vf zero = {0};
    if (kind == RELU) return where(u <= 0.0f, zero, g);
    if (kind == RELU6) return where((u <= 0.0f) | (u >= 6.0f), zero, g);
    if (kind == HARDSWISH) return where(u <= -3.0f, zero, where(u >= 3.0f, g, g * (u * (1.0f / 3.0f) + 0.5f)));
    if (kind == GELU) {
        vf d = exponential(u * u * -0.5f);
        return g * (distribution(u, d) + u * d * 0.39894228f);
    }
    return g;
}

// Calls `f`, whose argument `kind` is then a constant, so that each activation has a loop of its own.
// clang-format off
#define BY_KIND(kind, f)               \
    switch (kind) {                    \
        case NONE: f(NONE); break;     \
        case RELU: f(RELU); break;     \
        case RELU6: f(RELU6); break;   \
        case HARDSWISH: f(HARDSWISH); break; \
        case GELU: f(GELU); break;     \
    }
// clang-format on

// Memory that is asked for before its turn, for it takes its time: what is read in some places and written in the last,
// a few lines of 64 bytes with each step of the work before. Places may be null.
enum { WRITTEN = 4, PLACES };
typedef struct {
    const char *at[PLACES];
    int64_t lines[PLACES];  // a step
} Ahead;

// Whether maps of so many values are worth it: smaller ones are still in a cache since they were written.
INLINE int far(int64_t values) { return values * (int64_t)sizeof(T) > 2 << 20; }

// `count` values at `from`, in so many steps, as a place.
INLINE void look_ahead(Ahead *ahead, int place, const T *from, int64_t count, int64_t steps) {
    ahead->at[place] = (const char *)from;
    ahead->lines[place] = from ? (count * (int64_t)sizeof(T) / 64 + steps - 1) / steps : 0;
}

INLINE void ask(Ahead *ahead) {  // one step's
    for (int i = 0; i < PLACES; i++)
        for (int64_t l = 0; l < ahead->lines[i]; l++, ahead->at[i] += 64)
            if (i == WRITTEN) __builtin_prefetch(ahead->at[i], 1, 2);
            else __builtin_prefetch(ahead->at[i], 0, 2);
}

// This thread's share of `count` things: from `*first` up to the result.
INLINE int64_t share(int64_t count, int64_t *first) {
#ifdef _OPENMP
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
#else
    int64_t threads = 1, thread = 0;
#endif
    *first = count * thread / threads;
    return count * (thread + 1) / threads;
}

INLINE int thread_number(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

INLINE void add_up(const double *parts, int threads, int64_t count, double *total) {
    memcpy(total, parts, count * sizeof(double));
    for (int t = 1; t < threads; t++)
        for (int64_t i = 0; i < count; i++) total[i] += parts[t * count + i];
}
