// transpose_weight and linear of kernels.h, for one instruction set.
#pragma once

#include "panels.h"
#include "rowwise_kernels.h"

namespace fastprobe {
namespace {

void transpose_weight(const float* weight, int64_t stride, int64_t rows, int64_t depth, float* panel) {
    to_transposed_panels(weight, stride, rows, depth, panel);
}

// One tile of TILE_ROWS rows and a whole panel; out has PANEL columns.
INLINE void linear_tile(const float* x, int64_t x_stride, int64_t depth, const float* panel, const float* bias,
                        bool gelu, float* out, int64_t out_stride, Ahead ahead) {
    for (int c = 0; c < PANEL; c += TILE_VECTORS * LANES)
        for (int64_t t = 0; t < depth; t += CHAIN)
            multiply_rows(x + t, x_stride, depth - t < CHAIN ? depth - t : CHAIN, panel + t * PANEL + c,
                          t ? out + c : bias + c, t ? out_stride : 0, out + c, out_stride,
                          {ahead.from + t * ahead.pace, ahead.pace});
    if (!gelu) return;
    for (int r = 0; r < TILE_ROWS; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < PANEL; c += LANES)
            store(out + r * out_stride + c, gelu_of(load<vec>(out + r * out_stride + c)));
}

void linear(Matrix x, int64_t n, int64_t depth, const float* panel, const float* bias, int width, bool gelu, float* out,
            int64_t out_stride, const float* next) {
    constexpr int LINE = 64 / sizeof(float);
    alignas(64) float offset[PANEL] = {}, tile[TILE_ROWS * PANEL];
    if (bias) memcpy(offset, bias, size_t(width) * sizeof(float));
    for (int64_t first = 0; first < n; first += TILE_ROWS) {
        const int64_t row = first + TILE_ROWS <= n ? first : n - TILE_ROWS;  // the last tile may repeat some rows
        const int64_t fetched = first / TILE_ROWS * depth * LINE;            // numbers of the next panel, so far
        const Ahead ahead = fetched < depth * PANEL ? Ahead{next + fetched, LINE} : Ahead{next, 0};
        const float* rows = x.data + row * x.row_stride;
        float* to = out + row * out_stride;
        if (width == PANEL) {
            linear_tile(rows, x.row_stride, depth, panel, offset, gelu, to, out_stride, ahead);
            continue;
        }
        linear_tile(rows, x.row_stride, depth, panel, offset, gelu, tile, PANEL, ahead);
        for (int r = 0; r < TILE_ROWS; ++r)
            memcpy(to + r * out_stride, tile + r * PANEL, size_t(width) * sizeof(float));
    }
}

}  // namespace
}  // namespace fastprobe
