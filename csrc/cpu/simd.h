// Vectors of LANES numbers; the including file sets LANES. No function here is shared between instruction sets: all are
// in an unnamed namespace and none calls the standard library, so that the linker cannot merge code for a newer
// processor into what an older one runs.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER

namespace fastprobe {
namespace {

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float half_vec __attribute__((vector_size(2 * LANES)));
typedef double doubles __attribute__((vector_size(4 * LANES)));  // half a vec: gcc keeps longer ones in memory
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

template <class V, class T>
INLINE V load(const T* from) {
    V v;
    memcpy(&v, from, sizeof(V));
    return v;
}

template <class V, class T>
INLINE void store(T* to, V v) {
    memcpy(to, &v, sizeof(V));
}

constexpr int DOUBLES = LANES / 2;

// The first (0) or the second (1) half of a vec.
INLINE doubles half_of(vec v, int which) {
    half_vec h;
    memcpy(&h, reinterpret_cast<const char*>(&v) + which * sizeof(h), sizeof(h));
    return __builtin_convertvector(h, doubles);
}

INLINE vec as_float(bits b) { return (vec)b; }

INLINE bits widened(halves h) { return __builtin_convertvector(h, bits); }

INLINE vec from_bfloat16(halves h) { return as_float(widened(h) << 16); }

// A product changes the exponent's bias from 15 to 127 and makes subnormal numbers normal.
INLINE vec from_float16(halves h) {
    bits b = widened(h);
    vec magnitude = as_float((b & 0x7fff) << 13) * 0x1p112f;
    bits infinite = (bits)((b & 0x7c00) == 0x7c00) & 0x7f800000;  // or not a number
    return as_float((bits)magnitude | infinite | (b & 0x8000) << 16);
}

// Lane i is element from[i] of the concatenation of a and b.
INLINE vec shuffled(vec a, vec b, bits from) {
#if defined(__clang__)
    vec out;
    for (int lane = 0; lane < LANES; ++lane)
        out[lane] = int(from[lane]) < LANES ? a[from[lane]] : b[from[lane] - LANES];
    return out;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// Conversion of each dtype to floats: the type that rows are stored in, and the widening of its vectors.
struct FromFloat32 {
    using Stored = float;
    INLINE_MEMBER vec operator()(vec v) const { return v; }
};
struct FromBfloat16 {
    using Stored = uint16_t;
    INLINE_MEMBER vec operator()(halves h) const { return from_bfloat16(h); }
};
struct FromFloat16 {
    using Stored = uint16_t;
    INLINE_MEMBER vec operator()(halves h) const { return from_float16(h); }
};

// Call body(widen) with the conversion of a dtype.
template <class Body>
INLINE auto read_as(Dtype dtype, const Body& body) {
    if (dtype == Dtype::FLOAT32) return body(FromFloat32{});
    if (dtype == Dtype::BFLOAT16) return body(FromBfloat16{});
    return body(FromFloat16{});
}

// Call body(column, number of columns) for a row, LANES columns at a time; the last call may have fewer.
template <class Body>
INLINE void along(int64_t width, const Body& body) {
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) body(c, LANES);
    if (c < width) body(c, int(width - c));
}

INLINE vec load_some(const float* from, int have) {
    if (have == LANES) return load<vec>(from);
    vec v = {};
    memcpy(&v, from, size_t(have) * sizeof(float));
    return v;
}

INLINE void store_some(float* to, vec v, int have) {
    if (have == LANES) return store(to, v);
    memcpy(to, &v, size_t(have) * sizeof(float));
}

// Reduce all lanes of v, two by two; every lane holds the result.
template <class Join>
INLINE vec joined(vec v, const Join& join) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) {
        bits other = {};
        for (int lane = 0; lane < LANES; ++lane) other[lane] = lane ^ half;
        v = join(v, shuffled(v, v, other));
    }
    return v;
}

INLINE float sum_of(vec v) {
    double sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += v[lane];
    return float(sum);
}

}  // namespace
}  // namespace fastprobe
