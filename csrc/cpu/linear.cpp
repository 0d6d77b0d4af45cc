#include "linear.h"

#include <algorithm>

namespace fastprobe {
namespace {

constexpr int64_t NUMBERS = 3 << 17;  // of a block: 1.5 MB of a second-level cache of 2 MB, where this was measured

}  // namespace

int64_t Panels::size(const Linear& layer, int64_t depth) { return (layer.width + PANEL - 1) / PANEL * PANEL * depth; }

Panels::Panels(const Linear& layer, int64_t depth, float*& memory)
    : layer_(layer), depth_(depth), count_((layer.width + PANEL - 1) / PANEL), memory_(memory) {
    memory += size(layer, depth);
}

void Panels::pack(const Kernels& kernels) const {
#pragma omp for schedule(static) nowait
    for (int64_t p = 0; p < count_; ++p) {
        const Matrix& weight = layer_.weight;
        const float* rows = weight.data + p * PANEL * weight.row_stride;
        kernels.transpose_weight(rows, weight.row_stride, width(p), depth_, panel(p));
    }
}

void Panels::apply(Matrix x, int64_t n, bool gelu, float* out, const Kernels& kernels) const {
    for (int64_t p = 0; p < count_; ++p) {
        const float* bias = layer_.bias ? layer_.bias + p * PANEL : nullptr;
        const float* next = panel(p + 1 < count_ ? p + 1 : p);
        kernels.linear(x, n, depth_, panel(p), bias, width(p), gelu, out + p * PANEL, layer_.width, next);
    }
}

int Panels::width(int64_t p) const { return int(std::min<int64_t>(PANEL, layer_.width - p * PANEL)); }

Blocks::Blocks(int64_t rows, int64_t numbers_a_row, int threads) : rows_(rows) {
    const int64_t most = std::max<int64_t>(NUMBERS / numbers_a_row, FEWEST_ROWS) * threads;
    const int64_t turns = (rows + most - 1) / most;
    count_ = std::max<int64_t>(std::min<int64_t>(turns * threads, rows / FEWEST_ROWS), 1);
}

}  // namespace fastprobe
