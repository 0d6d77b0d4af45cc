// The kernels: inner loops that are written once and compiled for every instruction set, and the data they work on.
#pragma once

#include <cstdint>

namespace fastprobe {

constexpr int PANEL = 32;       // columns of a panel
constexpr int TILE_HEIGHT = 8;  // a multiple of every TILE_ROWS: the largest number of rows of a tile
constexpr int CHAIN = 128;      // products that are summed in one float32 register; a chain of 1,024 loses 8e-6
constexpr int FEW = 512;        // tokens that are too few for the errors of chains to cancel: their chains are shorter
constexpr int CHUNK = 2048;     // tokens that are summed in float32 before the sum is added to float64

enum class Dtype : int { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// Rows of a column block in the caller's memory; strides count elements.
struct Rows {
    const void* data;
    Dtype dtype;
    int64_t width;
    int64_t row_stride;
    int64_t column_stride;
};

struct Matrix {  // float32, columns adjacent
    const float* data;
    int64_t row_stride;
};

// Four sums for every row of y and its prediction p: of p y, p^2, y^2 and (y - p)^2.
struct RowSums {
    float *dot, *p_squares, *y_squares, *error;
};

// One head of one sequence: length rows of width adjacent numbers; strides count elements from row to row.
struct Head {
    const float *q, *k, *v;
    float* out;
    int64_t q_stride, k_stride, v_stride, out_stride, length, width;
    float scale;  // of q k^T, with the factor log2(e): the weights are powers of two
};

// The kernels of one instruction set (kernel_table.h). A panel holds n rows of PANEL columns, with zeros for columns
// that the block does not have. Its elements are float32 or bfloat16 pairs. Element c of pair p holds the bits of row
// 2p in its low half and those of row 2p + 1 in its high half. The register that sums products of pairs is float32, and
// these products are exact in it.
struct Kernels {
    const char* name;
    bool multiplies_bf16_pairs;

    // Copy rows[index[0..n)] - origin, columns [column, column + PANEL), into a panel; origin = nullptr is zero.
    // Unless sums is nullptr, add their sums to sums[0..PANEL) and their squares to squares[0..PANEL), in double.
    void (*pack)(const Rows& rows, const int64_t* index, int64_t n, int64_t column, const float* origin,
                 bool bf16_pairs, float* panel, double* sums, double* squares);

    // Convert a panel of floats to bfloat16 pairs. Return false if one of the floats is not a bfloat16 number.
    bool (*pair_up)(const float* panel, int64_t n, float* bf16_pairs);

    // total[r * PANEL + c] += sum_n a[n][r] b[n][c] for r < height, c < width; n <= CHAIN tokens. Prefetches half a
    // chain of a panel from next on.
    void (*multiply)(const float* a, const float* b, int64_t n, bool bf16_pairs, int height, int width,
                     float* total, const float* next);

    // out[r * stride + c] += total[r * PANEL + c] for r < height, c < width.
    void (*flush)(const float* total, double* out, int64_t stride, int height, int width);

    // Score p = x weights + bias against rows [row, row + height) of y. x holds PANEL dense rows, zero from height on.
    // weights are y.width columns in panels of depth rows, and bias is as wide as the panels. Unless residual is
    // nullptr, y - p is written to rows [0, height) of panels that are residual_panel numbers apart.
    void (*score)(const float* x, int64_t depth, const float* weights, const float* bias, const Rows& y, int64_t row,
                  int height, RowSums out, float* residual, int64_t residual_panel);

    // Convert rows [row, row + height) to a dense (height, width) matrix of floats.
    void (*widen)(const Rows& rows, int64_t row, int height, float* out);

    // Add rows [first, first + n), each divided by its norm, to total, which is as wide as whole panels. Add the number
    // of valid rows with a nonzero norm to *count. Return false if a valid row is not finite.
    bool (*unit_sum)(const Rows& rows, const bool* valid, int64_t first, int64_t n, double* total, int64_t* count);

    // Attention within one head of one sequence. memory holds the keys and values as panels (length rounded up to PANEL
    // x width, and length x width rounded up to PANEL), TILE_HEIGHT queries and their scores.
    void (*attend)(const Head& head, float* memory);

    // Transpose at most PANEL rows of a weight to depth rows of a panel, with zeros for missing rows.
    void (*transpose_weight)(const float* weight, int64_t stride, int64_t rows, int64_t depth, float* panel);

    // out[i * out_stride + c] = sum_t x[i][t] panel[t * PANEL + c] + bias[c], or its GELU, for i < n and c < width.
    // n >= TILE_HEIGHT; bias = nullptr is zero. Prefetches a panel from next on.
    void (*linear)(Matrix x, int64_t n, int64_t depth, const float* panel, const float* bias, int width, bool gelu,
                   float* out, int64_t out_stride, const float* next);

    // One row of the functions in rowwise.h.
    void (*add_norm)(const float* x, const float* residual, const float* weight, const float* bias, int64_t width,
                     float eps, float* out);
    void (*bias_gelu)(float* x, const float* bias, int64_t width);

    // Run multiply-adds in registers, of float32 or of pairs of bfloat16. Return the number of floating-point
    // operations.
    int64_t (*burn)(int64_t steps, bool pairs);
};

// The kernels of each instruction set, or nullptr where this build or this processor lacks it.
const Kernels* avx512_bf16();
const Kernels* avx512();
const Kernels* avx2();
const Kernels* portable();

}  // namespace fastprobe
