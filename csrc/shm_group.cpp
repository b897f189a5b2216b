#include "shm_group.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#if defined(__linux__)
#include <linux/futex.h>
#endif
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "kernels.h"

namespace sidewinder {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kPage = 4096;
// Sleeping waiters look this often whether the peer still lives.
constexpr long kSliceNs = 50'000'000;

int64_t item_bytes(SumType type) {
    return type == SumType::f64 ? 8 : type == SumType::f32 ? 4 : 2;
}

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Copies into a slot. Its lines are in the readers' caches since they were last read, and taking each
// back costs a round trip between cores; stores past the caches do not wait for that. Between
// distant cores they are up to three times faster, between close ones half as fast, from about this
// size on.
constexpr int64_t kStreamBytes = 2048;

void post_bytes(char* slot, const char* from, int64_t bytes) {
    int64_t done = 0;
#if defined(__x86_64__)
    if (bytes >= kStreamBytes && reinterpret_cast<uintptr_t>(slot) % 16 == 0) {
        for (; done + 16 <= bytes; done += 16) {
            const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + done));
            _mm_stream_si128(reinterpret_cast<__m128i*>(slot + done), word);
        }
        _mm_sfence();  // before the flag
    }
#endif
    std::memcpy(slot + done, from + done, bytes - done);
}

// Epochs wrap around: later means less than half of the circle ahead.
bool reached(const Mailbox& box, uint32_t epoch) {
    return static_cast<int32_t>(box.epoch.load(std::memory_order_acquire) - epoch) >= 0;
}

#if defined(__linux__)
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

Segment::Segment(int fd, int ranks) : ranks_(ranks) {
    void* map = mmap(nullptr, bytes(ranks), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        throw std::runtime_error(std::string("cannot map shared memory: ") + std::strerror(errno));
    }
    base_ = static_cast<char*>(map);
}

Segment::~Segment() { munmap(base_, bytes(ranks_)); }

int64_t Segment::area_bytes() const { return bytes(ranks_) / kAreas; }

int64_t Segment::bytes(int ranks) {
    const int64_t boxes = ranks * static_cast<int64_t>(sizeof(Mailbox));
    return kAreas * ((boxes + kPage - 1) / kPage * kPage + ranks * kSlots * kSlotBytes);
}

Mailbox& Segment::mailbox(int area, int rank) const {
    return reinterpret_cast<Mailbox*>(base_ + area * area_bytes())[rank];
}

char* Segment::slot(int area, int rank, int which) const {
    // Slots end the area, so they begin on a page.
    return base_ + (area + 1) * area_bytes() - (rank * kSlots + which + 1) * kSlotBytes;
}

ShmGroup::ShmGroup(std::shared_ptr<Segment> segment, int area, std::vector<int> members, int index,
                   Patience patience)
    : segment_(std::move(segment)),
      area_(area),
      members_(std::move(members)),
      index_(index),
      patience_(patience) {
    bool good = 0 <= area && area < kAreas && 0 <= index && index < size() && size() <= kMostRanks;
    for (int rank : members_) good = good && 0 <= rank && rank < segment_->ranks();
    if (!good) throw std::invalid_argument("area, members or index do not fit the segment");
    pidfds_.assign(members_.size(), -1);
    mailbox(index_).pid.store(getpid());
    barrier();
    for (int r = 0; r < size(); ++r) pidfds_[r] = open_process(mailbox(r).pid.load());
}

ShmGroup::~ShmGroup() {
    for (int fd : pidfds_) {
        if (fd >= 0) close(fd);
    }
}

void ShmGroup::publish() {
    Mailbox& box = mailbox(index_);
    box.epoch.store(++epoch_);  // sequentially consistent, against the sleeper's look at the epoch
    if (box.sleepers.load() != 0) futex_wake(box.epoch);
}

void ShmGroup::wait_all(uint32_t epoch) {
    for (int r = 0; r < size(); ++r) {
        if (r != index_) wait(r, epoch);
    }
}

void ShmGroup::wait(int r, uint32_t epoch) {
    const Mailbox& box = mailbox(r);
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

void ShmGroup::sleep_until(int r, uint32_t epoch) {
    Mailbox& box = mailbox(r);
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

bool ShmGroup::dead(int r) {
    if (pidfds_[r] < 0) return false;
    pollfd process{pidfds_[r], POLLIN, 0};
    return poll(&process, 1, 0) > 0;
}

void ShmGroup::fail(int r, const std::string& what) {
    broken_ = true;
    throw std::runtime_error("rank " + std::to_string(members_[r]) + " " + what);
}

// Until everybody has read what the slot held.
void ShmGroup::wait_until_free(int which) {
    // Ranks are a few epochs apart at most, and an epoch of long ago would look like a future one.
    constexpr uint32_t far = 1u << 16;
    if (epoch_ - free_at_[which] < far) wait_all(free_at_[which]);
}

char* ShmGroup::open_slot() {
    if (broken_) throw std::runtime_error("the group is over since a rank failed");
    which_ = (which_ + 1) % kPlainSlots;
    wait_until_free(which_);
    return slot(index_);
}

void ShmGroup::barrier() {
    if (broken_) throw std::runtime_error("the group is over since a rank failed");
    publish();
    wait_all(epoch_);
}

void ShmGroup::all_reduce(char* x, int64_t count, SumType type, int64_t two_shot_bytes) {
    const int64_t item = item_bytes(type), piece = kSlotBytes / item;
    const bool two_shot = count * item > two_shot_bytes;
    for (int64_t done = 0; done < count; done += piece) {
        const int64_t n = std::min(piece, count - done);
        if (two_shot) {
            reduce_two_shot(x + done * item, n, type);
        } else {
            reduce_one_shot(x + done * item, n, type);
        }
    }
}

void ShmGroup::reduce_one_shot(char* x, int64_t count, SumType type) {
    post_bytes(open_slot(), x, count * item_bytes(type));
    publish();
    wait_all(epoch_);
    const void* parts[kMostRanks];
    for (int r = 0; r < size(); ++r) parts[r] = r == index_ ? x : slot(r);
    kernels().rank_sum({parts, size(), x, count, static_cast<int>(type)});
    close_slot();
}

// Every rank sums one stripe. It finds the others' parts of it in their slots, and puts the sum into
// its own slot, at the place that nobody reads before.
void ShmGroup::reduce_two_shot(char* x, int64_t count, SumType type) {
    const int64_t item = item_bytes(type);
    const int64_t step = ((count + size() - 1) / size() + 63) / 64 * 64;
    const auto begin = [&](int r) { return std::min(count, r * step) * item; };
    const auto bytes = [&](int r) { return begin(r + 1) - begin(r); };

    char* mine = open_slot();
    for (int r = 0; r < size(); ++r) {
        if (r != index_) post_bytes(mine + begin(r), x + begin(r), bytes(r));
    }
    publish();
    wait_all(epoch_);
    const void* parts[kMostRanks];
    for (int r = 0; r < size(); ++r) parts[r] = (r == index_ ? x : slot(r)) + begin(index_);
    kernels().rank_sum({parts, size(), x + begin(index_), bytes(index_) / item,
                        static_cast<int>(type)});
    post_bytes(mine + begin(index_), x + begin(index_), bytes(index_));
    publish();
    for (int r = 0; r < size(); ++r) {
        if (r == index_) continue;
        wait(r, epoch_);
        std::memcpy(x + begin(r), slot(r) + begin(r), bytes(r));
    }
    close_slot();
}

void ShmGroup::all_gather(const char* x, char* out, int64_t rows,
                          const std::vector<int64_t>& row_bytes) {
    const int64_t widest = *std::max_element(row_bytes.begin(), row_bytes.end());
    if (widest == 0) return;
    const int64_t width = std::min(widest, kSlotBytes), height = kSlotBytes / width;
    int64_t out_row = 0;
    for (int64_t bytes : row_bytes) out_row += bytes;
    for (int64_t row = 0; row < rows; row += height) {
        const char* from = x + row * row_bytes[index_];
        for (int64_t column = 0; column < widest; column += width) {
            gather_block(from, out + row * out_row, std::min(height, rows - row), row_bytes,
                         column, width);
        }
    }
}

// Copies rows of `width` bytes between arrays of different row lengths.
static void copy_rows(char* to, int64_t to_row, const char* from, int64_t from_row, int64_t rows,
                      int64_t width) {
    if (width <= 0) return;
    if (to_row == width && from_row == width) {
        std::memcpy(to, from, rows * width);
        return;
    }
    for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * to_row, from + i * from_row, width);
}

// The columns [column, column + width) of every rank's part, as far as it has them.
void ShmGroup::gather_block(const char* x, char* out, int64_t rows,
                            const std::vector<int64_t>& row_bytes, int64_t column, int64_t width) {
    const auto part = [&](int r) { return std::min(width, row_bytes[r] - column); };
    int64_t out_row = 0;
    for (int64_t bytes : row_bytes) out_row += bytes;

    if (part(index_) == row_bytes[index_]) {
        post_bytes(open_slot(), x + column, rows * part(index_));
    } else {
        copy_rows(open_slot(), part(index_), x + column, row_bytes[index_], rows, part(index_));
    }
    publish();
    int64_t place = column;
    for (int r = 0; r < size(); place += row_bytes[r], ++r) {
        if (r != index_) wait(r, epoch_);
        copy_rows(out + place, out_row, slot(r), part(r), rows, part(r));
    }
    close_slot();
}

void ShmGroup::all_to_all(const char* x, char* out, int64_t row_bytes) {
    const int64_t piece = kSlotBytes / size();
    for (int64_t column = 0; column < row_bytes; column += piece) {
        const int64_t n = std::min(piece, row_bytes - column);
        char* mine = open_slot();
        for (int r = 0; r < size(); ++r) post_bytes(mine + r * n, x + r * row_bytes + column, n);
        publish();
        for (int r = 0; r < size(); ++r) {
            if (r != index_) wait(r, epoch_);
            std::memcpy(out + r * row_bytes + column, slot(r) + index_ * n, n);
        }
        close_slot();
    }
}

int ShmGroup::post(const char* x, int64_t bytes) {
    if (broken_) throw std::runtime_error("the group is over since a rank failed");
    if (bytes > kSlotBytes) throw std::invalid_argument("a part is longer than a slot");
    if (n_pending_ == kMostPending) {
        throw std::invalid_argument("too many parts are posted and not collected");
    }
    int which = last_pending_;
    do {
        which = which + 1 < kSlots ? which + 1 : kPlainSlots;
        // What was collected since the last publication may still be read, and nobody can say.
    } while (pending_[which] || free_at_[which] == epoch_ + 1);
    wait_until_free(which);
    post_bytes(slot(index_, which), x, bytes);
    publish();
    pending_[which] = true;
    ++n_pending_;
    posted_at_[which] = epoch_;
    return last_pending_ = which;
}

void ShmGroup::begin_collect(int which) {
    if (broken_) throw std::runtime_error("the group is over since a rank failed");
    if (which < kPlainSlots || which >= kSlots || !pending_[which]) {
        throw std::invalid_argument("nothing is posted in this slot");
    }
    wait_all(posted_at_[which]);
}

void ShmGroup::end_collect(int which) {
    pending_[which] = false;
    --n_pending_;
    free_at_[which] = epoch_ + 1;
}

void ShmGroup::collect_sum(int which, char* x, int64_t count, SumType type) {
    begin_collect(which);
    const void* parts[kMostRanks];
    for (int r = 0; r < size(); ++r) parts[r] = r == index_ ? x : slot(r, which);
    kernels().rank_sum({parts, size(), x, count, static_cast<int>(type)});
    end_collect(which);
}

void ShmGroup::collect(int which, char* out, int64_t offset, int64_t bytes) {
    begin_collect(which);
    for (int r = 0; r < size(); ++r) {
        std::memcpy(out + r * bytes, slot(r, which) + offset, bytes);
    }
    end_collect(which);
}

void ShmGroup::broadcast(char* x, int64_t bytes, int root) {
    for (int64_t done = 0; done < bytes; done += kSlotBytes) {
        const int64_t n = std::min(kSlotBytes, bytes - done);
        char* mine = open_slot();
        if (root == index_) post_bytes(mine, x + done, n);
        publish();
        if (root != index_) {
            wait(root, epoch_);
            std::memcpy(x + done, slot(root), n);
        }
        close_slot();
    }
}

std::vector<float> ShmGroup::bare_exchanges(int calls, double gap_ns) {
    std::vector<float> times(calls);
    barrier();
    for (float& time : times) {
        const auto start = Clock::now();
        const auto elapsed = [&] {
            return std::chrono::duration<float, std::nano>(Clock::now() - start).count();
        };
        while (elapsed() < gap_ns) continue;
        mailbox(index_).epoch.store(++epoch_, std::memory_order_release);
        for (int r = 0; r < size(); ++r) {
            for (int64_t i = 1; r != index_ && !reached(mailbox(r), epoch_); ++i) {
                if (i % (1 << 24) == 0 && dead(r)) fail(r, "has died");
            }
        }
        time = elapsed() - static_cast<float>(gap_ns);
    }
    return times;
}

}  // namespace sidewinder
