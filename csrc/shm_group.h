// Collectives between processes of one machine over a segment of shared memory (shm_segment.h).
//
// An operation writes one of its own slots, advances its own epoch ("publish"), waits for the
// others' epochs (shm_epochs.h) and reads their slots. Two slots alternate, so that no barrier is
// needed after reading: a slot is written again only when everybody has published past the operation
// that read it. Parts that are posted now and collected later have slots of their own.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "shm_epochs.h"
#include "shm_segment.h"

namespace sidewinder {

enum class SumType : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };

// One group: `members` are ranks of the segment, `index` is this rank's place among them.
// Every member makes the same calls in the same order. After a failure the group is over.
class ShmGroup {
   public:
    ShmGroup(std::shared_ptr<Segment> segment, int area, std::vector<int> members, int index,
             Patience patience);
    ShmGroup(const ShmGroup&) = delete;
    ShmGroup& operator=(const ShmGroup&) = delete;

    void all_reduce(char* x, int64_t count, SumType type, int64_t two_shot_bytes);
    // Rank r gives [rows, row_bytes[r]]; out is [rows, sum of row_bytes].
    void all_gather(const char* x, char* out, int64_t rows, const std::vector<int64_t>& row_bytes);
    // Row q of rank r's x [ranks, row_bytes] becomes row r of rank q's out.
    void all_to_all(const char* x, char* out, int64_t row_bytes);
    void broadcast(char* x, int64_t bytes, int root);
    void barrier() { epochs_.barrier(); }

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
    std::vector<float> bare_exchanges(int calls, double gap_ns) {
        return epochs_.bare_exchanges(calls, gap_ns);
    }

   private:
    int size() const { return area_.size(); }
    int index() const { return area_.index(); }
    char* slot(int r) const { return area_.slot(r, which_); }
    char* slot(int r, int which) const { return area_.slot(r, which); }

    char* open_slot();
    void wait_until_free(int which);
    void close_slot() { free_at_[which_] = epochs_.own() + 1; }
    void begin_collect(int slot);
    void end_collect(int slot);

    void sum_parts(int which, int64_t offset, char* x, int64_t count, SumType type) const;
    void reduce_one_shot(char* x, int64_t count, SumType type);
    void reduce_two_shot(char* x, int64_t count, SumType type);
    void gather_block(const char* x, char* out, int64_t rows, const std::vector<int64_t>& row_bytes,
                      int64_t column, int64_t width);

    const Area area_;
    Epochs epochs_;
    int which_ = 0;
    uint32_t free_at_[kSlots] = {};
    uint32_t posted_at_[kSlots] = {};
    bool pending_[kSlots] = {};
    int n_pending_ = 0;
    int last_pending_ = kSlots - 1;
};

}  // namespace sidewinder
