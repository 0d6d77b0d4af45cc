// Attention within each of many sequences that follow each other.
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

// Rows of queries, keys, values and outputs, each as wide as all heads; a head is `width` columns wide.
struct Heads {
    Matrix q, k, v;
    float* out;  // dense
    int64_t count, width;

    // One head of one sequence; memory holds memory_for(length) floats.
    void attend(int64_t head, Sequence sequence, float* memory, const Kernels& kernels) const;
    int64_t memory_for(int64_t length) const;
};

// heads.out = softmax(q k^T / sqrt(width)) v within each sequence and head.
void attention(const Heads& heads, const Runs& runs, int threads, const Kernels& kernels);

}  // namespace fastprobe
