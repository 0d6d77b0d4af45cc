// The launches, for module.cpp. Pointers are to device memory. Launches run on the stream and return at once.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace fastprobe {

// A column block of 16-bit rows, in the caller's memory and gathered; strides count elements.
struct Block {
    const void *rows, *gathered;
    int64_t row_stride, gathered_stride;
    int width;
};

// Rows of any dtype and any strides: see rows.cuh.
struct AnyRows {
    const void* data;
    const double* origin;
    int64_t row_stride, column_stride;
    int width, dtype;
};

struct Launch {
    int device;
    uintptr_t stream;
};

// Add the products of at most MAX_PAIRS pairs of 16-bit blocks. If *is_gathered may be 0, the columns of block.rows are
// adjacent and its rows begin at multiples of 16 bytes. If it is always 1, block.rows is not read.
void gram(const std::vector<Block>& blocks, bool bfloat16, int rows, int positions, const int* is_gathered,
          const Plan& plan, Launch launch);
// Add the products of at most MAX_PAIRS pairs in float64.
void gram_exact(const std::vector<AnyRows>& blocks, const int* index, const Plan& plan, Launch launch);
// Gather rows fold after fold, or one plane of some of their columns, and sum them: see rows.cuh.
void rows(const AnyRows& block, const int* columns, int width, const int* index, const int* fold_slabs, int folds,
          int splits, const int* is_gathered, void* gathered, int64_t gathered_stride, bool low, double* sums,
          Launch launch);

}  // namespace fastprobe
