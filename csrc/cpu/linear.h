// Linear layers of a model: their weights as panels, and their rows in blocks.
#pragma once

#include "kernels.h"

namespace fastprobe {

struct Linear {
    Matrix weight;      // (width, depth)
    const float* bias;  // nullptr: none
    int64_t width;
    float* out;  // (n, width), dense; nullptr: the output is dropped once it has been used
};

// A LayerNorm and its dense result.
struct Norm {
    const float *weight, *bias;
    float eps;
    float* out;
};

constexpr int64_t FEWEST_ROWS = 64;  // of a block: each block reads all weights, and must hold a tile of rows

// A layer's weight as panels of PANEL outputs each.
class Panels {
   public:
    // Takes its memory from `memory`, and advances that pointer for the next layer's panels.
    Panels(const Linear& layer, int64_t depth, float*& memory);

    static int64_t size(const Linear& layer, int64_t depth);

    // Call it from all threads of a parallel region, with a barrier before the panels are used.
    void pack(const Kernels& kernels) const;

    // Write the layer's output, or its GELU, for n rows to out, a dense (n, layer.width) matrix.
    void apply(Matrix x, int64_t n, bool gelu, float* out, const Kernels& kernels) const;

   private:
    float* panel(int64_t p) const { return memory_ + p * depth_ * PANEL; }
    int width(int64_t p) const;

    const Linear& layer_;
    const int64_t depth_, count_;
    float* const memory_;
};

// Rows cut into blocks of equal size, a multiple of the threads, whose numbers stay in a core's second-level cache.
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
