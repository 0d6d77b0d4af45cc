// Attention inside each of many sequences that lie side by side.
#pragma once

#include <utility>
#include <vector>

#include "kernels.h"

namespace fastprobe {

using Runs = std::vector<std::pair<int64_t, int64_t>>;  // (sequences, length) of sequences of one length, in order

struct Sequence {
    int64_t start, length;
};

std::vector<Sequence> sequences_of(const Runs& runs);

// Rows of queries, keys, values and of what comes out, each as wide as all heads, which are width wide.
struct Heads {
    Matrix q, k, v;
    float* out;  // dense
    int64_t count, width;

    // One head of one sequence, which begins at a row. memory has room for memory_for(length).
    void attend(int64_t head, Sequence sequence, float* memory, const Kernels& kernels) const;
    int64_t memory_for(int64_t length) const;
};

// heads.out: softmax(q k^T / sqrt(width)) v within each sequence and head.
void attention(const Heads& heads, const Runs& runs, int threads, const Kernels& kernels);

}  // namespace fastprobe
