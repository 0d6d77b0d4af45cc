// The FFN half of an encoder's layer: linear layers with GELU between them, skip connection, LayerNorm.
#pragma once

#include <vector>

#include "linear.h"

namespace fastprobe {

// norm.out: LayerNorm of the residual and the last layer's output, each layer being on the GELU of the one before, the
// first on n rows of x, depth wide. n is at least FEWEST_ROWS.
void ffn_sublayer(Matrix x, int64_t n, int64_t depth, const std::vector<Linear>& layers, Matrix residual,
                  const Norm& norm, int threads, const Kernels& kernels);

}  // namespace fastprobe
