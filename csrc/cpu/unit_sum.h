// unit_sum on a CPU: the sum of rows divided by their norms, and whether all of them are finite.
#pragma once

#include "kernels.h"

namespace fastprobe {

struct UnitSum {
    int64_t count;  // valid rows with a nonzero norm
    bool finite;
};

// total[0..rows.width) = sum over the valid rows of row / |row|. The result does not depend on the number of threads.
UnitSum unit_sum(const Rows& rows, const bool* valid, int64_t n, double* total, int threads, const Kernels& kernels);

}  // namespace fastprobe
