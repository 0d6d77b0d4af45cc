// attend of kernels.h, for one instruction set.
#pragma once

#include "math.h"
#include "panels.h"

namespace fastprobe {
namespace {

// Copy rows to panels of PANEL columns, with zeros for missing columns.
INLINE void to_panels(const float* from, int64_t stride, int64_t rows, int64_t width, float* panels) {
    for (int64_t column = 0; column < width; column += PANEL)
        for (int64_t i = 0; i < rows; ++i, panels += PANEL) {
            const float* row = from + i * stride + column;
            const int64_t have = width - column < PANEL ? width - column : PANEL;
            for (int64_t c = 0; c < PANEL; c += LANES) {
                const int64_t here = have - c < LANES ? have - c : LANES;
                store(panels + c, here > 0 ? load_some(row + c, int(here)) : vec{});
            }
        }
}

// Replace scores by 2^(score - largest score), and return their sum. scores has room for whole vectors.
INLINE float powers(float* scores, int64_t length) {
    for (int64_t c = length; c % LANES; ++c) scores[c] = -__builtin_inff();
    vec most = load<vec>(scores);
    for (int64_t c = LANES; c < length; c += LANES) {
        const vec here = load<vec>(scores + c);
        most = here > most ? here : most;
    }
    most = joined(most, [](vec a, vec b) { return a > b ? a : b; });
    vec sum = {};
    for (int64_t c = 0; c < length; c += LANES) {
        const vec weights = exp2_of(load<vec>(scores + c) - most);
        store(scores + c, weights);
        sum += weights;
    }
    return joined(sum, [](vec a, vec b) { return a + b; })[0];
}

// Multiply TILE_ROWS rows, depth wide, by a panel.
INLINE void multiply_tile(const float* rows, int64_t stride, int64_t depth, const float* panel, float* out,
                          int64_t out_stride) {
    constexpr float nothing[PANEL] = {};
    for (int c = 0; c < PANEL; c += TILE_VECTORS * LANES)
        multiply_rows(rows, stride, depth, panel + c, nothing, 0, out + c, out_stride, {panel, 0});
}

// Prefetch the rows of one head: hardware does not prefetch over the distance between them, the width of a state.
INLINE void fetch(const float* rows, int64_t stride, int64_t length, int64_t width) {
    constexpr int LINE = 64 / sizeof(float);
    for (int64_t i = 0; i < length; ++i)
        for (int64_t c = 0; c < width; c += LINE) __builtin_prefetch(rows + i * stride + c, 0, 2);
}

void attend(const Head& head, float* memory) {
    const int64_t length = head.length, width = head.width;
    const int64_t key_panels = (length + PANEL - 1) / PANEL, panels = (width + PANEL - 1) / PANEL;
    const int64_t room = key_panels * PANEL;
    float* keys = memory;
    float* values = keys + room * width;
    float* queries = values + panels * length * PANEL;
    float* scores = queries + TILE_ROWS * width;
    fetch(head.v, head.v_stride, length, width);
    fetch(head.q, head.q_stride, length, width);
    to_transposed_panels(head.k, head.k_stride, length, width, keys);
    to_panels(head.v, head.v_stride, length, width, values);
    for (int64_t first = 0; first < length; first += TILE_ROWS) {
        const int height = length - first < TILE_ROWS ? int(length - first) : TILE_ROWS;
        for (int r = 0; r < height; ++r)
            along(width, [&](int64_t t, int have) {
                const vec query = load_some(head.q + (first + r) * head.q_stride + t, have);
                store_some(queries + r * width + t, query * head.scale, have);
            });
        memset(queries + height * width, 0, size_t((TILE_ROWS - height) * width) * sizeof(float));
        for (int64_t p = 0; p < key_panels; ++p)
            multiply_tile(queries, width, width, keys + p * width * PANEL, scores + p * PANEL, room);
        float inverse[TILE_ROWS];
        for (int r = 0; r < height; ++r) inverse[r] = 1.0f / powers(scores + r * room, length);
        for (int64_t w = 0; w < panels; ++w) {
            alignas(64) float sums[TILE_ROWS * PANEL];
            multiply_tile(scores, room, length, values + w * length * PANEL, sums, PANEL);
            const int64_t have = width - w * PANEL < PANEL ? width - w * PANEL : PANEL;
            for (int r = 0; r < height; ++r) {
                float* out = head.out + (first + r) * head.out_stride + w * PANEL;
                along(have, [&](int64_t c, int some) {
                    store_some(out + c, load<vec>(sums + r * PANEL + c) * inverse[r], some);
                });
            }
        }
    }
}

}  // namespace
}  // namespace fastprobe
