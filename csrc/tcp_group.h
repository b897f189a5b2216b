// Messages between processes over connected TCP sockets, one to every other rank.
//
// A message exchange ("post") names what goes to each rank and what comes from it. Bytes move
// without waiting: when it is posted, while anyone waits for any exchange, and in between by a
// helper thread, which sleeps in the kernel until enough of them can move. Exchanges use the sockets
// in the order of posting, which must be the same on all ranks; so messages need no headers.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

struct pollfd;

namespace sidewinder {

// Bytes of one exchange with one rank; none if `bytes` is 0.
struct Message {
    char* data;
    int64_t bytes;
};

class TcpGroup {
   public:
    // sockets[r] is connected to rank r, and closed with the group; -1 for this rank, `index`.
    // A waiting rank looks for `spin_us` microseconds before it sleeps.
    TcpGroup(std::vector<int> sockets, int index, double timeout_s, int spin_us);
    ~TcpGroup();
    TcpGroup(const TcpGroup&) = delete;
    TcpGroup& operator=(const TcpGroup&) = delete;

    // Begins an exchange: out[r] goes to rank r, in[r] comes from it. The memory belongs to the
    // exchange until `wait(ticket)` returns, or the group is closed.
    uint64_t post(const std::vector<Message>& out, const std::vector<Message>& in);
    // Returns when the exchange is complete. Throws if a rank is gone, or no byte of any exchange
    // has moved for `timeout_s`; then the group is over.
    void wait(uint64_t ticket);
    // Closes the sockets; nothing that was posted is touched afterwards.
    void close();
    int64_t bytes_sent() const { return bytes_sent_.load(); }

   private:
    using Clock = std::chrono::steady_clock;
    struct Part {
        char* at;
        int64_t left;
        uint64_t ticket;
    };
    struct Peer {
        int socket;
        int low_water = 1;  // bytes that must have come before the helper is woken
        std::deque<Part> out, in;
    };

    bool move_bytes();
    bool send_some(int r);
    bool receive_some(int r);
    void took(std::deque<Part>& parts, int64_t bytes);
    void fail(int r, const std::string& what);
    void check() const;
    bool is_open(uint64_t ticket) const { return open_.count(ticket) != 0; }
    int awaited(uint64_t ticket) const;
    void wait_locked(std::unique_lock<std::mutex>& lock, uint64_t ticket);
    void sleep(std::unique_lock<std::mutex>& lock, bool as_helper);
    std::vector<pollfd> events(bool as_helper);
    bool needs_help() const;
    void poke();
    void help();

    std::vector<Peer> peers_;
    const int index_;
    const double timeout_s_;
    const int spin_us_;
    int wake_[2];  // a pipe: takes the helper out of its sleep

    std::mutex mutex_;  // of everything below, the sockets included
    std::condition_variable changed_;
    std::map<uint64_t, int> open_;  // exchanges, and how many of their messages are not complete
    uint64_t last_ticket_ = 0;
    Clock::time_point moved_at_;
    std::string failure_;
    bool helper_sleeps_ = false;
    bool stop_ = false;
    std::atomic<int> waiters_{0};
    std::atomic<int64_t> bytes_sent_{0};
    std::thread helper_;
};

}  // namespace sidewinder
