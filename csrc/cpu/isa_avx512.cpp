// The kernels on AVX-512: vectors of 16 floats, tiles of 8 x 32.
// kernel_table.h lists them and includes their code, such as gram_kernels.h.
#include "kernels.h"

#if defined(__x86_64__)

#include "target.h"
BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")

#define LANES 16
#define TILE_ROWS 8
#define TILE_VECTORS 2
#include "kernel_table.h"

END_TARGET

namespace fastprobe {

const Kernels* avx512() {
    static constexpr Kernels kernels = kernel_table("avx512", /*multiplies_bf16_pairs=*/false);
    const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return runs && avx2() ? &kernels : nullptr;  // avx2() checks the rest of the target: fma
}

}  // namespace fastprobe

#else

const fastprobe::Kernels* fastprobe::avx512() { return nullptr; }

#endif
