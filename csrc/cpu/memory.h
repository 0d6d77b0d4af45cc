// Uninitialised memory for floats, aligned to a cache line.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>

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

// Memory that is kept for the next call, at the largest size so far: fresh pages cost as much as the products of few
// rows.
class KeptMemory {
   public:
    float* get(int64_t floats) {
        if (!memory_ || floats > size_) memory_.emplace(size_ = floats);
        return memory_->get();
    }

   private:
    int64_t size_ = 0;
    std::optional<Memory> memory_;
};

}  // namespace fastprobe
