// The place of each number: in shared memory, which the copy engine fills and wgmma reads, and in the registers of the
// tensor cores. Compiled for the GPU and for the CPU, where tests replay the kernel with a model of both units.
//
// Sources: PTX ISA 9.0, "Matrix fragments for wgmma.mma_async.m64nNk16" (D), "Shared memory matrix layout" and
// "Strides" (MN-major, 128-byte swizzle), "Matrix descriptor format", "Matrix fragments for mma.m16n8k16" (.f64); the
// canonical layouts in CUTLASS, cute/atom/mma_traits_sm90_gmma.hpp.
#pragma once

#include "plan.h"

namespace fastprobe {

// -- wgmma: tiles of 128 x 128, half a slab of both operands a stage --------------------------------------------------

constexpr int TILE = 128;
constexpr int BOX = 64;                                // columns of 2 bytes: 128 bytes, one swizzled row
constexpr int ROW_BYTES = 128;                         // of a box
constexpr int STAGE_ROWS = 64;                         // tokens of a stage
constexpr int PIECES = SLAB / STAGE_ROWS;              // stages of a slab
constexpr int BOX_BYTES = STAGE_ROWS * ROW_BYTES;      // 64 columns of one stage
constexpr int OPERAND_BYTES = TILE / BOX * BOX_BYTES;
constexpr int STAGE_BYTES = 2 * OPERAND_BYTES;
constexpr int STAGES = FASTPROBE_STAGES;
constexpr int STEP = 16;                               // tokens of one wgmma
constexpr int STEPS = STAGE_ROWS / STEP;
constexpr int ATOM_BYTES = 8 * ROW_BYTES;              // 8 rows, 1,024 bytes: the period of the swizzle
constexpr int GRAM_SHARED = STAGES * STAGE_BYTES + ATOM_BYTES;  // the ring begins at an atom
constexpr int ACCUMULATORS = BOX * TILE / 128;         // float32 registers of a thread for 64 x 128
constexpr int FLUSH = FASTPROBE_FLUSH;                 // slabs that are summed in float32

static_assert(STAGES >= 2 * PIECES, "two chains are in flight");
static_assert(FLUSH % 2 == 0, "sums are flushed after every second chain at most");

// One copy: 64 columns of a piece of a slab of a block, from `column` and `row` on, to an address in shared memory.
struct Box {
    int block, column, row;
    uint32_t to;
};

// A stage holds the left operand and, off the diagonal, the right one, each as two boxes.
FASTPROBE_HD inline int boxes_of(bool diagonal) { return diagonal ? 2 : 4; }
FASTPROBE_HD inline Box box_at(const Work& work, int row, uint32_t stage, int i) {
    const bool right = i >= TILE / BOX;
    return {right ? work.pair.right : work.pair.left,
            (right ? work.item.column : work.item.row) + i % (TILE / BOX) * BOX, row, stage + i * BOX_BYTES};
}

// The descriptor of an operand with adjacent columns ("MN-major": a row of shared memory is a token) whose first box is
// at `address`, a multiple of ATOM_BYTES. The leading offset is that of the next 64 columns, the stride offset that of
// the next 8 tokens.
FASTPROBE_HD inline uint64_t descriptor(uint32_t address) {
    constexpr uint64_t SWIZZLE_128B = 1;
    return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(BOX_BYTES >> 4) << 16 | uint64_t(ATOM_BYTES >> 4) << 32 |
           SWIZZLE_128B << 62;
}

// The operands of a warpgroup: 64 columns of the left block by 128 columns of the right block.
FASTPROBE_HD inline uint64_t left_operand(uint32_t stage, int half) { return descriptor(stage + half * BOX_BYTES); }
FASTPROBE_HD inline uint64_t right_operand(uint32_t stage, bool diagonal) {
    return descriptor(diagonal ? stage : stage + OPERAND_BYTES);
}

// The same operand of another stage, from that of the first stage, and 16 `step` tokens further. Shared memory ends
// below 2^18, so that the sum of addresses stays in its field.
FASTPROBE_HD inline uint64_t at_stage(uint64_t descriptor, int stage) {
    return descriptor + uint64_t(stage * (STAGE_BYTES >> 4));
}
FASTPROBE_HD inline uint64_t further(uint64_t descriptor, int step) {
    return descriptor + uint64_t(step * STEP * ROW_BYTES >> 4);
}

// The row and column, in the 64 x 128 products of a warpgroup, of register i of a thread.
FASTPROBE_HD inline int accumulator_row(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8; }
FASTPROBE_HD inline int accumulator_column(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

// A place in the ring of stages, and the parity of the number of times that the ring was used before. A wait for a full
// stage waits for that parity, a wait for an empty one for the other. A new barrier counts its phase -1 as complete, so
// that the producer's first waits for an empty stage return at once.
struct Place {
    int stage = 0;
    uint32_t parity = 0;

    FASTPROBE_HD uint32_t full_parity() const { return parity; }
    FASTPROBE_HD uint32_t empty_parity() const { return parity ^ 1; }
    FASTPROBE_HD void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// -- mma.m16n8k16 in float64: tiles of 64 x 64, 16 tokens at a time -------------------------------------------------

constexpr int EXACT_TILE = 64;
constexpr int EXACT_DEPTH = 16;
constexpr int EXACT_THREADS = 128;
constexpr int EXACT_STRIDE = EXACT_TILE + 4;  // doubles: the 4 tokens x 4 columns of a half-warp are in 16 banks

// The place in shared memory of the i-th number that a thread loads.
FASTPROBE_HD inline int exact_token(int thread, int i) { return i * (EXACT_THREADS / EXACT_TILE) + thread / EXACT_TILE; }
FASTPROBE_HD inline int exact_column(int thread) { return thread % EXACT_TILE; }

// Element i of a thread's fragments of A (16 columns of the left block x 16 tokens), B (16 tokens x 8 columns) and of
// the 16 x 8 products.
FASTPROBE_HD inline int a_column(int lane, int i) { return lane / 4 + i % 2 * 8; }
FASTPROBE_HD inline int a_token(int lane, int i) { return i / 2 * 4 + lane % 4; }
FASTPROBE_HD inline int b_column(int lane) { return lane / 4; }
FASTPROBE_HD inline int b_token(int lane, int i) { return i * 4 + lane % 4; }
FASTPROBE_HD inline int c_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
FASTPROBE_HD inline int c_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

}  // namespace fastprobe
