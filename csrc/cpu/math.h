// Functions of vectors that the processor has no instruction for.
#pragma once

#include "simd.h"

namespace fastprobe {
namespace {

// e^x to 2 ulp for x <= 88; below -87 it stays at 2^-126. A NaN stays one.
INLINE vec exp_of(vec x) {
    x = x < -87.33654f ? vec{} - 87.33654f : x;
    const vec shifted = x * 1.44269504f + 0x1.8p23f;  // its last bits are x / ln 2, rounded to an integer
    const vec n = shifted - 0x1.8p23f;
    const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return as_float((bits)p + ((bits)shifted << 23));
}

// 2^x to 2 ulp for x <= 127; below -126 it stays at 2^-126. A NaN stays one.
INLINE vec exp2_of(vec x) {
    x = x < -126.0f ? vec{} - 126.0f : x;
    const vec shifted = x + 0x1.8p23f;
    const vec r = x - (shifted - 0x1.8p23f);
    vec p = r * 1.54614447e-4f + 1.34004282e-3f;
    p = p * r + 9.61805668e-3f;
    p = p * r + 5.55032723e-2f;
    p = p * r + 2.40226509e-1f;
    p = p * r + 6.93147207e-1f;
    p = p * r + 1.0f;
    return as_float((bits)p + ((bits)shifted << 23));
}

}  // namespace
}  // namespace fastprobe
