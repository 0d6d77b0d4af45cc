// The kernels on AVX2: vectors of 8 floats, tiles of 4 x 16.
// kernel_table.h lists them and includes their code, such as gram_kernels.h.
#include "kernels.h"

#if defined(__x86_64__)

#include "target.h"
BEGIN_TARGET("avx2,fma,f16c")

#define LANES 8
#define TILE_ROWS 4
#define TILE_VECTORS 2
#include "kernel_table.h"

END_TARGET

namespace fastprobe {

const Kernels* avx2() {
    static constexpr Kernels kernels = kernel_table("avx2", /*multiplies_bf16_pairs=*/false);
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels : nullptr;
}

}  // namespace fastprobe

#else

const fastprobe::Kernels* fastprobe::avx2() { return nullptr; }

#endif
