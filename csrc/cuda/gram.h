// The launches, for module.cpp. Pointers are to device memory; all run on the stream and return at once.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace fastprobe {

// A column block of 16-bit rows, as the caller has it and where it is gathered to; strides count elements.
struct Block {
    const void *rows, *gathered;
    int64_t row_stride, gathered_stride;
    int width;
};

// Rows of any dtype and strides: see rows.cuh.
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

// Of at most MAX_PAIRS pairs. Columns of rows lie side by side where is_gathered may be 0, and are multiples of 16 bytes
// apart; where it is always 1 they are not looked at.
void gram(const std::vector<Block>& blocks, bool bfloat16, int rows, int positions, const int* is_gathered,
          const Plan& plan, Launch launch);
void gram_exact(const std::vector<AnyRows>& blocks, const int* index, const Plan& plan, Launch launch);
void rows(const AnyRows& block, const int* columns, int width, const int* index, const int* fold_slabs, int folds,
          int splits, const int* is_gathered, void* gathered, int64_t gathered_stride, bool low, double* sums,
          Launch launch);

}  // namespace fastprobe
