#include "gram.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "memory.h"
#include "products.h"

namespace fastprobe {
namespace {

struct Panel {
    const Block* block;
    int64_t column;
    const float* origin;        // of the whole block; nullptr if it is zero in this panel
    bool wants_floats = false;  // a product with a panel that is never pairs needs floats
    std::vector<int> moved;     // the panels about an origin that this one is multiplied with
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
        take_memory((tokens + 1) / 2 * 2);
    }

    // Panels about an origin are packed first: whether they are pairs decides in which form others are needed.
    const std::vector<int>& moved() const { return moved_; }
    const std::vector<int>& unmoved() const { return unmoved_; }
    int64_t tasks() const { return int64_t(tasks_.size()); }

    void pack(int which, const int64_t* index, int64_t n, int64_t fold) {
        const Panel& panel = panels_[which];
        Packed& packed = packed_[which];
        const Block& block = *panel.block;
        double sums[PANEL] = {}, squares[PANEL] = {};
        bool tallied = !block.sums && !block.squares;
        const auto pack_as = [&](bool pairs) {
            kernels_.pack(block.rows, index, n, panel.column, panel.origin, pairs, pairs ? packed.pairs : packed.floats,
                          tallied ? nullptr : sums, squares);
            tallied = true;
        };
        if (panel.origin && packed.pairs) {
            pack_as(false);
            packed.as_pairs = kernels_.pair_up(packed.floats, n, packed.pairs);
        } else {
            if (packed.pairs) pack_as(true);
            if (wants_floats(which)) pack_as(false);
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
        panels_.push_back({&block, column, origin, false, {}});
        packed_.emplace_back().width = width;
    }

    void add_tasks(const Pair& pair, const std::vector<int>& first, int group) {
        const bool upper = pair.left == pair.right;
        const int lefts = first[pair.left + 1], rights = first[pair.right + 1];
        for (int right = first[pair.right]; right < rights; right += group)
            for (int left = first[pair.left]; left < (upper ? right + 1 : lefts); left += group)
                tasks_.push_back({&pair,
                                  {left, std::min(left + group, lefts), right, std::min(right + group, rights), upper}});
    }

    // bfloat16 rows about zero are pairs. About an origin the rows of a chunk may be: the difference of two bfloat16
    // numbers that are close has few digits. Products of pairs are exact in the register that sums them.
    bool may_be_pairs(const Panel& panel) const {
        return kernels_.multiplies_pairs && panel.block->rows.dtype == Dtype::BFLOAT16;
    }

    bool wants_floats(int which) const {
        const Panel& panel = panels_[which];
        return panel.wants_floats || !packed_[which].pairs ||
               std::any_of(panel.moved.begin(), panel.moved.end(), [&](int p) { return !packed_[p].as_pairs; });
    }

    void take_memory(int64_t tokens) {
        std::vector<char> pairs(panels_.size());
        const auto multiplied = [&](int a, int b) {
            Panel &panel = panels_[a], &other = panels_[b];
            const bool both = may_be_pairs(panel) && may_be_pairs(other);
            if (both)
                pairs[a] = true;
            else
                panel.wants_floats = true;
            if (both && other.origin) panel.moved.push_back(b);
        };
        for (const auto& [pair, product] : tasks_)
            for (int right = product.right; right < product.right_end; ++right)
                for (int left = product.left; left < product.left_end && product.has(left, right); ++left) {
                    multiplied(left, right);
                    multiplied(right, left);
                }
        const auto floats = [&](size_t p) {
            const Panel& panel = panels_[p];
            return !pairs[p] || panel.wants_floats || panel.origin || !panel.moved.empty();
        };
        int64_t size = 0;
        for (size_t p = 0; p < panels_.size(); ++p)
            size += (floats(p) ? PANEL * tokens : 0) + (pairs[p] ? PANEL * tokens / 2 : 0);
        memory_.emplace(size);
        float* free = memory_->get();
        for (size_t p = 0; p < panels_.size(); ++p) {
            Packed& packed = packed_[p];
            if (floats(p)) packed.floats = std::exchange(free, free + PANEL * tokens);
            if (pairs[p]) packed.pairs = std::exchange(free, free + PANEL * tokens / 2);
            packed.as_pairs = pairs[p];
            (panels_[p].origin ? moved_ : unmoved_).push_back(int(p));
        }
    }

    const Kernels& kernels_;
    std::vector<Panel> panels_;
    std::vector<Packed> packed_;
    std::vector<Task> tasks_;
    std::vector<int> moved_, unmoved_;
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
                for (const auto* panels : {&work.moved(), &work.unmoved()}) {
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
