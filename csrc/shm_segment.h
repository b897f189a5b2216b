// A segment of memory that the processes of one machine share, and what lies where in it.
//
// The segment holds areas, one for each group that is formed on it. In an area every rank has a
// mailbox (an epoch that only it advances) and slots (only it writes them).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace sidewinder {

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

// One group's area. `members` are ranks of the segment; here they go by their place among them,
// and `index` is this rank's.
class Area {
   public:
    Area(std::shared_ptr<Segment> segment, int area, std::vector<int> members, int index);

    int size() const { return static_cast<int>(members_.size()); }
    int index() const { return index_; }
    int rank(int r) const { return members_[r]; }
    Mailbox& mailbox(int r) const { return segment_->mailbox(area_, members_[r]); }
    char* slot(int r, int which) const { return segment_->slot(area_, members_[r], which); }

   private:
    const std::shared_ptr<Segment> segment_;
    const int area_;
    const std::vector<int> members_;
    const int index_;
};

// An empty tensor has no address, and memcpy takes none, not even for no bytes.
inline void copy_bytes(char* to, const char* from, int64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
}

// Copies into a slot, the sooner to be read by others.
void post_bytes(char* slot, const char* from, int64_t bytes);

}  // namespace sidewinder
