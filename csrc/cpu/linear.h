// What the linear layers of a model share: their weights as panels, and rows in blocks.
#pragma once

#include "kernels.h"

namespace fastprobe {

struct Linear {
    Matrix weight;      // (width, depth)
    const float* bias;  // nullptr: none
    int64_t width;
    float* out;  // (n, width), dense; nullptr: the output is dropped once it has been used
};

// A LayerNorm, whose result goes to out, dense.
struct Norm {
    const float *weight, *bias;
    float eps;
    float* out;
};

constexpr int64_t FEWEST_ROWS = 64;  // of a block: a tile of rows must fit, and weights are fetched for each block

// A layer's weight as panels of PANEL outputs each.
class Panels {
   public:
    // In memory, which the next layer's panels may begin after.
    Panels(const Linear& layer, int64_t depth, float*& memory);

    static int64_t size(const Linear& layer, int64_t depth);

    // By all threads of a parallel region together, who meet before they use the panels.
    void pack(const Kernels& kernels) const;

    // out, (n, layer.width), dense: the layer, or GELU of it, on n rows.
    void apply(Matrix x, int64_t n, bool gelu, float* out, const Kernels& kernels) const;

   private:
    float* panel(int64_t p) const { return memory_ + p * depth_ * PANEL; }
    int width(int64_t p) const;

    const Linear& layer_;
    const int64_t depth_, count_;
    float* const memory_;
};

// Rows in blocks of like size, as many for each thread, whose numbers stay in a core's second cache.
class Blocks {
   public:
    Blocks(int64_t rows, int64_t numbers_a_row, int threads);

    int64_t count() const { return count_; }
    int64_t start(int64_t block) const {
        return block == count_ ? rows_ : rows_ * block / count_ / TILE_HEIGHT * TILE_HEIGHT;
    }
    int64_t size(int64_t block) const { return start(block + 1) - start(block); }

   private:
    const int64_t rows_;
    int64_t count_;
};

}  // namespace fastprobe
