// Products of column blocks, fold by fold: the sums behind every linearity score.
#pragma once

#include <vector>

#include "kernels.h"

namespace fastprobe {

struct Block {
    Rows rows;
    const float* origin;  // rows.width numbers, or nullptr for zero
    double* sums;         // folds x rows.width, or nullptr where they are not wanted
    double* squares;      // the same
};

struct Pair {
    int left, right;  // of one block with itself only what is on and above the diagonal is meant
    double* gram;
    int64_t fold_stride;  // 0 where one matrix takes all folds
    int64_t row_stride;
};

// gram[f] += sum_{n: fold[n] = f} (left[n] - origin) (right[n] - origin)^T for every pair, and the sums and
// squares of every block that wants them. Rows whose fold is negative are left out. The result does not depend on the
// number of threads.
void gram(const std::vector<Block>& blocks, const std::vector<Pair>& pairs, const int64_t* fold, int64_t n,
          int64_t folds, int threads, const Kernels& kernels);

}  // namespace fastprobe
