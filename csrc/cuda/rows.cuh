// Rows of any floating dtype and any strides: read as float64 about an origin, gathered fold after fold, summed.
//
// Layout     index[position] is the row at a position of the gathered order, or -1 for an empty one; slabs of 128
//            positions belong to one fold. Of 16-bit rows about an origin two planes are gathered.
// Work       A warp reads 32 columns of one row; a block of threads one part of a fold's rows.
// Precision  float64 throughout; each (fold, part, column) has one owner, and the caller adds up the parts. The difference
//            of two 16-bit numbers, rounded to 16 bits, leaves an error that is a 16-bit number: two planes hold it all.
// Floor      One read of the rows; one write where they are gathered.
//
// It has never run on a GPU: `make gpu` is to be the first command. See gram.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "plan.h"

namespace fastprobe {

enum class Dtype : int { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, FLOAT64 = 3 };  // the numbers of fastprobe/ops/_cuda.py

struct Rows {
    const void* data;
    const double* origin;  // width numbers, or nullptr for zero
    int64_t row_stride, column_stride;  // in elements
    int width;
    Dtype dtype;

    // One number about its origin; zero for a row of -1 and for a column that is not there.
    __device__ double at(int row, int column) const {
        if (row < 0 || column >= width) return 0;
        const int64_t here = row * row_stride + column * column_stride;
        const double value = raw(here);
        return origin ? value - origin[column] : value;
    }

    // The 16-bit number next to a value, or, as the low plane, next to what that one leaves.
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
    const int* columns;  // which ones, or nullptr for all
    int width;           // how many these are
    const int* index;
    const int* fold_slabs;  // (folds + 1)
    int splits;
    const int* is_gathered;  // whether a copy is wanted
    uint16_t* gathered;      // nullptr: never; else (positions, gathered_stride), for 16-bit rows
    int64_t gathered_stride;
    bool low;      // the low plane
    double* sums;  // nullptr, or (folds, splits, 2, width): of the numbers, of their squares
};

constexpr int ROWS_WARPS = 8;
constexpr int ROWS_COLUMNS = 32;  // a lane each

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
