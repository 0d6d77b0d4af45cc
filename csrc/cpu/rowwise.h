// What is done to the rows of a state one by one.
#pragma once

#include "kernels.h"

namespace fastprobe {

// out, dense: the LayerNorm of x + residual; both have width columns side by side.
void add_norm(const float* x, int64_t x_stride, const float* residual, int64_t residual_stride, const float* weight,
              const float* bias, int64_t n, int64_t width, float eps, float* out, int threads, const Kernels& kernels);

// x, dense, becomes the GELU of x + bias.
void bias_gelu(float* x, const float* bias, int64_t n, int64_t width, int threads, const Kernels& kernels);

}  // namespace fastprobe
