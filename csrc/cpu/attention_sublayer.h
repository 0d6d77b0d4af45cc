// The attention half of an encoder's layer: queries, keys and values, heads, their output, skip connection, LayerNorm.
#pragma once

#include "attention.h"
#include "linear.h"

namespace fastprobe {

struct AttentionLayers {
    Linear query, key, value, out;  // the out of the first three is not used; that of the last may be nullptr
    int64_t heads;
    float* heads_out;  // (n, query.width), dense, or nullptr
};

// norm.out: LayerNorm of a state, n rows of x, depth wide, and what its attention adds; n is at least FEWEST_ROWS.
void attention_sublayer(Matrix x, int64_t n, int64_t depth, const Runs& runs, const AttentionLayers& layers,
                        const Norm& norm, int threads, const Kernels& kernels);

}  // namespace fastprobe
