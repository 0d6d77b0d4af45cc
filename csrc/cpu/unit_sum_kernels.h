// unit_sum, for one instruction set.
#pragma once

#include "panels.h"

namespace fastprobe {
namespace {

template <class Widen>
INLINE bool sum_unit_rows(const Rows& rows, const bool* valid, int64_t first, int64_t n, double* total, int64_t* count,
                          Widen widen) {
    using T = typename Widen::Stored;
    typedef T packed __attribute__((vector_size(sizeof(T) * LANES)));
    const T* base = static_cast<const T*>(rows.data);
    bool finite = true;
    int64_t counted = 0;  // here, as the counts of other threads lie beside *count
    for (int64_t i = first; i < first + n; ++i) {
        if (!valid[i]) continue;
        const T* row = base + i * rows.row_stride;
        T copy[PANEL];
        doubles squares[2] = {};
        for (int64_t c = 0; c < rows.width; c += PANEL) {
            const T* from = whole_row(row + c * rows.column_stride, rows.column_stride, columns_from(rows, c), copy);
            for (int v = 0; v < PANEL; v += LANES) {
                const vec values = widen(load<packed>(from + v));
                for (int which = 0; which < 2; ++which) {
                    const doubles d = half_of(values, which);
                    squares[which] += d * d;
                }
            }
        }
        double square = 0;
        for (int lane = 0; lane < LANES; ++lane) square += squares[lane / DOUBLES][lane % DOUBLES];
        if (!(square <= __FLT_MAX__)) {  // as for a NaN: the products of such a row would not fit in float32
            finite = false;
            continue;
        }
        if (square == 0) continue;
        ++counted;
        const double inverse = 1 / __builtin_sqrt(square);
        for (int64_t c = 0; c < rows.width; c += PANEL) {
            const T* from = whole_row(row + c * rows.column_stride, rows.column_stride, columns_from(rows, c), copy);
            for (int v = 0; v < PANEL; v += LANES) {
                const vec values = widen(load<packed>(from + v));
                for (int which = 0; which < 2; ++which) {
                    double* sum = total + c + v + which * DOUBLES;
                    store(sum, load<doubles>(sum) + half_of(values, which) * inverse);
                }
            }
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
