// A fixed pool of threads that share the tasks of one loop and park while there is nothing to do.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "placement.h"

namespace sparselane {

inline constexpr int kMaxThreads = 256;

class Pool {
public:
    // The process's pool of that many threads (the caller counts as one). Models that ask for the same number share
    // it, and only one of them runs at a time: together they never use more than the quota.
    static std::shared_ptr<Pool> shared(int threads);

    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // The right to use the pool. While one is held, idle workers wait a few microseconds on the CPU before they park,
    // because the next loop of the same request follows at once. Also sets the default floating-point mode (rounding,
    // denormals) so that the bits do not depend on what the calling thread did before.
    class Lease {
    public:
        explicit Lease(Pool& pool);
        ~Lease();
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;

        // Calls body(task, worker) for every task in [0, tasks), worker in [0, threads). The order is free; a body
        // must not depend on it. Rethrows the first exception of a body when all tasks are done.
        template <class Body>
        void run(std::size_t tasks, const Body& body) {
            pool_.run(tasks, &body, [](const void* context, std::size_t task, int worker) {
                (*static_cast<const Body*>(context))(task, worker);
            });
        }

    private:
        Pool& pool_;
        std::lock_guard<std::mutex> lock_;
        std::fenv_t callers_mode_;
    };

private:
    using Call = void (*)(const void* context, std::size_t task, int worker);

    void run(std::size_t tasks, const void* context, Call call);
    void take_tasks(int worker);
    std::uint32_t take_share(int share, int worker);
    std::uint32_t end_of(int share) const;
    void work(int worker);
    void end_workers();
    std::mutex& own_mutex();

    std::vector<std::thread> workers_;
    std::mutex mutex_;     // held by the lease
    Placement placement_;  // of the workers, beside who holds the lease
    pid_t owner_;          // threads do not survive fork()
    std::atomic<bool> leased_{false};
    std::atomic<bool> stop_{false};

    // The loop now running. Written while no task is left to claim, read only by who has claimed one.
    const void* context_ = nullptr;
    Call call_ = nullptr;
    std::uint32_t tasks_ = 0;
    // Every thread has a share of the tasks, the same ones in every loop of that many, so that it finds in its own cache
    // what it left there; who is done with his own helps the others. A share is the loop's number (high half) and how
    // many of its tasks nobody has claimed (low half). Who counts it down owns a task; the number keeps a thread that
    // slept through a loop from claiming with what it knew of the last.
    struct alignas(64) Share {
        std::atomic<std::uint64_t> unclaimed{0};
    };
    std::unique_ptr<Share[]> shares_;                 // [threads]
    std::uint32_t loop_ = 0;                          // the number of the loop now running
    alignas(64) std::atomic<std::uint32_t> done_{0};  // tasks, counted when a thread finds no more to claim
    alignas(64) std::atomic<std::uint32_t> generation_{0};  // counts loops; what idle workers wait on
    std::mutex error_mutex_;
    std::exception_ptr error_;
};

}  // namespace sparselane
