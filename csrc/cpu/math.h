// Functions of vectors that have no instruction.
#pragma once

#include "simd.h"

namespace fastprobe {
namespace {

// 2^x to 2 ulp for x <= 127, and 2^-126 below -126. A NaN stays a NaN.
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
