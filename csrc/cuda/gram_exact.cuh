// Products of column blocks in float64, of rows of any floating dtype, on the tensor cores of sm_80 and later: for
// audits.
//
// Layout     Rows are read from the caller's memory, cast, and their origins subtracted, on the way to shared memory. A
//            tile is 64 columns of one block by 64 columns of another, 16 tokens at a time.
// Work       One block of threads an item (tile, fold, part of the rows). Four warps multiply 32 x 32 each while the
//            next 16 tokens are loaded. Every sum has one owner and one order.
// Precision  float64 throughout.
// Floor      tokens x (tiles x 64 x 64) x 2 operations of the float64 tensor cores.
//
// It has never run on a GPU: start with `make gpu`. See gram.cuh.
#pragma once

#include "layout.h"
#include "ptx.cuh"
#include "rows.cuh"

namespace fastprobe {

struct ExactArguments {
    Rows rows[MAX_BLOCKS];
    const int* index;
    Plan plan;
};

constexpr int EXACT_LOADS = EXACT_TILE * EXACT_DEPTH / EXACT_THREADS;  // of one operand, by one thread

// Load a thread's share of 16 tokens of one operand: one column of every second token.
__device__ inline void fetch(const Rows& rows, const int* index, int position, int column, double (&values)[EXACT_LOADS]) {
#pragma unroll
    for (int i = 0; i < EXACT_LOADS; ++i)
        values[i] = rows.at(index[position + exact_token(threadIdx.x, i)], column + exact_column(threadIdx.x));
}

__device__ inline void keep(const double (&values)[EXACT_LOADS], double (&tokens)[EXACT_DEPTH][EXACT_STRIDE]) {
#pragma unroll
    for (int i = 0; i < EXACT_LOADS; ++i) tokens[exact_token(threadIdx.x, i)][exact_column(threadIdx.x)] = values[i];
}

__global__ void __launch_bounds__(EXACT_THREADS, 2) gram_exact_kernel(const __grid_constant__ ExactArguments arguments) {
    __shared__ double left[2][EXACT_DEPTH][EXACT_STRIDE], right[2][EXACT_DEPTH][EXACT_STRIDE];
    const Plan& plan = arguments.plan;
    const Work work = work_at(plan, EXACT_TILE, blockIdx.x);
    const Rows &left_rows = arguments.rows[work.pair.left], &right_rows = arguments.rows[work.pair.right];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_row = warp / 2 * 32, first_column = warp % 2 * 32;  // of this warp's 32 x 32
    const int end = work.slabs.end * SLAB;
    double sums[2][4][4] = {}, next_left[EXACT_LOADS], next_right[EXACT_LOADS];

    const auto fetch_next = [&](int position) {
        fetch(left_rows, arguments.index, position, work.item.row, next_left);
        fetch(right_rows, arguments.index, position, work.item.column, next_right);
    };
    int buffer = 0;
    if (work.slabs.begin < work.slabs.end) {
        fetch_next(work.slabs.begin * SLAB);
        keep(next_left, left[buffer]);
        keep(next_right, right[buffer]);
    }
    for (int position = work.slabs.begin * SLAB; position < end; position += EXACT_DEPTH, buffer ^= 1) {
        __syncthreads();  // these tokens have arrived, and no thread reads the other buffer
        const bool goes_on = position + EXACT_DEPTH < end;
        if (goes_on) fetch_next(position + EXACT_DEPTH);
        double a[2][8], b[4][4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int k = 0; k < 8; ++k)
                a[i][k] = left[buffer][a_token(lane, k)][first_row + i * 16 + a_column(lane, k)];
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int k = 0; k < 4; ++k) b[j][k] = right[buffer][b_token(lane, k)][first_column + j * 8 + b_column(lane)];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) mma_double(sums[i][j], a[i], b[j]);
        if (goes_on) {
            keep(next_left, left[buffer ^ 1]);
            keep(next_right, right[buffer ^ 1]);
        }
    }
    const Output out = output_of(plan, EXACT_TILE, work);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int k = 0; k < 4; ++k)
                out.put(first_row + i * 16 + c_row(lane, k), first_column + j * 8 + c_column(lane, k), sums[i][j][k]);
}

}  // namespace fastprobe
