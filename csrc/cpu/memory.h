// Memory for floats, aligned to a cache line and not initialised.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace fastprobe {

class Memory {
   public:
    explicit Memory(int64_t floats)
        : start_(static_cast<float*>(std::aligned_alloc(64, (size_t(floats) * sizeof(float) + 63) / 64 * 64))) {
        if (!start_ && floats) throw std::bad_alloc();
    }

    float* get() const { return start_.get(); }

   private:
    struct Free {
        void operator()(float* memory) const { std::free(memory); }
    };
    std::unique_ptr<float, Free> start_;
};

}  // namespace fastprobe
