// attend, for one instruction set.
#pragma once

#include "math.h"
#include "panels.h"

namespace fastprobe {
namespace {

// Rows of numbers as panels of PANEL columns, zero where there is no such column.
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

// One step of turning a block of LANES x LANES numbers: bit H of the row changes places with bit H of the column.
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

INLINE void turn(vec (&block)[LANES]) {
    swap_bit<1>(block);
    swap_bit<2>(block);
    if constexpr (LANES > 4) swap_bit<4>(block);
    if constexpr (LANES > 8) swap_bit<8>(block);
}

// Rows of numbers as panels that have PANEL of the rows side by side; width rows a panel.
INLINE void to_panels_turned(const float* from, int64_t stride, int64_t rows, int64_t width, float* panels) {
    for (int64_t first = 0; first < rows; first += PANEL, panels += width * PANEL)
        for (int64_t i = 0; i < PANEL; i += LANES)
            along(width, [&](int64_t t, int have) {
                vec block[LANES];
                for (int r = 0; r < LANES; ++r)
                    block[r] = first + i + r < rows ? load_some(from + (first + i + r) * stride + t, have) : vec{};
                turn(block);
                for (int r = 0; r < have; ++r) store(panels + (t + r) * PANEL + i, block[r]);
            });
}

INLINE float largest_of(vec v) {
    float lanes[LANES];
    store(lanes, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
    return lanes[0];
}

INLINE float quick_sum_of(vec v) {
    float lanes[LANES];
    store(lanes, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// A row of scores, PANEL of them in each panel, becomes e to the power of (score - the largest); returns their sum.
INLINE float exponentials(float* row, int64_t panel, int64_t length) {
    const int64_t panels = (length + PANEL - 1) / PANEL;
    float* last = row + (panels - 1) * panel;
    for (int64_t c = length - (panels - 1) * PANEL; c < PANEL; ++c) last[c] = -__builtin_inff();
    vec largest = load<vec>(row);
    for (int64_t p = 0; p < panels; ++p)
#pragma GCC unroll 8
        for (int c = 0; c < PANEL; c += LANES) {
            const vec scores = load<vec>(row + p * panel + c);
            largest = scores > largest ? scores : largest;
        }
    const float most = largest_of(largest);
    vec sum = {};
    for (int64_t p = 0; p < panels; ++p)
#pragma GCC unroll 8
        for (int c = 0; c < PANEL; c += LANES) {
            const vec weights = exp_of(load<vec>(row + p * panel + c) - most);
            store(row + p * panel + c, weights);
            sum += weights;
        }
    return quick_sum_of(sum);
}

void attend(const Head& head, float* memory) {
    const int64_t length = head.length, width = head.width;
    const int64_t key_panels = (length + PANEL - 1) / PANEL, panels = (width + PANEL - 1) / PANEL;
    float* keys = memory;
    float* values = keys + key_panels * width * PANEL;
    float* queries = values + panels * length * PANEL;
    float* scores = queries + PANEL * width;
    to_panels_turned(head.k, head.k_stride, length, width, keys);
    to_panels(head.v, head.v_stride, length, width, values);
    for (int64_t first = 0; first < length; first += PANEL) {
        const int height = length - first < PANEL ? int(length - first) : PANEL;
        const int rows = (height + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
        for (int r = 0; r < height; ++r)
            along(width, [&](int64_t t, int have) {
                const vec query = load_some(head.q + (first + r) * head.q_stride + t, have);
                store_some(queries + r * width + t, query * head.scale, have);
            });
        memset(queries + height * width, 0, size_t((rows - height) * width) * sizeof(float));
        memset(scores, 0, size_t(key_panels) * PANEL * PANEL * sizeof(float));
        for (int64_t p = 0; p < key_panels; ++p)
            for (int r = 0; r < rows; r += TILE_ROWS)
                for (int c = 0; c < PANEL; c += TILE_VECTORS * LANES)
                    add_chain<Left::ROWS>(queries + r * width, width, keys + p * width * PANEL + c, width,
                                          scores + (p * PANEL + r) * PANEL + c);
        float inverse[PANEL];
        for (int r = 0; r < height; ++r)
            inverse[r] = 1.0f / exponentials(scores + r * PANEL, PANEL * PANEL, length);
        for (int64_t w = 0; w < panels; ++w) {
            alignas(64) float sums[PANEL * PANEL] = {};
            for (int64_t p = 0; p < key_panels; ++p) {
                const int64_t steps = length - p * PANEL < PANEL ? length - p * PANEL : PANEL;
                for (int r = 0; r < rows; r += TILE_ROWS)
                    for (int c = 0; c < PANEL; c += TILE_VECTORS * LANES)
                        add_chain<Left::ROWS>(scores + (p * PANEL + r) * PANEL, PANEL,
                                              values + (w * length + p * PANEL) * PANEL + c, steps,
                                              sums + r * PANEL + c);
            }
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
