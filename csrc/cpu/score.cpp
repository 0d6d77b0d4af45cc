#include "score.h"

#include <algorithm>
#include <numeric>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "memory.h"
#include "products.h"

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
           ResidualSums sums, int threads, const Kernels& kernels) {
    const int64_t depth = x.width, panels = (y.width + PANEL - 1) / PANEL;
    const Memory weights(panels * depth * PANEL), bias(panels * PANEL), copies(threads * depth * PANEL);
    const Rows coef_rows{coef, Dtype::FLOAT32, y.width, y.width, 1};
    std::vector<int64_t> every(std::max<int64_t>(depth, CHUNK));
    std::iota(every.begin(), every.end(), int64_t(0));
    std::copy_n(intercept, y.width, bias.get());
    std::fill(bias.get() + y.width, bias.get() + panels * PANEL, 0.0f);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t p = 0; p < panels; ++p)
        kernels.pack(coef_rows, every.data(), depth, p * PANEL, nullptr, false, weights.get() + p * depth * PANEL,
                     nullptr, nullptr);

    const auto score_rows = [&](int64_t row, int64_t end, float* residual, int64_t residual_panel) {
        float* rows = copies.get() + thread_number() * PANEL * depth;
        const int height = int(std::min<int64_t>(PANEL, end - row));
        kernels.widen(x, row, height, rows);  // float32 rows too: read once from memory, then from a cache
        std::fill(rows + height * depth, rows + PANEL * depth, 0.0f);
        kernels.score(rows, depth, weights.get(), bias.get(), y, row, height, out, residual, residual_panel);
    };
    if (!sums.cross) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t row = 0; row < n; row += PANEL) score_rows(row, n, nullptr, 0);
        return;
    }

    const int64_t panel_size = std::min<int64_t>(CHUNK, n) * PANEL, x_panels = (depth + PANEL - 1) / PANEL;
    const Memory memory((x_panels + panels) * panel_size);
    std::vector<Packed> packed(x_panels + panels);  // panels of x, then panels of the residual
    for (int64_t p = 0; p < x_panels + panels; ++p) {
        const int64_t left = p < x_panels ? depth - p * PANEL : y.width - (p - x_panels) * PANEL;
        packed[p] = {memory.get() + p * panel_size, nullptr, false, int(std::min<int64_t>(PANEL, left))};
    }
    std::vector<int64_t> here(CHUNK);
    for (int64_t start = 0; start < n; start += CHUNK) {
        const int64_t length = std::min<int64_t>(CHUNK, n - start);
        std::iota(here.begin(), here.end(), start);
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(dynamic) nowait
            for (int64_t p = 0; p < x_panels; ++p)
                kernels.pack(x, here.data(), length, p * PANEL, nullptr, false, packed[p].floats, nullptr, nullptr);
#pragma omp for schedule(dynamic)
            for (int64_t row = 0; row < length; row += PANEL)
                score_rows(start + row, start + length, packed[x_panels].floats + row * PANEL, panel_size);
#pragma omp for schedule(dynamic)
            for (int64_t p = 0; p < panels; ++p) {
                float* panel = packed[x_panels + p].floats;
                double panel_sums[PANEL] = {}, panel_squares[PANEL] = {};
                // Packing the panel onto itself computes its sums.
                kernels.pack({panel, Dtype::FLOAT32, PANEL, PANEL, 1}, every.data(), length, 0, nullptr, false, panel,
                             panel_sums, panel_squares);
                for (int c = 0; c < packed[x_panels + p].width; ++c) {
                    sums.sums[p * PANEL + c] += panel_sums[c];
                    sums.squares[p * PANEL + c] += panel_squares[c];
                }
            }
#pragma omp for collapse(2) schedule(dynamic)
            for (int64_t right = 0; right < panels; right += GROUP)
                for (int64_t left = 0; left < x_panels; left += GROUP) {
                    const Product product{int(left), int(std::min(left + GROUP, x_panels)), int(x_panels + right),
                                          int(x_panels + std::min(right + GROUP, panels)), false};
                    double* cross = sums.cross + PANEL * (left * y.width + right);
                    product.add_to(cross, y.width, packed.data(), length, kernels);
                }
        }
    }
}

}  // namespace fastprobe
