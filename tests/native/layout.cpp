// The index arithmetic of the CUDA kernels, compiled for the CPU, for tests/native/test_cuda_layout.py.
#include "layout.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

namespace py = pybind11;
using namespace fastprobe;

namespace {

// A launch; the caller passes the numbers that a kernel would have in its registers.
class PlanOnHost {
   public:
    // As in csrc/cuda/module.cpp: left, right, their widths, address, fold stride, row stride, folds
    using PairArguments = std::tuple<int, int, int, int, uintptr_t, int64_t, int64_t, int>;

    PlanOnHost(const std::vector<PairArguments>& pairs, int tile, int splits, int folds, uintptr_t fold_slabs,
               uintptr_t workspace)
        : tile_(tile) {
        for (const auto& [left, right, left_width, right_width, gram, fold_stride, row_stride, pair_folds] : pairs)
            plan_.pairs[plan_.pair_count++] = {left,        right,      left_width, right_width, (double*)gram,
                                               fold_stride, row_stride, pair_folds, 0, 1, 0};
        plan_.folds = folds;
        number_items(plan_, tile, splits);
        plan_.fold_slabs = reinterpret_cast<const int*>(fold_slabs);
        plan_.workspace = reinterpret_cast<double*>(workspace);
    }

    int items() const { return plan_.items; }
    int units() const { return plan_.units; }

    // pair, first column of the left and of the right block, first slab and end, true on the diagonal
    std::tuple<int, int, int, int, int, bool> work(int index) const {
        const Work work = work_at(plan_, tile_, index);
        return {work.item.pair, work.item.row, work.item.column, work.slabs.begin, work.slabs.end, work.diagonal};
    }

    std::tuple<int, int> blocks(int index) const {
        const Work work = work_at(plan_, tile_, index);
        return {work.pair.left, work.pair.right};
    }

    // block, column, row, address
    std::vector<std::tuple<int, int, int, uint32_t>> boxes(int index, int row, uint32_t stage) const {
        const Work work = work_at(plan_, tile_, index);
        std::vector<std::tuple<int, int, int, uint32_t>> boxes;
        for (int i = 0; i < boxes_of(work.diagonal); ++i) {
            const Box box = box_at(work, row, stage, i);
            boxes.push_back({box.block, box.column, box.row, box.to});
        }
        return boxes;
    }

    void put(int index, py::array_t<int> rows, py::array_t<int> columns, py::array_t<double> values) const {
        const Output out = output_of(plan_, tile_, work_at(plan_, tile_, index));
        for (py::ssize_t i = 0; i < values.size(); ++i) out.put(rows.data()[i], columns.data()[i], values.data()[i]);
    }

    void add_parts() const {
        for (int unit = 0; unit < plan_.units; ++unit) {
            const Item item = unit_at(plan_.pairs, plan_.pair_count, tile_, unit);
            if (plan_.pairs[item.pair].splits == 1) continue;
            for (int i = 0; i < tile_ * tile_; ++i) fastprobe::add_parts(plan_, tile_, item, i / tile_, i % tile_);
        }
    }

   private:
    int tile_;
    Plan plan_{};
};

}  // namespace

PYBIND11_MODULE(layout, m) {
    py::class_<PlanOnHost>(m, "Plan")
        .def(py::init<std::vector<PlanOnHost::PairArguments>, int, int, int, uintptr_t, uintptr_t>(),
             py::arg("pairs"), py::arg("tile"), py::arg("splits"), py::arg("folds"), py::arg("fold_slabs"),
             py::arg("workspace"))
        .def_property_readonly("items", &PlanOnHost::items)
        .def_property_readonly("units", &PlanOnHost::units)
        .def("work", &PlanOnHost::work)
        .def("blocks", &PlanOnHost::blocks)
        .def("boxes", &PlanOnHost::boxes)
        .def("put", &PlanOnHost::put)
        .def("add_parts", &PlanOnHost::add_parts);
    m.def("slabs_of", [](std::vector<int> fold_slabs, int fold, int split, int splits) {
        const Slabs slabs = slabs_of(fold_slabs.data(), fold, fold + 1, split, splits);
        return std::pair(slabs.begin, slabs.end);
    });
    m.def("left_operand", py::vectorize(left_operand));
    m.def("right_operand", py::vectorize(right_operand));
    m.def("at_stage", py::vectorize(at_stage));
    m.def("further", py::vectorize(further));
    m.def("accumulator_row", py::vectorize(accumulator_row));
    m.def("accumulator_column", py::vectorize(accumulator_column));
    py::class_<Place>(m, "Place")
        .def(py::init<>())
        .def_readonly("stage", &Place::stage)
        .def("full_parity", &Place::full_parity)
        .def("empty_parity", &Place::empty_parity)
        .def("advance", &Place::advance);
    m.def("exact_token", py::vectorize(exact_token));
    m.def("exact_column", py::vectorize(exact_column));
    m.def("a_column", py::vectorize(a_column));
    m.def("a_token", py::vectorize(a_token));
    m.def("b_column", py::vectorize(b_column));
    m.def("b_token", py::vectorize(b_token));
    m.def("c_row", py::vectorize(c_row));
    m.def("c_column", py::vectorize(c_column));
    for (const auto& [name, value] : std::vector<std::pair<const char*, int>>{
             {"TILE", TILE}, {"SLAB", SLAB}, {"STAGES", STAGES}, {"STAGE_BYTES", STAGE_BYTES}, {"STAGE_ROWS", STAGE_ROWS},
             {"PIECES", PIECES}, {"STEPS", STEPS}, {"FLUSH", FLUSH}, {"GRAM_SHARED", GRAM_SHARED},
             {"EXACT_TILE", EXACT_TILE}, {"EXACT_DEPTH", EXACT_DEPTH}, {"EXACT_STRIDE", EXACT_STRIDE},
             {"EXACT_THREADS", EXACT_THREADS}, {"MAX_PAIRS", MAX_PAIRS}})
        m.attr(name) = value;
}
