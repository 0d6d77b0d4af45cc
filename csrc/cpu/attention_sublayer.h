// The attention half of an encoder layer: queries, keys and values, heads, output layer, skip connection, LayerNorm.
#pragma once

#include "attention.h"
#include "linear.h"

namespace fastprobe {

struct AttentionLayers {
    Linear query, key, value, out;  // query.out, key.out and value.out are not used; out.out may be nullptr
    int64_t heads;
    float* heads_out;  // (n, query.width), dense, or nullptr
};

// norm.out = LayerNorm(x + attention(x)) for n rows of x, depth wide; n is at least FEWEST_ROWS.
void attention_sublayer(Matrix x, int64_t n, int64_t depth, const Runs& runs, const AttentionLayers& layers,
                        const Norm& norm, int threads, const Kernels& kernels);

}  // namespace fastprobe
