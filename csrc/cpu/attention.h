// Attention inside each of many sequences that lie side by side.
#pragma once

#include <utility>
#include <vector>

#include "kernels.h"

namespace fastprobe {

// out, dense, (N, heads * width): softmax(q k^T / sqrt(width)) v within each sequence and head. runs are (sequences,
// length) of sequences of one length, in the order of the rows.
void attention(Matrix q, Matrix k, Matrix v, const std::vector<std::pair<int64_t, int64_t>>& runs, int64_t heads,
               int64_t width, float* out, int threads, const Kernels& kernels);

}  // namespace fastprobe
