// Products of column blocks of 16-bit rows, on Hopper's tensor cores (fastprobe/ops/gram/__init__.py draws the way
// here).
//
// Layout     A block is (tokens, columns) with adjacent columns. Operands are not rearranged: the copy engine writes 64
//            columns of 128 tokens to one swizzled box, and wgmma reads its columns as rows of A and of B. A tile is
//            128 columns of one block by 128 columns of another.
// Work       Persistent blocks of threads, one a multiprocessor, take items (tile, fold, part of the rows). One thread
//            starts the copies; two warpgroups multiply 64 x 128 each. A tile on the diagonal is loaded once. Every sum
//            has one owner and one order: the same input gives the same bits.
// Precision  Products of 16-bit numbers are exact in float32. The tensor core truncates as it accumulates, a bias that
//            grows with the chain, so a chain is one slab, 128 tokens. Chains are summed in two float32 (Kahan), about
//            48 bits, and the sum is added to float64 once, at the end.
// Floor      tokens x (tiles x 128 x 128) x 2 operations. Each tile reads 256 columns from the L2 cache: the tensor
//            cores do 64 operations for each byte.
//
// It has never run on a GPU: start with `make gpu`. Tests in tests/native/ run the same code on a CPU, over a model of
// the hardware units, and read its machine code.
#pragma once

#include "layout.h"
#include "ptx.cuh"

namespace fastprobe {

constexpr int GRAM_THREADS = 3 * 128;  // a producer, two consumers

struct GramArguments {
    CUtensorMap rows[MAX_BLOCKS];      // in the caller's memory
    CUtensorMap gathered[MAX_BLOCKS];  // fold after fold
    const int* is_gathered;            // nonzero: read the gathered rows
    Plan plan;
};

template <bool BFLOAT16>
__global__ void __launch_bounds__(GRAM_THREADS, 1) gram_kernel(const __grid_constant__ GramArguments arguments) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    const Plan& plan = arguments.plan;
    __shared__ uint64_t full[STAGES], empty[STAGES];
    const uint32_t stages = (shared_address(dynamic_shared()) + ATOM_BYTES - 1) / ATOM_BYTES * ATOM_BYTES;

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(&full[stage], 1);   // the producer
            barrier_init(&empty[stage], 8);  // the warps of both consumers
        }
        barriers_are_initialised();
    }
    __syncthreads();

    const int warpgroup = threadIdx.x / 128;
    uint32_t n = 0;  // slabs so far; producer and consumers count the same slabs

    if (warpgroup == 0) {
        give_up_registers<40>();
        if (threadIdx.x != 0) return;
        const CUtensorMap* maps = *arguments.is_gathered ? arguments.gathered : arguments.rows;
        for (int index = blockIdx.x; index < plan.items(); index += gridDim.x) {
            const Work work = work_at(plan, TILE, index);
            for (int slab = work.slabs.begin; slab < work.slabs.end; ++slab, ++n) {
                const int stage = stage_of(n);
                barrier_wait(&empty[stage], empty_parity(n));
                barrier_expect(&full[stage], boxes_of(work.diagonal) * BOX_BYTES);
                for (int i = 0; i < boxes_of(work.diagonal); ++i) {
                    const Box box = box_at(work, slab, stages + stage * STAGE_BYTES, i);
                    load_box(box.to, &maps[box.block], box.column, box.row, &full[stage]);
                }
            }
        }
        return;
    }

    take_registers<232>();
    const int thread = threadIdx.x % 128, half = warpgroup - 1;  // upper or lower 64 rows of a tile
    float chain[ACCUMULATORS] = {};
    for (int index = blockIdx.x; index < plan.items(); index += gridDim.x) {
        const Work work = work_at(plan, TILE, index);
        float sum[ACCUMULATORS] = {}, lost[ACCUMULATORS] = {};
        for (int slab = work.slabs.begin; slab < work.slabs.end; ++slab, ++n) {
            const int stage = stage_of(n);
            const uint64_t a = left_operand(stages + stage * STAGE_BYTES, half);
            const uint64_t b = right_operand(stages + stage * STAGE_BYTES, work.diagonal);
            barrier_wait(&full[stage], full_parity(n));
            pin(chain);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < STEPS; ++step) wgmma<BFLOAT16>(chain, further(a, step), further(b, step), step > 0);
            wgmma_commit();
            wgmma_wait();
            pin(chain);
            if (threadIdx.x % 32 == 0) barrier_arrive(&empty[stage]);
#pragma unroll
            for (int i = 0; i < ACCUMULATORS; ++i) add_chain(sum[i], lost[i], chain[i]);
        }
        const Output out = output_of(plan, TILE, work);
#pragma unroll
        for (int i = 0; i < ACCUMULATORS; ++i)
            out.put(half * BOX + accumulator_row(thread, i), accumulator_column(thread, i),
                    double(sum[i]) - double(lost[i]));
    }
#endif
}

}  // namespace fastprobe
