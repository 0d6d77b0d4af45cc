#include "score.h"

#include <algorithm>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "memory.h"

namespace fastprobe {
namespace {

int thread_number() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace

void score(const Rows& x, const float* coef, const float* intercept, const Rows& y, int64_t n, RowSums out, int threads,
           const Kernels& kernels) {
    const int64_t depth = x.width, panels = (y.width + PANEL - 1) / PANEL, blocks = (n + PANEL - 1) / PANEL;
    const Memory weights(panels * depth * PANEL), bias(panels * PANEL), copies(threads * depth * PANEL);
    const Rows coef_rows{coef, Dtype::FLOAT32, y.width, y.width, 1};
    std::vector<int64_t> every(depth);
    for (int64_t i = 0; i < depth; ++i) every[i] = i;
    std::copy_n(intercept, y.width, bias.get());
    std::fill(bias.get() + y.width, bias.get() + panels * PANEL, 0.0f);

#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t p = 0; p < panels; ++p)
            kernels.pack(coef_rows, every.data(), depth, p * PANEL, nullptr, false, weights.get() + p * depth * PANEL,
                         nullptr, nullptr);
        float* rows = copies.get() + thread_number() * PANEL * depth;
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t row = b * PANEL;
            const int height = int(std::min<int64_t>(PANEL, n - row));
            kernels.widen(x, row, height, rows);  // float32 rows too: read once in order, then from a cache
            std::fill(rows + height * depth, rows + PANEL * depth, 0.0f);
            kernels.score(rows, depth, weights.get(), bias.get(), y, row, height, out);
        }
    }
}

}  // namespace fastprobe
