// The inner loops that are written once and compiled for every instruction set, and the data they work on.
#pragma once

#include <cstdint>

namespace fastprobe {

constexpr int PANEL = 32;    // columns that are packed side by side
constexpr int TILE_HEIGHT = 8;  // rows that are multiplied at a time, at most: a multiple of every TILE_ROWS
constexpr int CHAIN = 128;   // products added up in one float32 register; of 1,024 tokens a sum loses 8e-6, and tests fail
constexpr int FEW = 512;     // tokens that are too few for the errors of chains to cancel: chains of a quarter then
constexpr int CHUNK = 2048;  // tokens added up in float32 before the sum goes to float64

enum class Dtype : int { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// Rows of a column block where they lie; strides count elements.
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

// Four sums for every row of y, p being what predicts it: of p y, p^2, y^2 and (y - p)^2.
struct RowSums {
    float *dot, *p_squares, *y_squares, *error;
};

// One head of one sequence: length rows of width numbers each, side by side, as far apart as the strides say.
struct Head {
    const float *q, *k, *v;
    float* out;
    int64_t q_stride, k_stride, v_stride, out_stride, length, width;
    float scale;  // of q k^T, for weights that are powers of two
};

// A panel holds n rows of PANEL columns, zero where the block has no such column. Either float32, or, of bfloat16 rows,
// pairs of tokens: element c of pair p is the bits of row 2p in the low half and of row 2p + 1 in the high half.
struct Kernels {
    const char* name;
    bool multiplies_pairs;

    // Copy rows[index[0..n)], columns [column, column + PANEL), less origin (or as they are: nullptr), into a panel.
    // Adds their sums and squares, in double, to sums[0..PANEL) and squares[0..PANEL) unless those are nullptr.
    void (*pack)(const Rows& rows, const int64_t* index, int64_t n, int64_t column, const float* origin, bool pairs,
                 float* panel, double* sums, double* squares);

    // Make pairs of a panel of floats, if each of them is a bfloat16 number; false if one is not.
    bool (*pair_up)(const float* panel, int64_t n, float* pairs);

    // total[r * PANEL + c] += sum_n a[n][r] b[n][c] for r < height, c < width; n <= CHAIN tokens. Meanwhile half a chain
    // of a panel is fetched from next on.
    void (*multiply)(const float* a, const float* b, int64_t n, bool pairs, int height, int width, float* total,
                     const float* next);

    // out[r * stride + c] += total[r * PANEL + c] for r < height, c < width.
    void (*flush)(const float* total, double* out, int64_t stride, int height, int width);

    // Score p = x weights + bias against rows [row, row + height) of y. x holds these rows, dense, with zeros up to
    // PANEL of them; weights are y.width columns in panels of depth rows, bias is as wide as the panels. Unless residual
    // is nullptr, y - p goes to rows [0, height) of panels that lie residual_panel numbers apart from there on.
    void (*score)(const float* x, int64_t depth, const float* weights, const float* bias, const Rows& y, int64_t row,
                  int height, RowSums out, float* residual, int64_t residual_panel);

    // Copy or widen rows [row, row + height) into a (height, width) matrix of floats.
    void (*widen)(const Rows& rows, int64_t row, int height, float* out);

    // Add rows [first, first + n), each over its norm, to total, which is as wide as whole panels; the rows that are
    // valid and have a norm are counted. False where a valid one is not finite.
    bool (*unit_sum)(const Rows& rows, const bool* valid, int64_t first, int64_t n, double* total, int64_t* count);

    // Attention inside one head of one sequence. memory has room for the keys and values as panels (length rounded up to
    // PANEL x width, and the other way round), TILE_HEIGHT queries and their scores.
    void (*attend)(const Head& head, float* memory);

    // Rows of a weight, at most PANEL, side by side in depth rows of a panel, with zeros for the rows that it has not.
    void (*turn_weight)(const float* weight, int64_t stride, int64_t rows, int64_t depth, float* panel);

    // out[i * out_stride + c] = sum_t x[i][t] panel[t * PANEL + c] + bias[c] (nullptr: none), or GELU of it, for i < n, at
    // least TILE_HEIGHT, and c < width. Meanwhile a panel is fetched from next on.
    void (*linear)(Matrix x, int64_t n, int64_t depth, const float* panel, const float* bias, int width, bool gelu,
                   float* out, int64_t out_stride, const float* next);

    // One row of what rowwise.h does to many.
    void (*add_norm)(const float* x, const float* residual, const float* weight, const float* bias, int64_t width,
                     float eps, float* out);
    void (*bias_gelu)(float* x, const float* bias, int64_t width);

    // Multiply-adds in registers, of float32 or of pairs of bfloat16; returns the floating-point operations done.
    int64_t (*burn)(int64_t steps, bool pairs);
};

// nullptr where this build or this processor lacks the instruction set.
const Kernels* avx512_bf16();
const Kernels* avx512();
const Kernels* avx2();
const Kernels* portable();

}  // namespace fastprobe
