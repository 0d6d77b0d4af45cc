// pack, pair_up, multiply and flush of kernels.h, for one instruction set: the inner loops of gram_.
#pragma once

#include "panels.h"

namespace fastprobe {
namespace {

constexpr int AHEAD = 16;  // rows to prefetch: hardware does not prefetch over the distance between two rows

template <class T>
INLINE void prefetch_row(const T* base, const Rows& rows, const int64_t* index, int64_t i, int64_t n) {
    if (i >= n) return;
    const char* row = reinterpret_cast<const char*>(base + index[i] * rows.row_stride);
    __builtin_prefetch(row);
    if (sizeof(T) * PANEL > 64) __builtin_prefetch(row + 64);
}

// Sums and squares of a panel's columns, in registers, in double: squares of dead columns underflow in float32.
struct Tally {
    doubles sums[PANEL / DOUBLES] = {}, squares[PANEL / DOUBLES] = {};

    INLINE_MEMBER void add(int v, vec values) {
        for (int which = 0; which < 2; ++which) {
            const doubles d = half_of(values, which);
            sums[2 * v + which] += d;
            squares[2 * v + which] += d * d;
        }
    }

    INLINE_MEMBER void add_to(double* sum, double* square) const {
        for (int d = 0; d < PANEL / DOUBLES; ++d) {
            store(sum + d * DOUBLES, load<doubles>(sum + d * DOUBLES) + sums[d]);
            store(square + d * DOUBLES, load<doubles>(square + d * DOUBLES) + squares[d]);
        }
    }
};

template <bool TALLIED, class Widen>
INLINE void pack_floats(const Rows& rows, const int64_t* index, int64_t n, int64_t column, const float* origin,
                        float* panel, double* sums, double* squares, Widen widen) {
    using T = typename Widen::Stored;
    typedef T packed __attribute__((vector_size(sizeof(T) * LANES)));
    const T* base = static_cast<const T*>(rows.data) + column * rows.column_stride;
    const int have = columns_from(rows, column);
    float shift[PANEL] = {};
    for (int c = 0; origin && c < have; ++c) shift[c] = origin[column + c];
    Tally tally;
    for (int64_t i = 0; i < n; ++i, panel += PANEL) {
        T copy[PANEL];
        prefetch_row(base, rows, index, i + AHEAD, n);
        const T* row = whole_row(base + index[i] * rows.row_stride, rows.column_stride, have, copy);
#pragma GCC unroll 8
        for (int v = 0; v < PANEL / LANES; ++v) {
            const vec values = widen(load<packed>(row + v * LANES)) - load<vec>(shift + v * LANES);
            store(panel + v * LANES, values);
            if (TALLIED) tally.add(v, values);
        }
    }
    if (TALLIED) tally.add_to(sums, squares);
}

template <bool TALLIED>
INLINE void pack_pairs(const Rows& rows, const int64_t* index, int64_t n, int64_t column, float* panel, double* sums,
                       double* squares) {
    const uint16_t* base = static_cast<const uint16_t*>(rows.data) + column * rows.column_stride;
    const int have = columns_from(rows, column);
    const uint16_t nothing[PANEL] = {};
    Tally tally;
    for (int64_t i = 0; i < n; i += 2, panel += PANEL) {
        uint16_t copies[2][PANEL];
        const uint16_t* row[2] = {nothing, nothing};
        for (int k = 0; k < 2 && i + k < n; ++k) {
            prefetch_row(base, rows, index, i + k + AHEAD, n);
            row[k] = whole_row(base + index[i + k] * rows.row_stride, rows.column_stride, have, copies[k]);
        }
#pragma GCC unroll 8
        for (int v = 0; v < PANEL / LANES; ++v) {
            const halves first = load<halves>(row[0] + v * LANES), second = load<halves>(row[1] + v * LANES);
            store(panel + v * LANES, as_float(widened(first) | widened(second) << 16));
            if (TALLIED) tally.add(v, from_bfloat16(first));
            if (TALLIED) tally.add(v, from_bfloat16(second));
        }
    }
    if (TALLIED) tally.add_to(sums, squares);
}

template <bool TALLIED>
INLINE void pack_any(const Rows& rows, const int64_t* index, int64_t n, int64_t column, const float* origin,
                     bool bf16_pairs, float* panel, double* sums, double* squares) {
    if (bf16_pairs) return pack_pairs<TALLIED>(rows, index, n, column, panel, sums, squares);
    read_as(rows.dtype, [&](auto widen) {
        pack_floats<TALLIED>(rows, index, n, column, origin, panel, sums, squares, widen);
    });
}

void pack(const Rows& rows, const int64_t* index, int64_t n, int64_t column, const float* origin, bool bf16_pairs,
          float* panel, double* sums, double* squares) {
    if (sums)
        pack_any<true>(rows, index, n, column, origin, bf16_pairs, panel, sums, squares);
    else
        pack_any<false>(rows, index, n, column, origin, bf16_pairs, panel, sums, squares);
}

bool pair_up(const float* panel, int64_t n, float* bf16_pairs) {
    bits rest = {};
    for (int64_t i = 0; i < n; i += 2, panel += 2 * PANEL, bf16_pairs += PANEL)
#pragma GCC unroll 8
        for (int v = 0; v < PANEL; v += LANES) {
            const bits first = load<bits>(panel + v), second = i + 1 < n ? load<bits>(panel + PANEL + v) : bits{};
            rest |= (first | second) & 0xffff;
            store(bf16_pairs + v, as_float(first >> 16 | second));
        }
    uint32_t any = 0;
    for (int lane = 0; lane < LANES; ++lane) any |= rest[lane];
    return any == 0;
}

template <bool OF_PAIRS>
INLINE void multiply_panels(const float* a, const float* b, int64_t steps, int height, int width, float* total,
                            const float* next) {
    constexpr int TILE = TILE_ROWS * TILE_VECTORS * LANES, PACE = TILE < 2 * PANEL ? 1 : TILE / (2 * PANEL);
    for (int r = 0; r < height; r += TILE_ROWS)
        for (int c = 0; c < width; c += TILE_VECTORS * LANES, next += PACE * steps)
            add_chain<OF_PAIRS>(a + r, b + c, steps, total + r * PANEL + c, {next, PACE});
}

void multiply(const float* a, const float* b, int64_t n, [[maybe_unused]] bool bf16_pairs, int height, int width,
              float* total, const float* next) {
#ifdef PAIRS
    if (bf16_pairs) return multiply_panels<true>(a, b, (n + 1) / 2, height, width, total, next);
#endif
    multiply_panels<false>(a, b, n, height, width, total, next);
}

void flush(const float* total, double* out, int64_t stride, int height, int width) {
    if (width == PANEL)
        for (int r = 0; r < height; ++r)
#pragma GCC unroll 8
            for (int d = 0; d < PANEL / DOUBLES; ++d) {
                double* sum = out + r * stride + d * DOUBLES;
                const vec added = load<vec>(total + r * PANEL + d / 2 * LANES);
                store(sum, load<doubles>(sum) + half_of(added, d % 2));
            }
    else
        for (int r = 0; r < height; ++r)
            for (int c = 0; c < width; ++c) out[r * stride + c] += total[r * PANEL + c];
}

}  // namespace
}  // namespace fastprobe
