#include "gram.h"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "gram.cuh"
#include "gram_exact.cuh"
#include "rows.cuh"

namespace fastprobe {
namespace {

void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Make the device of a launch current. It stays current: torch has made the same device current for this call, and this
// module's copy of the runtime does not know which one torch had before.
void use(int device) { check(cudaSetDevice(device)); }

// Look the function up in the loaded driver: machines that build this have no libcuda to link with.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
    static const auto encode = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found;
        check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
        if (found != cudaDriverEntryPointSuccess) throw std::runtime_error("CUDA: the driver has no tensor maps");
        return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
    }();
    return encode;
}

CUtensorMap tensor_map(const void* data, bool bfloat16, int rows, int width, int64_t row_stride) {
    CUtensorMap map{};
    const cuuint64_t sizes[] = {cuuint64_t(width), cuuint64_t(rows)}, stride[] = {cuuint64_t(row_stride) * 2};
    const cuuint32_t box[] = {BOX, SLAB}, steps[] = {1, 1};
    const CUresult result = encoder()(
        &map, bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<void*>(data),
        sizes, stride, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        throw std::runtime_error("CUDA: no tensor map of " + std::to_string(rows) + " x " + std::to_string(width) +
                                 " numbers, rows " + std::to_string(row_stride) + " apart: error " +
                                 std::to_string(int(result)));
    return map;
}

__global__ void __launch_bounds__(256) add_parts_kernel(const __grid_constant__ Plan plan, int tile) {
    const Item item = unit_at(plan.pairs, plan.pair_count, tile, blockIdx.x);
    if (plan.pairs[item.pair].splits == 1) return;
    for (int i = threadIdx.x; i < tile * tile; i += blockDim.x) add_parts(plan, tile, item, i / tile, i % tile);
}

void add_up(const Plan& plan, int tile, cudaStream_t stream) {
    if (plan.pairs[0].splits > 1) add_parts_kernel<<<plan.units, 256, 0, stream>>>(plan, tile);
    check(cudaGetLastError());
}

cudaStream_t stream_of(Launch launch) { return reinterpret_cast<cudaStream_t>(launch.stream); }

Rows as_rows(const AnyRows& block) {
    return {block.data, block.origin, block.row_stride, block.column_stride, block.width, Dtype(block.dtype)};
}

}  // namespace

void gram(const std::vector<Block>& blocks, bool bfloat16, int rows, int positions, const int* is_gathered,
          const Plan& plan, Launch launch) {
    use(launch.device);
    GramArguments arguments{};
    for (size_t i = 0; i < blocks.size(); ++i) {
        const Block& block = blocks[i];
        arguments.gathered[i] = tensor_map(block.gathered, bfloat16, positions, block.width, block.gathered_stride);
        arguments.rows[i] = block.rows ? tensor_map(block.rows, bfloat16, rows, block.width, block.row_stride)
                                       : arguments.gathered[i];
    }
    arguments.is_gathered = is_gathered;
    arguments.plan = plan;
    const auto kernel = bfloat16 ? gram_kernel<true> : gram_kernel<false>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, GRAM_SHARED));
    int multiprocessors;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, launch.device));
    const int grid = plan.items < multiprocessors ? plan.items : multiprocessors;
    kernel<<<grid, GRAM_THREADS, GRAM_SHARED, stream_of(launch)>>>(arguments);
    check(cudaGetLastError());
    add_up(plan, TILE, stream_of(launch));
}

void gram_exact(const std::vector<AnyRows>& blocks, const int* index, const Plan& plan, Launch launch) {
    use(launch.device);
    ExactArguments arguments{};
    for (size_t i = 0; i < blocks.size(); ++i) arguments.rows[i] = as_rows(blocks[i]);
    arguments.index = index;
    arguments.plan = plan;
    gram_exact_kernel<<<plan.items, EXACT_THREADS, 0, stream_of(launch)>>>(arguments);
    check(cudaGetLastError());
    add_up(plan, EXACT_TILE, stream_of(launch));
}

void rows(const AnyRows& block, const int* columns, int width, const int* index, const int* fold_slabs, int folds,
          int splits, const int* is_gathered, void* gathered, int64_t gathered_stride, bool low, double* sums,
          Launch launch) {
    use(launch.device);
    const RowsArguments arguments{as_rows(block), columns,     width,
                                  index,          fold_slabs,  splits,
                                  is_gathered,    static_cast<uint16_t*>(gathered),
                                  gathered_stride, low,        sums};
    const dim3 grid(folds * splits, (width + ROWS_COLUMNS - 1) / ROWS_COLUMNS);
    rows_kernel<<<grid, ROWS_WARPS * 32, 0, stream_of(launch)>>>(arguments);
    check(cudaGetLastError());
}

}  // namespace fastprobe
