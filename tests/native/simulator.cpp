// csrc/cuda/gram.cu for a CPU: the kernels unchanged, one block of threads after the other, one CPU thread for each
// thread.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#undef __shared__
#define __shared__ static  // blocks take turns
#define __launch_bounds__(...)
#define __CUDA_ARCH_FEAT_SM90_ALL

static thread_local dim3 threadIdx;
static dim3 blockIdx, gridDim;

static float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
static void __syncthreads();

#include "gram.cuh"
#include "gram.h"
#include "gram_exact.cuh"
#include "rows.cuh"

static void __syncthreads() { pthread_barrier_wait(&fastprobe::units.block); }

namespace fastprobe {
namespace {

constexpr int MULTIPROCESSORS = 3;

template <class Kernel, class Arguments>
void run(Kernel kernel, const Arguments& arguments, dim3 grid, int threads, int shared) {
    gridDim = grid;
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
            units.shared.assign(shared, 0xFF);  // NaN
            units.barriers.clear();
            units.done = false;
            pthread_barrier_init(&units.block, nullptr, threads);
            for (auto& warp : units.warps) pthread_barrier_init(&warp, nullptr, 32);
            std::thread engine(copy_engine);
            std::vector<std::thread> block;
            for (int thread = 0; thread < threads; ++thread)
                block.emplace_back([&, thread] {
                    threadIdx.x = thread;
                    kernel(arguments);
                });
            for (auto& thread : block) thread.join();
            {
                const std::lock_guard lock(units.mutex);
                units.done = true;
            }
            units.changed.notify_all();
            engine.join();
        }
}

CUtensorMap tensor_map(const void* data, int rows, int width, int64_t stride) {
    const Matrix matrix{static_cast<const uint16_t*>(data), stride, rows, width};
    CUtensorMap map{};
    std::memcpy(&map, &matrix, sizeof(matrix));
    return map;
}

Rows as_rows(const AnyRows& block) {
    return {block.data, block.origin, block.row_stride, block.column_stride, block.width, Dtype(block.dtype)};
}

void add_up(const Plan& plan, int tile) {
    for (int unit = 0; unit < plan.units; ++unit) {
        const Item item = unit_at(plan.pairs, plan.pair_count, tile, unit);
        if (plan.pairs[item.pair].splits == 1) continue;
        for (int i = 0; i < tile * tile; ++i) add_parts(plan, tile, item, i / tile, i % tile);
    }
}

}  // namespace

void gram(const std::vector<Block>& blocks, bool bfloat16, int rows, int positions, const int* is_gathered,
          const Plan& plan, Launch) {
    GramArguments arguments{};
    for (size_t i = 0; i < blocks.size(); ++i) {
        const Block& block = blocks[i];
        arguments.gathered[i] = tensor_map(block.gathered, positions, block.width, block.gathered_stride);
        if (block.rows) arguments.rows[i] = tensor_map(block.rows, rows, block.width, block.row_stride);
    }
    arguments.is_gathered = is_gathered;
    arguments.plan = plan;
    run(bfloat16 ? gram_kernel<true> : gram_kernel<false>, arguments, dim3(std::min(plan.items, MULTIPROCESSORS)),
        GRAM_THREADS, GRAM_SHARED);
    add_up(plan, TILE);
}

void gram_exact(const std::vector<AnyRows>& blocks, const int* index, const Plan& plan, Launch) {
    ExactArguments arguments{};
    for (size_t i = 0; i < blocks.size(); ++i) arguments.rows[i] = as_rows(blocks[i]);
    arguments.index = index;
    arguments.plan = plan;
    run(gram_exact_kernel, arguments, dim3(plan.items), EXACT_THREADS, 0);
    add_up(plan, EXACT_TILE);
}

void rows(const AnyRows& block, const int* columns, int width, const int* index, const int* fold_slabs, int folds,
          int splits, const int* is_gathered, void* gathered, int64_t gathered_stride, bool low, double* sums, Launch) {
    const RowsArguments arguments{as_rows(block), columns,     width,
                                  index,          fold_slabs,  splits,
                                  is_gathered,    static_cast<uint16_t*>(gathered),
                                  gathered_stride, low,        sums};
    run(rows_kernel, arguments, dim3(folds * splits, (width + ROWS_COLUMNS - 1) / ROWS_COLUMNS), ROWS_WARPS * 32, 0);
}

}  // namespace fastprobe
