// The FFN half of an encoder layer: linear layers with GELU between them, skip connection, LayerNorm.
#pragma once

#include <vector>

#include "linear.h"

namespace fastprobe {

// norm.out = LayerNorm(residual + h), where h is the output of the last layer. The first layer reads n rows of x, depth
// wide; each other layer reads the GELU of the one before. n is at least FEWEST_ROWS.
void ffn_sublayer(Matrix x, int64_t n, int64_t depth, const std::vector<Linear>& layers, Matrix residual,
                  const Norm& norm, int threads, const Kernels& kernels);

}  // namespace fastprobe
