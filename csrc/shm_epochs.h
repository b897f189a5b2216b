// How ranks wait for each other over shared memory.
//
// Every rank has an epoch, a count that only it advances ("publishes") and that the others wait for.
// A waiting rank spins, then yields, then sleeps until it is woken; asleep it looks whether the one
// it waits for still lives. After a failure the group is over.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shm_segment.h"

namespace sidewinder {

// How long to wait before the kernel is asked to wake us.
struct Patience {
    int spins;   // looks with a pause between
    int yields;  // looks with sched_yield between
    double timeout_s;
};

class Epochs {
   public:
    // Returns when all members have come. `area` must outlive this.
    Epochs(const Area& area, Patience patience);
    ~Epochs();
    Epochs(const Epochs&) = delete;
    Epochs& operator=(const Epochs&) = delete;

    // This rank's.
    uint32_t own() const { return own_; }
    // Advances this rank's epoch and returns it.
    uint32_t publish();
    // Return when a member, or all of them, have come to an epoch.
    void wait(int r, uint32_t epoch);
    void wait_all(uint32_t epoch);
    void barrier();
    // Throws if the group is over.
    void check() const;
    // See ShmGroup.
    std::vector<float> bare_exchanges(int calls, double gap_ns);

   private:
    void sleep_until(int r, uint32_t epoch);
    bool dead(int r) const;
    [[noreturn]] void fail(int r, const std::string& what);

    const Area& area_;
    const Patience patience_;
    std::vector<int> pidfds_;
    uint32_t own_ = 0;
    bool broken_ = false;
};

}  // namespace sidewinder
