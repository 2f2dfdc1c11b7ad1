// Training's passes over maps on a CPU, fused. What each does, and why, is told in __init__.py; who calls them, in ops.py.
//
// Maps are channels last, (images, height, width, channels), of type T: bf16 where BF16 is defined, else float. All sums
// are of floats, gathered in doubles, in an order that depends on the number of threads alone. Vectors are GCC's and
// Clang's vector extensions: V floats, as the processor has them.

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
#define STRIP 256  // rows that are summed in floats before their sum is added to the doubles
#define ROWS 8     // rows that a block of sums stays in registers for
#define LARGEST 5  // kernel size
#define AHEAD 2048  // values that are asked for before they are needed: memory takes its time

typedef float vf __attribute__((vector_size(4 * V), aligned(4)));
typedef int32_t vi __attribute__((vector_size(4 * V)));
typedef uint32_t vu __attribute__((vector_size(4 * V)));
typedef uint16_t vh __attribute__((vector_size(2 * V), aligned(2)));

INLINE vf get(const float *p) { return *(const vf *)p; }
INLINE void put(float *p, vf v) { *(vf *)p = v; }

#ifdef BF16
typedef uint16_t T;

INLINE vf load(const T *p) {
#if V == 16  // compilers widen the halves one by one
    return (vf)((vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)) << 16);
#elif defined(__AVX2__)
    return (vf)((vu)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)) << 16);
#else
    return (vf)(__builtin_convertvector(*(const vh *)p, vu) << 16);
#endif
}

INLINE void store(T *p, vf v) {
#ifdef __AVX512BF16__
    __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &half, sizeof half);
#else
    vu bits = (vu)v, nan = (vu)(v != v);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, of two to the even one
    *(vh *)p = __builtin_convertvector((bits & ~nan) | (nan & 0x7fc0), vh);
#endif
}

INLINE float widen(T value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}
#else
typedef float T;

INLINE vf load(const T *p) { return get(p); }
INLINE void store(T *p, vf v) { put(p, v); }
INLINE float widen(T value) { return value; }
#endif

INLINE vf rounded(vf v) {
    T t[V];
    store(t, v);
    return load(t);
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
    vf e = ((((r * 1.9875691e-4f + 1.3981999e-3f) * r + 8.3334519e-3f) * r + 4.1665795e-2f) * r + 0.16666665f) * r + 0.5f;
    e = e * r * r + r + 1.0f;
    return e * (vf)((n + 127) << 23);
}

// The normal distribution's function at u, given d = exp(-u * u / 2), to 1e-7 (Abramowitz and Stegun, 7.1.26).
INLINE vf distribution(vf u, vf d) {
    vf zero = {0}, x = where(u < 0.0f, -u, u) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * x);
    vf tail = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t * d * 0.5f;
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

// The first value of a vector, as maps hold it: where there is but one left.
INLINE T first_of(vf v) {
    T t[V];
    store(t, v);
    return t[0];
}

// What a normalisation is: where its parameters are, and what it must keep. `saved` is [5][C]: scale and shift of
// u = scale * y + shift, the mean and 1 / deviation of the batch, and what sums are taken from, for precision.
typedef struct {
    const float *weight, *bias;
    float *running_mean, *running_var;  // or null
    float momentum, epsilon;
    float *saved;
} Norm;

enum { SCALE, SHIFT, MEAN, INVERSE, ORIGIN, SAVED };

// Sums are of y - origin, where origin is near the mean, so that the difference of two large sums does not cost precision.
static void set_origin(Norm *norm, const double *sums, int64_t count, int64_t C) {
    for (int64_t c = 0; c < C; c++) norm->saved[ORIGIN * C + c] = count ? sums[c] / count : 0;
}

// From sums, [2][C], of y - origin and of its square, to the batch's statistics.
static void conclude(Norm *norm, const double *sums, int64_t count, int64_t C) {
    float *saved = norm->saved;
    for (int64_t c = 0; c < C; c++) {
        double shift = sums[c] / count, mean = shift + saved[ORIGIN * C + c];
        double variance = fmax(sums[C + c] / count - shift * shift, 0);
        if (sums[C + c] != sums[C + c]) variance = sums[C + c];  // NaN
        double inverse = 1 / sqrt(variance + norm->epsilon), scale = inverse * norm->weight[c];
        saved[SCALE * C + c] = scale;
        saved[SHIFT * C + c] = norm->bias[c] - mean * scale;
        saved[MEAN * C + c] = mean;
        saved[INVERSE * C + c] = inverse;
        if (norm->running_mean) {
            double rate = norm->momentum;
            norm->running_mean[c] = (1 - rate) * norm->running_mean[c] + rate * mean;
            norm->running_var[c] = (1 - rate) * norm->running_var[c] + rate * variance * count / (count > 1 ? count - 1 : 1);
        }
    }
}

// From sums, [2][C], of du and of du * (y - mean), to dy = p du + q y + r, [3][C], and the parameters' gradients.
static void conclude_backward(const float *saved, const double *sums, int64_t count, int64_t C, float *pqr, float *dweight,
                              float *dbias) {
    for (int64_t c = 0; c < C; c++) {
        double scale = saved[SCALE * C + c], mean = saved[MEAN * C + c], inverse = saved[INVERSE * C + c];
        double q = -scale * inverse * inverse * sums[C + c] / count;
        dbias[c] = sums[c];
        dweight[c] = sums[C + c] * inverse;
        pqr[c] = scale;
        pqr[C + c] = q;
        pqr[2 * C + c] = -scale * sums[c] / count - q * mean;
    }
}

// Passes over maps see `rows` of `lanes` values that follow each other in memory: the least number of whole pixels that
// is a whole number of vectors too, so that any number of channels fills them. A channel's numbers are repeated for each
// of its lanes. Pixels that fill no row are taken one value at a time.
typedef struct {
    int64_t C, lanes, rows, count;  // count: values in all
} Plan;

static Plan make_plan(int64_t pixels, int64_t C) {
    int64_t a = C, b = 2 * V;
    while (b) {
        int64_t t = a % b;
        a = b, b = t;
    }
    int64_t lanes = C / a * 2 * V;
    return (Plan){C, lanes, pixels * C / lanes, pixels * C};
}

static float *make_lanes(const Plan *plan, const float *channels, int kinds) {
    float *result = aligned_alloc(64, plan->lanes * kinds * sizeof(float));
    for (int k = 0; k < kinds; k++)
        for (int64_t l = 0; l < plan->lanes; l++) result[k * plan->lanes + l] = channels[k * plan->C + l % plan->C];
    return result;
}

// This thread's share of `count` things: from `*first` up to the result.
static int64_t share(int64_t count, int64_t *first) {
#ifdef _OPENMP
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
#else
    int64_t threads = 1, thread = 0;
#endif
    *first = count * thread / threads;
    if (!count && thread < threads - 1) return -1;  // the end, even of nothing, is the last thread's
    return count * (thread + 1) / threads;
}

static int thread_number(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static void add_up(const double *parts, int threads, int64_t count, double *total) {
    memcpy(total, parts, count * sizeof(double));
    for (int t = 1; t < threads; t++)
        for (int64_t i = 0; i < count; i++) total[i] += parts[t * count + i];
}

// Sums over rows [first, last), and over what fills no row for the last of them, by channel, to total: [2][C]. Of
// v = y - origin and v * v; or, given g, of v = activate_backward(g) and v * (y - mean). numbers: lanes of [3]: origin, or
// mean; scale; shift.
INLINE void sum_rows(const Plan *plan, const T *y, const T *g, const float *numbers, int kind, int64_t first, int64_t last,
                     double *total) {
    int64_t lanes = plan->lanes, C = plan->C;
    const float *origin = numbers, *scale = origin + lanes, *shift = scale + lanes;
    double *wide = calloc(2 * lanes, sizeof(double));
    float *sums = aligned_alloc(64, 2 * lanes * sizeof(float)), *squares = sums + lanes;
    memset(total, 0, 2 * C * sizeof(double));
    for (int64_t strip = first; strip < last; strip += STRIP) {
        int64_t end = strip + STRIP < last ? strip + STRIP : last;
        memset(sums, 0, 2 * lanes * sizeof(float));
        for (int64_t row = strip; row < end; row += ROWS) {
            int64_t count = end - row < ROWS ? end - row : ROWS;
            for (int64_t l = 0; l < lanes; l += 2 * V) {
                vf s[2], q[2], o[2], a[2], b[2];
                for (int i = 0; i < 2; i++) {
                    s[i] = get(sums + l + i * V), q[i] = get(squares + l + i * V), o[i] = get(origin + l + i * V);
                    if (g) a[i] = get(scale + l + i * V), b[i] = get(shift + l + i * V);
                }
                for (int64_t j = 0; j < count; j++)
                    for (int i = 0; i < 2; i++) {
                        int64_t place = (row + j) * lanes + l + i * V;
                        __builtin_prefetch(y + place + AHEAD);
                        if (g) __builtin_prefetch(g + place + AHEAD);
                        vf v = load(y + place), d = v - o[i];
                        vf e = g ? activate_backward(v * a[i] + b[i], load(g + place), kind) : d;
                        s[i] += e;
                        q[i] += e * d;
                    }
                for (int i = 0; i < 2; i++) put(sums + l + i * V, s[i]), put(squares + l + i * V, q[i]);
            }
        }
        for (int64_t l = 0; l < 2 * lanes; l++) wide[l] += sums[l];
    }
    for (int64_t l = 0; l < 2 * lanes; l++) total[l / lanes * C + l % lanes % C] += wide[l];
    if (last == plan->rows)
        for (int64_t place = plan->rows * lanes; place < plan->count; place++) {
            int64_t l = place - plan->rows * lanes;
            vf zero = {0};
            float v = widen(y[place]), d = v - origin[l];
            float e = g ? activate_backward(zero + (v * scale[l] + shift[l]), zero + widen(g[place]), kind)[0] : d;
            total[l % C] += e;
            total[C + l % C] += e * d;
        }
    free(sums), free(wide);
}

// z = activate(scale y + shift), of rows [first, last) and the rest. numbers: lanes of [2]: scale, shift.
INLINE void normalize_rows(const Plan *plan, const T *y, const float *numbers, int kind, int64_t first, int64_t last, T *z) {
    int64_t lanes = plan->lanes;
    for (int64_t row = first; row < last; row++)
        for (int64_t l = 0; l < lanes; l += V) {
            int64_t place = row * lanes + l;
            store(z + place, activate(load(y + place) * get(numbers + l) + get(numbers + lanes + l), kind));
        }
    if (last == plan->rows)
        for (int64_t place = plan->rows * lanes; place < plan->count; place++) {
            int64_t l = place - plan->rows * lanes;
            vf zero = {0};
            z[place] = first_of(activate(zero + (widen(y[place]) * numbers[l] + numbers[lanes + l]), kind));
        }
}

// dy = p activate_backward(g) + q y + r, of rows [first, last) and the rest. numbers: lanes of [5]: scale, shift, p, q, r.
INLINE void normalize_rows_backward(const Plan *plan, const T *g, const T *y, const float *numbers, int kind, int64_t first,
                                    int64_t last, T *dy) {
    int64_t lanes = plan->lanes;
    const float *a = numbers, *b = a + lanes, *p = b + lanes, *q = p + lanes, *r = q + lanes;
    for (int64_t row = first; row < last; row++)
        for (int64_t l = 0; l < lanes; l += V) {
            int64_t place = row * lanes + l;
            vf v = load(y + place), d = activate_backward(v * get(a + l) + get(b + l), load(g + place), kind);
            store(dy + place, get(p + l) * d + (get(q + l) * v + get(r + l)));
        }
    if (last == plan->rows)
        for (int64_t place = plan->rows * lanes; place < plan->count; place++) {
            int64_t l = place - plan->rows * lanes;
            vf zero = {0}, v = zero + widen(y[place]);
            vf d = activate_backward(v * a[l] + b[l], zero + widen(g[place]), kind);
            dy[place] = first_of(p[l] * d + (q[l] * v + r[l]));
        }
}

// Calls `f`, whose argument `kind` is then a constant, so that each activation has a loop of its own.
#define BY_KIND(kind, f) \
    switch (kind) {      \
        case NONE: f(NONE); break; \
        case RELU: f(RELU); break; \
        case RELU6: f(RELU6); break; \
        case HARDSWISH: f(HARDSWISH); break; \
        case GELU: f(GELU); break; \
    }

static void sum_forward(const Plan *plan, const T *y, const float *numbers, int64_t first, int64_t last, double *total) {
    sum_rows(plan, y, 0, numbers, NONE, first, last, total);
}

static void sum_backward(const Plan *plan, const T *y, const T *g, const float *numbers, int kind, int64_t first,
                         int64_t last, double *total) {
#define F(k) sum_rows(plan, y, g, numbers, k, first, last, total)
    BY_KIND(kind, F)
#undef F
}

static void apply_forward(const Plan *plan, const T *y, const float *numbers, int kind, int64_t first, int64_t last, T *z) {
#define F(k) normalize_rows(plan, y, numbers, k, first, last, z)
    BY_KIND(kind, F)
#undef F
}

static void apply_backward(const Plan *plan, const T *g, const T *y, const float *numbers, int kind, int64_t first,
                           int64_t last, T *dy) {
#define F(k) normalize_rows_backward(plan, g, y, numbers, k, first, last, dy)
    BY_KIND(kind, F)
#undef F
}

// Second half of a forward pass: z from y, once the statistics are in `norm`.
static void write_normalized(const Plan *plan, const Norm *norm, const T *y, int kind, T *z, int threads) {
    float *numbers = make_lanes(plan, norm->saved, 2);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(plan->rows, &first);
        apply_forward(plan, y, numbers, kind, first, last, z);
    }
    free(numbers);
}

// First half of a backward pass: sums, [2][C], that the gradient of y needs.
static void find_backward_sums(const Plan *plan, const float *saved, const T *g, const T *y, int kind, double *sums,
                               int threads) {
    int64_t C = plan->C;
    float *channels = malloc(3 * C * sizeof(float));
    memcpy(channels, saved + MEAN * C, C * sizeof(float));
    memcpy(channels + C, saved + SCALE * C, 2 * C * sizeof(float));
    float *numbers = make_lanes(plan, channels, 3);
    double *parts = calloc(threads * 2 * C, sizeof(double));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(plan->rows, &first);
        sum_backward(plan, y, g, numbers, kind, first, last, parts + thread_number() * 2 * C);
    }
    add_up(parts, threads, 2 * C, sums);
    free(channels), free(numbers), free(parts);
}

// z = activate(normalize(y)), y and z (pixels, C).
void norm_forward(const T *y, int64_t pixels, int64_t C, Norm *norm, int kind, T *z, int threads) {
    Plan plan = make_plan(pixels, C);
    double *parts = calloc((threads + 1) * 2 * C, sizeof(double)), *sums = parts + threads * 2 * C;
    int64_t sample = plan.rows < STRIP ? plan.rows : STRIP;
    memset(norm->saved + ORIGIN * C, 0, C * sizeof(float));
    float *numbers = make_lanes(&plan, norm->saved + ORIGIN * C, 1);
    sum_forward(&plan, y, numbers, 0, sample, sums);
    set_origin(norm, sums, sample * plan.lanes / C, C);
    free(numbers);
    numbers = make_lanes(&plan, norm->saved + ORIGIN * C, 1);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(plan.rows, &first);
        sum_forward(&plan, y, numbers, first, last, parts + thread_number() * 2 * C);
    }
    add_up(parts, threads, 2 * C, sums);
    conclude(norm, sums, pixels, C);
    write_normalized(&plan, norm, y, kind, z, threads);
    free(numbers), free(parts);
}

// The gradients of y, weight and bias from that of z, g.
void norm_backward(const T *g, const T *y, int64_t pixels, int64_t C, const float *saved, int kind, T *dy, float *dweight,
                   float *dbias, int threads) {
    Plan plan = make_plan(pixels, C);
    double *sums = malloc(2 * C * sizeof(double));
    float *channels = malloc(5 * C * sizeof(float));
    find_backward_sums(&plan, saved, g, y, kind, sums, threads);
    memcpy(channels, saved, 2 * C * sizeof(float));
    conclude_backward(saved, sums, pixels, C, channels + 2 * C, dweight, dbias);
    float *numbers = make_lanes(&plan, channels, 5);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(plan.rows, &first);
        apply_backward(&plan, g, y, numbers, kind, first, last, dy);
    }
    free(numbers), free(channels), free(sums);
}

// z = activate(a + b), of `count` values; RELU or RELU6, whose masks are in z.
void add_forward(const T *a, const T *b, int64_t count, int kind, T *z, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(count / V, &first);
        for (int64_t i = first; i < last; i++) store(z + i * V, activate(rounded(load(a + i * V) + load(b + i * V)), kind));
    }
    for (int64_t i = count / V * V; i < count; i++) {
        vf zero = {0};
        z[i] = first_of(activate(rounded(zero + (widen(a[i]) + widen(b[i]))), kind));
    }
}

// The gradient of a, which is that of b, from that of z, g.
void add_backward(const T *g, const T *z, int64_t count, int kind, T *d, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(count / V, &first);
        for (int64_t i = first; i < last; i++) store(d + i * V, activate_backward(load(z + i * V), load(g + i * V), kind));
    }
    for (int64_t i = count / V * V; i < count; i++) {
        vf zero = {0};
        d[i] = first_of(activate_backward(zero + widen(z[i]), zero + widen(g[i]), kind));
    }
}

// Depthwise convolution. Channels are taken V at a time, and rows of the maps as floats, in a ring of as many as the
// kernel is high. Where C is no multiple of V, a pixel's last vector reaches into the next one's channels: read, these are
// not used; written, they are written again, for channels go from the last to the first. The last pixel of an
// image is taken alone (`alone`: its channels, else 0).
typedef struct {
    int64_t images, H, W, C, OH, OW;
    int size, stride, pad;
} Geometry;

INLINE void read_row(const T *x, int64_t columns, int64_t C, int alone, float *row) {
    int64_t whole = alone ? columns - 1 : columns;
    for (int64_t w = 0; w < whole; w++) {
        __builtin_prefetch(x + (columns + w) * C);  // the next row
        put(row + w * V, load(x + w * C));
    }
    if (alone) {
        T t[V] = {0};
        memcpy(t, x + whole * C, alone * sizeof(T));
        put(row + whole * V, load(t));
    }
}

// Writes a row and, given `sums`, adds its rounded values, less `origin`, to them, and the squares to those after them.
INLINE void write_row(const float *row, int64_t columns, int64_t C, int alone, T *y, const float *origin, float *sums) {
    int64_t whole = alone ? columns - 1 : columns;
    vf zero = {0}, s[2] = {zero, zero}, q[2] = {zero, zero}, o = sums ? get(origin) : zero;
    for (int64_t w = 0; w < columns; w += 2)
        for (int j = 0; j < 2 && w + j < columns; j++) {
            vf v = rounded(get(row + (w + j) * V));
            if (w + j < whole) store(y + (w + j) * C, v);
            v -= o;
            s[j] += v;
            q[j] += v * v;
        }
    if (sums) {
        put(sums, get(sums) + s[0] + s[1]);
        put(sums + V, get(sums + V) + q[0] + q[1]);
    }
    if (alone) {
        T t[V];
        store(t, get(row + whole * V));
        memcpy(y + whole * C, t, alone * sizeof(T));
    }
}

// A row of outputs from K rows of inputs and weights, [K * K][V].
INLINE void convolve(float *const *rows, const float *weight, int64_t columns, int stride, int K, float *out) {
    vf k[LARGEST * LARGEST];
    for (int t = 0; t < K * K; t++) k[t] = get(weight + t * V);
    for (int64_t w = 0; w < columns; w++) {
        vf sum[LARGEST];
        for (int a = 0; a < K; a++) {
            const float *row = rows[a] + w * stride * V;
            sum[a] = get(row) * k[a * K];
            for (int b = 1; b < K; b++) sum[a] += get(row + b * V) * k[a * K + b];
        }
        for (int a = 1; a < K; a++) sum[0] += sum[a];
        put(out + w * V, sum[0]);
    }
}

// Where a row of x is in its ring, or, outside of the map, a row of zeros.
INLINE float *find_row(float *ring, float *zero, int64_t columns, int64_t row, int64_t rows, int K) {
    return row >= 0 && row < rows ? ring + row % K * columns * V : zero;
}

// Numbers of each channel, `kinds` of them at `numbers[channel * step + kind * stride]`, for the blocks of a convolution:
// [blocks][kinds][V], zeros where there is no channel.
static float *make_blocks(const float *numbers, int64_t C, int64_t step, int kinds, int64_t stride) {
    int64_t blocks = (C + V - 1) / V, size = blocks * kinds * V * sizeof(float);
    float *result = memset(aligned_alloc(64, size), 0, size);
    for (int64_t c = 0; c < C; c++)
        for (int k = 0; k < kinds; k++)
            result[(c / V * kinds + k) * V + c % V] = numbers[c * step + k * stride];
    return result;
}

// Floats that a thread works in, zeros at first: the columns beside the map, and those between strided ones, stay so.
static float *make_space(const Geometry *of) {
    int64_t K = of->size, columns = of->W + 2 * K + of->stride;
    int64_t size = ((columns * (2 * K + 1) + of->W + of->OW + K * K) * V) * sizeof(float);
    return memset(aligned_alloc(64, size), 0, size);
}

// V channels of an image, from c on. sums: [2][C], of y - origin and its square, or null.
INLINE void convolve_block(const Geometry *of, const T *x, const float *taps, T *y, const float *origin, double *sums,
                           float *zero, int64_t c, int K) {
    int64_t H = of->H, W = of->W, C = of->C, OH = of->OH, OW = of->OW;
    int64_t columns = W + 2 * of->pad + of->stride, filled = -of->pad;  // rows of x up to this one are in the ring
    int tail = C - c < V ? C - c : 0;
    float *ring = zero + columns * V, *out = ring + K * columns * V, partial[2 * V] = {0};
    taps += c * K * K;
    for (int64_t h = 0; h < OH; h++) {
        float *rows[LARGEST];
        int64_t top = h * of->stride - of->pad;
        for (; filled < top + K; filled++)
            if (filled >= 0 && filled < H)
                read_row(x + filled * W * C + c, W, C, filled == H - 1 ? tail : 0, ring + (filled % K * columns + of->pad) * V);
        for (int a = 0; a < K; a++) rows[a] = find_row(ring, zero, columns, top + a, H, K);
        convolve(rows, taps, OW, of->stride, K, out);
        write_row(out, OW, C, h == OH - 1 ? tail : 0, y + h * OW * C + c, origin + c, sums ? partial : 0);
    }
    for (int i = 0; sums && i < (tail ? tail : V); i++) sums[c + i] += partial[i], sums[C + c + i] += partial[V + i];
}

// A row of dy = p du + q y + r, every stride-th column. five: [5][V]: scale, shift, p, q, r.
INLINE void differentiate_row(const T *g, const T *y, int64_t columns, int64_t C, int alone, const float *five,
                              int kind, int stride, float *row) {
    vf a = get(five), b = get(five + V), p = get(five + 2 * V), q = get(five + 3 * V), r = get(five + 4 * V);
    for (int64_t w = 0; w < columns; w++) {
        const T *gp = g + w * C, *yp = y + w * C;
        __builtin_prefetch(gp + columns * C);  // the next row
        __builtin_prefetch(yp + columns * C);
        T gt[V] = {0}, yt[V] = {0};
        if (alone && w == columns - 1) {
            memcpy(gt, gp, alone * sizeof(T)), memcpy(yt, yp, alone * sizeof(T));
            gp = gt, yp = yt;
        }
        vf v = load(yp), d = activate_backward(v * a + b, load(gp), kind);
        put(row + w * stride * V, p * d + (q * v + r));
    }
}

// V channels of an image, from c on: the gradient of y, dy = p du + q y + r, never leaves the ring.
// By blocks: five (scale, shift, p, q, r), taps (turned around: dx is a convolution of dy) and their gradient, dtaps (not
// turned). dx may be null.
INLINE void convolve_block_backward(const Geometry *of, const T *g, const T *y, const T *x, const float *taps,
                                    const float *five, int kind, T *dx, double *dtaps, float *zero, int64_t c, int K) {
    int64_t H = of->H, W = of->W, C = of->C, OH = of->OH, OW = of->OW;
    int stride = of->stride, before = K - 1 - of->pad, tail = C - c < V ? C - c : 0;
    int64_t columns = W + 2 * K + stride, xcolumns = W + 2 * of->pad + stride;
    float *ring = zero + columns * V, *xring = ring + K * columns * V, *out = xring + K * xcolumns * V;
    float *partial = out + W * V;
    int64_t filled = -of->pad, written = 0;  // rows of x that are in its ring, and of dx that are done
    memset(partial, 0, K * K * V * sizeof(float));
    taps += c * K * K, dtaps += c * K * K, five += c * 5;
    for (int64_t h = 0; h < OH; h++) {
        // dy, with zeros between its columns where the convolution is strided
        float *row = ring + (h % K * columns + before) * V, *rows[LARGEST];
        const T *gi = g + h * OW * C + c, *yi = y + h * OW * C + c;
#define F(k) differentiate_row(gi, yi, OW, C, h == OH - 1 ? tail : 0, five, k, stride, row)
        BY_KIND(kind, F)
#undef F
        int64_t top = h * stride - of->pad;
        for (; filled < top + K; filled++)
            if (filled >= 0 && filled < H)
                read_row(x + filled * W * C + c, W, C, filled == H - 1 ? tail : 0, xring + (filled % K * xcolumns + of->pad) * V);
        for (int a = 0; a < K; a++) rows[a] = find_row(xring, zero, xcolumns, top + a, H, K);
        // the weights' gradient: as many of its sums at a time as there are registers for
        int together = K == 3 ? 3 : 1;
        for (int a = 0; a < K; a += together) {
            vf s[3][LARGEST];
            for (int j = 0; j < together; j++)
                for (int b = 0; b < K; b++) s[j][b] = get(partial + ((a + j) * K + b) * V);
            for (int64_t w = 0; w < OW; w++) {
                vf d = get(row + w * stride * V);
                for (int j = 0; j < together; j++)
                    for (int b = 0; b < K; b++) s[j][b] += d * get(rows[a + j] + (w * stride + b) * V);
            }
            for (int j = 0; j < together; j++)
                for (int b = 0; b < K; b++) put(partial + ((a + j) * K + b) * V, s[j][b]);
        }
        // the rows of dx that see no later row of dy
        int64_t ready = h + 1 < OH && (h + 1) * stride - of->pad < H ? (h + 1) * stride - of->pad : H;
        for (; dx && written < ready; written++) {
            for (int a = 0; a < K; a++) {
                int64_t place = written + of->pad - (K - 1 - a);
                rows[a] = find_row(ring, zero, columns, place % stride ? -1 : place / stride, OH, K);
            }
            convolve(rows, taps, W, 1, K, out);
            write_row(out, W, C, written == H - 1 ? tail : 0, dx + written * W * C + c, 0, 0);
        }
    }
    for (int i = 0; i < K * K * V; i++) dtaps[i] += partial[i];
}

// For each V channels, from the last, calls `f` with a constant for the kernel size.
#define BY_CHANNELS(C, size, f)                            \
    for (int64_t c = ((C) - 1) / V * V; c >= 0; c -= V) { \
        if (size == 3) f(c, 3);                           \
        else f(c, 5);                                     \
    }

// Images [first, last).
static void convolve_images(const Geometry *of, const T *x, const float *weight, T *y, const float *origin, double *sums,
                            int64_t first, int64_t last) {
    int K2 = of->size * of->size;
    float *space = make_space(of), *taps = make_blocks(weight, of->C, K2, K2, 1);
    float *from = make_blocks(origin ? origin : weight, of->C, 1, 1, 0);
    for (int64_t i = first; i < last; i++) {
        const T *in = x + i * of->H * of->W * of->C;
        T *out = y + i * of->OH * of->OW * of->C;
#define F(c, K) convolve_block(of, in, taps, out, from, sums, space, c, K)
        BY_CHANNELS(of->C, of->size, F)
#undef F
    }
    free(space), free(taps), free(from);
}

// The gradients of x (null: not) and of the filters, given what makes dy of g and y.
static void convolve_backward(const Geometry *of, const T *g, const T *y, const T *x, const float *weight,
                              const float *numbers, int kind, T *dx, float *dfilter, int threads) {
    int64_t C = of->C, K2 = of->size * of->size, taps = (C + V - 1) / V * V * K2;
    double *parts = calloc((threads + 1) * taps, sizeof(double)), *total = parts + threads * taps;
    float *turned = make_blocks(weight + K2 - 1, C, K2, K2, -1), *five = make_blocks(numbers, C, 1, 5, C);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(of->images, &first);
        double *mine = parts + thread_number() * taps;
        float *space = make_space(of);
        for (int64_t i = first; i < last; i++) {
            int64_t in = i * of->H * of->W * C, out = i * of->OH * of->OW * C;
#define F(c, K) \
    convolve_block_backward(of, g + out, y + out, x + in, turned, five, kind, dx ? dx + in : 0, mine, space, c, K)
            BY_CHANNELS(C, of->size, F)
#undef F
        }
        free(space);
    }
    add_up(parts, threads, taps, total);
    for (int64_t c = 0; c < C; c++)
        for (int t = 0; t < K2; t++) dfilter[c * K2 + t] = total[(c / V * K2 + t) * V + c % V];
    free(parts), free(turned), free(five);
}

// y = the depthwise convolution of x. weight: [C][K * K]. C must be at least V.
void depthwise_forward(const Geometry *of, const T *x, const float *weight, T *y, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(of->images, &first);
        convolve_images(of, x, weight, y, 0, 0, first, last);
    }
}

// The gradients of x (null: not) and weight from that of y, g.
void depthwise_backward(const Geometry *of, const T *g, const T *x, const float *weight, T *dx, float *dfilter, int threads) {
    float *numbers = calloc(5 * of->C, sizeof(float));
    for (int64_t c = 0; c < of->C; c++) numbers[2 * of->C + c] = 1;  // dy is g
    convolve_backward(of, g, g, x, weight, numbers, NONE, dx, dfilter, threads);
    free(numbers);
}

// y = the depthwise convolution of x, z = activate(normalize(y)). weight: [C][K * K]. C must be at least V.
void depthwise_norm_forward(const Geometry *of, const T *x, const float *weight, Norm *norm, int kind, T *y, T *z,
                            int threads) {
    int64_t C = of->C, pixels = of->images * of->OH * of->OW;
    double *parts = calloc((threads + 1) * 2 * C, sizeof(double)), *sums = parts + threads * 2 * C;
    const float *origin = norm->saved + ORIGIN * C;
    memset(norm->saved + ORIGIN * C, 0, C * sizeof(float));
    convolve_images(of, x, weight, y, origin, sums, 0, 1);  // one, for its mean
    set_origin(norm, sums, of->OH * of->OW, C);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(of->images, &first);
        convolve_images(of, x, weight, y, origin, parts + thread_number() * 2 * C, first, last);
    }
    add_up(parts, threads, 2 * C, sums);
    conclude(norm, sums, pixels, C);
    Plan plan = make_plan(pixels, C);
    write_normalized(&plan, norm, y, kind, z, threads);
    free(parts);
}

// The gradients of x (null: not), the convolution's weight, [C][K * K], and the norm's weight and bias, from that of z, g.
void depthwise_norm_backward(const Geometry *of, const T *g, const T *y, const T *x, const float *weight, const float *saved,
                             int kind, T *dx, float *dfilter, float *dweight, float *dbias, int threads) {
    int64_t C = of->C, pixels = of->images * of->OH * of->OW;
    Plan plan = make_plan(pixels, C);
    double *sums = malloc(2 * C * sizeof(double));
    float *numbers = malloc(5 * C * sizeof(float));
    find_backward_sums(&plan, saved, g, y, kind, sums, threads);
    memcpy(numbers, saved, 2 * C * sizeof(float));
    conclude_backward(saved, sums, pixels, C, numbers + 2 * C, dweight, dbias);
    convolve_backward(of, g, y, x, weight, numbers, kind, dx, dfilter, threads);
    free(numbers), free(sums);
}
