// score on a CPU: an affine map p of x, compared with y row by row. Predictions are never written to memory.
#pragma once

#include "kernels.h"

namespace fastprobe {

// Sums over rows of the residual r = y - p: of x r^T, a row-major (x.width, y.width) matrix, of r and of r^2.
struct ResidualSums {
    double *cross, *sums, *squares;
};

// Compare p = x coef + intercept with y, n rows; coef is a row-major (x.width, y.width) matrix. The sums of the
// residual are added where residual.cross is not nullptr.
void score(const Rows& x, const float* coef, const float* intercept, const Rows& y, int64_t n, RowSums out,
           ResidualSums residual, int threads, const Kernels& kernels);

}  // namespace fastprobe
