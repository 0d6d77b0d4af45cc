#include "attention.h"

#include <algorithm>
#include <cmath>

#include "memory.h"

namespace fastprobe {

constexpr int ROWS = 8;  // of queries at a time, at most

void attention(Matrix q, Matrix k, Matrix v, const std::vector<std::pair<int64_t, int64_t>>& runs, int64_t heads,
               int64_t width, float* out, int threads, const Kernels& kernels) {
    struct Sequence {
        int64_t start, length;
    };
    std::vector<Sequence> sequences;
    int64_t start = 0, longest = 0;
    for (auto [count, length] : runs) {
        longest = std::max(longest, length);
        for (int64_t i = 0; i < count; ++i, start += length) sequences.push_back({start, length});
    }
    // The longest first, so that no thread is left with one at the end.
    std::stable_sort(sequences.begin(), sequences.end(), [](auto a, auto b) { return a.length > b.length; });

    const int64_t panels = (longest + PANEL - 1) / PANEL, tasks = int64_t(sequences.size()) * heads;
    const int64_t wide = (width + PANEL - 1) / PANEL * PANEL;
    const int64_t size = panels * PANEL * width + longest * wide + ROWS * (width + panels * PANEL);
    const float scale = 1 / std::sqrt(float(width));
#pragma omp parallel num_threads(threads)
    {
        const Memory memory(size);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; ++task) {
            const auto [first, length] = sequences[task / heads];
            const int64_t column = task % heads * width;
            kernels.attend({q.data + first * q.row_stride + column, k.data + first * k.row_stride + column,
                            v.data + first * v.row_stride + column, out + first * heads * width + column, q.row_stride,
                            k.row_stride, v.row_stride, heads * width, length, width, scale},
                           memory.get());
        }
    }
}

}  // namespace fastprobe
