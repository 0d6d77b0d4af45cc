// An affine map scored against what it stands in for, row by row; what it predicts is never written.
#pragma once

#include "kernels.h"

namespace fastprobe {

// p = x coef + intercept against y, for y's n rows; coef is a row-major (x.width, y.width) matrix.
void score(const Rows& x, const float* coef, const float* intercept, const Rows& y, int64_t n, RowSums out, int threads,
           const Kernels& kernels);

}  // namespace fastprobe
