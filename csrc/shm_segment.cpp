#include "shm_segment.h"

#include <errno.h>
#include <sys/mman.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "kernels.h"

namespace sidewinder {
namespace {

constexpr int64_t kPage = 4096;

// A slot's lines are in the readers' caches since they were last read, and taking each back costs a
// round trip between cores; stores past the caches do not wait for that. Between distant cores they
// are up to three times faster, between close ones half as fast, from about this size on.
constexpr int64_t kStreamBytes = 2048;

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

Area::Area(std::shared_ptr<Segment> segment, int area, std::vector<int> members, int index)
    : segment_(std::move(segment)), area_(area), members_(std::move(members)), index_(index) {
    bool good = 0 <= area && area < kAreas && 0 <= index && index < size() && size() <= kMostRanks;
    for (int rank : members_) good = good && 0 <= rank && rank < segment_->ranks();
    if (!good) throw std::invalid_argument("area, members or index do not fit the segment");
}

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
    copy_bytes(slot + done, from + done, bytes - done);
}

}  // namespace sidewinder
