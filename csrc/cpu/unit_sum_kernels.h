// unit_sum of kernels.h, for one instruction set.
#pragma once

#include "panels.h"

namespace fastprobe {
namespace {

constexpr int TOGETHER = 16;  // rows that are summed in float32, from a near cache, before the sum is added to float64
// A float32 sum of squares in this range is accurate: nothing overflowed, and underflow is negligible.
constexpr float LEAST = 0x1p-80f, MOST = 0x1p120f;

// Call body(v, values) for the vectors of one panel of a row, from a column on, with zeros for missing columns.
template <class Widen, class Body>
INLINE void in_panel(const Rows& rows, const typename Widen::Stored* row, int64_t column, Widen widen,
                     const Body& body) {
    using T = typename Widen::Stored;
    typedef T packed __attribute__((vector_size(sizeof(T) * LANES)));
    T copy[PANEL];
    const T* from = whole_row(row + column * rows.column_stride, rows.column_stride, columns_from(rows, column), copy);
#pragma GCC unroll 8
    for (int v = 0; v < PANEL / LANES; ++v) body(v, widen(load<packed>(from + v * LANES)));
}

template <class Widen>
INLINE float square_of(const Rows& rows, const typename Widen::Stored* row, Widen widen) {
    vec squares[PANEL / LANES] = {};
    for (int64_t c = 0; c < rows.width; c += PANEL)
        in_panel(rows, row, c, widen, [&](int v, vec values) { squares[v] += values * values; });
    for (int v = 1; v < PANEL / LANES; ++v) squares[0] += squares[v];
    return sum_of(squares[0]);
}

// The square of a row whose squares float32 may not represent, or which is not finite.
template <class Widen>
INLINE double square_in_double(const Rows& rows, const typename Widen::Stored* row, Widen widen) {
    doubles squares[2] = {};
    for (int64_t c = 0; c < rows.width; c += PANEL)
        in_panel(rows, row, c, widen, [&](int, vec values) {
            for (int which = 0; which < 2; ++which) {
                const doubles d = half_of(values, which);
                squares[which] += d * d;
            }
        });
    double square = 0;
    for (int lane = 0; lane < LANES; ++lane) square += squares[lane / DOUBLES][lane % DOUBLES];
    return square;
}

INLINE void add_in_double(double* total, vec values, double weight) {
    for (int which = 0; which < 2; ++which, total += DOUBLES)
        store(total, load<doubles>(total) + half_of(values, which) * weight);
}

template <class Widen>
INLINE bool sum_unit_rows(const Rows& rows, const bool* valid, int64_t first, int64_t n, double* total, int64_t* count,
                          Widen widen) {
    using T = typename Widen::Stored;
    const T* base = static_cast<const T*>(rows.data);
    bool finite = true;
    int64_t counted = 0;  // a local number: *count shares its cache line with the counts of other threads
    for (int64_t start = first; start < first + n; start += TOGETHER) {
        const T* together[TOGETHER];
        float inverse[TOGETHER];
        int have = 0;
        for (int64_t i = start; i < first + n && i < start + TOGETHER; ++i) {
            if (!valid[i]) continue;
            const T* row = base + i * rows.row_stride;
            const float near = square_of(rows, row, widen);
            if (near >= LEAST && near <= MOST) {
                together[have] = row;
                inverse[have++] = float(1 / __builtin_sqrt(double(near)));
                continue;
            }
            const double square = square_in_double(rows, row, widen);
            if (!(square <= __FLT_MAX__)) {  // a NaN, or a row whose products would overflow float32
                finite = false;
            } else if (square > 0) {
                ++counted;
                for (int64_t c = 0; c < rows.width; c += PANEL)
                    in_panel(rows, row, c, widen, [&](int v, vec values) {
                        add_in_double(total + c + v * LANES, values, 1 / __builtin_sqrt(square));
                    });
            }
        }
        counted += have;
        for (int64_t c = 0; c < rows.width; c += PANEL) {
            vec sum[PANEL / LANES] = {};
            for (int r = 0; r < have; ++r)
                in_panel(rows, together[r], c, widen, [&](int v, vec values) { sum[v] += values * inverse[r]; });
            for (int v = 0; v < PANEL / LANES; ++v) add_in_double(total + c + v * LANES, sum[v], 1);
        }
    }
    *count += counted;
    return finite;
}

bool unit_sum(const Rows& rows, const bool* valid, int64_t first, int64_t n, double* total, int64_t* count) {
    return read_as(rows.dtype, [&](auto widen) { return sum_unit_rows(rows, valid, first, n, total, count, widen); });
}

}  // namespace
}  // namespace fastprobe
