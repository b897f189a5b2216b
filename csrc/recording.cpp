#include "recording.h"

#include <stdexcept>

namespace sidewinder {

Recording*& Recording::current() {
    thread_local Recording* recording = nullptr;
    return recording;
}

void Recording::begin() {
    if (current() != nullptr) throw std::invalid_argument("this thread is recording already");
    current() = this;
}

void Recording::end() {
    if (current() == this) current() = nullptr;
}

void Recording::spoil(const std::string& why) {
    if (spoiled_by_.empty()) spoiled_by_ = why;
}

void Recording::replay() const {
    if (!spoiled_by_.empty()) {
        throw std::invalid_argument("the recording is incomplete: " + spoiled_by_);
    }
    for (const auto& call : calls_) call();
}

}  // namespace sidewinder
