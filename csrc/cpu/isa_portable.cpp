#define LANES 4
#define TILE_ROWS 4
#define TILE_VECTORS 2
#include "kernel_table.h"

namespace fastprobe {

const Kernels* portable() {
    static constexpr Kernels kernels = kernel_table("portable", false);
    return &kernels;
}

}  // namespace fastprobe
