// Calls of native code that are kept and made again without Python: those of a step whose calls are
// the same every time, on the same memory.
//
// While a thread records, `perform` keeps what it calls. Native code that cannot be repeated calls
// `cannot_record` instead, which spoils the recording: it is complete or it is not used.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace sidewinder {

class Recording {
   public:
    ~Recording() { end(); }

    // From here to `end` this thread's calls are kept. One recording at a time.
    void begin();
    void end();
    void keep(std::function<void()> call) { calls_.push_back(std::move(call)); }
    void spoil(const std::string& why);
    // Make all calls again, in order. Throws what they throw.
    void replay() const;

    size_t size() const { return calls_.size(); }
    const std::string& spoiled_by() const { return spoiled_by_; }

    // What this thread is recording, if anything.
    static Recording*& current();

   private:
    std::vector<std::function<void()>> calls_;
    std::string spoiled_by_;
};

// Makes the call, and keeps it if this thread records. It owns what it needs but tensors' memory.
template <class Call>
inline void perform(const Call& call) {
    if (Recording::current() != nullptr) Recording::current()->keep(call);
    call();
}

inline void cannot_record(const char* what) {
    if (Recording::current() != nullptr) Recording::current()->spoil(what);
}

}  // namespace sidewinder
