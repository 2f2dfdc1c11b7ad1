// Depthwise convolution: of maps as they are or through a norm and activation, with the sums that the next norm needs.
//
// Channels are taken V at a time, and rows of the maps as floats, in a ring of as many as the kernel is high. A row's
// outputs are made GROUP at a time, so that a value that is read serves several of them.

#include "maps.h"

#define LARGEST 5  // kernel size
#define GROUP 4
// Pixels, in whole rows, that are asked for before their turn.
#define AHEAD_OF(columns) ((6 * (int64_t)sizeof(T) / (columns) + 1) * (columns))
#define MOST_AHEAD (1 << 20)  // bytes of an image's maps, all told, up to which the next one's are asked for too

// What a thread works in, zeros at first: so stays what lies beside the maps in the rings, and between strided columns.
typedef struct {
    float *zero, *out, *x, *dy;  // rows of zeros and of outputs; rings of [size] rows
    int64_t row, size;           // floats of a row; rows of a ring
    Ahead ahead;                 // the next image
} Space;

static Space make_space(const Geometry *of) {
    int64_t row = (of->W + 2 * of->size + (GROUP + 1) * of->stride) * V;
    int64_t size = row * (2 * of->size + 2) * sizeof(float);
    float *zero = memset(aligned_alloc(64, size), 0, size);
    return (Space){zero, zero + row, zero + 2 * row, zero + (2 + of->size) * row, row, of->size, {{0}}};
}

static float *row_of(const Space *space, float *ring, int64_t row) { return ring + row % space->size * space->row; }

// Where a row is in its ring, or, outside of the map, a row of zeros.
static float *find_row(const Space *space, float *ring, int64_t row, int64_t rows) {
    return row >= 0 && row < rows ? row_of(space, ring, row) : space->zero;
}

// A row of V channels, `some` of them there, of what is read. two: [2][V]: scale, shift; or null.
APART void read_row(const T *x, int64_t columns, int64_t C, int64_t some, const float *two, int kind, float *row) {
    vf zero = {0}, a = two ? get(two) : zero, b = two ? get(two + V) : zero;
#define F(k)                                                 \
    for (int64_t w = 0; w < columns; w++) {                  \
        __builtin_prefetch(x + (AHEAD_OF(columns) + w) * C); \
        vf v = load(x + w * C, some);                        \
        put(row + w * V, two ? activate(v * a + b, k) : v);  \
    }
    BY_KIND(kind, F)
#undef F
}

// A row of dy, every stride-th column. five: [5][V]: scale, shift, p, q, r; or null.
APART void read_gradient(const T *g, const T *y, int64_t columns, int64_t C, int64_t some, const float *five, int kind,
                         int stride, float *row) {
    vf n[5];
    for (int i = 0; five && i < 5; i++) n[i] = get(five + i * V);
#define F(k)                                                                         \
    for (int64_t w = 0; w < columns; w++) {                                          \
        __builtin_prefetch(g + (AHEAD_OF(columns) + w) * C);                         \
        vf d = load(g + w * C, some);                                                \
        if (five) {                                                                  \
            __builtin_prefetch(y + (AHEAD_OF(columns) + w) * C);                     \
            vf v = load(y + w * C, some);                                            \
            d = n[2] * activate_backward(v * n[0] + n[1], d, k) + (n[3] * v + n[4]); \
        }                                                                            \
        put(row + w * stride * V, d);                                                \
    }
    BY_KIND(kind, F)
#undef F
}

// Writes a row. Given sums, [2][V], adds to them what is written, less origin, and its square.
APART void write_row(const float *row, int64_t columns, int64_t C, int64_t some, T *y, const float *origin,
                     float *sums) {
    vf zero = {0}, s = zero, q = zero, o = sums ? get(origin) : zero;
    for (int64_t w = 0; w < columns; w++) {
        vt v = narrow(get(row + w * V));
        __builtin_prefetch(y + (AHEAD_OF(columns) + w) * C, 1);
        store(y + w * C, v, some);
        vf d = widen(v) - o;
        s += d;
        q += d * d;
    }
    if (sums) put(sums, get(sums) + s), put(sums + V, get(sums + V) + q);
}

// Writes a row of dx, with `more` (or null) added. Given three, [3][V]: scale, shift, mean, of the input x, it is first
// made the gradient of scale * x + shift; sums, [2][V], are of that and of its product with x - mean.
APART void write_gradient(const float *row, int64_t columns, int64_t C, int64_t some, const T *x, const float *three,
                          int kind, const T *more, T *dx, float *sums) {
    vf s = {0}, q = {0}, n[3];
    for (int i = 0; three && i < 3; i++) n[i] = get(three + i * V);
#define F(k)                                                     \
    for (int64_t w = 0; w < columns; w++) {                      \
        vf d = get(row + w * V);                                 \
        if (three) {                                             \
            vf v = load(x + w * C, some);                        \
            d = activate_backward(v * n[0] + n[1], d, k);        \
            s += d;                                              \
            q += d * (v - n[2]);                                 \
        }                                                        \
        if (more) d += load(more + w * C, some);                 \
        __builtin_prefetch(dx + (AHEAD_OF(columns) + w) * C, 1); \
        store(dx + w * C, narrow(d), some);                      \
    }
    BY_KIND(kind, F)
#undef F
    if (three) put(sums, get(sums) + s), put(sums + V, get(sums + V) + q);
}

// A row of outputs from K rows of inputs. taps: [K * K][V]. Some columns more are computed.
INLINE void convolve(float *const *rows, const float *taps, int64_t columns, int stride, int K, float *out) {
    vf k[LARGEST * LARGEST], in[(GROUP - 1) * 2 + LARGEST];
    for (int t = 0; t < K * K; t++) k[t] = hold(taps + t * V);
    for (int64_t w = 0; w < columns; w += GROUP) {
        vf sum[GROUP] = {{0}};
        for (int a = 0; a < K; a++) {
            for (int i = 0; i < (GROUP - 1) * stride + K; i++) in[i] = hold(rows[a] + (w * stride + i) * V);
            for (int b = 0; b < K; b++)
                for (int j = 0; j < GROUP; j++) sum[j] += in[j * stride + b] * k[a * K + b];
        }
        for (int j = 0; j < GROUP; j++) put(out + (w + j) * V, sum[j]);
    }
}

// Adds a row's part of the filters' gradient to sums, [K * K][V]. dy: every stride-th column, and zeros after the row.
INLINE void weigh(float *const *rows, const float *dy, int64_t columns, int stride, int K, float *sums) {
    int together = K == 3 ? 3 : 1;  // rows of the kernel whose sums there are registers for
    vf in[(GROUP - 1) * 2 + LARGEST], d[GROUP];
    for (int a = 0; a < K; a += together) {
        vf s[3][LARGEST];
        for (int i = 0; i < together; i++)
            for (int b = 0; b < K; b++) s[i][b] = get(sums + ((a + i) * K + b) * V);
        for (int64_t w = 0; w < columns; w += GROUP) {
            for (int j = 0; j < GROUP; j++) d[j] = get(dy + (w + j) * stride * V);
            for (int i = 0; i < together; i++) {
                for (int j = 0; j < (GROUP - 1) * stride + K; j++) in[j] = hold(rows[a + i] + (w * stride + j) * V);
                for (int j = 0; j < GROUP; j++)
                    for (int b = 0; b < K; b++) s[i][b] += d[j] * in[j * stride + b];
            }
        }
        for (int i = 0; i < together; i++)
            for (int b = 0; b < K; b++) put(sums + ((a + i) * K + b) * V, s[i][b]);
    }
}

// Both for each size and stride, by their constants.
#define FORM(K, stride)                                                                                      \
    APART void convolve_##K##_##stride(float *const *rows, const float *taps, int64_t columns, float *out) { \
        convolve(rows, taps, columns, stride, K, out);                                                       \
    }                                                                                                        \
    APART void weigh_##K##_##stride(float *const *rows, const float *dy, int64_t columns, float *sums) {     \
        weigh(rows, dy, columns, stride, K, sums);                                                           \
    }
FORM(3, 1)
FORM(3, 2)
FORM(5, 1)
FORM(5, 2)

static void convolve_row(float *const *rows, const float *taps, int64_t columns, int stride, int K, float *out) {
    if (K == 3) (stride == 1 ? convolve_3_1 : convolve_3_2)(rows, taps, columns, out);
    else (stride == 1 ? convolve_5_1 : convolve_5_2)(rows, taps, columns, out);
}

static void weigh_row(float *const *rows, const float *dy, int64_t columns, int stride, int K, float *sums) {
    if (K == 3) (stride == 1 ? weigh_3_1 : weigh_3_2)(rows, dy, columns, sums);
    else (stride == 1 ? weigh_5_1 : weigh_5_2)(rows, dy, columns, sums);
}

// V channels of an image, from c on. two: [2][V] of the input; sums: [2][C], of y - origin and its square; or null.
static void convolve_block(const Geometry *of, Space *space, const T *x, const float *two, int kind,
                           const float *taps, T *y, const float *origin, double *sums, int64_t c) {
    int64_t H = of->H, W = of->W, C = of->C, some = C - c, filled = 0;  // rows of x that are in the ring
    float partial[2 * V] = {0}, *rows[LARGEST];
    for (int64_t h = 0; h < of->OH; h++) {
        ask(&space->ahead);
        int64_t top = h * of->stride - of->pad;
        for (; filled < top + of->size && filled < H; filled++)
            read_row(x + filled * W * C + c, W, C, some, two, kind, row_of(space, space->x, filled) + of->pad * V);
        for (int a = 0; a < of->size; a++) rows[a] = find_row(space, space->x, top + a, H);
        convolve_row(rows, taps, of->OW, of->stride, of->size, space->out);
        write_row(space->out, of->OW, C, some, y + h * of->OW * C + c, origin, sums ? partial : 0);
    }
    for (int i = 0; sums && i < V && i < some; i++) sums[c + i] += partial[i], sums[C + c + i] += partial[V + i];
}

// What the gradients of V channels are made with and added to.
typedef struct {
    const float *taps, *five, *three;  // [K * K], turned around: dx is a convolution of dy; [5] of dy; [3] of the
                                       // input: scale, shift, mean; each [V]; five and three may be null
    double *dtaps, *sums;  // [K * K][V], not turned; [2][C], of du and du * (maps - mean)
} Block;

// V channels of an image, from c on: dy never leaves its ring. dx may be null; `more` (or null) is added to it.
static void convolve_block_backward(const Geometry *of, Space *space, const T *g, const T *y, int kind,
                                    const T *x, int xkind, const T *more, T *dx, const Block *block, int64_t c) {
    int64_t H = of->H, W = of->W, C = of->C, OH = of->OH, OW = of->OW, some = C - c;
    int64_t filled = 0, written = 0;  // rows of x that are in its ring, and of dx that are done
    int64_t before = of->size - 1 - of->pad;
    float partial[LARGEST * LARGEST * V] = {0}, sums[2 * V] = {0}, *rows[LARGEST];
    for (int64_t h = 0; h < OH; h++) {
        // dy, with zeros between its columns where the convolution is strided
        float *dy = row_of(space, space->dy, h) + before * V;
        read_gradient(g + h * OW * C + c, y + h * OW * C + c, OW, C, some, block->five, kind, of->stride, dy);
        ask(&space->ahead);
        int64_t top = h * of->stride - of->pad;
        for (; filled < top + of->size && filled < H; filled++)
            read_row(x + filled * W * C + c, W, C, some, block->three, xkind,
                     row_of(space, space->x, filled) + of->pad * V);
        for (int a = 0; a < of->size; a++) rows[a] = find_row(space, space->x, top + a, H);
        weigh_row(rows, dy, OW, of->stride, of->size, partial);
        // the rows of dx that see no later row of dy
        int64_t ready = h + 1 < OH && top + of->stride < H ? top + of->stride : H;
        for (; dx && written < ready; written++) {
            for (int a = 0; a < of->size; a++) {
                int64_t place = written + of->pad - (of->size - 1 - a);
                rows[a] = place % of->stride ? space->zero : find_row(space, space->dy, place / of->stride, OH);
            }
            convolve_row(rows, block->taps, W, 1, of->size, space->out);
            int64_t at = written * W * C + c;
            write_gradient(space->out, W, C, some, x + at, block->three, xkind, more ? more + at : 0, dx + at, sums);
        }
    }
    for (int i = 0; i < of->size * of->size * V; i++) block->dtaps[i] += partial[i];
    for (int i = 0; block->three && i < V && i < some; i++)
        block->sums[c + i] += sums[i], block->sums[C + c + i] += sums[V + i];
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

// Images [first, last). numbers: [blocks][2][V] of the input, or null.
static void convolve_images(const Geometry *of, const Input *x, const float *taps, const float *numbers, T *y,
                            const float *origin, double *sums, int64_t first, int64_t last) {
    int K2 = of->size * of->size;
    int64_t inputs = of->H * of->W * of->C, outputs = of->OH * of->OW * of->C, steps = (of->C + V - 1) / V * of->OH;
    int ahead = far(of->images * inputs) && (inputs + outputs) * (int64_t)sizeof(T) <= MOST_AHEAD;
    Space space = make_space(of);
    for (int64_t i = first; i < last; i++) {
        const T *in = x->maps + i * inputs;
        T *out = y + i * outputs;
        if (ahead) {
            look_ahead(&space.ahead, 0, in + inputs, inputs, steps);
            look_ahead(&space.ahead, WRITTEN, out + outputs, outputs, steps);
        }
        for (int64_t c = 0; c < of->C; c += V)
            convolve_block(of, &space, in, numbers ? numbers + 2 * c : 0, x->kind, taps + c * K2, out,
                           sums ? origin + c : 0, sums, c);
    }
    free(space.zero);
}

// y = the depthwise convolution of the input. weight: [C][K * K]. norm: what follows, and takes statistics; or null.
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

// The gradients of the filters, and of the input: dx (null: not), to which `more` (or null) is added; where the input
// goes through a norm, dx is that of scale * maps + shift, and `result` is filled.
void depthwise_backward(const Geometry *of, const Gradient *y, const Input *x, const float *weight, const T *more,
                        T *dx, float *dweight, NormGradient *result, int threads) {
    int64_t C = of->C, K2 = of->size * of->size, filters = (C + V - 1) / V * V * K2, each = filters + 2 * C;
    int64_t inputs = of->H * of->W * C, outputs = of->OH * of->OW * C, steps = (C + V - 1) / V * of->OH;
    int ahead = far(of->images * inputs) && 2 * (inputs + outputs) * (int64_t)sizeof(T) <= MOST_AHEAD;
    float *taps = make_taps(weight, C, K2, 1), *five = y->numbers ? make_blocks(y->numbers, C, 5) : 0;
    float *three = x->saved ? make_blocks(x->saved, C, 3) : 0;
    double *parts = calloc((threads + 1) * each, sizeof(double)), *total = parts + threads * each;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(of->images, &first);
        double *mine = parts + thread_number() * each;
        Space space = make_space(of);
        for (int64_t i = first; i < last; i++) {
            int64_t in = i * inputs, out = i * outputs;
            if (ahead) {
                look_ahead(&space.ahead, 0, x->maps + in + inputs, inputs, steps);
                look_ahead(&space.ahead, 1, y->g + out + outputs, outputs, steps);
                look_ahead(&space.ahead, 2, y->numbers ? y->maps + out + outputs : 0, outputs, steps);
                look_ahead(&space.ahead, 3, more ? more + in + inputs : 0, inputs, steps);
                look_ahead(&space.ahead, WRITTEN, dx ? dx + in + inputs : 0, inputs, steps);
            }
            for (int64_t c = 0; c < C; c += V) {
                Block block = {taps + c * K2, five ? five + 5 * c : 0, three ? three + 3 * c : 0, mine + c * K2,
                               mine + filters};
                convolve_block_backward(of, &space, y->g + out, y->maps + out, y->kind, x->maps + in, x->kind,
                                        more ? more + in : 0, dx ? dx + in : 0, &block, c);
            }
        }
        free(space.zero);
    }
    add_up(parts, threads, each, total);
    for (int64_t c = 0; c < C; c++)
        for (int t = 0; t < K2; t++) dweight[c * K2 + t] = total[(c / V * K2 + t) * V + c % V];
    if (result) conclude_backward(x->saved, total + filters, of->images * of->H * of->W, C, result);
    free(taps), free(five), free(three), free(parts);
}
