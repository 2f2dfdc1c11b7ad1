// Max pooling of 2 x 2 positions. Where its maximum was is found again from the maps, not noted for each.

#include "maps.h"

// Four positions, two of a row and two of the next, and the largest; NaN where one is.
INLINE vf read_window(const T *x, int64_t row, int64_t C, int64_t some, vf window[4]) {
    for (int i = 0; i < 4; i++) {
        const T *at = x + i / 2 * row + i % 2 * C;
        __builtin_prefetch(at + AHEAD);
        window[i] = load(at, some);
    }
    vf most = window[0];
    for (int i = 1; i < 4; i++) most = where((window[i] > most) | (window[i] != window[i]), window[i], most);
    return most;
}

// y, (images, OH, OW, C): the largest of each four of x, (images, H, W, C), but for an odd side's last row or column.
void pool_forward(const Geometry *of, const T *x, T *y, int threads) {
    int64_t C = of->C, row = of->W * C, rows = of->images * of->OH;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(rows, &first);
        for (int64_t r = first; r < last; r++) {
            const T *in = x + (r / of->OH * of->H + r % of->OH * 2) * row;
            for (int64_t w = 0; w < of->OW; w++)
                for (int64_t c = 0; c < C; c += V) {
                    vf window[4], most = read_window(in + w * 2 * C + c, row, C, C - c, window);
                    store(y + (r * of->OW + w) * C + c, narrow(most), C - c);
                }
        }
    }
}

// dx, from that of y: the first of the largest gets it.
void pool_backward(const Geometry *of, const T *dy, const T *x, T *dx, int threads) {
    int64_t C = of->C, row = of->W * C, rows = of->images * of->OH;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last = share(rows, &first);
        for (int64_t r = first; r < last; r++) {
            int64_t image = r / of->OH, h = r % of->OH, place = (image * of->H + h * 2) * row;
            for (int64_t w = 0; w < of->OW; w++)
                for (int64_t c = 0; c < C; c += V) {
                    vf window[4], zero = {0}, g = load(dy + (r * of->OW + w) * C + c, C - c);
                    vf most = read_window(x + place + w * 2 * C + c, row, C, C - c, window);
                    for (int i = 0; i < 4; i++) {
                        T *at = dx + place + w * 2 * C + c + i / 2 * row + i % 2 * C;
                        __builtin_prefetch(at + AHEAD, 1);
                        vi here = window[i] == most;
                        store(at, narrow(where(here, g, zero)), C - c);
                        g = where(here, zero, g);
                    }
                }
            for (int i = 0; i < 2 && of->W % 2; i++) memset(dx + place + (i + 1) * row - C, 0, C * sizeof(T));
            if (of->H % 2 && h == of->OH - 1) memset(dx + place + 2 * row, 0, row * sizeof(T));
        }
    }
}
