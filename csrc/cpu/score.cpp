#include "score.h"

#include <algorithm>
#include <numeric>
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

void score(const Rows& x, const float* coef, const float* intercept, const Rows& y, int64_t n, RowSums out,
           double* cross, int threads, const Kernels& kernels) {
    const int64_t depth = x.width, panels = (y.width + PANEL - 1) / PANEL, x_panels = (depth + PANEL - 1) / PANEL;
    const int64_t chunk = std::min<int64_t>(CHUNK, n);
    const Memory weights(panels * depth * PANEL), bias(panels * PANEL), copies(threads * depth * PANEL);
    const Memory residual(cross ? panels * chunk * PANEL : 0), x_packed(cross ? x_panels * chunk * PANEL : 0);
    const Rows coef_rows{coef, Dtype::FLOAT32, y.width, y.width, 1};
    std::vector<int64_t> index(std::max(depth, chunk));
    std::iota(index.begin(), index.end(), int64_t(0));
    std::copy_n(intercept, y.width, bias.get());
    std::fill(bias.get() + y.width, bias.get() + panels * PANEL, 0.0f);

    const auto score_rows = [&](int64_t row, int64_t end, float* residual_rows) {
        float* rows = copies.get() + thread_number() * PANEL * depth;
        const int height = int(std::min<int64_t>(PANEL, end - row));
        kernels.widen(x, row, height, rows);  // float32 rows too: read once in order, then from a cache
        std::fill(rows + height * depth, rows + PANEL * depth, 0.0f);
        kernels.score(rows, depth, weights.get(), bias.get(), y, row, height, out, residual_rows, chunk * PANEL);
    };

#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t p = 0; p < panels; ++p)
        kernels.pack(coef_rows, index.data(), depth, p * PANEL, nullptr, false, weights.get() + p * depth * PANEL,
                     nullptr, nullptr);
    if (!cross) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t row = 0; row < n; row += PANEL) score_rows(row, n, nullptr);
        return;
    }
    for (int64_t start = 0; start < n; start += chunk) {
        const int64_t length = std::min(chunk, n - start);
        std::iota(index.begin(), index.begin() + length, start);
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(dynamic) nowait
            for (int64_t row = 0; row < length; row += PANEL)
                score_rows(start + row, start + length, residual.get() + row * PANEL);
#pragma omp for schedule(dynamic)
            for (int64_t p = 0; p < x_panels; ++p)
                kernels.pack(x, index.data(), length, p * PANEL, nullptr, false, x_packed.get() + p * chunk * PANEL,
                             nullptr, nullptr);
#pragma omp for schedule(dynamic)
            for (int64_t tile = 0; tile < x_panels * panels; ++tile) {
                const int64_t left = tile % x_panels, right = tile / x_panels;
                kernels.multiply(x_packed.get() + left * chunk * PANEL, residual.get() + right * chunk * PANEL, length,
                                 false, 1.0, cross + left * PANEL * y.width + right * PANEL, y.width,
                                 int(std::min<int64_t>(PANEL, depth - left * PANEL)),
                                 int(std::min<int64_t>(PANEL, y.width - right * PANEL)));
            }
        }
    }
}

}  // namespace fastprobe
