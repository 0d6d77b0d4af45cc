#include "gram.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "memory.h"

namespace fastprobe {
namespace {

struct Panel {
    const Block* block;
    int64_t column;
    int width;
    const float* origin;  // of the whole block; nullptr where this panel's is zero
    float* floats = nullptr;
    float* pairs = nullptr;
    bool as_pairs = false;      // products take the pairs, where those of the other panel are taken, too
    bool wants_floats = false;  // for a product with a panel that is never pairs
    std::vector<int> moved;     // panels about an origin that it has a product with
};

struct Tiles {  // one right panel against some left ones
    const Pair* pair;
    int right, left, left_end;
};

constexpr int LEFT_PANELS = 4;  // in one task: small tasks keep many threads busy

class Work {
   public:
    // For chunks of at most so many tokens.
    Work(const std::vector<Block>& blocks, const std::vector<Pair>& pairs, int64_t tokens, const Kernels& kernels)
        : kernels_(kernels) {
        std::vector<int> first;
        for (const Block& block : blocks) {
            first.push_back(int(panels_.size()));
            for (int64_t column = 0; column < block.rows.width; column += PANEL)
                panels_.push_back(panel_of(block, column));
        }
        first.push_back(int(panels_.size()));
        for (const Pair& pair : pairs)
            for (int right = first[pair.right]; right < first[pair.right + 1]; ++right) {
                const int end = pair.left == pair.right ? right + 1 : first[pair.left + 1];
                for (int left = first[pair.left]; left < end; left += LEFT_PANELS)
                    tiles_.push_back({&pair, right, left, std::min(left + LEFT_PANELS, end)});
            }
        take_memory((tokens + 1) / 2 * 2);
    }

    // Panels about an origin come first: whether they are pairs says in which form others are needed.
    const std::vector<int>& moved() const { return moved_; }
    const std::vector<int>& unmoved() const { return unmoved_; }
    int64_t products() const { return int64_t(tiles_.size()); }

    void pack(int which, const int64_t* index, int64_t n, int64_t fold, double weight) {
        Panel& panel = panels_[which];
        const Block& block = *panel.block;
        double sums[PANEL] = {}, squares[PANEL] = {};
        bool tallied = !block.sums && !block.squares;
        const auto pack_as = [&](bool pairs) {
            kernels_.pack(block.rows, index, n, panel.column, panel.origin, pairs, pairs ? panel.pairs : panel.floats,
                          tallied ? nullptr : sums, squares);
            tallied = true;
        };
        if (panel.origin && panel.pairs) {
            pack_as(false);
            panel.as_pairs = kernels_.pair_up(panel.floats, n, panel.pairs);
        } else {
            if (panel.pairs) pack_as(true);
            if (wants_floats(panel)) pack_as(false);
        }
        for (int c = 0; c < panel.width; ++c) {
            const int64_t at = fold * block.rows.width + panel.column + c;
            if (block.sums) block.sums[at] += weight * sums[c];
            if (block.squares) block.squares[at] += weight * squares[c];
        }
    }

    void multiply(int64_t task, int64_t n, int64_t fold, double weight) const {
        const Tiles& tiles = tiles_[task];
        const Panel& right = panels_[tiles.right];
        for (int l = tiles.left; l < tiles.left_end; ++l) {
            const Panel& left = panels_[l];
            const bool as_pairs = left.as_pairs && right.as_pairs;
            double* out = tiles.pair->gram + fold * tiles.pair->fold_stride + left.column * tiles.pair->row_stride +
                          right.column;
            kernels_.multiply(as_pairs ? left.pairs : left.floats, as_pairs ? right.pairs : right.floats, n, as_pairs,
                              weight, out, tiles.pair->row_stride, left.width, right.width);
        }
    }

   private:
    static Panel panel_of(const Block& block, int64_t column) {
        const int width = int(std::min<int64_t>(PANEL, block.rows.width - column));
        const float* origin = block.origin;
        if (origin && std::all_of(origin + column, origin + column + width, [](float o) { return o == 0; }))
            origin = nullptr;
        return {&block, column, width, origin};
    }

    // Rows of bfloat16 are, about zero. About an origin those of a chunk may be, as a bfloat16 number near the origin less
    // it has few digits. A register sums products of pairs exactly as they are.
    bool may_be_pairs(const Panel& panel) const {
        return kernels_.multiplies_pairs && panel.block->rows.dtype == Dtype::BFLOAT16;
    }

    bool wants_floats(const Panel& panel) const {
        return panel.wants_floats || !panel.pairs ||
               std::any_of(panel.moved.begin(), panel.moved.end(), [&](int p) { return !panels_[p].as_pairs; });
    }

    void take_memory(int64_t tokens) {
        std::vector<char> pairs(panels_.size());
        for (const Tiles& tiles : tiles_)
            for (int left = tiles.left; left < tiles.left_end; ++left)
                for (auto [a, b] : {std::pair(left, tiles.right), std::pair(tiles.right, left)}) {
                    Panel &panel = panels_[a], &other = panels_[b];
                    const bool both = may_be_pairs(panel) && may_be_pairs(other);
                    if (both)
                        pairs[a] = true;
                    else
                        panel.wants_floats = true;
                    if (both && other.origin) panel.moved.push_back(b);
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
            Panel& panel = panels_[p];
            if (floats(p)) panel.floats = std::exchange(free, free + PANEL * tokens);
            if (pairs[p]) panel.pairs = std::exchange(free, free + PANEL * tokens / 2);
            panel.as_pairs = pairs[p];
            (panel.origin ? moved_ : unmoved_).push_back(int(p));
        }
    }

    const Kernels& kernels_;
    std::vector<Panel> panels_;
    std::vector<Tiles> tiles_;
    std::vector<int> moved_, unmoved_;
    std::optional<Memory> memory_;
};

}  // namespace

void gram(const std::vector<Block>& blocks, const std::vector<Pair>& pairs, const int64_t* fold, int64_t n,
          int64_t folds, double weight, int threads, const Kernels& kernels) {
    std::vector<std::vector<int64_t>> rows_of(folds);
    for (int64_t i = 0; i < n; ++i)
        if (fold[i] >= 0) rows_of[fold[i]].push_back(i);

    int64_t longest = 0;
    for (const auto& rows : rows_of) longest = std::max(longest, int64_t(rows.size()));
    Work work(blocks, pairs, std::min<int64_t>(CHUNK, longest), kernels);
    for (int64_t f = 0; f < folds; ++f) {
        const int64_t rows = int64_t(rows_of[f].size());
        for (int64_t start = 0; start < rows; start += CHUNK) {
            const int64_t* index = rows_of[f].data() + start;
            const int64_t length = std::min<int64_t>(CHUNK, rows - start);
#pragma omp parallel num_threads(threads)
            {
                for (const auto* panels : {&work.moved(), &work.unmoved()}) {
#pragma omp for schedule(dynamic)
                    for (size_t p = 0; p < panels->size(); ++p) work.pack((*panels)[p], index, length, f, weight);
                }
#pragma omp for schedule(dynamic)
                for (int64_t task = 0; task < work.products(); ++task) work.multiply(task, length, f, weight);
            }
        }
    }
}

}  // namespace fastprobe
