// The Python module: its functions take addresses, strides and shapes that fastprobe.ops has checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "attention.h"
#include "attention_sublayer.h"
#include "ffn_sublayer.h"
#include "gram.h"
#include "rowwise.h"
#include "score.h"
#include "unit_sum.h"

namespace py = pybind11;
using namespace fastprobe;

namespace {

constexpr const Kernels* (*ALL[])() = {avx512_bf16, avx512, avx2, portable};  // fastest first

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (auto find : ALL)
        if (const Kernels* kernels = find()) names.push_back(kernels->name);
    return names;
}

const Kernels& kernels_named(const std::string& name) {
    for (auto find : ALL)
        if (const Kernels* kernels = find(); kernels && name == kernels->name) return *kernels;
    throw py::value_error(name + " is not an instruction set of this processor");
}

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// address, dtype, width, row stride, column stride
using RowsArguments = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t>;

Rows rows_of(const RowsArguments& arguments) {
    const auto& [data, dtype, width, row_stride, column_stride] = arguments;
    return {pointer<void>(data), Dtype(dtype), width, row_stride, column_stride};
}

// rows, and the addresses of origin, sums and squares (0: none)
using BlockArguments = std::tuple<RowsArguments, uintptr_t, uintptr_t, uintptr_t>;
// left, right, address, fold stride, row stride
using PairArguments = std::tuple<int, int, uintptr_t, int64_t, int64_t>;

void call_gram(const std::vector<BlockArguments>& block_arguments, const std::vector<PairArguments>& pair_arguments,
               uintptr_t fold, int64_t n, int64_t folds, int threads, const std::string& isa) {
    std::vector<Block> blocks;
    for (const auto& [rows, origin, sums, squares] : block_arguments)
        blocks.push_back({rows_of(rows), pointer<float>(origin), pointer<double>(sums), pointer<double>(squares)});
    std::vector<Pair> pairs;
    for (const auto& [left, right, out, fold_stride, row_stride] : pair_arguments)
        pairs.push_back({left, right, pointer<double>(out), fold_stride, row_stride});
    const Kernels& kernels = kernels_named(isa);
    py::gil_scoped_release release;
    gram(blocks, pairs, pointer<int64_t>(fold), n, folds, threads, kernels);
}

void call_score(const RowsArguments& x, uintptr_t coef, uintptr_t intercept, const RowsArguments& y, int64_t n,
                uintptr_t out, const std::tuple<uintptr_t, uintptr_t, uintptr_t>& residual, int threads,
                const std::string& isa) {
    const Kernels& kernels = kernels_named(isa);
    float* sums = pointer<float>(out);
    const auto& [cross, residuals, squares] = residual;
    const ResidualSums left{pointer<double>(cross), pointer<double>(residuals), pointer<double>(squares)};
    py::gil_scoped_release release;
    score(rows_of(x), pointer<float>(coef), pointer<float>(intercept), rows_of(y), n,
          {sums, sums + n, sums + 2 * n, sums + 3 * n}, left, threads, kernels);
}

std::tuple<int64_t, bool> call_unit_sum(const RowsArguments& rows, uintptr_t valid, int64_t n, uintptr_t total,
                                        int threads, const std::string& isa) {
    const Kernels& kernels = kernels_named(isa);
    py::gil_scoped_release release;
    const UnitSum sum = unit_sum(rows_of(rows), pointer<bool>(valid), n, pointer<double>(total), threads, kernels);
    return {sum.count, sum.finite};
}

// address, row stride; columns are adjacent
using MatrixArguments = std::tuple<uintptr_t, int64_t>;

Matrix matrix_of(const MatrixArguments& arguments) {
    return {pointer<float>(std::get<0>(arguments)), std::get<1>(arguments)};
}

void call_attention(const MatrixArguments& q, const MatrixArguments& k, const MatrixArguments& v, const Runs& runs,
                    int64_t heads, int64_t width, uintptr_t out, int threads, const std::string& isa) {
    const Kernels& kernels = kernels_named(isa);
    py::gil_scoped_release release;
    attention({matrix_of(q), matrix_of(k), matrix_of(v), pointer<float>(out), heads, width}, runs, threads, kernels);
}

// weight, address of the bias (0: none), width, address of the output (0: not wanted)
using LinearArguments = std::tuple<MatrixArguments, uintptr_t, int64_t, uintptr_t>;

Linear linear_of(const LinearArguments& arguments) {
    const auto& [weight, bias, width, out] = arguments;
    return {matrix_of(weight), pointer<float>(bias), width, pointer<float>(out)};
}

std::vector<Linear> linears_of(const std::vector<LinearArguments>& arguments) {
    std::vector<Linear> layers;
    for (const auto& each : arguments) layers.push_back(linear_of(each));
    return layers;
}

// address of weight and bias, eps, address of the output
using NormArguments = std::tuple<uintptr_t, uintptr_t, float, uintptr_t>;

Norm norm_of(const NormArguments& arguments) {
    const auto& [weight, bias, eps, out] = arguments;
    return {pointer<float>(weight), pointer<float>(bias), eps, pointer<float>(out)};
}

void call_ffn_sublayer(const MatrixArguments& x, int64_t n, int64_t depth, const std::vector<LinearArguments>& layers,
                       const MatrixArguments& residual, const NormArguments& norm, int threads,
                       const std::string& isa) {
    const Kernels& kernels = kernels_named(isa);
    py::gil_scoped_release release;
    ffn_sublayer(matrix_of(x), n, depth, linears_of(layers), matrix_of(residual), norm_of(norm), threads, kernels);
}

void call_attention_sublayer(const MatrixArguments& x, int64_t n, int64_t depth, const Runs& runs,
                             const std::array<LinearArguments, 4>& layers, int64_t heads, uintptr_t heads_out,
                             const NormArguments& norm, int threads, const std::string& isa) {
    const Kernels& kernels = kernels_named(isa);
    py::gil_scoped_release release;
    const auto& [query, key, value, out] = layers;
    attention_sublayer(
        matrix_of(x), n, depth, runs,
        {linear_of(query), linear_of(key), linear_of(value), linear_of(out), heads, pointer<float>(heads_out)},
        norm_of(norm), threads, kernels);
}

void call_add_norm(const MatrixArguments& x, const MatrixArguments& residual, uintptr_t weight, uintptr_t bias,
                   int64_t n, int64_t width, float eps, uintptr_t out, int threads, const std::string& isa) {
    const Kernels& kernels = kernels_named(isa);
    const Matrix a = matrix_of(x), b = matrix_of(residual);
    py::gil_scoped_release release;
    add_norm(a.data, a.row_stride, b.data, b.row_stride, pointer<float>(weight), pointer<float>(bias), n, width, eps,
             pointer<float>(out), threads, kernels);
}

void call_bias_gelu(uintptr_t x, uintptr_t bias, int64_t n, int64_t width, int threads, const std::string& isa) {
    const Kernels& kernels = kernels_named(isa);
    py::gil_scoped_release release;
    bias_gelu(pointer<float>(x), pointer<float>(bias), n, width, threads, kernels);
}

int64_t call_burn(int64_t steps, bool pairs, int threads, const std::string& isa) {
    const Kernels& kernels = kernels_named(isa);
    py::gil_scoped_release release;
    int64_t operations = 0;
#pragma omp parallel num_threads(threads) reduction(+ : operations)
    operations += kernels.burn(steps, pairs);
    return operations;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "Kernels in C++ for a CPU; fastprobe.ops calls them.";
    m.attr("INTERFACE") = 5;  // fastprobe/ops/_dispatch/cpu_library.py has the same number
    m.def("instruction_sets", &instruction_sets, "Instruction sets of this build and this processor, fastest first.");
    m.def("gram", &call_gram, py::arg("blocks"), py::arg("pairs"), py::arg("fold"), py::arg("n"), py::arg("folds"),
          py::arg("threads"), py::arg("isa"));
    m.def("score", &call_score, py::arg("x"), py::arg("coef"), py::arg("intercept"), py::arg("y"), py::arg("n"),
          py::arg("out"), py::arg("residual"), py::arg("threads"), py::arg("isa"));
    m.def("unit_sum", &call_unit_sum, py::arg("rows"), py::arg("valid"), py::arg("n"), py::arg("total"),
          py::arg("threads"), py::arg("isa"));
    m.def("attention", &call_attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("runs"), py::arg("heads"),
          py::arg("width"), py::arg("out"), py::arg("threads"), py::arg("isa"));
    m.def("ffn_sublayer", &call_ffn_sublayer, py::arg("x"), py::arg("n"), py::arg("depth"), py::arg("layers"),
          py::arg("residual"), py::arg("norm"), py::arg("threads"), py::arg("isa"));
    m.def("attention_sublayer", &call_attention_sublayer, py::arg("x"), py::arg("n"), py::arg("depth"), py::arg("runs"),
          py::arg("layers"), py::arg("heads"), py::arg("heads_out"), py::arg("norm"), py::arg("threads"),
          py::arg("isa"));
    m.def("add_norm", &call_add_norm, py::arg("x"), py::arg("residual"), py::arg("weight"), py::arg("bias"),
          py::arg("n"), py::arg("width"), py::arg("eps"), py::arg("out"), py::arg("threads"), py::arg("isa"));
    m.def("bias_gelu", &call_bias_gelu, py::arg("x"), py::arg("bias"), py::arg("n"), py::arg("width"),
          py::arg("threads"), py::arg("isa"));
    m.def("burn", &call_burn, py::arg("steps"), py::arg("pairs"), py::arg("threads"), py::arg("isa"));
}
