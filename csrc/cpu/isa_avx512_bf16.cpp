// The kernels on AVX-512 with products of bfloat16 pairs: vectors of 16 floats, tiles of 8 x 32.
// kernel_table.h lists them and includes their code, such as gram_kernels.h.
#include "kernels.h"

#if defined(__x86_64__)

#include "target.h"
BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c")

#include <immintrin.h>

#define LANES 16
#define TILE_ROWS 8
#define TILE_VECTORS 2
#define PAIRS
#include "simd.h"

namespace fastprobe {
namespace {

INLINE vec add_pairs(vec sum, const float* a, vec b) {
    int32_t pair;
    memcpy(&pair, a, 4);
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
}

}  // namespace
}  // namespace fastprobe

#include "kernel_table.h"

END_TARGET

namespace fastprobe {

const Kernels* avx512_bf16() {
    static constexpr Kernels kernels = kernel_table("avx512-bf16", /*multiplies_bf16_pairs=*/true);
    return __builtin_cpu_supports("avx512bf16") && avx512() ? &kernels : nullptr;  // avx512() checks the rest
}

}  // namespace fastprobe

#else

const fastprobe::Kernels* fastprobe::avx512_bf16() { return nullptr; }

#endif
