#include "shm_group.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "kernels.h"

namespace sidewinder {
namespace {

int64_t item_bytes(SumType type) {
    return type == SumType::f64 ? 8 : type == SumType::f32 ? 4 : 2;
}

int64_t sum(const std::vector<int64_t>& values) {
    return std::accumulate(values.begin(), values.end(), int64_t{0});
}

// Copies rows of `width` bytes between arrays of different row lengths.
void copy_rows(char* to, int64_t to_row, const char* from, int64_t from_row, int64_t rows,
               int64_t width) {
    if (width <= 0) return;
    if (to_row == width && from_row == width) {
        copy_bytes(to, from, rows * width);
        return;
    }
    for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * to_row, from + i * from_row, width);
}

}  // namespace

ShmGroup::ShmGroup(std::shared_ptr<Segment> segment, int area, std::vector<int> members, int index,
                   Patience patience)
    : area_(std::move(segment), area, std::move(members), index), epochs_(area_, patience) {}

// Until everybody has read what the slot held.
void ShmGroup::wait_until_free(int which) {
    // Ranks are a few epochs apart at most, and an epoch of long ago would look like a future one.
    constexpr uint32_t far = 1u << 16;
    if (epochs_.own() - free_at_[which] < far) epochs_.wait_all(free_at_[which]);
}

char* ShmGroup::open_slot() {
    epochs_.check();
    which_ = (which_ + 1) % kPlainSlots;
    wait_until_free(which_);
    return slot(index());
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

// x becomes the sum of all ranks' parts: this rank's is x, the others' lie in their slots.
void ShmGroup::sum_parts(int which, int64_t offset, char* x, int64_t count, SumType type) const {
    const void* parts[kMostRanks];
    for (int r = 0; r < size(); ++r) parts[r] = r == index() ? x : slot(r, which) + offset;
    kernels().rank_sum({parts, size(), x, count, static_cast<int>(type)});
}

void ShmGroup::reduce_one_shot(char* x, int64_t count, SumType type) {
    post_bytes(open_slot(), x, count * item_bytes(type));
    epochs_.wait_all(epochs_.publish());
    sum_parts(which_, 0, x, count, type);
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
        if (r != index()) post_bytes(mine + begin(r), x + begin(r), bytes(r));
    }
    epochs_.wait_all(epochs_.publish());
    sum_parts(which_, begin(index()), x + begin(index()), bytes(index()) / item, type);
    post_bytes(mine + begin(index()), x + begin(index()), bytes(index()));
    const uint32_t summed_at = epochs_.publish();
    for (int r = 0; r < size(); ++r) {
        if (r == index()) continue;
        epochs_.wait(r, summed_at);
        copy_bytes(x + begin(r), slot(r) + begin(r), bytes(r));
    }
    close_slot();
}

void ShmGroup::all_gather(const char* x, char* out, int64_t rows,
                          const std::vector<int64_t>& row_bytes) {
    const int64_t widest = *std::max_element(row_bytes.begin(), row_bytes.end());
    if (widest == 0) return;
    const int64_t width = std::min(widest, kSlotBytes), height = kSlotBytes / width;
    const int64_t out_row = sum(row_bytes);
    for (int64_t row = 0; row < rows; row += height) {
        const char* from = x + row * row_bytes[index()];
        for (int64_t column = 0; column < widest; column += width) {
            gather_block(from, out + row * out_row, std::min(height, rows - row), row_bytes,
                         column, width);
        }
    }
}

// The columns [column, column + width) of every rank's part, as far as it has them.
void ShmGroup::gather_block(const char* x, char* out, int64_t rows,
                            const std::vector<int64_t>& row_bytes, int64_t column, int64_t width) {
    const auto part = [&](int r) { return std::min(width, row_bytes[r] - column); };
    const int64_t out_row = sum(row_bytes);

    if (part(index()) == row_bytes[index()]) {
        post_bytes(open_slot(), x + column, rows * part(index()));
    } else {
        copy_rows(open_slot(), part(index()), x + column, row_bytes[index()], rows, part(index()));
    }
    const uint32_t posted_at = epochs_.publish();
    int64_t place = column;
    for (int r = 0; r < size(); place += row_bytes[r], ++r) {
        if (r != index()) epochs_.wait(r, posted_at);
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
        const uint32_t posted_at = epochs_.publish();
        for (int r = 0; r < size(); ++r) {
            if (r != index()) epochs_.wait(r, posted_at);
            std::memcpy(out + r * row_bytes + column, slot(r) + index() * n, n);
        }
        close_slot();
    }
}

int ShmGroup::post(const char* x, int64_t bytes) {
    epochs_.check();
    if (bytes > kSlotBytes) throw std::invalid_argument("a part is longer than a slot");
    if (n_pending_ == kMostPending) {
        throw std::invalid_argument("too many parts are posted and not collected");
    }
    int which = last_pending_;
    do {
        which = which + 1 < kSlots ? which + 1 : kPlainSlots;
        // What was collected since the last publication may still be read, and nobody can say.
    } while (pending_[which] || free_at_[which] == epochs_.own() + 1);
    wait_until_free(which);
    post_bytes(slot(index(), which), x, bytes);
    posted_at_[which] = epochs_.publish();
    pending_[which] = true;
    ++n_pending_;
    return last_pending_ = which;
}

void ShmGroup::begin_collect(int which) {
    epochs_.check();
    if (which < kPlainSlots || which >= kSlots || !pending_[which]) {
        throw std::invalid_argument("nothing is posted in this slot");
    }
    epochs_.wait_all(posted_at_[which]);
}

void ShmGroup::end_collect(int which) {
    pending_[which] = false;
    --n_pending_;
    free_at_[which] = epochs_.own() + 1;
}

void ShmGroup::collect_sum(int which, char* x, int64_t count, SumType type) {
    begin_collect(which);
    sum_parts(which, 0, x, count, type);
    end_collect(which);
}

void ShmGroup::collect(int which, char* out, int64_t offset, int64_t bytes) {
    begin_collect(which);
    for (int r = 0; r < size(); ++r) {
        copy_bytes(out + r * bytes, slot(r, which) + offset, bytes);
    }
    end_collect(which);
}

void ShmGroup::broadcast(char* x, int64_t bytes, int root) {
    for (int64_t done = 0; done < bytes; done += kSlotBytes) {
        const int64_t n = std::min(kSlotBytes, bytes - done);
        char* mine = open_slot();
        if (root == index()) post_bytes(mine, x + done, n);
        const uint32_t posted_at = epochs_.publish();
        if (root != index()) {
            epochs_.wait(root, posted_at);
            std::memcpy(x + done, slot(root), n);
        }
        close_slot();
    }
}

}  // namespace sidewinder
