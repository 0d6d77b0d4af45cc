// An affine map scored against what it stands in for, row by row; what it predicts is never written.
#pragma once

#include "kernels.h"

namespace fastprobe {

// p = x coef + intercept against y, for y's n rows; coef is a row-major (x.width, y.width) matrix. Unless cross is
// nullptr, x^T (y - p) is added to it, a matrix of that shape.
void score(const Rows& x, const float* coef, const float* intercept, const Rows& y, int64_t n, RowSums out,
           double* cross, int threads, const Kernels& kernels);

}  // namespace fastprobe
