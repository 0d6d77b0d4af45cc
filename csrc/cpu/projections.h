// Several linear layers of the same rows: queries, keys and values.
#pragma once

#include <vector>

#include "linear.h"

namespace fastprobe {

// Every layer's output on n rows of x, depth wide; n is at least FEWEST_ROWS.
void projections(Matrix x, int64_t n, int64_t depth, const std::vector<Linear>& layers, int threads,
                 const Kernels& kernels);

}  // namespace fastprobe
