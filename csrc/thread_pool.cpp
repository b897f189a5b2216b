#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "pause.h"

namespace sidewinder {
namespace {

// A worker that waits for work spins first, then yields its core to whoever wants it, and sleeps only
// after a time that bridges the gap between two steps. A sleeper is expensive: the kernel may wake it
// on the very core where its caller spins, which then takes some milliseconds to notice.
constexpr int kSpins = 2000;
constexpr auto kAwake = std::chrono::milliseconds(5);

int usable_cpus() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

struct Job {
    void (*body)(void*, int64_t, int64_t);
    void* context;
    int64_t n;
    int64_t parts;
    std::atomic<int> pending;
};

// Part `i` of a job: ranges differ by one at most.
void run_part(const Job& job, int64_t i) {
    job.body(job.context, job.n * i / job.parts, job.n * (i + 1) / job.parts);
}

class Worker {
   public:
    Worker(int index, int spins) : index_(index), spins_(spins), thread_([this] { loop(); }) {}
    ~Worker() {
        post(nullptr);
        thread_.join();
    }

    void post(Job* job) {
        job_ = job;
        ticket_.fetch_add(1);
        if (asleep_.load()) ticket_.notify_one();
    }

   private:
    void loop() {
        for (uint32_t seen = 0;; ++seen) {
            await(seen);
            Job* job = job_;
            if (job == nullptr) return;
            run_part(*job, index_);
            job->pending.fetch_sub(1, std::memory_order_release);
        }
    }

    void await(uint32_t seen) {
        for (int i = 0; i < spins_; ++i) {
            if (ticket_.load(std::memory_order_acquire) != seen) return;
            pause();
        }
        const auto bedtime = std::chrono::steady_clock::now() + kAwake;
        while (spins_ > 0 && std::chrono::steady_clock::now() < bedtime) {
            if (ticket_.load(std::memory_order_acquire) != seen) return;
            std::this_thread::yield();
        }
        asleep_.store(true);
        ticket_.wait(seen);
        asleep_.store(false);
    }

    const int index_, spins_;
    alignas(64) std::atomic<uint32_t> ticket_{0};
    std::atomic<bool> asleep_{false};
    Job* job_ = nullptr;
    std::thread thread_;
};

class Pool {
   public:
    int size() const { return size_.load(std::memory_order_relaxed); }

    void resize(int n) {
        const std::lock_guard<std::mutex> lock(busy_);
        workers_.clear();
        size_ = n;
    }

    void run(int64_t n, int64_t parts, void (*body)(void*, int64_t, int64_t), void* context) {
        const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
        if (!lock.owns_lock()) return body(context, 0, n);
        start_workers();
        parts = std::min<int64_t>(parts, workers_.size() + 1);
        Job job{body, context, n, parts, {static_cast<int>(parts) - 1}};
        for (int64_t i = 1; i < parts; ++i) workers_[i - 1]->post(&job);
        run_part(job, 0);
        for (int i = 0; job.pending.load(std::memory_order_acquire) != 0; ++i) {
            if (i < kSpins) pause();
            else std::this_thread::yield();
        }
    }

   private:
    void start_workers() {
        const int wanted = size() - 1;
        const int spins = size() <= usable_cpus() ? kSpins : 0;
        while (static_cast<int>(workers_.size()) < wanted) {
            workers_.push_back(std::make_unique<Worker>(workers_.size() + 1, spins));
        }
    }

    std::mutex busy_;
    std::atomic<int> size_{1};
    std::vector<std::unique_ptr<Worker>> workers_;
};

Pool* make_pool();

// Never destroyed: at exit the workers sleep, and the process ends them. A forked child has none of
// its parent's threads, so it starts over with a new pool.
Pool* pool = make_pool();

Pool* make_pool() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] {
        const int size = pool->size();
        pool = new Pool;
        pool->resize(size);
    });
    static_cast<void>(registered);
    return new Pool;
}

class Buffer {
   public:
    ~Buffer() { std::free(data_); }
    void* get(size_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = (bytes + bytes / 4 + 63) / 64 * 64;
            data_ = std::aligned_alloc(64, size_);
            if (data_ == nullptr) {
                size_ = 0;
                throw std::bad_alloc();
            }
        }
        return data_;
    }

   private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

thread_local Buffer buffers[3];

}  // namespace

void set_threads(int n) { pool->resize(std::max(1, n)); }

int threads() { return pool->size(); }

void parallel_ranges(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t),
                     void* context) {
    const int64_t parts = std::min<int64_t>(pool->size(), n / std::max<int64_t>(1, grain));
    if (parts <= 1) return body(context, 0, n);
    pool->run(n, parts, body, context);
}

void* scratch(Scratch purpose, size_t bytes) { return buffers[static_cast<int>(purpose)].get(bytes); }

}  // namespace sidewinder
