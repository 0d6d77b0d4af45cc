// All kernels of one instruction set. Each isa_*.cpp sets LANES, TILE_ROWS, TILE_VECTORS and, where the processor
// multiplies pairs of bfloat16, PAIRS and add_pairs(), and then includes this file between BEGIN_TARGET and END_TARGET.
#pragma once

#include "attention_kernels.h"
#include "gram_kernels.h"
#include "linear_kernels.h"
#include "peak_kernels.h"
#include "rowwise_kernels.h"
#include "score_kernels.h"
#include "unit_sum_kernels.h"

namespace fastprobe {
namespace {

// Evaluated by the compiler: a processor that lacks the instruction set never runs this function.
constexpr Kernels kernel_table(const char* name, bool multiplies_bf16_pairs) {
    return {
        .name = name,
        .multiplies_bf16_pairs = multiplies_bf16_pairs,
        .pack = pack,
        .pair_up = pair_up,
        .multiply = multiply,
        .flush = flush,
        .score = score,
        .widen = widen,
        .unit_sum = unit_sum,
        .attend = attend,
        .transpose_weight = transpose_weight,
        .linear = linear,
        .add_norm = add_norm,
        .bias_gelu = bias_gelu,
        .burn = burn,
    };
}

}  // namespace
}  // namespace fastprobe
