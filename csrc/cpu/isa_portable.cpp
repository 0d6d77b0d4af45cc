#define LANES 4
#define TILE_ROWS 4
#define TILE_VECTORS 2
#include "attention_kernels.h"
#include "gram_kernels.h"
#include "linear_kernels.h"
#include "peak_kernels.h"
#include "rowwise_kernels.h"
#include "score_kernels.h"
#include "unit_sum_kernels.h"

namespace fastprobe {

const Kernels* portable() {
    static const Kernels kernels{"portable", false, pack, pair_up, multiply, flush, score,
                                 widen, unit_sum, attend, turn_weight, linear, add_norm, bias_gelu, burn};
    return &kernels;
}

}  // namespace fastprobe
