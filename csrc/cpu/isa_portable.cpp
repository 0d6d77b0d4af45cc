// The kernels on any processor: vectors of 4 floats, tiles of 4 x 8.
// kernel_table.h lists them and includes their code, such as gram_kernels.h.
#define LANES 4
#define TILE_ROWS 4
#define TILE_VECTORS 2
#include "kernel_table.h"

namespace fastprobe {

const Kernels* portable() {
    static constexpr Kernels kernels = kernel_table("portable", /*multiplies_bf16_pairs=*/false);
    return &kernels;
}

}  // namespace fastprobe
