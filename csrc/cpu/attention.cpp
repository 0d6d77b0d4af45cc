#include "attention.h"

#include <algorithm>
#include <cmath>

#include "memory.h"

namespace fastprobe {

std::vector<Sequence> sequences_of(const Runs& runs) {
    std::vector<Sequence> sequences;
    int64_t start = 0;
    for (auto [count, length] : runs)
        for (int64_t i = 0; i < count; ++i, start += length) sequences.push_back({start, length});
    return sequences;
}

constexpr float LOG2E = 1.44269504f;  // the weights are powers of two, which take fewer operations than powers of e

void Heads::attend(int64_t head, Sequence sequence, float* memory, const Kernels& kernels) const {
    const auto [first, length] = sequence;
    const int64_t column = head * width;
    kernels.attend({q.data + first * q.row_stride + column, k.data + first * k.row_stride + column,
                    v.data + first * v.row_stride + column, out + first * count * width + column, q.row_stride,
                    k.row_stride, v.row_stride, count * width, length, width, LOG2E / std::sqrt(float(width))},
                   memory);
}

int64_t Heads::memory_for(int64_t length) const {
    const int64_t panels = (length + PANEL - 1) / PANEL, wide = (width + PANEL - 1) / PANEL * PANEL;
    return panels * PANEL * width + length * wide + TILE_HEIGHT * (width + panels * PANEL);
}

void attention(const Heads& heads, const Runs& runs, int threads, const Kernels& kernels) {
    std::vector<Sequence> sequences = sequences_of(runs);
    // The longest first, so that no thread starts one at the end.
    std::stable_sort(sequences.begin(), sequences.end(), [](auto a, auto b) { return a.length > b.length; });
    const int64_t tasks = int64_t(sequences.size()) * heads.count;
    if (!tasks) return;
#pragma omp parallel num_threads(threads)
    {
        const Memory memory(heads.memory_for(sequences[0].length));
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; ++task)
            heads.attend(task % heads.count, sequences[task / heads.count], memory.get(), kernels);
    }
}

}  // namespace fastprobe
