// Functions of each row of a state.
#pragma once

#include "kernels.h"

namespace fastprobe {

// out, dense, is the LayerNorm of x + residual; both have width adjacent columns.
void add_norm(const float* x, int64_t x_stride, const float* residual, int64_t residual_stride, const float* weight,
              const float* bias, int64_t n, int64_t width, float eps, float* out, int threads, const Kernels& kernels);

// Replace x, dense, by the GELU of x + bias.
void bias_gelu(float* x, const float* bias, int64_t n, int64_t width, int threads, const Kernels& kernels);

}  // namespace fastprobe
