#include "rowwise.h"

namespace fastprobe {
namespace {

constexpr int64_t ALONE = 1 << 15;  // numbers that one thread computes before another one wakes up

}  // namespace

void add_norm(const float* x, int64_t x_stride, const float* residual, int64_t residual_stride, const float* weight,
              const float* bias, int64_t n, int64_t width, float eps, float* out, int threads, const Kernels& kernels) {
#pragma omp parallel for schedule(static) num_threads(n * width < ALONE ? 1 : threads)
    for (int64_t i = 0; i < n; ++i)
        kernels.add_norm(x + i * x_stride, residual + i * residual_stride, weight, bias, width, eps, out + i * width);
}

void bias_gelu(float* x, const float* bias, int64_t n, int64_t width, int threads, const Kernels& kernels) {
#pragma omp parallel for schedule(static) num_threads(n * width < ALONE ? 1 : threads)
    for (int64_t i = 0; i < n; ++i) kernels.bias_gelu(x + i * width, bias, width);
}

}  // namespace fastprobe
