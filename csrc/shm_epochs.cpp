#include "shm_epochs.h"

#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <stdexcept>

#if defined(__linux__)
#include <linux/futex.h>
#endif

#include "pause.h"

namespace sidewinder {
namespace {

using Clock = std::chrono::steady_clock;

// Epochs wrap around: later means less than half of the circle ahead.
bool reached(const Mailbox& box, uint32_t epoch) {
    return static_cast<int32_t>(box.epoch.load(std::memory_order_acquire) - epoch) >= 0;
}

#if defined(__linux__)
// Sleeping waiters look this often whether the peer still lives.
constexpr long kSliceNs = 50'000'000;

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen) {
    const timespec slice{0, kSliceNs};
    syscall(SYS_futex, &word, FUTEX_WAIT, seen, &slice, nullptr, 0);
}
void futex_wake(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}
int open_process(int pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }
#else
void futex_wait(std::atomic<uint32_t>&, uint32_t) { usleep(100); }
void futex_wake(std::atomic<uint32_t>&) {}
int open_process(int) { return -1; }
#endif

}  // namespace

Epochs::Epochs(const Area& area, Patience patience)
    : area_(area), patience_(patience), pidfds_(area.size(), -1) {
    area_.mailbox(area_.index()).pid.store(getpid());
    barrier();
    for (int r = 0; r < area_.size(); ++r) pidfds_[r] = open_process(area_.mailbox(r).pid.load());
}

Epochs::~Epochs() {
    for (int fd : pidfds_) {
        if (fd >= 0) close(fd);
    }
}

uint32_t Epochs::publish() {
    Mailbox& box = area_.mailbox(area_.index());
    box.epoch.store(++own_);  // sequentially consistent, against the sleeper's look at the epoch
    if (box.sleepers.load() != 0) futex_wake(box.epoch);
    return own_;
}

void Epochs::wait_all(uint32_t epoch) {
    for (int r = 0; r < area_.size(); ++r) {
        if (r != area_.index()) wait(r, epoch);
    }
}

void Epochs::wait(int r, uint32_t epoch) {
    const Mailbox& box = area_.mailbox(r);
    for (int i = 0; i < patience_.spins; ++i) {
        if (reached(box, epoch)) return;
        pause();
    }
    for (int i = 0; i < patience_.yields; ++i) {
        if (reached(box, epoch)) return;
        sched_yield();
    }
    sleep_until(r, epoch);
}

void Epochs::sleep_until(int r, uint32_t epoch) {
    Mailbox& box = area_.mailbox(r);
    const auto limit = Clock::now() + std::chrono::duration<double>(patience_.timeout_s);
    while (!reached(box, epoch)) {
        const uint32_t seen = box.epoch.load();
        box.sleepers.fetch_add(1);
        if (box.epoch.load() == seen && !reached(box, epoch)) futex_wait(box.epoch, seen);
        box.sleepers.fetch_sub(1);
        if (reached(box, epoch)) return;
        if (dead(r)) fail(r, "has died");
        if (Clock::now() > limit) fail(r, "did not come in time");
    }
}

void Epochs::barrier() {
    check();
    wait_all(publish());
}

void Epochs::check() const {
    if (broken_) throw std::runtime_error("the group is over since a rank failed");
}

bool Epochs::dead(int r) const {
    if (pidfds_[r] < 0) return false;
    pollfd process{pidfds_[r], POLLIN, 0};
    return poll(&process, 1, 0) > 0;
}

void Epochs::fail(int r, const std::string& what) {
    broken_ = true;
    throw std::runtime_error("rank " + std::to_string(area_.rank(r)) + " " + what);
}

std::vector<float> Epochs::bare_exchanges(int calls, double gap_ns) {
    std::vector<float> times(calls);
    barrier();
    for (float& time : times) {
        const auto start = Clock::now();
        const auto elapsed = [&] {
            return std::chrono::duration<float, std::nano>(Clock::now() - start).count();
        };
        while (elapsed() < gap_ns) continue;
        area_.mailbox(area_.index()).epoch.store(++own_, std::memory_order_release);
        for (int r = 0; r < area_.size(); ++r) {
            for (int64_t i = 1; r != area_.index() && !reached(area_.mailbox(r), own_); ++i) {
                if (i % (1 << 24) == 0 && dead(r)) fail(r, "has died");
            }
        }
        time = elapsed() - static_cast<float>(gap_ns);
    }
    return times;
}

}  // namespace sidewinder
