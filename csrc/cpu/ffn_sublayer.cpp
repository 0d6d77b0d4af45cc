#include "ffn_sublayer.h"

#include <algorithm>

#include "memory.h"

namespace fastprobe {
namespace {

thread_local KeptMemory weights, between;

}  // namespace

void ffn_sublayer(Matrix x, int64_t n, int64_t depth, const std::vector<Linear>& layers, Matrix residual,
                  const Norm& norm, int threads, const Kernels& kernels) {
    int64_t numbers = depth, dropped = 0, width = depth, size = 0;
    for (const Linear& layer : layers) {
        size += Panels::size(layer, width);
        width = layer.width;
        numbers += width;
        dropped += layer.out ? 0 : width;
    }
    std::vector<Panels> panels;
    float* memory = weights.get(size);
    for (size_t l = 0; l < layers.size(); ++l) panels.emplace_back(layers[l], l ? layers[l - 1].width : depth, memory);
    const Blocks blocks(n, numbers, threads);
    int64_t most = 0;
    for (int64_t b = 0; b < blocks.count(); ++b) most = std::max(most, blocks.size(b));
#pragma omp parallel num_threads(threads)
    {
        for (const Panels& weight : panels) weight.pack(kernels);
        float* const scratch = between.get(most * dropped);
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < blocks.count(); ++b) {
            const int64_t row = blocks.start(b), rows = blocks.size(b);
            Matrix in{x.data + row * x.row_stride, x.row_stride};
            float* free = scratch;
            for (size_t l = 0; l < layers.size(); ++l) {
                const Linear& layer = layers[l];
                float* out = layer.out ? layer.out + row * layer.width : free;
                if (!layer.out) free += rows * layer.width;
                panels[l].apply(in, rows, l + 1 < layers.size(), out, kernels);
                in = {out, layer.width};
            }
            for (int64_t i = 0; i < rows; ++i)
                kernels.add_norm(in.data + i * width, residual.data + (row + i) * residual.row_stride,
                                 norm.weight, norm.bias, width, norm.eps, norm.out + (row + i) * width);
        }
    }
}

}  // namespace fastprobe
