#include "projections.h"

#include <deque>

namespace fastprobe {

void projections(Matrix x, int64_t n, int64_t depth, const std::vector<Linear>& layers, int threads,
                 const Kernels& kernels) {
    std::deque<Panels> panels;
    int64_t numbers = depth;
    for (const Linear& layer : layers) {
        panels.emplace_back(layer, depth);
        numbers += layer.width;
    }
    const Blocks blocks(n, numbers, threads);
#pragma omp parallel num_threads(threads)
    {
        for (const Panels& weight : panels) weight.pack(kernels);
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < blocks.count(); ++b) {
            const int64_t row = blocks.start(b);
            for (size_t l = 0; l < layers.size(); ++l)
                panels[l].apply({x.data + row * x.row_stride, x.row_stride}, blocks.size(b), false,
                                layers[l].out + row * layers[l].width, kernels);
        }
    }
}

}  // namespace fastprobe
