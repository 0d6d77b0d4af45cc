// The Python module: its functions take addresses, strides and sizes that fastprobe/ops/gram/cuda.py has checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "gram.h"
#include "layout.h"

namespace py = pybind11;
using namespace fastprobe;

namespace {

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// left, right, their widths, address, fold stride, row stride, folds
using PairArguments = std::tuple<int, int, int, int, uintptr_t, int64_t, int64_t, int>;
// address (0: only gathered) and row stride of the rows, the same of the gathered rows, width
using BlockArguments = std::tuple<uintptr_t, int64_t, uintptr_t, int64_t, int>;
// address, row stride, column stride, width, dtype, address of the origin (0: zero)
using RowsArguments = std::tuple<uintptr_t, int64_t, int64_t, int, int, uintptr_t>;

AnyRows any_rows(const RowsArguments& arguments) {
    const auto& [data, row_stride, column_stride, width, dtype, origin] = arguments;
    return {pointer<void>(data), pointer<double>(origin), row_stride, column_stride, width, dtype};
}

Plan plan_of(const std::vector<PairArguments>& pairs, int tile, int splits, int folds, uintptr_t fold_slabs,
             uintptr_t workspace) {
    if (pairs.size() > MAX_PAIRS) throw py::value_error("too many pairs for one launch");
    Plan plan{};
    for (const auto& [left, right, left_width, right_width, gram, fold_stride, row_stride, pair_folds] : pairs)
        plan.pairs[plan.pair_count++] = {left,        right,      left_width, right_width, pointer<double>(gram),
                                         fold_stride, row_stride, pair_folds, 0, 1, 0};
    plan.folds = folds;
    number_items(plan, tile, splits);
    plan.fold_slabs = pointer<int>(fold_slabs);
    plan.workspace = pointer<double>(workspace);
    return plan;
}

void call_gram(const std::vector<BlockArguments>& block_arguments, bool bfloat16, int n, int positions,
               uintptr_t is_gathered, const std::vector<PairArguments>& pairs, int splits, int folds,
               uintptr_t fold_slabs, uintptr_t workspace, int device, uintptr_t stream) {
    std::vector<Block> blocks;
    for (const auto& [data, row_stride, gathered, gathered_stride, width] : block_arguments)
        blocks.push_back({pointer<void>(data), pointer<void>(gathered), row_stride, gathered_stride, width});
    const Plan plan = plan_of(pairs, TILE, splits, folds, fold_slabs, workspace);
    py::gil_scoped_release release;
    gram(blocks, bfloat16, n, positions, pointer<int>(is_gathered), plan, {device, stream});
}

void call_gram_exact(const std::vector<RowsArguments>& block_arguments, uintptr_t index,
                     const std::vector<PairArguments>& pairs, int splits, int folds, uintptr_t fold_slabs,
                     uintptr_t workspace, int device, uintptr_t stream) {
    std::vector<AnyRows> blocks;
    for (const auto& block : block_arguments) blocks.push_back(any_rows(block));
    const Plan plan = plan_of(pairs, EXACT_TILE, splits, folds, fold_slabs, workspace);
    py::gil_scoped_release release;
    gram_exact(blocks, pointer<int>(index), plan, {device, stream});
}

void call_rows(const RowsArguments& block, uintptr_t columns, int width, uintptr_t index, uintptr_t fold_slabs, int folds,
               int splits, uintptr_t is_gathered, uintptr_t gathered, int64_t gathered_stride, bool low, uintptr_t sums,
               int device, uintptr_t stream) {
    py::gil_scoped_release release;
    rows(any_rows(block), pointer<int>(columns), width, pointer<int>(index), pointer<int>(fold_slabs), folds, splits,
         pointer<int>(is_gathered), pointer<void>(gathered), gathered_stride, low, pointer<double>(sums),
         {device, stream});
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "Kernels in CUDA C++; fastprobe.ops calls them.";
    m.attr("INTERFACE") = 2;  // fastprobe/ops/gram/cuda.py has the same number
    m.attr("ARCHITECTURES") = FASTPROBE_ARCHITECTURES;  // compute capabilities with machine code here: "8.0,9.0a"
    m.def("gram", &call_gram, py::arg("blocks"), py::arg("bfloat16"), py::arg("n"), py::arg("positions"),
          py::arg("is_gathered"), py::arg("pairs"), py::arg("splits"), py::arg("folds"), py::arg("fold_slabs"),
          py::arg("workspace"), py::arg("device"), py::arg("stream"));
    m.def("gram_exact", &call_gram_exact, py::arg("blocks"), py::arg("index"), py::arg("pairs"), py::arg("splits"),
          py::arg("folds"), py::arg("fold_slabs"), py::arg("workspace"), py::arg("device"), py::arg("stream"));
    m.def("rows", &call_rows, py::arg("block"), py::arg("columns"), py::arg("width"), py::arg("index"),
          py::arg("fold_slabs"), py::arg("folds"), py::arg("splits"), py::arg("is_gathered"), py::arg("gathered"),
          py::arg("gathered_stride"), py::arg("low"), py::arg("sums"), py::arg("device"), py::arg("stream"));
}
