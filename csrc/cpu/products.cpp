#include "products.h"

#include <algorithm>

namespace fastprobe {
namespace {

// Hardware does not prefetch over the distance between two rows of sums.
void prefetch(const double* out, int64_t stride, const Packed& left, const Packed& right) {
    constexpr int LINE = 64 / sizeof(double);
    for (int r = 0; r < left.width; ++r)
        for (int c = 0; c < right.width; c += LINE) __builtin_prefetch(out + r * stride + c, 1, 2);
}

const float* at(const Packed& panel, bool bf16_pairs, int64_t token) {
    return bf16_pairs ? panel.bf16_pairs + token / 2 * PANEL : panel.floats + token * PANEL;
}

}  // namespace

void Product::add_to(double* out, int64_t stride, const Packed* panels, int64_t n, const Kernels& kernels) const {
    alignas(64) float totals[GROUP][GROUP][PANEL * PANEL] = {};
    const auto sums = [&](int l, int r) { return out + PANEL * ((l - left) * stride + r - right); };
    const int lefts = left_end - left, both = lefts + right_end - right;
    const int64_t chain = n <= FEW ? CHAIN / 4 : CHAIN;
    for (int64_t t = 0; t < n; t += chain) {
        const bool last = t + chain >= n;
        const int64_t next = last ? t : t + chain;  // no chain follows the last one: stay near
        int halves = 0;                             // of the next chain that are prefetched so far
        for (int r = right; r < right_end; ++r)
            for (int l = left; l < left_end && has(l, r); ++l, ++halves) {
                const Packed &a = panels[l], &b = panels[r];
                if (last) prefetch(sums(l, r), stride, a, b);  // they arrive while the last chain is multiplied
                const int which = halves / 2 % both;
                const Packed& later = panels[which < lefts ? left + which : right + which - lefts];
                const bool bf16_pairs = a.reads_pairs && b.reads_pairs;
                kernels.multiply(at(a, bf16_pairs, t), at(b, bf16_pairs, t), std::min(chain, n - t), bf16_pairs,
                                 a.width, b.width, totals[l - left][r - right],
                                 at(later, later.reads_pairs, next + halves % 2 * chain / 2));
            }
    }
    for (int r = right; r < right_end; ++r)
        for (int l = left; l < left_end && has(l, r); ++l)
            kernels.flush(totals[l - left][r - right], sums(l, r), stride, panels[l].width, panels[r].width);
}

}  // namespace fastprobe
