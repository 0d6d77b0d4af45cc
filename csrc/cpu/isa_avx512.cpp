#include "kernels.h"

#if defined(__x86_64__)

#include "target.h"
BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")

#define LANES 16
#define TILE_ROWS 8
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

const Kernels* avx512() {
    static const Kernels kernels{"avx512", false, pack, pair_up, multiply, flush, score,
                                 widen, unit_sum, attend, turn_weight, linear, add_norm, bias_gelu, burn};
    const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return runs && avx2() ? &kernels : nullptr;
}

}  // namespace fastprobe

#else

const fastprobe::Kernels* fastprobe::avx512() { return nullptr; }

#endif
