// The division of work: from the number of an item to its tile, its fold and its range of rows. Compiled for the GPU
// and for the CPU, where tests compare every function with a plain model.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTPROBE_HD __host__ __device__
#else
#define FASTPROBE_HD
#endif

// The stages of the ring and the slabs of a float32 sum. Benchmarks compile other numbers.
#ifndef FASTPROBE_STAGES
#define FASTPROBE_STAGES 7
#endif
#ifndef FASTPROBE_FLUSH
#define FASTPROBE_FLUSH 16
#endif

namespace fastprobe {

// Rows of a slab belong to one fold. With several folds, or with rows that are left out, rows are gathered into a
// buffer, fold after fold, and each fold is filled up with empty rows to a whole slab.
constexpr int SLAB = 128;

constexpr int MAX_PAIRS = 32;  // in one launch: its arguments must stay below 32 KB
constexpr int MAX_BLOCKS = 2 * MAX_PAIRS;

struct Pair {
    int left, right;  // blocks; if they are one block, only tiles on and above the diagonal are computed
    int left_width, right_width;
    double* gram;  // (folds, left_width, right_width)
    int64_t fold_stride, row_stride;
    int folds;       // 1: one matrix sums the rows of all folds
    int first_unit;  // number of this pair's first (fold, tile) unit among those of all pairs
    int splits;      // parts of the rows of each of its units
    int first_item;  // number of this pair's first (unit, part) among those of all pairs
};

FASTPROBE_HD inline int tiles_across(int width, int tile) { return (width + tile - 1) / tile; }

FASTPROBE_HD inline int tiles_of(const Pair& pair, int tile) {
    const int rows = tiles_across(pair.left_width, tile), columns = tiles_across(pair.right_width, tile);
    return pair.left == pair.right ? rows * (rows + 1) / 2 : rows * columns;
}


// One tile of one pair, for one part of the rows of one fold.
struct Item {
    int pair;
    int row, column;  // the tile's first column in the left and in the right block
    int fold, split;
    int unit;  // the same for all parts of one sum
};

// Tile t of a pair, for part `split` of a fold.
FASTPROBE_HD inline Item tile_of(const Pair* pairs, int p, int tile, int t, int fold, int split) {
    const Pair& pair = pairs[p];
    const int tiles = tiles_of(pair, tile), across = tiles_across(pair.right_width, tile);
    const int unit = pair.first_unit + fold * tiles + t;
    int row = 0, column = 0;
    if (pair.left == pair.right) {  // row r of the triangle has across - r tiles
        while (t >= across - row) t -= across - row++;
        column = row + t;
    } else {
        row = t / across;
        column = t % across;
    }
    return {p, row * tile, column * tile, fold, split, unit};
}

// Tiles are innermost, so that blocks of threads that run at the same time read the same rows.
FASTPROBE_HD inline Item item_at(const Pair* pairs, int pair_count, int tile, int item) {
    int p = 0;
    while (p + 1 < pair_count && pairs[p + 1].first_item <= item) ++p;
    const int local = item - pairs[p].first_item, tiles = tiles_of(pairs[p], tile), part = local / tiles;
    return tile_of(pairs, p, tile, local % tiles, part / pairs[p].splits, part % pairs[p].splits);
}

// A unit, as its first part.
FASTPROBE_HD inline Item unit_at(const Pair* pairs, int pair_count, int tile, int unit) {
    int p = 0;
    while (p + 1 < pair_count && pairs[p + 1].first_unit <= unit) ++p;
    const int local = unit - pairs[p].first_unit, tiles = tiles_of(pairs[p], tile);
    return tile_of(pairs, p, tile, local % tiles, local / tiles, 0);
}

struct Slabs {
    int begin, end;
};

// Part `split` of the rows of folds [first_fold, end_fold). fold_slabs[f] is the first slab of fold f,
// fold_slabs[folds] the end.
FASTPROBE_HD inline Slabs slabs_of(const int* fold_slabs, int first_fold, int end_fold, int split, int splits) {
    const int begin = fold_slabs[first_fold];
    const int64_t length = fold_slabs[end_fold] - begin;
    return {begin + int(length * split / splits), begin + int(length * (split + 1) / splits)};
}

// The work of one launch. Kernels take it by value, so that nothing is copied to the device first.
struct Plan {
    Pair pairs[MAX_PAIRS];
    int pair_count;
    int units;  // (fold, tile) units of all pairs
    int items;  // (unit, part) of all pairs
    int folds;
    const int* fold_slabs;  // (folds + 1), on the device
    double* workspace;      // (items, tile, tile), of the pairs whose rows are in parts; they come first
};

// Number the units and items of all pairs. A pair of all folds has as many more parts, so that items are equally long.
inline void number_items(Plan& plan, int tile, int splits) {
    plan.units = plan.items = 0;
    for (Pair* pair = plan.pairs; pair < plan.pairs + plan.pair_count; ++pair) {
        const int units = pair->folds * tiles_of(*pair, tile);
        pair->splits = pair->folds == 1 ? splits * plan.folds : splits;
        pair->first_unit = plan.units;
        pair->first_item = plan.items;
        plan.units += units;
        plan.items += units * pair->splits;
    }
}

struct Work {
    const Pair& pair;
    Item item;
    Slabs slabs;
    bool diagonal;  // one block of columns with itself
};

FASTPROBE_HD inline Work work_at(const Plan& plan, int tile, int index) {
    const Item item = item_at(plan.pairs, plan.pair_count, tile, index);
    const Pair& pair = plan.pairs[item.pair];
    const bool pooled = pair.folds == 1;
    return {pair, item,
            slabs_of(plan.fold_slabs, pooled ? 0 : item.fold, pooled ? plan.folds : item.fold + 1, item.split,
                     pair.splits),
            pair.left == pair.right && item.row == item.column};
}

// total += value. On the device it is a reduction in the L2 cache, and no thread waits for it. Every total has one
// owner, so that the order of its additions is fixed.
FASTPROBE_HD inline void add(double& total, double value) {
#ifdef __CUDA_ARCH__
    asm volatile("red.relaxed.gpu.global.add.f64 [%0], %1;" ::"l"(__cvta_generic_to_global(&total)), "d"(value) : "memory");
#else
    total += value;
#endif
}

// The destination of a tile's sums: the matrix if there is one part, else the workspace, which add_parts reads.
struct Output {
    double* first;
    int64_t stride;
    int height, width;  // distance to the matrix's edges
    bool adds;          // value is added to what is there, else written

    FASTPROBE_HD bool holds(int tile) const { return height >= tile && width >= tile; }
    FASTPROBE_HD double& at(int row, int column) const { return first[row * stride + column]; }

    FASTPROBE_HD void put(int row, int column, double value) const {
        if (row >= height || column >= width) return;
        double& here = at(row, column);
        if (adds)
            add(here, value);
        else
            here = value;
    }
};

FASTPROBE_HD inline Output matrix_of(const Pair& pair, const Item& item) {
    return {pair.gram + item.fold * pair.fold_stride + item.row * pair.row_stride + item.column, pair.row_stride,
            pair.left_width - item.row, pair.right_width - item.column, true};
}

FASTPROBE_HD inline double* part_of(const Plan& plan, int tile, const Item& item, int split) {
    const Pair& pair = plan.pairs[item.pair];
    return plan.workspace +
           (pair.first_item + int64_t(item.unit - pair.first_unit) * pair.splits + split) * tile * tile;
}

FASTPROBE_HD inline Output output_of(const Plan& plan, int tile, const Work& work) {
    if (work.pair.splits == 1) return matrix_of(work.pair, work.item);
    return {part_of(plan, tile, work.item, work.item.split), tile, tile, tile, false};
}

// Add the parts of one element, in order, to the matrix.
FASTPROBE_HD inline void add_parts(const Plan& plan, int tile, const Item& item, int row, int column) {
    const Pair& pair = plan.pairs[item.pair];
    double total = 0;
    for (int split = 0; split < pair.splits; ++split) total += part_of(plan, tile, item, split)[row * tile + column];
    matrix_of(pair, item).put(row, column, total);
}

}  // namespace fastprobe
