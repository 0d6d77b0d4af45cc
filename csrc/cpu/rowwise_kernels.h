// add_norm and bias_gelu of kernels.h, for one instruction set.
#pragma once

#include "math.h"

namespace fastprobe {
namespace {

void add_norm(const float* x, const float* residual, const float* weight, const float* bias, int64_t width, float eps,
              float* out) {
    vec sum = {};
    along(width, [&](int64_t c, int have) {
        const vec v = load_some(x + c, have) + load_some(residual + c, have);
        store_some(out + c, v, have);
        sum += v;
    });
    const float mean = sum_of(sum) / float(width);
    vec squares = {};
    along(width, [&](int64_t c, int have) {
        vec off = load_some(out + c, have) - mean;
        for (int lane = have; lane < LANES; ++lane) off[lane] = 0;
        squares += off * off;
    });
    const float scale = 1 / __builtin_sqrtf(sum_of(squares) / float(width) + eps);
    along(width, [&](int64_t c, int have) {
        const vec unit = (load_some(out + c, have) - mean) * scale;
        store_some(out + c, unit * load_some(weight + c, have) + load_some(bias + c, have), have);
    });
}

// GELU(z) = max(z, 0) - |z| T, where T = 2^(P - z^2 / (2 ln 2)) is the upper tail of the normal distribution at |z|. P
// = log2(erfcx(|z| / sqrt(2)) / 2) is smooth. Its interpolant in the Chebyshev points of [0, 6], a polynomial in u =
// |z| / 3 - 1, is accurate to 7e-8. Beyond 6, where T < 1e-9, P is taken at 6. There is no cancellation as in 1 +
// erf(z) and no division.
INLINE vec gelu_of(vec z) {
    const vec size = as_float((bits)z & 0x7fffffff);
    vec u = size * (1.0f / 3) - 1.0f;
    u = u > 1.0f ? vec{} + 1.0f : u;
    vec p = u * 3.53115088e-4f - 6.96499430e-4f;
    p = p * u - 8.01365419e-5f;
    p = p * u + 1.68883451e-3f;
    p = p * u - 5.16613361e-3f;
    p = p * u + 1.53476887e-2f;
    p = p * u - 3.96827296e-2f;
    p = p * u + 9.22301320e-2f;
    p = p * u - 2.04310526e-1f;
    p = p * u + 4.58074508e-1f;
    p = p * u - 1.22527509f;
    p = p * u - 3.04080610f;
    const vec tail = exp2_of(p - size * 0.721347520f * size);
    return (z > 0 ? z : vec{}) - size * tail;
}

void bias_gelu(float* x, const float* bias, int64_t width) {
    along(width, [&](int64_t c, int have) {
        store_some(x + c, gelu_of(load_some(x + c, have) + load_some(bias + c, have)), have);
    });
}

}  // namespace
}  // namespace fastprobe
