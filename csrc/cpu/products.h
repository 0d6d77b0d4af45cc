// Products of packed panels over one chunk of tokens.
#pragma once

#include "kernels.h"

namespace fastprobe {

struct Packed {
    float* floats = nullptr;
    float* pairs = nullptr;
    bool as_pairs = false;  // products read the pairs if the other panel has pairs too
    int width = PANEL;
};

// Panels on either side of a product. Their chains (8 x 16 KB) stay in a near cache, and each is fetched from a far one
// for four products. With one panel on either side, a third of the time is spent waiting for them.
constexpr int GROUP = 4;

// Products of panels [left, left_end) with panels [right, right_end) of an array, at most GROUP each.
struct Product {
    int left, left_end, right, right_end;
    bool upper;  // a block with itself: only panels on and above the diagonal

    bool has(int l, int r) const { return !upper || l <= r; }

    // out += left^T right over n <= CHUNK tokens; out is the element of the first column of either side.
    void add_to(double* out, int64_t stride, const Packed* panels, int64_t n, const Kernels& kernels) const;
};

}  // namespace fastprobe
