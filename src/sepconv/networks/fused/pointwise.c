// Pointwise convolution: a product of maps (pixels, C) with a matrix, by tiles of pixels that stay in the cache. What
// it reads is normalised and activated as a tile is filled; what comes out is summed as it is written, for the next norm.

#include "maps.h"
#include "products.h"

#define TILE 96  // pixels

// A tile of maps, in the two forms that products take: sums over channels want `rows`, [TILE][C], pairs of channels
// together; sums over pixels want `columns`, [TILE / PAIR][C], pairs of pixels together. As floats they are the same.
typedef struct {
    int64_t C, stride;  // stride: of a row, in E's
    E *rows, *columns;  // either may be null
    E *turned;          // room for the columns with pixels and channels exchanged, where products need it
} Tile;

static Tile make_tile(int64_t C, int rows, int columns) {
    int64_t stride = stride_of(C), size = TILE * stride * sizeof(E);
    if (PAIR == 1) rows = 1;
    Tile tile = {C, stride, rows ? zeros(size) : 0, columns ? zeros(size) : 0, has_tiles && columns ? zeros(size) : 0};
    if (PAIR == 1) free(tile.columns), tile.columns = tile.rows;
    return tile;
}

static void free_tile(Tile *tile) {
    if (tile->columns != tile->rows) free(tile->columns);
    free(tile->rows), free(tile->turned);
}

// A tile's channels as the first factor of a sum over pixels.
static Left by_channels(const Tile *tile) {
#if PAIR == 2
    int64_t pairs = TILE / PAIR;
    for (int64_t p = 0; has_tiles && p < pairs; p += V)
        for (int64_t c = 0; c < tile->C; c += V)
            transpose(tile->columns + p * tile->stride + c, tile->stride, tile->turned + c * pairs + p, pairs);
    if (has_tiles) return (Left){tile->turned, pairs, 1};
#endif
    return (Left){tile->columns, 1, tile->stride};
}

// Two pixels' vectors at channel c.
INLINE void set(const Tile *tile, int64_t pixel, int64_t c, vf first, vf second) {
    vt one = narrow(first), two = narrow(second);
    E *row = tile->rows + pixel * tile->stride;
#if PAIR == 2
    if (tile->rows) *(vt *)((T *)row + c) = one, *(vt *)((T *)(row + tile->stride) + c) = two;
    if (tile->columns) *(ve *)(tile->columns + pixel / 2 * tile->stride + c) = join(one, two);
#else
    put(row + c, widen(one)), put(row + tile->stride + c, widen(two));
#endif
}

// `count` pixels of what is read, and zeros. two: [blocks][2][V]: scale, shift; or null.
APART void fill(const Tile *tile, const T *x, int64_t count, const float *two, int kind) {
    int64_t C = tile->C;
#define F(k)                                                                                 \
    for (int64_t p = 0; p < TILE; p += 2)                                                    \
        for (int64_t c = 0; c < C; c += V) {                                                 \
            vf v[2] = {{0}, {0}};                                                            \
            for (int i = 0; i < 2 && p + i < count; i++) {                                   \
                const T *at = x + (p + i) * C + c;                                           \
                v[i] = load(at, C - c);                                                      \
                if (two) v[i] = activate(v[i] * get(two + 2 * c) + get(two + 2 * c + V), k); \
            }                                                                                \
            set(tile, p, c, v[0], v[1]);                                                     \
        }
    BY_KIND(kind, F)
#undef F
}

// The same of dy. five: [blocks][5][V]: scale, shift, p, q, r; or null.
APART void fill_gradient(const Tile *tile, const T *g, const T *y, int64_t count, const float *five, int kind) {
    int64_t C = tile->C;
#define F(k)                                                                          \
    for (int64_t p = 0; p < TILE; p += 2)                                             \
        for (int64_t c = 0; c < C; c += V) {                                          \
            vf d[2] = {{0}, {0}};                                                     \
            for (int i = 0; i < 2 && p + i < count; i++) {                            \
                int64_t place = (p + i) * C + c;                                      \
                d[i] = load(g + place, C - c);                                        \
                if (!five) continue;                                                  \
                const float *n = five + 5 * c;                                        \
                vf v = load(y + place, C - c);                                        \
                d[i] = activate_backward(v * get(n) + get(n + V), d[i], k);           \
                d[i] = get(n + 2 * V) * d[i] + (get(n + 3 * V) * v + get(n + 4 * V)); \
            }                                                                         \
            set(tile, p, c, d[0], d[1]);                                              \
        }
    BY_KIND(kind, F)
#undef F
}

// Writes a tile, `out`, of `count` pixels and C channels. sums, [2][whole C]: given origin, of y - origin and its square.
APART void write_tile(const float *out, int64_t stride, int64_t count, int64_t C, T *y, const float *origin,
                      float *sums) {
    memset(sums, 0, 2 * whole(C, V) * sizeof(float));
    for (int64_t from = 0; from < count; from += M)
        for (int64_t c = 0; c < C; c += V) {
            float *at = sums + c, *after = at + whole(C, V);
            vf s = get(at), q = get(after), o = origin ? get(origin + c) : s;
            for (int64_t p = from; p < from + M && p < count; p++) {
                vt v = narrow(get(out + p * stride + c));
                store(y + p * C + c, v, C - c);
                vf d = widen(v) - o;
                s += d;
                q += d * d;
            }
            put(at, s), put(after, q);
        }
}

// The same of dx, with `more` (or null) added. Given three, [blocks][3][V] (scale, shift, mean), it is first made the
// gradient of scale * x + shift; sums are of that and of its product with x - mean.
APART void write_gradient(const float *out, int64_t stride, int64_t count, int64_t C, const T *x, const float *three,
                          int kind, const T *more, T *dx, float *sums) {
    memset(sums, 0, 2 * whole(C, V) * sizeof(float));
#define F(k)                                                              \
    for (int64_t from = 0; from < count; from += M)                       \
        for (int64_t c = 0; c < C; c += V) {                              \
            float *at = sums + c, *after = at + whole(C, V);              \
            const float *n = three + 3 * c;                               \
            vf s = get(at), q = get(after);                               \
            for (int64_t p = from; p < from + M && p < count; p++) {      \
                int64_t place = p * C + c;                                \
                vf d = get(out + p * stride + c);                         \
                if (three) {                                              \
                    vf v = load(x + place, C - c);                        \
                    d = activate_backward(v * get(n) + get(n + V), d, k); \
                    s += d;                                               \
                    q += d * (v - get(n + 2 * V));                        \
                }                                                         \
                if (more) d += load(more + place, C - c);                 \
                store(dx + place, narrow(d), C - c);                      \
            }                                                             \
            put(at, s), put(after, q);                                    \
        }
    BY_KIND(kind, F)
#undef F
}

static void add_sums(const float *sums, int64_t C, double *total) {
    for (int64_t c = 0; c < C; c++) total[c] += sums[c], total[C + c] += sums[whole(C, V) + c];
}

// Tiles [first, last) of the pixels. two: of the input; sums: [2][C_out], or null.
static void convolve_tiles(int64_t pixels, int64_t C_in, int64_t C_out, const Input *x, const float *two,
                           Right weight, T *y, const float *origin, double *sums, int64_t first, int64_t last) {
    Tile tile = make_tile(C_in, 1, 0);
    int64_t stride = stride_of(C_out);
    float *out = zeros(TILE * stride * sizeof(float)), *part = zeros(2 * whole(C_out, V) * sizeof(float));
    begin_tiles();
    for (int64_t t = first; t < last; t++) {
        int64_t from = t * TILE, count = pixels - from < TILE ? pixels - from : TILE;
        fill(&tile, x->maps + from * C_in, count, two, x->kind);
        int64_t steps = count_products(count, C_out);
        Ahead ahead = {{0}};
        if (far(pixels * C_in)) {
            look_ahead(&ahead, 0, x->maps + (from + TILE) * C_in, TILE * C_in, steps);
            look_ahead(&ahead, WRITTEN, y + (from + TILE) * C_out, TILE * C_out, steps);
        }
        multiply_all((Left){tile.rows, tile.stride, 1}, weight, (C_in + PAIR - 1) / PAIR, count, C_out, out, stride, 0,
                     &ahead);
        write_tile(out, stride, count, C_out, y + from * C_out, origin, part);
        if (sums) add_sums(part, C_out, sums);
    }
    end_tiles();
    free_tile(&tile), free(out), free(part);
}

// y = the pointwise convolution of the input. weight: [C_out][C_in]. norm: what follows, and takes statistics; or null.
void pointwise_forward(const Geometry *of, const Input *x, const float *weight, Norm *norm, T *y, int threads) {
    int64_t C_in = of->C, C_out = of->OC, pixels = of->images * of->H * of->W, tiles = (pixels + TILE - 1) / TILE;
    Right packed = pack(weight, C_in, C_out, 1);
    float *two = x->saved ? make_blocks(x->saved, C_in, 2) : 0, *origin = 0;
    double *parts = calloc((threads + 1) * 2 * C_out, sizeof(double)), *sums = parts + threads * 2 * C_out;
    if (norm) {
        origin = make_blocks(memset(norm->saved + ORIGIN * C_out, 0, C_out * sizeof(float)), C_out, 1);
        convolve_tiles(pixels, C_in, C_out, x, two, packed, y, origin, sums, 0, 1);  // one, for its mean
        set_origin(norm, sums, pixels < TILE ? pixels : TILE, C_out);
        memcpy(origin, norm->saved + ORIGIN * C_out, C_out * sizeof(float));
    }
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(tiles, &first);
        double *mine = norm ? parts + thread_number() * 2 * C_out : 0;
        convolve_tiles(pixels, C_in, C_out, x, two, packed, y, origin, mine, first, last);
    }
    if (norm) {
        add_up(parts, threads, 2 * C_out, sums);
        conclude(norm, sums, pixels, C_out);
    }
    free((void *)packed.at), free(two), free(origin), free(parts);
}

#define SUMMED 32  // tiles whose products are summed in floats before their sum is added to the doubles

// The gradients of the weight, and of the input: dx (null: not), to which `more` (or null) is added; where the input
// goes through a norm, dx is that of scale * maps + shift, and `result` is filled.
void pointwise_backward(const Geometry *of, const Gradient *y, const Input *x, const float *weight, const T *more,
                        T *dx, float *dweight, NormGradient *result, int threads) {
    int64_t C_in = of->C, C_out = of->OC, pixels = of->images * of->H * of->W, tiles = (pixels + TILE - 1) / TILE;
    int64_t stride = stride_of(C_in), wide = whole(C_out, V), each = C_in * C_out + 2 * C_in;
    Right packed = pack(weight, C_out, C_in, 0);
    float *two = x->saved ? make_blocks(x->saved, C_in, 2) : 0, *three = x->saved ? make_blocks(x->saved, C_in, 3) : 0;
    float *five = y->numbers ? make_blocks(y->numbers, C_out, 5) : 0;
    double *parts = calloc((threads + 1) * each, sizeof(double)), *total = parts + threads * each;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(tiles, &first);
        double *products = parts + thread_number() * each, *sums = products + C_in * C_out;
        Tile dy = make_tile(C_out, 1, 1), u = make_tile(C_in, 0, 1);
        float *out = zeros(TILE * stride * sizeof(float)), *part = zeros(2 * whole(C_in, V) * sizeof(float));
        float *product = zeros(whole(C_in, V) * wide * sizeof(float));  // [C_in][C_out]
        begin_tiles();
        for (int64_t t = first; t < last; t++) {
            int64_t from = t * TILE, count = pixels - from < TILE ? pixels - from : TILE;
            const T *in = x->maps + from * C_in;
            fill_gradient(&dy, y->g + from * C_out, y->maps + from * C_out, count, five, y->kind);
            fill(&u, in, count, two, x->kind);
            int64_t steps = count_products(C_in, C_out) + (dx ? count_products(count, C_in) : 0);
            Ahead ahead = {{0}};
            if (far(pixels * C_in)) {
                look_ahead(&ahead, 0, in + TILE * C_in, TILE * C_in, steps);
                look_ahead(&ahead, 1, y->g + (from + TILE) * C_out, TILE * C_out, steps);
                look_ahead(&ahead, 2, five ? y->maps + (from + TILE) * C_out : 0, TILE * C_out, steps);
                look_ahead(&ahead, 3, more ? more + (from + TILE) * C_in : 0, TILE * C_in, steps);
                look_ahead(&ahead, WRITTEN, dx ? dx + (from + TILE) * C_in : 0, TILE * C_in, steps);
            }
            multiply_all(by_channels(&u), (Right){dy.columns, dy.stride}, TILE / PAIR, C_in, C_out, product, wide, 1,
                         &ahead);
            if ((t - first) % SUMMED == SUMMED - 1 || t == last - 1) {
                for (int64_t i = 0; i < C_in; i++)
                    for (int64_t o = 0; o < C_out; o++) products[i * C_out + o] += product[i * wide + o];
                memset(product, 0, whole(C_in, V) * wide * sizeof(float));
            }
            if (!dx) continue;
            multiply_all((Left){dy.rows, dy.stride, 1}, packed, (C_out + PAIR - 1) / PAIR, count, C_in, out, stride, 0,
                         &ahead);
            write_gradient(out, stride, count, C_in, in, three, x->kind, more ? more + from * C_in : 0,
                           dx + from * C_in, part);
            if (three) add_sums(part, C_in, sums);
        }
        end_tiles();
        free_tile(&dy), free_tile(&u), free(out), free(part), free(product);
    }
    add_up(parts, threads, each, total);
    for (int64_t o = 0; o < C_out; o++)
        for (int64_t i = 0; i < C_in; i++) dweight[o * C_in + i] = total[i * C_out + o];
    if (result) conclude_backward(x->saved, total + C_in * C_out, pixels, C_in, result);
    free((void *)packed.at), free(two), free(three), free(five), free(parts);
}

// What each output of a standard convolution sees of x, images of few channels, with zeros outside of them: (images, OH,
// OW, size * size * C). The convolution is a pointwise one of that.
void read_patches(const Geometry *of, const T *x, T *patches, int threads) {
    int64_t C = of->C, size = of->size, run = size * C, rows = of->images * of->OH;
    const T *end = x + of->images * of->H * of->W * C;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(rows, &first);
        T *to = patches + first * of->OW * size * run, *stop = patches + last * of->OW * size * run;
        for (int64_t r = first; r < last; r++) {
            int64_t top = r % of->OH * of->stride - of->pad;
            const T *image = x + r / of->OH * of->H * of->W * C;
            for (int64_t w = 0; w < of->OW; w++) {
                int64_t column = w * of->stride - of->pad, left = column < 0 ? -column : 0;
                int64_t right = column + size > of->W ? of->W - column : size;
                for (int64_t a = 0; a < size; a++, to += run) {
                    const T *from = image + ((top + a) * of->W + column) * C;
                    int64_t none = top + a < 0 || top + a >= of->H, until = none ? 0 : right;
                    if (!none && !left && right == size && run <= V && from + V <= end && to + V <= stop) {
                        *(vt *)to = *(const vt *)from;  // what is too much is written again
                        continue;
                    }
                    for (int64_t i = 0; i < run; i++) to[i] = i >= left * C && i < until * C ? from[i] : 0;
                }
            }
        }
    }
}
