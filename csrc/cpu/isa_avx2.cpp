#include "kernels.h"

#if defined(__x86_64__)

#include "target.h"
BEGIN_TARGET("avx2,fma,f16c")

#define LANES 8
#define TILE_ROWS 4
#define TILE_VECTORS 2
#include "attention_kernels.h"
#include "gram_kernels.h"
#include "linear_kernels.h"
#include "peak_kernels.h"
#include "rowwise_kernels.h"
#include "score_kernels.h"
#include "unit_sum_kernels.h"

END_TARGET

namespace fastprobe {

const Kernels* avx2() {
    static const Kernels kernels{"avx2", false, pack, pair_up, multiply, flush, score,
                                 widen, unit_sum, attend, turn_weight, linear, add_norm, bias_gelu, burn};
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels : nullptr;
}

}  // namespace fastprobe

#else

const fastprobe::Kernels* fastprobe::avx2() { return nullptr; }

#endif
