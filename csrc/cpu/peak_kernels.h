// burn of kernels.h, for one instruction set: the peak rate that other kernels are compared with.
#pragma once

#include "simd.h"

namespace fastprobe {
namespace {

constexpr int SUMS = 12;  // independent sums: more than the latency of a multiply-add times those that start in a cycle

// Run only multiply-adds in registers; return the number of floating-point operations.
template <bool OF_PAIRS>
__attribute__((noinline)) int64_t burn_registers(int64_t steps, volatile float* numbers) {
    vec sum[SUMS];
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; ++i) sum[i] = vec{} + float(i);
    const float half = numbers[0];  // volatile: with known numbers the compiler would compute the sums
    const vec a = vec{} + half, b = a + a;
    for (int64_t t = 0; t < steps; ++t) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; ++i) {
#ifdef PAIRS
            if (OF_PAIRS)
                sum[i] = add_pairs(sum[i], &half, b);
            else
#endif
                sum[i] = sum[i] * a + b;  // converges: overflow or underflow could change the rate
        }
    }
#pragma GCC unroll 12
    for (int i = 1; i < SUMS; ++i) sum[0] += sum[i];
    numbers[1] = sum_of(sum[0]);
    return steps * SUMS * LANES * (OF_PAIRS ? 4 : 2);
}

int64_t burn(int64_t steps, [[maybe_unused]] bool pairs) {
    volatile float numbers[2] = {0.5f, 0.0f};
#ifdef PAIRS
    if (pairs) return burn_registers<true>(steps, numbers);
#endif
    return burn_registers<false>(steps, numbers);
}

}  // namespace
}  // namespace fastprobe
