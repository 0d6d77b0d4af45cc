// csrc/cuda/ptx.cuh for a CPU: each instruction as the PTX ISA defines it, run by ordinary threads. Asynchronous work
// is done as late as the hardware may do it: a copy at some time on its own thread, a wgmma at the wait for it. Written
// from the manual; shares no code with csrc/cuda/layout.h.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace fastprobe {

constexpr int MOST_THREADS = 384;
constexpr uint32_t SHARED_BEGIN = 16 * 23;  // dynamic shared memory is not promised to begin at a multiple of 1,024

struct Units {
    std::vector<uint8_t> shared;  // of one block of threads
    std::mutex mutex;
    std::condition_variable changed;
    struct Barrier {
        int arrivals, pending;
        int64_t bytes;
        uint32_t phase;
    };
    std::map<uint64_t*, Barrier> barriers;
    std::deque<std::function<void()>> copies;
    bool done;
    pthread_barrier_t block;
    pthread_barrier_t warps[MOST_THREADS / 32];
    double fragments[MOST_THREADS / 32][32][12];
};
inline Units units;

inline uint8_t* dynamic_shared() { return units.shared.data(); }
inline uint32_t shared_address(const uint8_t* pointer) {
    return uint32_t(pointer - units.shared.data()) + SHARED_BEGIN;
}
inline int uniform(int number) { return number; }
inline uint8_t* at_address(uint32_t address) { return units.shared.data() + (address - SHARED_BEGIN); }

// -- mbarrier ---------------------------------------------------------------------------------------------------------

inline void barrier_init(uint64_t* barrier, int arrivals) { units.barriers[barrier] = {arrivals, arrivals, 0, 0}; }
inline void barriers_are_initialised() {}

inline void barrier_change(uint64_t* barrier, int arrivals, int64_t bytes) {
    const std::lock_guard lock(units.mutex);
    Units::Barrier& b = units.barriers.at(barrier);
    b.pending -= arrivals;
    b.bytes += bytes;
    if (b.pending == 0 && b.bytes == 0) {
        b.pending = b.arrivals;
        ++b.phase;
    }
    units.changed.notify_all();
}
inline void barrier_expect(uint64_t* barrier, uint32_t bytes) { barrier_change(barrier, 1, bytes); }
inline void barrier_arrive(uint64_t* barrier) { barrier_change(barrier, 1, 0); }
inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
    std::unique_lock lock(units.mutex);
    units.changed.wait(lock, [&] { return units.barriers.at(barrier).phase % 2 != parity; });
}

// -- the copy engine --------------------------------------------------------------------------------------------------

// The contents of a CUtensorMap here, stored in its 128 bytes.
struct Matrix {
    const uint16_t* data;
    int64_t stride;
    int rows, width;
};

inline void load_box(uint32_t to, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
    Matrix matrix;
    std::memcpy(&matrix, map, sizeof(matrix));
    if (to % 1024 || matrix.stride % 8 || reinterpret_cast<uintptr_t>(matrix.data) % 16) std::abort();
    const std::lock_guard lock(units.mutex);
    units.copies.push_back([=] {
        for (int r = 0; r < 64; ++r)
            for (int c = 0; c < 64; ++c) {
                const bool inside = row + r < matrix.rows && column + c < matrix.width;
                const uint16_t value = inside ? matrix.data[(row + r) * matrix.stride + column + c] : 0;
                const uint32_t address = to + r * 128 + c * 2;
                std::memcpy(at_address(address ^ (address >> 7 & 7) << 4), &value, 2);  // 128-byte swizzle
            }
        barrier_change(barrier, 0, -64 * 64 * 2);
    });
    units.changed.notify_all();
}

// Carry out copies, in any order.
inline void copy_engine() {
    std::minstd_rand random(1);
    for (;;) {
        std::function<void()> copy;
        {
            std::unique_lock lock(units.mutex);
            units.changed.wait(lock, [] { return units.done || !units.copies.empty(); });
            if (units.copies.empty()) return;
            const auto chosen = units.copies.begin() + random() % units.copies.size();
            copy = std::move(*chosen);
            units.copies.erase(chosen);
        }
        copy();
    }
}

// -- wgmma ------------------------------------------------------------------------------------------------------------

template <int REGISTERS>
void give_up_registers() {}
template <int REGISTERS>
void take_registers() {}
template <int N>
void pin(float (&)[N]) {}

struct Wgmma {
    float* d;
    uint64_t a, b;
    int adds;
    bool bfloat16;
};
struct Group {
    std::vector<Wgmma> products;
    float before[64];  // the accumulators when the first product was issued
};
inline thread_local Group issued;
inline thread_local std::deque<Group> committed;
inline thread_local bool fenced;

inline void wgmma_fence() { fenced = true; }
inline void wgmma_commit() {
    committed.push_back(std::move(issued));
    issued.products.clear();
    fenced = false;
}

// Column m of token k of an operand whose columns lie side by side, in 128-byte swizzle.
inline float element(uint64_t descriptor, int m, int k, bool bfloat16) {
    const auto field = [&](int shift) { return uint32_t(descriptor >> shift & 0x3FFF) << 4; };
    const uint32_t start = field(0), leading = field(16), stride = field(32);
    if (descriptor >> 62 != 1) std::abort();
    const uint32_t address = start + m % 64 * 2 + m / 64 * leading + k % 8 * 128 + k / 8 * stride;
    uint16_t bits;
    std::memcpy(&bits, at_address(address ^ (address >> 7 & 7) << 4), 2);
    return bfloat16 ? __bfloat162float(__ushort_as_bfloat16(bits)) : __half2float(__ushort_as_half(bits));
}

template <bool BFLOAT16>
void wgmma(float (&d)[64], uint64_t a, uint64_t b, int adds) {
    if (!fenced) std::abort();
    for (const Group& group : committed)
        if (group.products[0].d == d) std::abort();  // the accumulators are in use
    if (issued.products.empty()) std::copy(d, d + 64, issued.before);
    issued.products.push_back({d, a, b, adds, BFLOAT16});
    std::fill(d, d + 64, NAN);  // not to be read before the wait
}

// Carry out the oldest groups, as late as the hardware may, until LEFT are unfinished.
template <int LEFT>
void wgmma_wait() {
    const int thread = threadIdx.x % 128;
    for (; committed.size() > LEFT; committed.pop_front()) {
        const Group& group = committed.front();
        std::vector<double> sums(group.before, group.before + 64);  // exact: the tensor core rounds, this model does not
        for (const Wgmma& product : group.products)
            for (int i = 0; i < 64; ++i) {
                const int row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2);
                const int column = 8 * (i / 4) + thread % 4 * 2 + i % 2;
                if (!product.adds) sums[i] = 0;
                for (int k = 0; k < 16; ++k)
                    sums[i] += double(element(product.a, row, k, product.bfloat16)) *
                               double(element(product.b, column, k, product.bfloat16));
                product.d[i] = float(sums[i]);
            }
    }
    pthread_barrier_wait(&units.warps[threadIdx.x / 32]);  // .sync: the threads of a warp continue together
}

// -- float64 tensor cores ---------------------------------------------------------------------------------------------

inline void mma_double(double (&c)[4], const double (&a)[8], const double (&b)[4]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    std::copy(a, a + 8, units.fragments[warp][lane]);
    std::copy(b, b + 4, units.fragments[warp][lane] + 8);
    pthread_barrier_wait(&units.warps[warp]);
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k)  // A: register 2 (k / 4) + row / 8 of lane 4 (row % 8) + k % 4; B: k / 4 of 4 column + k % 4
            c[i] += units.fragments[warp][row % 8 * 4 + k % 4][k / 4 * 2 + row / 8] *
                    units.fragments[warp][column * 4 + k % 4][8 + k / 4];
    }
    pthread_barrier_wait(&units.warps[warp]);
}

}  // namespace fastprobe
