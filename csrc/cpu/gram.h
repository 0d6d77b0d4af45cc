// gram_ on a CPU: products and sums of column blocks, fold by fold. The path of a call from Python to this file is in
// fastprobe/ops/gram/__init__.py.
#pragma once

#include <vector>

#include "kernels.h"

namespace fastprobe {

struct Block {
    Rows rows;
    const float* origin;  // rows.width numbers, or nullptr for zero
    double* sums;         // folds x rows.width, or nullptr if they are not wanted
    double* squares;      // the same
};

struct Pair {
    int left, right;  // if they are one block, only elements on and above the diagonal are computed
    double* gram;
    int64_t fold_stride;  // 0 if one matrix sums all folds
    int64_t row_stride;
};

// Add products and sums, in place:
//
//     gram[f]    += sum_{n: fold[n] = f} (left[n] - origin) (right[n] - origin)^T    for every pair
//     sums[f]    += sum_{n: fold[n] = f} (rows[n] - origin)                          for every block
//     squares[f] += sum_{n: fold[n] = f} (rows[n] - origin)^2
//
// Rows with a negative fold are left out. The result does not depend on the number of threads.
//
// Layout     CHUNK rows of one fold at a time are packed into panels of PANEL columns. Panels of bfloat16 rows hold
//            bfloat16 pairs (kernels.h) where the instruction set multiplies them.
// Work       One task is GROUP x GROUP panels of one pair. Threads pack all panels of a chunk, then take tasks.
// Precision  CHAIN products in one float32 register, CHUNK in float32 memory, the rest in float64.
// Floor      2 N sum_pairs(D_i D_j) operations, half of that for a triangle, and N sum D_i reads.
void gram(const std::vector<Block>& blocks, const std::vector<Pair>& pairs, const int64_t* fold, int64_t n,
          int64_t folds, int threads, const Kernels& kernels);

}  // namespace fastprobe
