// A CUDA runtime without a GPU, for the host code of csrc/cuda: two devices, and a record of launches. A module that
// links the runtime statically has its own idea of the current device; the driver's is that of the whole thread.
#include <cuda.h>
#include <cuda_runtime.h>

#include <map>
#include <string>
#include <vector>

namespace {

struct Call {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};

int own_device = 0, driver_device = 0;
std::vector<Call> calls;
std::string record;

std::string& name_of(const void* kernel) {
    static std::map<const void*, std::string> names;  // made at its first use, which is before that of other globals
    return names[kernel];
}

CUresult encode(...) { return CUDA_SUCCESS; }

}  // namespace

extern "C" {

// For the test: what torch does to the driver, the driver's current device, and a line for each launch. Other symbols are
// hidden, because another test loads a module with the same ones.
#pragma GCC visibility push(default)
void torch_sets_device(int device) { driver_device = device; }
int current_device() { return driver_device; }
const char* launches() { return record.c_str(); }
#pragma GCC visibility pop

void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
    name_of(host) = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    calls.push_back({grid, block, shared, stream});
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = calls.back().grid;
    *block = calls.back().block;
    *shared = calls.back().shared;
    *static_cast<cudaStream_t*>(stream) = calls.back().stream;
    calls.pop_back();
    return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t stream) {
    for (const uint64_t part : {uint64_t(driver_device), uint64_t(grid.x * grid.y), uint64_t(block.x), uint64_t(shared),
                                uint64_t(reinterpret_cast<uintptr_t>(stream))})
        record += std::to_string(part) + " ";
    record += name_of(host) + "\n";
    return cudaSuccess;
}
// Code made by nvcc 13 launches by these two.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t stream) {
    return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
cudaError_t cudaGetDevice(int* device) {
    *device = own_device;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device > 1) return cudaErrorInvalidDevice;
    own_device = driver_device = device;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 132;
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "invalid device ordinal"; }
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
    *function = reinterpret_cast<void*>(&encode);
    *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

}  // extern "C"
