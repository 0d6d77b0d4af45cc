// score and widen of kernels.h, for one instruction set.
#pragma once

#include "panels.h"

namespace fastprobe {
namespace {

template <class Widen>
INLINE void widen_rows(const Rows& rows, int64_t row, int height, float* out, Widen widen) {
    using T = typename Widen::Stored;
    typedef T packed __attribute__((vector_size(sizeof(T) * LANES)));
    for (int r = 0; r < height; ++r)
        for (int64_t column = 0; column < rows.width; column += PANEL) {
            const int have = columns_from(rows, column);
            const T* from =
                static_cast<const T*>(rows.data) + (row + r) * rows.row_stride + column * rows.column_stride;
            T copy[PANEL];
            float wide[PANEL];
            from = whole_row(from, rows.column_stride, have, copy);
            for (int c = 0; c < PANEL; c += LANES) store(wide + c, widen(load<packed>(from + c)));
            memcpy(out + r * rows.width + column, wide, size_t(have) * sizeof(float));
        }
}

void widen(const Rows& rows, int64_t row, int height, float* out) {
    read_as(rows.dtype, [&](auto widen) { widen_rows(rows, row, height, out, widen); });
}

template <class Widen>
INLINE void score_rows(const float* x, int64_t depth, const float* weights, const float* bias,
                       const Rows& y, int64_t row, int height, RowSums out, float* residual, int64_t residual_panel,
                       Widen widen) {
    using T = typename Widen::Stored;
    typedef T packed __attribute__((vector_size(sizeof(T) * LANES)));
    const T* base = static_cast<const T*>(y.data) + row * y.row_stride;
    vec dot[PANEL] = {}, p_squares[PANEL] = {}, y_squares[PANEL] = {}, error[PANEL] = {};
    for (int64_t column = 0; column < y.width; column += PANEL, weights += depth * PANEL) {
        alignas(64) float p[PANEL * PANEL] = {};
        for (int64_t t = 0; t < depth; t += CHAIN)
            for (int r = 0; r < height; r += TILE_ROWS)
                for (int c = 0; c < PANEL; c += TILE_VECTORS * LANES)
                    multiply_rows(x + r * depth + t, depth, depth - t < CHAIN ? depth - t : CHAIN,
                                  weights + t * PANEL + c, p + r * PANEL + c, PANEL, p + r * PANEL + c, PANEL,
                                  {weights, 0});
        const int have = columns_from(y, column);
        for (int r = 0; r < height; ++r) {
            T copy[PANEL];
            const T* target =
                whole_row(base + r * y.row_stride + column * y.column_stride, y.column_stride, have, copy);
            for (int c = 0; c < PANEL; c += LANES) {
                const vec predicted = load<vec>(p + r * PANEL + c) + load<vec>(bias + column + c);
                const vec wanted = widen(load<packed>(target + c)), off = wanted - predicted;
                dot[r] += predicted * wanted;
                p_squares[r] += predicted * predicted;
                y_squares[r] += wanted * wanted;
                error[r] += off * off;
                if (residual) store(residual + column / PANEL * residual_panel + r * PANEL + c, off);
            }
        }
    }
    for (int r = 0; r < height; ++r) {
        out.dot[row + r] = sum_of(dot[r]);
        out.p_squares[row + r] = sum_of(p_squares[r]);
        out.y_squares[row + r] = sum_of(y_squares[r]);
        out.error[row + r] = sum_of(error[r]);
    }
}

void score(const float* x, int64_t depth, const float* weights, const float* bias, const Rows& y,
           int64_t row, int height, RowSums out, float* residual, int64_t residual_panel) {
    read_as(y.dtype, [&](auto widen) {
        score_rows(x, depth, weights, bias, y, row, height, out, residual, residual_panel, widen);
    });
}

}  // namespace
}  // namespace fastprobe
