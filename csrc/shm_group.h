// Collectives between processes of one machine over a segment of shared memory.
//
// The segment holds areas, one for each group that is formed on it. In an area every rank has a
// mailbox (an epoch that only it advances) and slots (only it writes them). An operation writes one
// of its own slots, advances its own epoch ("publish"), waits for the others' epochs and reads their
// slots. Two slots alternate, so that no barrier is needed after reading: a slot is written again
// only when everybody has published past the operation that read it. Parts that are posted now and
// collected later have slots of their own.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace sidewinder {

enum class SumType : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };

// Room for one rank's part of a message; longer messages travel in pieces.
constexpr int64_t kSlotBytes = int64_t{1} << 20;
constexpr int kAreas = 8;
// One slot is always free that was not the last one in use: whoever writes a slot waits for ranks
// that read it, and they must be able to come.
constexpr int kPlainSlots = 2, kMostPending = 3, kPendingSlots = kMostPending + 1;
constexpr int kSlots = kPlainSlots + kPendingSlots;

struct alignas(128) Mailbox {
    std::atomic<uint32_t> epoch;     // the futex word
    std::atomic<uint32_t> sleepers;  // waiters that must be woken
    std::atomic<int32_t> pid;
};
static_assert(std::atomic<uint32_t>::is_always_lock_free);

// The mapping; unmapped with its last user.
class Segment {
   public:
    Segment(int fd, int ranks);
    ~Segment();
    Segment(const Segment&) = delete;
    Segment& operator=(const Segment&) = delete;

    static int64_t bytes(int ranks);
    int ranks() const { return ranks_; }
    Mailbox& mailbox(int area, int rank) const;
    char* slot(int area, int rank, int which) const;

   private:
    int64_t area_bytes() const;
    char* base_;
    int ranks_;
};

// How long to wait before the kernel is asked to wake us.
struct Patience {
    int spins;   // looks with a pause between
    int yields;  // looks with sched_yield between
    double timeout_s;
};

// One group: `members` are ranks of the segment, `index` is this rank's place among them.
// Every member makes the same calls in the same order. After a failure the group is over.
class ShmGroup {
   public:
    ShmGroup(std::shared_ptr<Segment> segment, int area, std::vector<int> members, int index,
             Patience patience);
    ~ShmGroup();
    ShmGroup(const ShmGroup&) = delete;
    ShmGroup& operator=(const ShmGroup&) = delete;

    void all_reduce(char* x, int64_t count, SumType type, int64_t two_shot_bytes);
    // Rank r gives [rows, row_bytes[r]]; out is [rows, sum of row_bytes].
    void all_gather(const char* x, char* out, int64_t rows, const std::vector<int64_t>& row_bytes);
    // Row q of rank r's x [ranks, row_bytes] becomes row r of rank q's out.
    void all_to_all(const char* x, char* out, int64_t row_bytes);
    void broadcast(char* x, int64_t bytes, int root);
    void barrier();

    // Lets the others read `bytes` (kSlotBytes at most) of x; returns the slot they are in, to be
    // given to one `collect_`. Everyone posts and collects in the same order, and holds at most
    // kMostPending at once; other operations may come between.
    int post(const char* x, int64_t bytes);
    bool can_post() const { return n_pending_ < kMostPending; }
    // The sum of all ranks' parts; x is what this rank posted, and is overwritten.
    void collect_sum(int slot, char* x, int64_t count, SumType type);
    // Bytes [offset, offset + bytes) of every rank's part: out [ranks, bytes].
    void collect(int slot, char* out, int64_t offset, int64_t bytes);
    // Nanoseconds of each of `calls` epoch exchanges that only spin: what the machine itself allows.
    // Each waits `gap_ns` first, which is not counted, so that a run lasts as long as one of calls
    // that take so long, and meets as many of the machine's interruptions.
    std::vector<float> bare_exchanges(int calls, double gap_ns);

   private:
    int size() const { return static_cast<int>(members_.size()); }
    Mailbox& mailbox(int r) const { return segment_->mailbox(area_, members_[r]); }
    char* slot(int r) const { return segment_->slot(area_, members_[r], which_); }
    char* slot(int r, int which) const { return segment_->slot(area_, members_[r], which); }

    char* open_slot();
    void wait_until_free(int which);
    void close_slot() { free_at_[which_] = epoch_ + 1; }
    void begin_collect(int slot);
    void end_collect(int slot);
    void publish();
    void wait(int r, uint32_t epoch);
    void wait_all(uint32_t epoch);
    void sleep_until(int r, uint32_t epoch);
    bool dead(int r);
    [[noreturn]] void fail(int r, const std::string& what);

    void reduce_one_shot(char* x, int64_t count, SumType type);
    void reduce_two_shot(char* x, int64_t count, SumType type);
    void gather_block(const char* x, char* out, int64_t rows, const std::vector<int64_t>& row_bytes,
                      int64_t column, int64_t width);

    const std::shared_ptr<Segment> segment_;
    const int area_;
    const std::vector<int> members_;
    const int index_;
    const Patience patience_;
    std::vector<int> pidfds_;
    uint32_t epoch_ = 0;
    int which_ = 0;
    uint32_t free_at_[kSlots] = {};
    uint32_t posted_at_[kSlots] = {};
    bool pending_[kSlots] = {};
    int n_pending_ = 0;
    int last_pending_ = kSlots - 1;
    bool broken_ = false;
};

}  // namespace sidewinder
