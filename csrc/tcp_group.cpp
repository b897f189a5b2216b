#include "tcp_group.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace sidewinder {
namespace {

// One system call moves at most so much, so that all peers get their turn.
constexpr int64_t kTurnBytes = int64_t{1} << 18;
// So much waits in the kernel's buffers without harm; only for more must somebody read meanwhile.
constexpr int64_t kKernelHolds = int64_t{1} << 16;
// The helper wakes for so much at a time: every wake costs the core that computes.
constexpr int64_t kLowWater = int64_t{1} << 17;
constexpr int kSliceMs = 100;

#if defined(MSG_NOSIGNAL)
constexpr int kSendFlags = MSG_DONTWAIT | MSG_NOSIGNAL;
#else
constexpr int kSendFlags = MSG_DONTWAIT;
#endif

// Tuning only: where the system does not know an option, its own way is good enough.
void set_option(int socket, int level, int name, int value) {
    (void)setsockopt(socket, level, name, &value, sizeof value);
}

void set_up(int socket, double timeout_s) {
    set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
#if defined(TCP_USER_TIMEOUT)
    const double ms = std::min(timeout_s * 1e3, 1e9);
    set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, std::max(1, static_cast<int>(ms)));
#else
    (void)timeout_s;
#endif
#if defined(SO_NOSIGPIPE)
    set_option(socket, SOL_SOCKET, SO_NOSIGPIPE, 1);
#endif
}

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

TcpGroup::TcpGroup(std::vector<int> sockets, int index, double timeout_s, int spin_us)
    : index_(index), timeout_s_(timeout_s), spin_us_(spin_us), moved_at_(Clock::now()) {
    if (pipe(wake_) != 0) throw std::runtime_error("no pipe for the helper thread");
    for (int end : wake_) fcntl(end, F_SETFL, fcntl(end, F_GETFL) | O_NONBLOCK);
    for (int socket : sockets) {
        if (socket >= 0) set_up(socket, timeout_s);
        peers_.push_back({socket, 1, {}, {}});
    }
    helper_ = std::thread([this] { help(); });
}

TcpGroup::~TcpGroup() {
    close();
    for (int end : wake_) ::close(end);
}

void TcpGroup::close() {
    {
        std::lock_guard lock(mutex_);
        if (stop_) return;
        stop_ = true;
        if (failure_.empty()) failure_ = "the group is closed";
        poke();
        changed_.notify_all();
    }
    helper_.join();
    for (Peer& peer : peers_) {
        if (peer.socket >= 0) ::close(peer.socket);
    }
}

void TcpGroup::check() const {
    if (!failure_.empty()) throw std::runtime_error(failure_);
}

void TcpGroup::fail(int r, const std::string& what) {
    if (failure_.empty()) failure_ = "rank " + std::to_string(r) + " " + what;
    changed_.notify_all();
}

uint64_t TcpGroup::post(const std::vector<Message>& out, const std::vector<Message>& in) {
    if (out.size() != peers_.size() || in.size() != peers_.size()) {
        throw std::invalid_argument("an exchange names one message to and from every rank");
    }
    std::lock_guard lock(mutex_);
    check();
    if (open_.empty()) moved_at_ = Clock::now();
    const uint64_t ticket = ++last_ticket_;
    int messages = 0;
    const auto add = [&](std::deque<Part>& parts, const Message& message) {
        if (message.bytes == 0) return;
        parts.push_back({message.data, message.bytes, ticket});
        ++messages;
    };
    for (size_t r = 0; r < peers_.size(); ++r) {
        if (static_cast<int>(r) == index_) continue;
        add(peers_[r].out, out[r]);
        add(peers_[r].in, in[r]);
    }
    if (messages == 0) return ticket;
    open_[ticket] = messages;
    move_bytes();
    if (needs_help()) {
        poke();  // it may sleep for less than what is needed now
        changed_.notify_all();
    }
    return ticket;
}

void TcpGroup::wait(uint64_t ticket) {
    waiters_.fetch_add(1);
    std::unique_lock lock(mutex_);
    wait_locked(lock, ticket);
    waiters_.fetch_sub(1);
    if (needs_help()) changed_.notify_all();
    if (is_open(ticket)) check();
}

// Until the exchange is complete, or the group over.
void TcpGroup::wait_locked(std::unique_lock<std::mutex>& lock, uint64_t ticket) {
    if (is_open(ticket) && failure_.empty()) poke();  // one who moves bytes is enough
    auto start = Clock::now();
    while (is_open(ticket) && failure_.empty()) {
        if (move_bytes()) {
            start = Clock::now();
            continue;
        }
        const auto now = Clock::now();
        if (now - start < std::chrono::microseconds(spin_us_)) continue;
        if (now - std::max(moved_at_, start) > std::chrono::duration<double>(timeout_s_)) {
            return fail(awaited(ticket), "did not come in time");
        }
        sleep(lock, false);
    }
}

// A rank that the exchange waits for.
int TcpGroup::awaited(uint64_t ticket) const {
    const auto waits = [&](const std::deque<Part>& parts) {
        return std::any_of(parts.begin(), parts.end(),
                           [&](const Part& part) { return part.ticket <= ticket; });
    };
    for (size_t r = 0; r < peers_.size(); ++r) {
        if (waits(peers_[r].in) || waits(peers_[r].out)) return static_cast<int>(r);
    }
    return index_;
}

// As many bytes as go without waiting, a turn for every peer; whether any went.
bool TcpGroup::move_bytes() {
    bool moved = false;
    for (int r = 0; r < static_cast<int>(peers_.size()) && failure_.empty(); ++r) {
        moved |= send_some(r);
        moved |= receive_some(r);
    }
    if (moved) moved_at_ = Clock::now();
    return moved;
}

bool TcpGroup::send_some(int r) {
    Peer& peer = peers_[r];
    if (peer.out.empty()) return false;
    const Part& part = peer.out.front();
    const ssize_t n = send(peer.socket, part.at, std::min(part.left, kTurnBytes), kSendFlags);
    if (n <= 0) {
        if (n < 0 && !would_block()) fail(r, std::string("is gone: ") + std::strerror(errno));
        return false;
    }
    bytes_sent_.fetch_add(n);
    took(peer.out, n);
    return true;
}

bool TcpGroup::receive_some(int r) {
    Peer& peer = peers_[r];
    if (peer.in.empty()) return false;
    const Part& part = peer.in.front();
    const ssize_t n = recv(peer.socket, part.at, std::min(part.left, kTurnBytes), MSG_DONTWAIT);
    if (n == 0) {
        fail(r, "has closed its connection");
    } else if (n < 0 && !would_block()) {
        fail(r, std::string("is gone: ") + std::strerror(errno));
    }
    if (n <= 0) return false;
    took(peer.in, n);
    return true;
}

void TcpGroup::took(std::deque<Part>& parts, int64_t bytes) {
    Part& part = parts.front();
    part.at += bytes;
    part.left -= bytes;
    if (part.left > 0) return;
    const auto exchange = open_.find(part.ticket);
    if (--exchange->second == 0) open_.erase(exchange);
    parts.pop_front();
}

// Whether bytes would not move far enough while nobody waits.
bool TcpGroup::needs_help() const {
    if (stop_ || !failure_.empty()) return false;
    int64_t incoming = 0;
    for (const Peer& peer : peers_) {
        if (!peer.out.empty()) return true;
        for (const Part& part : peer.in) incoming += part.left;
    }
    return incoming > kKernelHolds;
}

std::vector<pollfd> TcpGroup::events(bool as_helper) {
    std::vector<pollfd> wanted;
    for (Peer& peer : peers_) {
        short events = 0;
        if (!peer.out.empty()) events |= POLLOUT;
        if (!peer.in.empty()) {
            events |= POLLIN;
            const int64_t low = as_helper ? std::min(peer.in.front().left, kLowWater) : 1;
            if (low != peer.low_water) {
                peer.low_water = static_cast<int>(low);
                set_option(peer.socket, SOL_SOCKET, SO_RCVLOWAT, peer.low_water);
            }
        }
        if (events != 0) wanted.push_back({peer.socket, events, 0});
    }
    if (as_helper) wanted.push_back({wake_[0], POLLIN, 0});
    return wanted;
}

void TcpGroup::sleep(std::unique_lock<std::mutex>& lock, bool as_helper) {
    std::vector<pollfd> wanted = events(as_helper);
    const int slice = static_cast<int>(std::min<double>(kSliceMs, timeout_s_ * 1e3 / 4)) + 1;
    if (as_helper) helper_sleeps_ = true;
    lock.unlock();
    poll(wanted.data(), wanted.size(), slice);
    lock.lock();
    if (!as_helper) return;
    helper_sleeps_ = false;
    char pokes[16];
    while (read(wake_[0], pokes, sizeof pokes) > 0) continue;
}

void TcpGroup::poke() {
    if (!helper_sleeps_) return;
    const char byte = 0;
    (void)!write(wake_[1], &byte, 1);  // a full pipe wakes just as well
}

// The helper thread: moves bytes while nobody waits.
void TcpGroup::help() {
    std::unique_lock lock(mutex_);
    while (!stop_) {
        if (waiters_.load() > 0 || !needs_help()) {
            changed_.wait(lock);
        } else if (move_bytes()) {
            lock.unlock();  // a turn for who waits or posts
            std::this_thread::yield();
            lock.lock();
        } else if (failure_.empty()) {
            sleep(lock, true);
        }
    }
}

}  // namespace sidewinder
