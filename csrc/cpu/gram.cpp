#include "gram.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "memory.h"
#include "products.h"

namespace fastprobe {
namespace {

// A panel is packed as floats, as bfloat16 pairs (kernels.h), or as both. It can pair if its rows are bfloat16 and the
// instruction set multiplies bfloat16 pairs. A product reads one form of both its panels:
//
//                                 other panel
//     panel                       cannot pair    can pair, about zero    can pair, about an origin
//     cannot pair                 floats         floats                  floats
//     can pair, about zero        floats         bfloat16 pairs          chosen for each chunk
//     can pair, about an origin   floats         chosen for each chunk   chosen for each chunk
//
// Chosen for each chunk: bfloat16 pairs if all its rows minus the origin are bfloat16 numbers, else floats. They often
// are, because the difference of two close bfloat16 numbers has few digits.
struct Panel {
    const Block* block;
    int64_t column;
    const float* origin;            // of the whole block; nullptr if it is zero in this panel
    bool always_floats = false;     // some product of this panel reads floats in every chunk
    std::vector<int> about_origin;  // the panels in the last column of the table that are multiplied with this one
};

// The forms in which a panel is packed in some chunk.
struct Forms {
    bool floats = false, bf16_pairs = false;
};

struct Task {
    const Pair* pair;
    Product product;
};

constexpr int TASKS = 4;  // least number for each thread: more tasks shorten the wait for the last one

class Work {
   public:
    // For chunks of at most `tokens` tokens.
    Work(const std::vector<Block>& blocks, const std::vector<Pair>& pairs, int64_t tokens, int threads,
         const Kernels& kernels)
        : kernels_(kernels) {
        std::vector<int> first;
        for (const Block& block : blocks) {
            first.push_back(int(panels_.size()));
            for (int64_t column = 0; column < block.rows.width; column += PANEL) add_panel(block, column);
        }
        first.push_back(int(panels_.size()));
        for (int group = GROUP; group && int64_t(tasks_.size()) < int64_t(TASKS) * threads; group /= 2) {
            tasks_.clear();
            for (const Pair& pair : pairs) add_tasks(pair, first, group);
        }
        allocate(choose_forms(), (tokens + 1) / 2 * 2);
    }

    // Panels about an origin are packed first, because their forms decide the forms of the panels about zero.
    const std::vector<int>& about_origin() const { return about_origin_; }
    const std::vector<int>& about_zero() const { return about_zero_; }
    int64_t tasks() const { return int64_t(tasks_.size()); }

    void pack(int which, const int64_t* index, int64_t n, int64_t fold) {
        const Panel& panel = panels_[which];
        Packed& packed = packed_[which];
        const Block& block = *panel.block;
        double sums[PANEL] = {}, squares[PANEL] = {};
        bool tallied = !block.sums && !block.squares;
        const auto pack_as = [&](bool bf16_pairs) {
            kernels_.pack(block.rows, index, n, panel.column, panel.origin, bf16_pairs,
                          bf16_pairs ? packed.bf16_pairs : packed.floats, tallied ? nullptr : sums, squares);
            tallied = true;
        };
        if (panel.origin && packed.bf16_pairs) {
            pack_as(false);
            packed.reads_pairs = kernels_.pair_up(packed.floats, n, packed.bf16_pairs);
        } else {
            if (packed.bf16_pairs) pack_as(true);
            if (needs_floats(which)) pack_as(false);
        }
        for (int c = 0; c < packed.width; ++c) {
            const int64_t at = fold * block.rows.width + panel.column + c;
            if (block.sums) block.sums[at] += sums[c];
            if (block.squares) block.squares[at] += squares[c];
        }
    }

    void multiply(int64_t which, int64_t n, int64_t fold) const {
        const auto& [pair, product] = tasks_[which];
        double* out = pair->gram + fold * pair->fold_stride + panels_[product.left].column * pair->row_stride +
                      panels_[product.right].column;
        product.add_to(out, pair->row_stride, packed_.data(), n, kernels_);
    }

   private:
    void add_panel(const Block& block, int64_t column) {
        const int width = int(std::min<int64_t>(PANEL, block.rows.width - column));
        const float* origin = block.origin;
        if (origin && std::all_of(origin + column, origin + column + width, [](float o) { return o == 0; }))
            origin = nullptr;
        (origin ? about_origin_ : about_zero_).push_back(int(panels_.size()));
        panels_.push_back({&block, column, origin, false, {}});
        packed_.emplace_back().width = width;
    }

    void add_tasks(const Pair& pair, const std::vector<int>& first, int group) {
        const bool upper = pair.left == pair.right;
        const int lefts = first[pair.left + 1], rights = first[pair.right + 1];
        for (int right = first[pair.right]; right < rights; right += group)
            for (int left = first[pair.left]; left < (upper ? right + 1 : lefts); left += group)
                tasks_.push_back(
                    {&pair, {left, std::min(left + group, lefts), right, std::min(right + group, rights), upper}});
    }

    bool can_pair(const Panel& panel) const {
        return kernels_.multiplies_bf16_pairs && panel.block->rows.dtype == Dtype::BFLOAT16;
    }

    // Some product of this panel reads floats in the current chunk. Panels about an origin are packed already.
    bool needs_floats(int which) const {
        const Panel& panel = panels_[which];
        return panel.always_floats || !packed_[which].bf16_pairs ||
               std::any_of(panel.about_origin.begin(), panel.about_origin.end(),
                           [&](int p) { return !packed_[p].reads_pairs; });
    }

    // Apply the table above to every product.
    std::vector<Forms> choose_forms() {
        std::vector<Forms> forms(panels_.size());
        const auto choose = [&](int p, int q) {  // for panel p, from its product with panel q
            if (!can_pair(panels_[p]) || !can_pair(panels_[q])) {
                panels_[p].always_floats = true;
            } else {
                forms[p].bf16_pairs = true;
                if (panels_[q].origin) panels_[p].about_origin.push_back(q);
            }
        };
        for (const auto& [pair, product] : tasks_)
            for (int right = product.right; right < product.right_end; ++right)
                for (int left = product.left; left < product.left_end && product.has(left, right); ++left) {
                    choose(left, right);
                    choose(right, left);
                }
        for (size_t p = 0; p < panels_.size(); ++p) {
            const Panel& panel = panels_[p];
            forms[p].floats =
                !forms[p].bf16_pairs || panel.always_floats || panel.origin || !panel.about_origin.empty();
        }
        return forms;
    }

    void allocate(const std::vector<Forms>& forms, int64_t tokens) {
        const int64_t floats = PANEL * tokens, bf16_pairs = PANEL * tokens / 2;  // sizes in floats
        int64_t size = 0;
        for (const Forms& form : forms) size += (form.floats ? floats : 0) + (form.bf16_pairs ? bf16_pairs : 0);
        memory_.emplace(size);
        float* next = memory_->get();
        for (size_t p = 0; p < panels_.size(); ++p) {
            if (forms[p].floats) packed_[p].floats = std::exchange(next, next + floats);
            if (forms[p].bf16_pairs) packed_[p].bf16_pairs = std::exchange(next, next + bf16_pairs);
            packed_[p].reads_pairs = forms[p].bf16_pairs;
        }
    }

    const Kernels& kernels_;
    std::vector<Panel> panels_;
    std::vector<Packed> packed_;
    std::vector<Task> tasks_;
    std::vector<int> about_origin_, about_zero_;  // numbers of panels
    std::optional<Memory> memory_;
};

}  // namespace

void gram(const std::vector<Block>& blocks, const std::vector<Pair>& pairs, const int64_t* fold, int64_t n,
          int64_t folds, int threads, const Kernels& kernels) {
    std::vector<std::vector<int64_t>> rows_of(folds);
    for (int64_t i = 0; i < n; ++i)
        if (fold[i] >= 0) rows_of[fold[i]].push_back(i);

    int64_t longest = 0;
    for (const auto& rows : rows_of) longest = std::max(longest, int64_t(rows.size()));
    Work work(blocks, pairs, std::min<int64_t>(CHUNK, longest), threads, kernels);
    for (int64_t f = 0; f < folds; ++f) {
        const int64_t rows = int64_t(rows_of[f].size());
        for (int64_t start = 0; start < rows; start += CHUNK) {
            const int64_t* index = rows_of[f].data() + start;
            const int64_t length = std::min<int64_t>(CHUNK, rows - start);
#pragma omp parallel num_threads(threads)
            {
                for (const auto* panels : {&work.about_origin(), &work.about_zero()}) {
#pragma omp for schedule(dynamic)
                    for (size_t p = 0; p < panels->size(); ++p) work.pack((*panels)[p], index, length, f);
                }
#pragma omp for schedule(dynamic)
                for (int64_t task = 0; task < work.tasks(); ++task) work.multiply(task, length, f);
            }
        }
    }
}

}  // namespace fastprobe
