// Products of packed panels over one chunk of tokens.
#pragma once

#include "kernels.h"

namespace fastprobe {

struct Packed {
    float* floats = nullptr;
    float* pairs = nullptr;
    bool as_pairs = false;  // products take the pairs, where those of the other panel are taken, too
    int width = PANEL;
};

// So many left panels against so many right ones: their chains (8 x 16 KB) stay in a near cache, and are fetched from a
// far one for four products each. One panel against another at a time would wait for them a third of the time.
constexpr int GROUP = 4;

// Of the panels in an array: [left, left_end) against [right, right_end), at most GROUP each.
struct Product {
    int left, left_end, right, right_end;
    bool upper;  // of one block with itself: only on and above the diagonal

    bool has(int l, int r) const { return !upper || l <= r; }

    // out += left^T right over n <= CHUNK tokens; out is where the first columns of both meet.
    void add_to(double* out, int64_t stride, const Packed* panels, int64_t n, const Kernels& kernels) const;
};

}  // namespace fastprobe
