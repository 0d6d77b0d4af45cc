#include "attention_sublayer.h"

#include <algorithm>

#include "memory.h"

namespace fastprobe {
namespace {

thread_local KeptMemory weights, between;

// Group whole sequences into blocks of about `rows` rows, none with fewer than FEWEST_ROWS.
std::vector<std::vector<Sequence>> blocks_of(const std::vector<Sequence>& sequences, int64_t rows) {
    std::vector<std::vector<Sequence>> blocks;
    int64_t left = 0;
    for (const Sequence& sequence : sequences) left += sequence.length;
    int64_t size = rows;
    for (const Sequence& sequence : sequences) {
        if (size >= rows && left >= FEWEST_ROWS) {
            blocks.emplace_back();
            size = 0;
        }
        blocks.back().push_back(sequence);
        size += sequence.length;
        left -= sequence.length;
    }
    return blocks;
}

}  // namespace

void attention_sublayer(Matrix x, int64_t n, int64_t depth, const Runs& runs, const AttentionLayers& layers,
                        const Norm& norm, int threads, const Kernels& kernels) {
    const int64_t inner = layers.query.width, width = layers.out.width;
    float* memory = weights.get(3 * Panels::size(layers.query, depth) + Panels::size(layers.out, inner));
    const Panels query(layers.query, depth, memory), key(layers.key, depth, memory), value(layers.value, depth, memory);
    const Panels last(layers.out, inner, memory);
    const int64_t rows = Blocks(n, depth + 4 * inner + width, threads).size(0);
    const auto blocks = blocks_of(sequences_of(runs), std::max(rows, FEWEST_ROWS));
    int64_t most = 0, longest = 0;
    for (const auto& block : blocks) {
        most = std::max(most, block.back().start + block.back().length - block[0].start);
        for (const Sequence& sequence : block) longest = std::max(longest, sequence.length);
    }
#pragma omp parallel num_threads(threads)
    {
        for (const Panels* panels : {&query, &key, &value, &last}) panels->pack(kernels);
        Heads heads{{}, {}, {}, nullptr, layers.heads, inner / layers.heads};
        float* const q = between.get(most * (4 * inner + width) + heads.memory_for(longest));
        float *k = q + most * inner, *v = k + most * inner, *own_heads = v + most * inner;
        float *own_out = own_heads + most * inner, *room = own_out + most * width;
        heads.q = {q, inner}, heads.k = {k, inner}, heads.v = {v, inner}, heads.out = own_heads;
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (size_t b = 0; b < blocks.size(); ++b) {
            const std::vector<Sequence>& block = blocks[b];
            const int64_t start = block[0].start, size = block.back().start + block.back().length - start;
            const Matrix in{x.data + start * x.row_stride, x.row_stride};
            query.apply(in, size, false, q, kernels);
            key.apply(in, size, false, k, kernels);
            value.apply(in, size, false, v, kernels);
            if (layers.heads_out) heads.out = layers.heads_out + start * inner;
            for (const Sequence& sequence : block)
                for (int64_t head = 0; head < heads.count; ++head)
                    heads.attend(head, {sequence.start - start, sequence.length}, room, kernels);
            float* out = layers.out.out ? layers.out.out + start * width : own_out;
            last.apply({heads.out, inner}, size, false, out, kernels);
            for (int64_t i = 0; i < size; ++i)
                kernels.add_norm(out + i * width, in.data + i * x.row_stride, norm.weight, norm.bias, width, norm.eps,
                                 norm.out + (start + i) * width);
        }
    }
}

}  // namespace fastprobe
