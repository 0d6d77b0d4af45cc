// Rows of any floating dtype and any strides: read as float64, less an origin, gathered fold after fold, and summed.
//
// Layout     index[position] is the row at a position of the gathered order, or -1 for an empty one. The 128 positions
//            of a slab belong to one fold. Two planes are gathered of 16-bit rows about an origin.
// Work       A warp reads 32 columns of one row, a block of threads one part of a fold's rows.
// Precision  float64 throughout. Each (fold, part, column) has one owner, and the caller sums the parts. The rounding
//            error of the difference of two 16-bit numbers, rounded to 16 bits, is a 16-bit number: two planes are
//            exact.
// Floor      One read of the rows, and one write where they are gathered.
//
// It has never run on a GPU: start with `make gpu`. See gram.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "plan.h"

namespace fastprobe {

enum class Dtype : int { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, FLOAT64 = 3 };  // as in cuda_launches.py

struct Rows {
    const void* data;
    const double* origin;  // width numbers, or nullptr for zero
    int64_t row_stride, column_stride;  // in elements
    int width;
    Dtype dtype;

    // One number less its origin; zero for row -1 and for a missing column.
    __device__ double at(int row, int column) const {
        if (row < 0 || column >= width) return 0;
        const int64_t here = row * row_stride + column * column_stride;
        const double value = raw(here);
        return origin ? value - origin[column] : value;
    }

    // The high plane is the 16-bit number next to a value. The low plane is the 16-bit number next to its rounding
    // error.
    __device__ uint16_t plane(double value, bool low) const {
        if (dtype == Dtype::BFLOAT16) {
            const __nv_bfloat16 high = __float2bfloat16_rn(float(value));
            return __bfloat16_as_ushort(low ? __float2bfloat16_rn(float(value - double(__bfloat162float(high)))) : high);
        }
        const __half high = __float2half_rn(float(value));
        return __half_as_ushort(low ? __float2half_rn(float(value - double(__half2float(high)))) : high);
    }

   private:
    __device__ double raw(int64_t here) const {
        switch (dtype) {
            case Dtype::FLOAT32: return static_cast<const float*>(data)[here];
            case Dtype::BFLOAT16: return __uint_as_float(uint32_t(static_cast<const uint16_t*>(data)[here]) << 16);
            case Dtype::FLOAT16: return __half2float(static_cast<const __half*>(data)[here]);
            default: return static_cast<const double*>(data)[here];
        }
    }
};

struct RowsArguments {
    Rows rows;
    const int* columns;  // the columns to read, or nullptr for all
    int width;           // their number
    const int* index;
    const int* fold_slabs;  // (folds + 1)
    int splits;
    const int* is_gathered;  // nonzero: write the gathered rows
    uint16_t* gathered;      // (positions, gathered_stride) of 16-bit rows; nullptr: never write them
    int64_t gathered_stride;
    bool low;      // write the low plane
    double* sums;  // (folds, splits, 2, width): of the numbers and of their squares; nullptr: not wanted
};

constexpr int ROWS_WARPS = 8;
constexpr int ROWS_COLUMNS = 32;  // one a lane

// Grid: (folds * splits, column groups).
__global__ void __launch_bounds__(ROWS_WARPS * 32) rows_kernel(const __grid_constant__ RowsArguments arguments) {
    const bool gathers = arguments.gathered && *arguments.is_gathered;
    if (!gathers && !arguments.sums) return;
    const Rows& rows = arguments.rows;
    const int fold = blockIdx.x / arguments.splits, split = blockIdx.x % arguments.splits;
    const Slabs slabs = slabs_of(arguments.fold_slabs, fold, fold + 1, split, arguments.splits);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.y * ROWS_COLUMNS + lane;
    const bool inside = column < arguments.width;
    const int from = !inside ? rows.width : arguments.columns ? arguments.columns[column] : column;
    double sum = 0, square = 0;
#pragma unroll 4
    for (int position = slabs.begin * SLAB + warp; position < slabs.end * SLAB; position += ROWS_WARPS) {
        const double value = rows.at(arguments.index[position], from);
        if (gathers && inside)
            arguments.gathered[position * arguments.gathered_stride + column] = rows.plane(value, arguments.low);
        sum += value;
        square += value * value;
    }
    if (!arguments.sums) return;
    __shared__ double partial[2][ROWS_WARPS][ROWS_COLUMNS];
    partial[0][warp][lane] = sum;
    partial[1][warp][lane] = square;
    __syncthreads();
    if (warp >= 2 || !inside) return;
    double total = 0;
    for (int w = 0; w < ROWS_WARPS; ++w) total += partial[warp][w][lane];
    arguments.sums[(int64_t(blockIdx.x) * 2 + warp) * arguments.width + column] = total;
}

}  // namespace fastprobe
