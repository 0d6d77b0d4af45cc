// pack and multiply, for one instruction set. The including file sets LANES, TILE_ROWS, TILE_VECTORS and, where the
// processor multiplies pairs of bfloat16, PAIRS and add_pairs().
#pragma once

#include "simd.h"

namespace fastprobe {
namespace {

// Zeros after what a row has of a panel, so that vectors can be read beyond its end.
template <class T>
INLINE const T* within(const T* from, int64_t stride, int have, T (&copy)[PANEL]) {
    if (have == PANEL && stride == 1) return from;
    for (int c = 0; c < PANEL; ++c) copy[c] = c < have ? from[c * stride] : T(0);
    return copy;
}

INLINE void add_moments(vec v, int c, double* sums, double* squares) {
    wide w = __builtin_convertvector(v, wide);  // in double: squares of trained, dead columns underflow in float32
    store(sums + c, load<wide>(sums + c) + w);
    store(squares + c, load<wide>(squares + c) + w * w);
}

template <class T, class Widen>
INLINE void pack_floats(const Rows& rows, const int64_t* index, int64_t n, int64_t column, const float* origin,
                        float* panel, double* sums, double* squares, Widen widen) {
    typedef T packed __attribute__((vector_size(sizeof(T) * LANES)));
    const T* base = static_cast<const T*>(rows.data) + column * rows.column_stride;
    const int have = rows.width - column < PANEL ? int(rows.width - column) : PANEL;
    float zero[PANEL] = {}, shift[PANEL];
    const float* about = within(origin ? origin + column : zero, 1, origin ? have : PANEL, shift);
    for (int64_t i = 0; i < n; ++i, panel += PANEL) {
        T copy[PANEL];
        if (i + 8 < n) __builtin_prefetch(base + index[i + 8] * rows.row_stride);
        const T* row = within(base + index[i] * rows.row_stride, rows.column_stride, have, copy);
        for (int c = 0; c < PANEL; c += LANES) {
            vec v = widen(load<packed>(row + c)) - load<vec>(about + c);
            store(panel + c, v);
            if (sums) add_moments(v, c, sums, squares);
        }
    }
}

INLINE void pack_pairs(const Rows& rows, const int64_t* index, int64_t n, int64_t column, float* panel, double* sums,
                       double* squares) {
    const uint16_t* base = static_cast<const uint16_t*>(rows.data) + column * rows.column_stride;
    const int have = rows.width - column < PANEL ? int(rows.width - column) : PANEL;
    const uint16_t nothing[PANEL] = {};
    for (int64_t i = 0; i < n; i += 2, panel += PANEL) {
        uint16_t copies[2][PANEL];
        const uint16_t* row[2] = {nothing, nothing};
        for (int k = 0; k < 2 && i + k < n; ++k) {
            if (i + k + 8 < n) __builtin_prefetch(base + index[i + k + 8] * rows.row_stride);
            row[k] = within(base + index[i + k] * rows.row_stride, rows.column_stride, have, copies[k]);
        }
        for (int c = 0; c < PANEL; c += LANES) {
            halves first = load<halves>(row[0] + c), second = load<halves>(row[1] + c);
            store(panel + c, as_float(widened(first) | widened(second) << 16));
            if (sums) {
                add_moments(from_bfloat16(first), c, sums, squares);
                add_moments(from_bfloat16(second), c, sums, squares);
            }
        }
    }
}

void pack(const Rows& rows, const int64_t* index, int64_t n, int64_t column, const float* origin, bool pairs,
          float* panel, double* sums, double* squares) {
    if (pairs)
        pack_pairs(rows, index, n, column, panel, sums, squares);
    else if (rows.dtype == Dtype::FLOAT32)
        pack_floats<float>(rows, index, n, column, origin, panel, sums, squares, [](vec v) { return v; });
    else if (rows.dtype == Dtype::BFLOAT16)
        pack_floats<uint16_t>(rows, index, n, column, origin, panel, sums, squares,
                              [](halves h) { return from_bfloat16(h); });
    else
        pack_floats<uint16_t>(rows, index, n, column, origin, panel, sums, squares,
                              [](halves h) { return from_float16(h); });
}

// One register tile, TILE_ROWS by TILE_VECTORS * LANES, over one chain.
template <bool OF_PAIRS>
INLINE void add_chain(const float* a, const float* b, int64_t steps, float* total, bool first) {
    vec sum[TILE_ROWS][TILE_VECTORS] = {};
    for (int64_t t = 0; t < steps; ++t, a += PANEL, b += PANEL) {
        vec right[TILE_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < TILE_VECTORS; ++v) right[v] = load<vec>(b + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < TILE_VECTORS; ++v) {
#ifdef PAIRS
                if (OF_PAIRS)
                    sum[r][v] = add_pairs(sum[r][v], a + r, right[v]);
                else
#endif
                    sum[r][v] += a[r] * right[v];
            }
    }
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < TILE_VECTORS; ++v) {
            float* out = total + r * PANEL + v * LANES;
            store(out, first ? sum[r][v] : load<vec>(out) + sum[r][v]);
        }
}

template <bool OF_PAIRS>
INLINE void multiply_panels(const float* a, const float* b, int64_t n, double weight, double* out, int64_t stride,
                            int height, int width) {
    alignas(64) float total[PANEL * PANEL];
    const int64_t steps = OF_PAIRS ? (n + 1) / 2 : n, chain = OF_PAIRS ? CHAIN / 2 : CHAIN;
    for (int64_t t = 0; t < steps; t += chain) {
        const int64_t length = steps - t < chain ? steps - t : chain;
        for (int r = 0; r < height; r += TILE_ROWS)
            for (int c = 0; c < width; c += TILE_VECTORS * LANES)
                add_chain<OF_PAIRS>(a + t * PANEL + r, b + t * PANEL + c, length, total + r * PANEL + c, t == 0);
    }
    for (int r = 0; r < height; ++r)
        for (int c = 0; c < width; ++c) out[r * stride + c] += weight * total[r * PANEL + c];
}

void multiply(const float* a, const float* b, int64_t n, [[maybe_unused]] bool pairs, double weight, double* out,
              int64_t stride, int height, int width) {
#ifdef PAIRS
    if (pairs) return multiply_panels<true>(a, b, n, weight, out, stride, height, width);
#endif
    multiply_panels<false>(a, b, n, weight, out, stride, height, width);
}

}  // namespace
}  // namespace fastprobe
