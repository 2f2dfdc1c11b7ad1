// Depthwise convolution: of maps as they are or through a norm and activation, with the sums that the next norm needs.
//
// Channels are taken V at a time, and rows of the maps as floats, in a ring of as many as the kernel is high. A row's
// outputs are made GROUP at a time, so that a value that is read serves several of them.

#include "maps.h"

#define LARGEST 5  // kernel size
#define GROUP 4

typedef struct {
    int64_t images, H, W, C, OH, OW;
    int size, stride, pad;
} Geometry;

// What a thread works in, zeros at first: what lies beside the maps in the rings, and between strided columns, stays so.
typedef struct {
    float *zero, *x, *dy;  // a row; rings of [size] rows
    int64_t columns;       // of a row, in vectors
} Space;

static Space make_space(const Geometry *of) {
    int64_t columns = of->W + 2 * of->size + (GROUP + 1) * of->stride, row = columns * V;
    int64_t size = row * (2 * of->size + 1) * sizeof(float);
    float *zero = memset(aligned_alloc(64, size), 0, size);
    return (Space){zero, zero + row, zero + row * (of->size + 1), columns};
}

// Where a row is in its ring, or, outside of the map, a row of zeros.
INLINE float *find_row(const Space *space, float *ring, int64_t row, int64_t rows, int K) {
    return row >= 0 && row < rows ? ring + row % K * space->columns * V : space->zero;
}

// A row of V channels, `some` of them there, of what is read, u, to `row`; numbers: [2][V]: scale, shift; or null.
INLINE void read_row(const T *x, int64_t columns, int64_t C, int64_t some, const float *numbers, int kind, float *row) {
    for (int64_t w = 0; w < columns; w++) {
        __builtin_prefetch(x + (columns + w) * C);  // the next row
        vf v = load_some(x + w * C, some);
        if (numbers) v = activate(v * get(numbers) + get(numbers + V), kind);
        put(row + w * V, v);
    }
}

// A row of dy, every stride-th column. five: [5][V]: scale, shift, p, q, r; or null.
INLINE void read_gradient(const T *g, const T *y, int64_t columns, int64_t C, int64_t some, const float *five, int kind, int stride,
                          float *row) {
    for (int64_t w = 0; w < columns; w++) {
        __builtin_prefetch(g + (columns + w) * C);
        vf d = load_some(g + w * C, some);
        if (five) {
            __builtin_prefetch(y + (columns + w) * C);
            vf v = load_some(y + w * C, some);
            d = activate_backward(v * get(five) + get(five + V), d, kind);
            d = get(five + 2 * V) * d + (get(five + 3 * V) * v + get(five + 4 * V));
        }
        put(row + w * stride * V, d);
    }
}

// GROUP outputs from K rows of inputs, each given by where its first output's inputs start.
INLINE void convolve(float *const *rows, int64_t start, const vf *taps, int stride, int K, vf *sum) {
    for (int j = 0; j < GROUP; j++) sum[j] = (vf){0};
    for (int a = 0; a < K; a++)
        for (int b = 0; b < K; b++)
            for (int j = 0; j < GROUP; j++) sum[j] += get(rows[a] + (start + j * stride + b) * V) * taps[a * K + b];
}

// V channels of an image, from c on. two: [2][V] of the input, or null; sums: [2][C], of y - origin and its square, or null.
INLINE void convolve_block(const Geometry *of, const Space *space, const T *x, const float *two, int kind, const float *weight,
                           T *y, const float *origin, double *sums, int64_t c, int stride, int K) {
    int64_t H = of->H, W = of->W, C = of->C, OW = of->OW, some = C - c, filled = 0;  // rows of x that are in the ring
    vf taps[LARGEST * LARGEST], o = sums ? get(origin) : (vf){0}, total[2] = {{0}, {0}};
    for (int t = 0; t < K * K; t++) taps[t] = get(weight + t * V);
    for (int64_t h = 0; h < of->OH; h++) {
        float *rows[LARGEST];
        int64_t top = h * of->stride - of->pad;
        for (; filled < top + K && filled < H; filled++) {
            float *row = space->x + (filled % K * space->columns + of->pad) * V;
#define F(k) read_row(x + filled * W * C + c, W, C, some, two, k, row)
            BY_KIND(kind, F)
#undef F
        }
        for (int a = 0; a < K; a++) rows[a] = find_row(space, space->x, top + a, H, K);
        T *out = y + h * OW * C + c;
        for (int64_t w = 0; w < OW; w += GROUP) {
            vf sum[GROUP];
            convolve(rows, w * stride, taps, stride, K, sum);
            for (int j = 0; j < GROUP && w + j < OW; j++) {
                vf v = rounded(sum[j]);
                store_some(out + (w + j) * C, v, some);
                v -= o;
                total[0] += v;
                total[1] += v * v;
            }
        }
    }
    if (sums)
        for (int i = 0; i < V && i < some; i++) sums[c + i] += total[0][i], sums[C + c + i] += total[1][i];
}

// What the gradients of V channels are made with and added to.
typedef struct {
    const float *taps, *five, *three;  // [K * K], turned around: dx is a convolution of dy; [5] of dy; [3] of the input: scale,
                                       // shift, mean; each [V]; five and three may be null
    double *dtaps, *sums;              // [K * K][V], not turned; [2][C], of du and du * (maps - mean)
} Block;

// V channels of an image, from c on: dy never leaves its ring. dx may be null; `more` (or null) is added to it.
INLINE void convolve_block_backward(const Geometry *of, const Space *space, const T *g, const T *y, int kind, const T *x, int xkind,
                                    const T *more, T *dx, const Block *block, int64_t c, int stride, int K) {
    int64_t H = of->H, W = of->W, C = of->C, OH = of->OH, OW = of->OW, some = C - c;
    int64_t filled = 0, written = 0, before = K - 1 - of->pad;  // rows of x that are in its ring, and of dx that are done
    vf taps[LARGEST * LARGEST], partial[LARGEST * LARGEST], total[2] = {{0}, {0}};
    const float *three = block->three;
    for (int t = 0; t < K * K; t++) taps[t] = get(block->taps + t * V), partial[t] = (vf){0};
    for (int64_t h = 0; h < OH; h++) {
        // dy, with zeros between its columns where the convolution is strided
        float *dy = space->dy + (h % K * space->columns + before) * V, *rows[LARGEST];
#define F(k) read_gradient(g + h * OW * C + c, y + h * OW * C + c, OW, C, some, block->five, k, of->stride, dy)
        BY_KIND(kind, F)
#undef F
        int64_t top = h * of->stride - of->pad;
        for (; filled < top + K && filled < H; filled++) {
            float *row = space->x + (filled % K * space->columns + of->pad) * V;
#define F(k) read_row(x + filled * W * C + c, W, C, some, three, k, row)
            BY_KIND(xkind, F)
#undef F
        }
        for (int a = 0; a < K; a++) rows[a] = find_row(space, space->x, top + a, H, K);
        // the weights' gradient: as many of its sums at a time as there are registers for; dy is zero beside its row
        int together = K == 3 ? 3 : 1;
        for (int a = 0; a < K; a += together) {
            vf s[3][LARGEST];
            for (int i = 0; i < together; i++)
                for (int b = 0; b < K; b++) s[i][b] = partial[(a + i) * K + b];
            for (int64_t w = 0; w < OW; w += GROUP)
                for (int i = 0; i < together; i++)
                    for (int j = 0; j < GROUP; j++)
                        for (int b = 0; b < K; b++)
                            s[i][b] += get(dy + (w + j) * stride * V) * get(rows[a + i] + ((w + j) * stride + b) * V);
            for (int i = 0; i < together; i++)
                for (int b = 0; b < K; b++) partial[(a + i) * K + b] = s[i][b];
        }
        // the rows of dx that see no later row of dy
        int64_t ready = h + 1 < OH && (h + 1) * of->stride - of->pad < H ? (h + 1) * of->stride - of->pad : H;
        for (; dx && written < ready; written++) {
            for (int a = 0; a < K; a++) {
                int64_t place = written + of->pad - (K - 1 - a);
                rows[a] = place % of->stride ? space->zero : find_row(space, space->dy, place / of->stride, OH, K);
            }
            for (int64_t w = 0; w < W; w += GROUP) {
                vf sum[GROUP];
                convolve(rows, w, taps, 1, K, sum);
                for (int j = 0; j < GROUP && w + j < W; j++) {
                    int64_t place = (written * W + w + j) * C + c;
                    vf d = sum[j];
                    if (three) {
                        vf v = load_some(x + place, some);
                        d = rounded(activate_backward(v * get(three) + get(three + V), d, xkind));
                        total[0] += d;
                        total[1] += d * (v - get(three + 2 * V));
                    }
                    if (more) d += load_some(more + place, some);
                    store_some(dx + place, d, some);
                }
            }
        }
    }
    for (int t = 0; t < K * K; t++)
        for (int i = 0; i < V; i++) block->dtaps[t * V + i] += partial[t][i];
    if (three)
        for (int i = 0; i < V && i < some; i++) block->sums[c + i] += total[0][i], block->sums[C + c + i] += total[1][i];
}

// Calls `f` for each V channels, with constants for the stride, where it is a usual one, and the kernel size.
#define BY_CHANNELS(of, f)                                 \
    for (int64_t c = 0; c < of->C; c += V) {               \
        if (of->size == 3 && of->stride == 1) { f(c, 1, 3); } \
        else if (of->size == 3) { f(c, of->stride, 3); }   \
        else if (of->stride == 1) { f(c, 1, 5); }          \
        else { f(c, of->stride, 5); }                      \
    }

// Filters [C][taps] by blocks, [taps][V] each; backwards, if they are to be turned around.
static float *make_taps(const float *weight, int64_t C, int taps, int turned) {
    float *by_tap = malloc(C * taps * sizeof(float));
    for (int64_t c = 0; c < C; c++)
        for (int t = 0; t < taps; t++) by_tap[t * C + c] = weight[c * taps + (turned ? taps - 1 - t : t)];
    float *result = make_blocks(by_tap, C, taps);
    free(by_tap);
    return result;
}

// Images [first, last).
static void convolve_images(const Geometry *of, const Input *x, const float *taps, const float *numbers, T *y, const float *origin,
                            double *sums, int64_t first, int64_t last) {
    int K2 = of->size * of->size;
    Space space = make_space(of);
    for (int64_t i = first; i < last; i++) {
        const T *in = x->maps + i * of->H * of->W * of->C;
        T *out = y + i * of->OH * of->OW * of->C;
#define F(c, stride, K)                                                                                                      \
    convolve_block(of, &space, in, numbers ? numbers + 2 * c : 0, x->kind, taps + c * K2, out, sums ? origin + c : 0, sums, c, stride, K)
        BY_CHANNELS(of, F)
#undef F
    }
    free(space.zero);
}

// y = the depthwise convolution of the input. weight: [C][K * K]. norm: what follows, and takes its statistics; or null.
void depthwise_forward(const Geometry *of, const Input *x, const float *weight, Norm *norm, T *y, int threads) {
    int64_t C = of->C;
    float *taps = make_taps(weight, C, of->size * of->size, 0), *numbers = x->saved ? make_blocks(x->saved, C, 2) : 0;
    double *parts = calloc((threads + 1) * 2 * C, sizeof(double)), *sums = parts + threads * 2 * C;
    float *origin = 0;
    if (norm) {
        origin = make_blocks(memset(norm->saved + ORIGIN * C, 0, C * sizeof(float)), C, 1);
        convolve_images(of, x, taps, numbers, y, origin, sums, 0, 1);  // one, for its mean
        set_origin(norm, sums, of->OH * of->OW, C);
        memcpy(origin, norm->saved + ORIGIN * C, C * sizeof(float));
    }
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(of->images, &first);
        convolve_images(of, x, taps, numbers, y, origin, norm ? parts + thread_number() * 2 * C : 0, first, last);
    }
    if (norm) {
        add_up(parts, threads, 2 * C, sums);
        conclude(norm, sums, of->images * of->OH * of->OW, C);
    }
    free(taps), free(numbers), free(parts), free(origin);
}

// The gradients of the filters, and of the input: dx (null: not), to which `more` (or null) is added; where the input goes
// through a norm, dx is that of scale * maps + shift, and `result` is filled.
void depthwise_backward(const Geometry *of, const Gradient *y, const Input *x, const float *weight, const T *more, T *dx,
                        float *dweight, NormGradient *result, int threads) {
    int64_t C = of->C, K2 = of->size * of->size, filters = (C + V - 1) / V * V * K2, each = filters + 2 * C;
    float *taps = make_taps(weight, C, K2, 1), *five = y->numbers ? make_blocks(y->numbers, C, 5) : 0;
    float *three = x->saved ? make_blocks(x->saved, C, 3) : 0;
    double *parts = calloc((threads + 1) * each, sizeof(double)), *total = parts + threads * each;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(of->images, &first);
        double *mine = parts + thread_number() * each;
        Space space = make_space(of);
        for (int64_t i = first; i < last; i++) {
            int64_t in = i * of->H * of->W * C, out = i * of->OH * of->OW * C;
#define F(c, stride, K)                                                                                                        \
    Block block = {taps + c * K2, five ? five + 5 * c : 0, three ? three + 3 * c : 0, mine + c * K2, mine + filters};           \
    convolve_block_backward(of, &space, y->g + out, y->maps + out, y->kind, x->maps + in, x->kind, more ? more + in : 0,        \
                            dx ? dx + in : 0, &block, c, stride, K)
            BY_CHANNELS(of, F)
#undef F
        }
        free(space.zero);
    }
    add_up(parts, threads, each, total);
    for (int64_t c = 0; c < C; c++)
        for (int t = 0; t < K2; t++) dweight[c * K2 + t] = total[(c / V * K2 + t) * V + c % V];
    if (result) conclude_backward(x->saved, total + filters, of->images * of->H * of->W, C, result);
    free(taps), free(five), free(three), free(parts);
}
