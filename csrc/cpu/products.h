// Products of packed panels over one chunk of tokens.
#pragma once

#include "kernels.h"

namespace fastprobe {

// A packed panel, in one form or both (gram.cpp chooses them).
struct Packed {
    float* floats = nullptr;
    float* bf16_pairs = nullptr;
    bool reads_pairs = false;  // a product reads bf16_pairs if this is true of both its panels, else floats
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
