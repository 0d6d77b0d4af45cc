// Instructions of Hopper that CUDA C++ does not offer, one function each.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace fastprobe {

// The dynamic shared memory of the launch.
__device__ inline uint8_t* dynamic_shared() {
    extern __shared__ uint8_t memory[];
    return memory;
}

__device__ inline uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

// A number that is the same in all threads of a warp, so that the compiler may keep it in one register for all.
__device__ inline int uniform(int number) { return __shfl_sync(0xFFFFFFFF, number, 0); }

// -- mbarrier ---------------------------------------------------------------------------------------------------------

__device__ inline void barrier_init(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

// Other threads see an initialised barrier after __syncthreads(); the copy engine needs these fences.
__device__ inline void barriers_are_initialised() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Arrive, and keep the phase open until the copy engine has delivered `bytes` bytes.
__device__ inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

__device__ inline void barrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
    uint32_t done = 0;
    while (!done)
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
}

// -- the copy engine --------------------------------------------------------------------------------------------------

// Copy columns [column, column + 64) of rows [row, row + 64) to shared memory, with zeros outside of the matrix.
__device__ inline void load_box(uint32_t to, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            to),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
        : "memory");
}

// -- wgmma ------------------------------------------------------------------------------------------------------------

template <int REGISTERS>
__device__ inline void give_up_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Needed between a write to accumulators and the first wgmma that adds to them.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait until only the last `LEFT` committed groups are unfinished.
template <int LEFT>
__device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// Keep the compiler from moving reads or writes of these registers across this line.
template <int N>
__device__ inline void pin(float (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

#define FASTPROBE_EIGHT(d, i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

// d = a b (+ d), 64 x 128 x 16; the last two 1s: columns of both operands are adjacent.
#define FASTPROBE_WGMMA(TYPE, d, a, b, adds)                                                                          \
    asm volatile(                                                                                                     \
        "{\n"                                                                                                         \
        ".reg .pred p;\n"                                                                                             \
        "setp.ne.b32 p, %66, 0;\n"                                                                                    \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " "                                              \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                     \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                            \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                            \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                           \
        "%64, %65, p, 1, 1, 1, 1;\n"                                                                                  \
        "}"                                                                                                           \
        : FASTPROBE_EIGHT(d, 0), FASTPROBE_EIGHT(d, 8), FASTPROBE_EIGHT(d, 16), FASTPROBE_EIGHT(d, 24),               \
          FASTPROBE_EIGHT(d, 32), FASTPROBE_EIGHT(d, 40), FASTPROBE_EIGHT(d, 48), FASTPROBE_EIGHT(d, 56)              \
        : "l"(a), "l"(b), "r"(adds))

template <bool BFLOAT16>
__device__ inline void wgmma(float (&d)[64], uint64_t a, uint64_t b, int adds) {
    if constexpr (BFLOAT16)
        FASTPROBE_WGMMA("bf16", d, a, b, adds);
    else
        FASTPROBE_WGMMA("f16", d, a, b, adds);
}

// -- float64 tensor cores ---------------------------------------------------------------------------------------------

// c += a b, 16 x 8 x 16. Before Hopper there is only 8 x 8 x 4, whose fragments are pieces of these.
__device__ inline void mma_double(double (&c)[4], const double (&a)[8], const double (&b)[4]) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7, %8, %9, %10, %11}, "
        "{%12, %13, %14, %15}, {%0, %1, %2, %3};"
        : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
        : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(a[4]), "d"(a[5]), "d"(a[6]), "d"(a[7]), "d"(b[0]), "d"(b[1]),
          "d"(b[2]), "d"(b[3]));
#else
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                         : "+d"(c[2 * half]), "+d"(c[2 * half + 1])
                         : "d"(a[2 * k + half]), "d"(b[k]));
#endif
}

}  // namespace fastprobe
