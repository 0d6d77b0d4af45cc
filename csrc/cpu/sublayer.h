// A sub-layer of an encoder from its linear layers on: GELU between them, the skip connection and the LayerNorm.
#pragma once

#include <vector>

#include "linear.h"

namespace fastprobe {

// LayerNorm of an output and the residual; out is dense.
struct AddNorm {
    Matrix residual;
    const float *weight, *bias;
    float eps;
    float* out;
};

// Each layer on the GELU of the one before, the first on n rows of x, depth wide, and the norm on the last. Where the
// address of a layer's output is nullptr, it is dropped once it has been used. n is at least FEWEST_ROWS.
void sublayer(Matrix x, int64_t n, int64_t depth, const std::vector<Linear>& layers, const AddNorm& norm, int threads,
              const Kernels& kernels);

}  // namespace fastprobe
