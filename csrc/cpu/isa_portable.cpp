#define LANES 4
#define TILE_ROWS 4
#define TILE_VECTORS 2
#include "gram_kernels.h"

namespace fastprobe {

const Kernels* portable() {
    static const Kernels kernels{"portable", false, pack, multiply};
    return &kernels;
}

}  // namespace fastprobe
