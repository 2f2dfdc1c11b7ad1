// A norm's own passes: over maps that another's convolution made, and over those that leave a chain.

#include "maps.h"

#define STRIP 256  // rows that are summed in floats before their sum is added to the doubles
#define ROWS 8     // rows that a block of sums stays in registers for

void set_origin(Norm *norm, const double *sums, int64_t count, int64_t C) {
    for (int64_t c = 0; c < C; c++) norm->saved[ORIGIN * C + c] = sums[c] / count;
}

void conclude(Norm *norm, const double *sums, int64_t count, int64_t C) {
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
            norm->running_var[c] =
                (1 - rate) * norm->running_var[c] + rate * variance * count / (count > 1 ? count - 1 : 1);
        }
    }
}

void conclude_backward(const float *saved, const double *sums, int64_t count, int64_t C, NormGradient *result) {
    memcpy(result->numbers, saved, 2 * C * sizeof(float));
    float *p = result->numbers + 2 * C, *q = p + C, *r = q + C;
    for (int64_t c = 0; c < C; c++) {
        double scale = saved[SCALE * C + c], mean = saved[MEAN * C + c], inverse = saved[INVERSE * C + c];
        result->bias[c] = sums[c];
        result->weight[c] = sums[C + c] * inverse;
        p[c] = scale;
        q[c] = -scale * inverse * inverse * sums[C + c] / count;
        r[c] = -scale * sums[c] / count + scale * inverse * inverse * sums[C + c] / count * mean;
    }
}

float *make_blocks(const float *numbers, int64_t C, int kinds) {
    int64_t blocks = (C + V - 1) / V, size = blocks * kinds * V * sizeof(float);
    float *result = memset(aligned_alloc(64, size), 0, size);
    for (int64_t c = 0; c < C; c++)
        for (int k = 0; k < kinds; k++) result[(c / V * kinds + k) * V + c % V] = numbers[k * C + c];
    return result;
}

// Passes see `rows` of `lanes` values that follow each other in memory: the least number of whole pixels that is a
// whole number of vectors too, so that any number of channels fills them. The last row may be shorter. A channel's
// numbers are repeated for each of its lanes.
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
    return (Plan){C, lanes, (pixels * C + lanes - 1) / lanes, pixels * C};
}

static float *make_lanes(const Plan *plan, const float *channels, int kinds) {
    float *result = aligned_alloc(64, plan->lanes * kinds * sizeof(float));
    for (int k = 0; k < kinds; k++)
        for (int64_t l = 0; l < plan->lanes; l++) result[k * plan->lanes + l] = channels[k * plan->C + l % plan->C];
    return result;
}

// What the sums are of.
typedef struct {
    const T *y, *g;  // g: null in a forward pass
    const T *z;      // the chain's output, where its activation is of a sum, else null
    T *du;           // null, or where activate_backward(g) is written
    const float *lanes;  // [3]: origin, or mean; scale; shift
    int kind;
} Summands;

// Sums over rows [first, last) by channel, to total: [2][C]. Of d = y - origin and d * d; or, given g, of
// e = activate_backward(g) and e * (y - mean).
INLINE void sum_rows(const Plan *plan, const Summands *of, int backward, int kind, int64_t first, int64_t last,
                     double *total) {
    int64_t lanes = plan->lanes, C = plan->C;
    const float *origin = of->lanes, *scale = origin + lanes, *shift = scale + lanes;
    double *wide = calloc(2 * lanes, sizeof(double));
    float *sums = aligned_alloc(64, 2 * lanes * sizeof(float)), *squares = sums + lanes;
    for (int64_t strip = first; strip < last; strip += STRIP) {
        int64_t end = strip + STRIP < last ? strip + STRIP : last;
        memset(sums, 0, 2 * lanes * sizeof(float));
        for (int64_t row = strip; row < end; row += ROWS) {
            int64_t count = end - row < ROWS ? end - row : ROWS;
            for (int64_t l = 0; l < lanes; l += 2 * V) {
                vf s[2], q[2], o[2], a[2], b[2];
                for (int i = 0; i < 2; i++) {
                    s[i] = get(sums + l + i * V), q[i] = get(squares + l + i * V), o[i] = get(origin + l + i * V);
                    if (backward) a[i] = get(scale + l + i * V), b[i] = get(shift + l + i * V);
                }
                for (int64_t j = 0; j < count; j++)
                    for (int i = 0; i < 2; i++) {
                        int64_t place = (row + j) * lanes + l + i * V, left = plan->count - place;
                        if (left <= 0) break;
                        __builtin_prefetch(of->y + place + AHEAD);
                        vf v = load(of->y + place, left), d = v - o[i], e = d;
                        if (backward) {
                            __builtin_prefetch(of->g + place + AHEAD);
                            vf u = of->z ? load(of->z + place, left) : v * a[i] + b[i];
                            e = activate_backward(u, load(of->g + place, left), kind);
                            if (of->du) store(of->du + place, narrow(e), left);
                        } else if (left < V) {
                            vf none = {0};
                            for (int k = 0; k < left; k++) none[k] = d[k];  // nothing of what is not there
                            e = d = none;
                        }
                        s[i] += e;
                        q[i] += e * d;
                    }
                for (int i = 0; i < 2; i++) put(sums + l + i * V, s[i]), put(squares + l + i * V, q[i]);
            }
        }
        for (int64_t l = 0; l < 2 * lanes; l++) wide[l] += sums[l];
    }
    memset(total, 0, 2 * C * sizeof(double));
    for (int64_t l = 0; l < 2 * lanes; l++) total[l / lanes * C + l % lanes % C] += wide[l];
    free(sums), free(wide);
}

static void sum_forward(const Plan *plan, const Summands *of, int64_t first, int64_t last, double *total) {
    sum_rows(plan, of, 0, NONE, first, last, total);
}

static void sum_backward(const Plan *plan, const Summands *of, int64_t first, int64_t last, double *total) {
#define F(kind) sum_rows(plan, of, 1, kind, first, last, total)
    BY_KIND(of->kind, F)
#undef F
}

// z = activate(scale y + shift), of rows [first, last); other: null, or what is added before. numbers: lanes of [2].
INLINE void write_rows(const Plan *plan, const T *y, const T *other, const float *numbers, int kind, int64_t first,
                       int64_t last, T *z) {
    int64_t lanes = plan->lanes;
    for (int64_t row = first; row < last; row++)
        for (int64_t l = 0; l < lanes; l += V) {
            int64_t place = row * lanes + l, left = plan->count - place;
            if (left <= 0) break;
            __builtin_prefetch(y + place + AHEAD);
            __builtin_prefetch(z + place + AHEAD, 1);
            vf u = load(y + place, left) * get(numbers + l) + get(numbers + lanes + l);
            if (other) u += load(other + place, left);
            store(z + place, narrow(activate(u, kind)), left);
        }
}

// dy, of rows [first, last). numbers: lanes of [5].
INLINE void write_rows_backward(const Plan *plan, const Gradient *of, const float *numbers, int kind, int64_t first,
                                int64_t last, T *dy) {
    int64_t lanes = plan->lanes;
    const float *a = numbers, *b = a + lanes, *p = b + lanes, *q = p + lanes, *r = q + lanes;
    for (int64_t row = first; row < last; row++)
        for (int64_t l = 0; l < lanes; l += V) {
            int64_t place = row * lanes + l, left = plan->count - place;
            if (left <= 0) break;
            __builtin_prefetch(of->maps + place + AHEAD);
            __builtin_prefetch(of->g + place + AHEAD);
            __builtin_prefetch(dy + place + AHEAD, 1);
            vf v = load(of->maps + place, left);
            vf d = activate_backward(v * get(a + l) + get(b + l), load(of->g + place, left), kind);
            store(dy + place, narrow(get(p + l) * d + (get(q + l) * v + get(r + l))), left);
        }
}

// The statistics of y, (pixels, C), to norm->saved.
void norm_statistics(int64_t pixels, int64_t C, const T *y, Norm *norm, int threads) {
    Plan plan = make_plan(pixels, C), part = make_plan(pixels < STRIP ? pixels : STRIP, C);
    double *parts = calloc((threads + 1) * 2 * C, sizeof(double)), *sums = parts + threads * 2 * C;
    float *zeros = make_lanes(&plan, memset(norm->saved + ORIGIN * C, 0, C * sizeof(float)), 1);
    Summands of = {.y = y, .lanes = zeros};
    sum_forward(&part, &of, 0, part.rows, sums);  // of some, for their mean
    set_origin(norm, sums, part.count / C, C);
    float *lanes = make_lanes(&plan, norm->saved + ORIGIN * C, 1);
    of.lanes = lanes;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(plan.rows, &first);
        sum_forward(&plan, &of, first, last, parts + thread_number() * 2 * C);
    }
    add_up(parts, threads, 2 * C, sums);
    conclude(norm, sums, pixels, C);
    free(zeros), free(lanes), free(parts);
}

// z = activate(scale y + shift + other), all (pixels, C); other may be null.
void finish_forward(int64_t pixels, int64_t C, const Input *y, const T *other, T *z, int threads) {
    Plan plan = make_plan(pixels, C);
    float *numbers = make_lanes(&plan, y->saved, 2);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(plan.rows, &first);
#define F(kind) write_rows(&plan, y->maps, other, numbers, kind, first, last, z)
        BY_KIND(y->kind, F)
#undef F
    }
    free(numbers);
}

// From the gradient of z, g, what the Gradient of y needs. z: where something was added, else null. du: null, or where
// the gradient of the sum, activate_backward(g), is written.
void finish_backward(int64_t pixels, int64_t C, const T *g, const Input *y, const T *z, T *du, NormGradient *result,
                     int threads) {
    Plan plan = make_plan(pixels, C);
    float *lanes = malloc(3 * C * sizeof(float));
    memcpy(lanes, y->saved + MEAN * C, C * sizeof(float));
    memcpy(lanes + C, y->saved + SCALE * C, 2 * C * sizeof(float));
    float *numbers = make_lanes(&plan, lanes, 3);
    double *parts = calloc((threads + 1) * 2 * C, sizeof(double)), *sums = parts + threads * 2 * C;
    Summands of = {y->maps, g, z, du, numbers, y->kind};
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(plan.rows, &first);
        sum_backward(&plan, &of, first, last, parts + thread_number() * 2 * C);
    }
    add_up(parts, threads, 2 * C, sums);
    conclude_backward(y->saved, sums, pixels, C, result);
    free(lanes), free(numbers), free(parts);
}

// dy, written: for another's convolution.
void norm_backward(int64_t pixels, int64_t C, const Gradient *of, T *dy, int threads) {
    Plan plan = make_plan(pixels, C);
    float *numbers = make_lanes(&plan, of->numbers, 5);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(plan.rows, &first);
#define F(kind) write_rows_backward(&plan, of, numbers, kind, first, last, dy)
        BY_KIND(of->kind, F)
#undef F
    }
    free(numbers);
}
