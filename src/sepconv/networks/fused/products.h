// Products of matrices in a core's cache: of floats; of pairs of halves, where the processor multiplies and adds two at
// once; or of tiles of them, where it has such an instruction (Intel's AMX).

#pragma once
#include "vectors.h"

#define M (V == 16 ? 8 : 4)  // rows of a product that are in registers at a time, each of two vectors

// What is multiplied at once: a float; or, where the processor has an instruction for it, two halves.
#if defined(BF16) && defined(__AVX512BF16__)
#define PAIR 2
typedef uint32_t E;
typedef vu ve;
INLINE vf multiply_add(vf sum, E one, ve many) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(one), (__m512bh)many);
}
INLINE ve join(vt first, vt second) { return extend(first) | (extend(second) << 16); }  // value by value
#else
#define PAIR 1
typedef float E;
typedef vf ve;
INLINE vf multiply_add(vf sum, E one, ve many) { return sum + one * many; }
INLINE ve join(vt first, vt second) { return (void)second, widen(first); }
#endif

INLINE int64_t whole(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

// The E's from a row of C values to the next: an odd number of vectors, or many rows would share few places of a cache.
INLINE int64_t stride_of(int64_t C) { return whole(C, V) / V % 2 ? whole(C, V) + 2 * V : whole(C, V) + V; }

static void *zeros(int64_t size) { return memset(aligned_alloc(64, whole(size, 64)), 0, size); }

// The first factor of a product, at[m * step + k * next], and the second, at[k * step + n]. Beyond the values there are
// zeros, up to whole numbers of V.
typedef struct {
    const E *at;
    int64_t step, next;
} Left;
typedef struct {
    const E *at;
    int64_t step;
} Right;

// result[m][n], m < M, n < `vectors` of V: the sum over k < count of a[m][k] * b[k][n]; if `add`, added to what is
// there, once: a long sum in one float would lose precision.
INLINE void multiply(Left a, Right b, int64_t count, float *result, int64_t stride, int add, int vectors) {
    vf sum[M][2] = {{{0}}};
    for (int64_t k = 0; k < count; k++) {
        ve many[2];
        for (int j = 0; j < vectors; j++) many[j] = *(const ve *)(b.at + k * b.step + j * V);
        for (int m = 0; m < M; m++) {
            E one = a.at[m * a.step + k * a.next];
            for (int j = 0; j < vectors; j++) sum[m][j] = multiply_add(sum[m][j], one, many[j]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int j = 0; j < vectors; j++) {
            float *place = result + m * stride + j * V;
            put(place, add ? get(place) + sum[m][j] : sum[m][j]);
        }
}

#if defined(BF16) && defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>

// Linux lets a process use the tile registers once it has asked to.
static int has_tiles;
__attribute__((constructor)) static void ask_for_tiles(void) { has_tiles = syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

// A thread's tile registers: eight of 16 rows of 64 bytes; and their end.
static void begin_tiles(void) {
    struct {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    if (has_tiles) _tile_loadconfig(&shape);
}
static void end_tiles(void) {
    if (has_tiles) _tile_release();
}

// As `multiply`, for 16 rows or, if `tall`, 32, and V columns or, if `wide`, 2 V, of V k's at a time. What is added to
// is where the sum begins: halves are rounded by far more than a float is.
APART void multiply_tiles(Left a, Right b, int64_t count, float *result, int64_t stride, int add, int tall, int wide) {
    float *below = result + 16 * stride;
    int64_t row = stride * sizeof(float), left_row = a.step * sizeof(E), right_row = b.step * sizeof(E);
    __asm__ volatile("" ::: "memory");  // what was written before is there
    if (!add) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, result, row);
        if (wide) _tile_loadd(1, result + V, row);
        if (tall) _tile_loadd(2, below, row);
        if (tall && wide) _tile_loadd(3, below + V, row);
    }
    for (int64_t k = 0; k < count; k += V) {
        const E *left = a.at + k, *right = b.at + k * b.step;
        _tile_loadd(4, left, left_row);
        _tile_loadd(6, right, right_row);
        _tile_dpbf16ps(0, 4, 6);
        if (wide) {
            _tile_loadd(7, right + V, right_row);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (tall) {
            _tile_loadd(5, left + 16 * a.step, left_row);
            _tile_dpbf16ps(2, 5, 6);
            if (wide) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, result, row);
    if (wide) _tile_stored(1, result + V, row);
    if (tall) _tile_stored(2, below, row);
    if (tall && wide) _tile_stored(3, below + V, row);
    __asm__ volatile("" ::: "memory");
}
#else
#define has_tiles 0
INLINE void begin_tiles(void) {}
INLINE void end_tiles(void) {}
INLINE void multiply_tiles(Left a, Right b, int64_t count, float *result, int64_t stride, int add, int tall, int wide) {
}
#endif

// Rows of a product that are made at once.
INLINE int64_t rows_at_once(void) { return has_tiles ? 32 : M; }

// How many parts, each made at once, a product of so many rows and columns has.
INLINE int64_t count_products(int64_t rows, int64_t columns) {
    return whole(rows, rows_at_once()) / rows_at_once() * (whole(columns, 2 * V) / 2 / V);
}

// The same of m < rows (rounded up to M, or 16 where there are tiles), n < columns (to V).
static void multiply_all(Left a, Right b, int64_t count, int64_t rows, int64_t columns, float *result, int64_t stride,
                         int add, Ahead *ahead) {
    for (int64_t n = 0; n < columns; n += 2 * V)
        for (int64_t m = 0; m < rows; m += rows_at_once()) {
            ask(ahead);
            float *place = result + m * stride + n;
            Left left = {a.at + m * a.step, a.step, a.next};
            Right right = {b.at + n, b.step};
            int wide = columns - n > V;
            if (has_tiles) multiply_tiles(left, right, count, place, stride, add, rows - m > 16, wide);
            else if (wide) multiply(left, right, count, place, stride, add, 2);
            else multiply(left, right, count, place, stride, add, 1);
        }
}

// A matrix [rows][columns] (or, turned, of [columns][rows]) as the second factor of sums over its rows.
static Right pack(const float *matrix, int64_t rows, int64_t columns, int turned) {
    int64_t step = stride_of(columns);
    E *result = zeros(whole((rows + PAIR - 1) / PAIR, V) * step * sizeof(E));
    for (int64_t k = 0; k * PAIR < rows; k++)
        for (int64_t n = 0; n < columns; n += V) {
            vf v[2] = {{0}, {0}};
            for (int i = 0; i < PAIR && k * PAIR + i < rows; i++)
                for (int64_t l = 0; l < V && n + l < columns; l++)
                    v[i][l] = turned ? matrix[(n + l) * rows + k * PAIR + i] : matrix[(k * PAIR + i) * columns + n + l];
            *(ve *)(result + k * step + n) = join(narrow(v[0]), narrow(v[1]));
        }
    return (Right){result, step};
}

#if PAIR == 2
// The V x V values at `from` with rows and columns exchanged: halves of them, then halves of those, and so on.
INLINE void transpose(const E *from, int64_t stride, E *to, int64_t to_stride) {
    __m512i v[V], lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = 0; i < V; i++) v[i] = _mm512_loadu_si512(from + i * stride);
#define EXCHANGE(half)                                                                             \
    {                                                                                              \
        __mmask16 odd = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(half));                     \
        __m512i low = _mm512_mask_add_epi32(lane, odd, lane, _mm512_set1_epi32(V - half));         \
        __m512i high = _mm512_mask_add_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(half)), odd, \
                                             lane, _mm512_set1_epi32(V));                          \
        for (int i = 0; i < V; i++)                                                                \
            if (!(i & half)) {                                                                     \
                __m512i a = v[i], b = v[i + half];                                                 \
                v[i] = _mm512_permutex2var_epi32(a, low, b);                                       \
                v[i + half] = _mm512_permutex2var_epi32(a, high, b);                               \
            }                                                                                      \
    }
    EXCHANGE(8) EXCHANGE(4) EXCHANGE(2) EXCHANGE(1)
#undef EXCHANGE
    for (int i = 0; i < V; i++) _mm512_storeu_si512(to + i * to_stride, v[i]);
}
#endif
