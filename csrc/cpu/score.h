// An affine map scored against what it stands in for, row by row; what it predicts is never written.
#pragma once

#include "kernels.h"

namespace fastprobe {

// Sums over rows of r = y - p that rows are added to: x r^T, a row-major (x.width, y.width) matrix, r and r^2.
struct ResidualSums {
    double *cross, *sums, *squares;
};

// p = x coef + intercept against y, for y's n rows; coef is a row-major (x.width, y.width) matrix. The sums of the
// residual are wanted where their addresses are.
void score(const Rows& x, const float* coef, const float* intercept, const Rows& y, int64_t n, RowSums out,
           ResidualSums residual, int threads, const Kernels& kernels);

}  // namespace fastprobe
