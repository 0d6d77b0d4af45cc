// Threads that live for one call. Starting one takes some tens of microseconds where a call takes milliseconds; in
// return there is no pool to keep, to size or to lose in a fork.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace fastprobe {

class Team {
   public:
    explicit Team(int members) : members_(members < 1 ? 1 : members) {}

    // Every member runs body(member); the caller is member 0.
    template <class Body>
    void run(const Body& body) {
        std::vector<std::thread> others;
        for (int m = 1; m < members_; ++m) others.emplace_back([&body, m] { body(m); });
        body(0);
        for (std::thread& other : others) other.join();
    }

    // To be called by every member: share out tasks 0..count, and wait until all of them are done.
    template <class Task>
    void share(int64_t count, const Task& task) {
        const int64_t round = round_.load();  // cannot change before this member arrives
        for (int64_t i; (i = next_.fetch_add(1)) < count;) task(i);
        if (arrived_.fetch_add(1) + 1 == members_) {
            arrived_.store(0);
            next_.store(0);
            round_.store(round + 1);
        }
        while (round_.load() == round) std::this_thread::yield();  // the others are at most one task behind
    }

   private:
    const int members_;
    std::atomic<int64_t> next_{0}, round_{0};
    std::atomic<int> arrived_{0};
};

}  // namespace fastprobe
