#include "unit_sum.h"

#include <algorithm>
#include <vector>

namespace fastprobe {

constexpr int64_t PART = 256;  // rows that a thread takes at a time: few rows shorten the wait for the last thread

UnitSum unit_sum(const Rows& rows, const bool* valid, int64_t n, double* total, int threads, const Kernels& kernels) {
    const int64_t parts = (n + PART - 1) / PART, stride = (rows.width + PANEL - 1) / PANEL * PANEL;
    std::vector<double> totals(parts * stride);  // one a part, summed in order
    std::vector<int64_t> counts(parts);
    std::vector<char> finite(parts);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t p = 0; p < parts; ++p)
        finite[p] = kernels.unit_sum(rows, valid, p * PART, std::min(PART, n - p * PART),
                                     totals.data() + p * stride, &counts[p]);
    UnitSum result{0, true};
    std::fill(total, total + rows.width, 0.0);
    for (int64_t p = 0; p < parts; ++p) {
        for (int64_t c = 0; c < rows.width; ++c) total[c] += totals[p * stride + c];
        result.count += counts[p];
        result.finite = result.finite && finite[p];
    }
    return result;
}

}  // namespace fastprobe
