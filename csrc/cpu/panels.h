// The parts that the operations share: reading rows of any layout, and the micro-kernels. The including file sets
// LANES, TILE_ROWS, TILE_VECTORS and, where the processor multiplies pairs of bfloat16, PAIRS and add_pairs().
#pragma once

#include "simd.h"

namespace fastprobe {
namespace {

static_assert(TILE_HEIGHT % TILE_ROWS == 0);

// The number of columns that rows have from this one on, at most PANEL.
INLINE int columns_from(const Rows& rows, int64_t column) {
    return rows.width - column < PANEL ? int(rows.width - column) : PANEL;
}

// PANEL adjacent numbers: the row's own memory, or a copy with zeros for missing columns.
template <class T>
INLINE const T* whole_row(const T* from, int64_t stride, int have, T (&copy)[PANEL]) {
    if (have == PANEL && stride == 1) return from;
    for (int c = 0; c < PANEL; ++c) copy[c] = c < have ? from[c * stride] : T(0);
    return copy;
}

// Memory to prefetch into a near cache during a chain, `pace` numbers a step: farther ahead than hardware prefetches.
struct Ahead {
    const float* from;
    int pace;
};

// Micro-kernel of rows: out = from + x panel over some steps, summed in registers; TILE_ROWS rows, TILE_VECTORS * LANES
// columns. Not inlined, so that the sums have all registers: inlined, gcc 12 keeps a vector of the panel in memory.
__attribute__((noinline)) void multiply_rows(const float* x, int64_t x_stride, int64_t steps, const float* panel,
                                             const float* from, int64_t from_stride, float* out, int64_t out_stride,
                                             Ahead ahead) {
    vec sum[TILE_ROWS][TILE_VECTORS] = {};
    for (int64_t t = 0; t < steps; ++t, ++x, panel += PANEL, ahead.from += ahead.pace) {
        __builtin_prefetch(ahead.from, 0, 2);
        vec right[TILE_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < TILE_VECTORS; ++v) right[v] = load<vec>(panel + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < TILE_VECTORS; ++v) sum[r][v] += x[r * x_stride] * right[v];
    }
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < TILE_VECTORS; ++v)
            store(out + r * out_stride + v * LANES, load<vec>(from + r * from_stride + v * LANES) + sum[r][v]);
}

// One step of the transpose of a block of LANES x LANES numbers: swap bit H of the row with bit H of the column.
template <int H>
INLINE void swap_bit(vec (&block)[LANES]) {
    bits low = {}, high = {};
    for (int lane = 0; lane < LANES; ++lane) {
        low[lane] = lane & H ? LANES + lane - H : lane;
        high[lane] = lane & H ? LANES + lane : lane + H;
    }
#pragma GCC unroll 16
    for (int r = 0; r < LANES; ++r)
        if (!(r & H)) {
            const vec a = block[r], b = block[r | H];
            block[r] = shuffled(a, b, low);
            block[r | H] = shuffled(a, b, high);
        }
}

INLINE void transpose(vec (&block)[LANES]) {
    swap_bit<1>(block);
    swap_bit<2>(block);
    if constexpr (LANES > 4) swap_bit<4>(block);
    if constexpr (LANES > 8) swap_bit<8>(block);
}

// Transpose rows to panels: each panel holds PANEL of the rows as its columns, and has `width` rows.
INLINE void to_transposed_panels(const float* from, int64_t stride, int64_t rows, int64_t width, float* panels) {
    for (int64_t first = 0; first < rows; first += PANEL, panels += width * PANEL)
        for (int64_t i = 0; i < PANEL; i += LANES)
            along(width, [&](int64_t t, int have) {
                vec block[LANES];
                for (int r = 0; r < LANES; ++r)
                    block[r] = first + i + r < rows ? load_some(from + (first + i + r) * stride + t, have) : vec{};
                transpose(block);
                for (int r = 0; r < have; ++r) store(panels + (t + r) * PANEL + i, block[r]);
            });
}

// Micro-kernel of panels: total += a^T b over one chain, summed in registers; TILE_ROWS rows, TILE_VECTORS * LANES
// columns. a, b and total are panels; a and b hold numbers or pairs.
template <bool OF_PAIRS>
__attribute__((noinline)) void add_chain(const float* a, const float* b, int64_t steps, float* total, Ahead ahead) {
    vec sum[TILE_ROWS][TILE_VECTORS] = {};
    for (int64_t t = 0; t < steps; ++t, a += PANEL, b += PANEL, ahead.from += ahead.pace) {
        __builtin_prefetch(ahead.from, 0, 2);
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
            store(out, load<vec>(out) + sum[r][v]);
        }
}

}  // namespace
}  // namespace fastprobe
