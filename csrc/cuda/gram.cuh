// Products of column blocks of 16-bit rows, on Hopper's tensor cores (fastprobe/ops/gram/__init__.py draws the way
// here).
//
// Layout     A block is (tokens, columns) with adjacent columns. Operands are not rearranged: the copy engine writes 64
//            columns of 128 tokens to one swizzled box, and wgmma reads its columns as rows of A and of B. A tile is
//            128 columns of one block by 128 columns of another.
// Work       Persistent blocks of threads, one a multiprocessor, take items (tile, fold, part of the rows). One thread
//            starts the copies; two warpgroups multiply 64 x 128 each. A tile on the diagonal is loaded once. Every sum
//            has one owner and one order: the same input gives the same bits.
// Overlap    A warpgroup has two accumulators. While the tensor cores fill one, it adds the other to its sum, after it
//            has released the stages of those products.
// Precision  Products of 16-bit numbers are exact in float32. The tensor core truncates as it accumulates, a bias that
//            grows with the chain, so a chain is one slab, 128 tokens. FLUSH chains are summed in float32, rounded to
//            nearest, and that sum is added to float64 (tests/ops/gram/test_accumulation.py).
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

// What the warps of a block of threads share.
struct Ring {
    uint64_t full[STAGES], empty[STAGES];
};

// A warpgroup of consumers, with its operands in the first stage.
template <bool BFLOAT16>
struct Consumer {
    Ring& ring;
    uint64_t left, right;
    int oldest;  // the stage of the oldest chain that this thread releases: of piece 0, 1, ... in lane 0, 1, ...
    Place next;  // the first stage that no product reads yet

    // Issue the products of the next slab; they run while the chain before is added up. All stages of the slab are
    // waited for first: a wait between products would end the group that wgmma_wait counts.
    __device__ void multiply(float (&chain)[ACCUMULATORS]) {
        int stage[PIECES];
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece, next.advance()) {
            stage[piece] = next.stage;
            barrier_wait(&ring.full[next.stage], next.full_parity());
        }
        wgmma_fence();
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const uint64_t a = at_stage(left, stage[piece]), b = at_stage(right, stage[piece]);
#pragma unroll
            for (int step = 0; step < STEPS; ++step)
                wgmma<BFLOAT16>(chain, further(a, step), further(b, step), piece + step > 0);
        }
        wgmma_commit();
    }

    // Release the stages of the oldest chain, whose products are finished, and add it to the sum.
    __device__ void add(float (&sum)[ACCUMULATORS], float (&chain)[ACCUMULATORS]) {
        if (threadIdx.x % 32 < PIECES) barrier_arrive(&ring.empty[oldest]);
        oldest += oldest + PIECES < STAGES ? PIECES : PIECES - STAGES;
        pin(chain);
#pragma unroll
        for (int i = 0; i < ACCUMULATORS; ++i) sum[i] += chain[i];
    }
};

template <bool BFLOAT16>
__global__ void __launch_bounds__(GRAM_THREADS, 1) gram_kernel(const __grid_constant__ GramArguments arguments) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    const Plan& plan = arguments.plan;
    __shared__ Ring ring;
    const uint32_t stages = (shared_address(dynamic_shared()) + ATOM_BYTES - 1) / ATOM_BYTES * ATOM_BYTES;

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(&ring.full[stage], 1);   // the producer
            barrier_init(&ring.empty[stage], 8);  // the warps of both consumers
        }
        barriers_are_initialised();
    }
    __syncthreads();

    const int warpgroup = uniform(threadIdx.x / 128);
    if (warpgroup == 0) {
        give_up_registers<40>();
        if (threadIdx.x != 0) return;
        const CUtensorMap* maps = *arguments.is_gathered ? arguments.gathered : arguments.rows;
        Place next;
        for (int index = blockIdx.x; index < plan.items; index += gridDim.x) {
            const Work work = work_at(plan, TILE, index);
            for (int row = work.slabs.begin * SLAB; row < work.slabs.end * SLAB; row += STAGE_ROWS, next.advance()) {
                uint64_t* const full = &ring.full[next.stage];
                barrier_wait(&ring.empty[next.stage], next.empty_parity());
                barrier_expect(full, boxes_of(work.diagonal) * BOX_BYTES);
                for (int i = 0; i < boxes_of(work.diagonal); ++i) {
                    const Box box = box_at(work, row, stages + next.stage * STAGE_BYTES, i);
                    load_box(box.to, &maps[box.block], box.column, box.row, full);
                }
            }
        }
        return;
    }

    take_registers<232>();
    const int thread = threadIdx.x % 128, half = warpgroup - 1;  // upper or lower 64 rows of a tile
    Consumer<BFLOAT16> consumer{ring, left_operand(stages, half), 0, thread % PIECES, {}};
    float even[ACCUMULATORS] = {}, odd[ACCUMULATORS] = {};  // of the two chains in flight
    for (int index = blockIdx.x; index < plan.items; index += gridDim.x) {
        const Work work = work_at(plan, TILE, index);
        Output out = output_of(plan, TILE, work);
        float sum[ACCUMULATORS] = {};
        const int chains = work.slabs.end - work.slabs.begin;
        if (!chains) {  // rare
#pragma unroll 1
            for (int i = 0; i < ACCUMULATORS; ++i)
                out.put(half * BOX + accumulator_row(thread, i), accumulator_column(thread, i), 0);
            continue;
        }
        const auto flush = [&] {
            if (out.adds && out.holds(TILE)) {
#pragma unroll
                for (int i = 0; i < ACCUMULATORS; ++i)
                    add(out.at(half * BOX + accumulator_row(thread, i), accumulator_column(thread, i)), sum[i]);
            } else {
#pragma unroll
                for (int i = 0; i < ACCUMULATORS; ++i)
                    out.put(half * BOX + accumulator_row(thread, i), accumulator_column(thread, i), sum[i]);
            }
#pragma unroll
            for (int i = 0; i < ACCUMULATORS; ++i) sum[i] = 0;
            out.adds = true;
        };
        consumer.right = right_operand(stages, work.diagonal);
        consumer.multiply(even);
        int n = 1;  // chains that are issued
        while (n + 1 < chains) {
            for (const int end = n + FLUSH < chains ? n + FLUSH : chains - 1; n < end; n += 2) {
                consumer.multiply(odd);
                wgmma_wait<1>();
                consumer.add(sum, even);
                consumer.multiply(even);
                wgmma_wait<1>();
                consumer.add(sum, odd);
            }
            if (n % FLUSH == 1) flush();
        }
        if (n < chains) {
            consumer.multiply(odd);
            wgmma_wait<1>();
            consumer.add(sum, even);
            wgmma_wait<0>();
            consumer.add(sum, odd);
        } else {
            wgmma_wait<0>();
            consumer.add(sum, even);
        }
        flush();
    }
#endif
}

}  // namespace fastprobe
