#include "pool.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace sparselane {
namespace {

// Longer than a task that another thread may still be in, shorter than anyone notices. To park and be woken costs tens
// of microseconds; a request of BERT-Base has more than a hundred loops. Counting pauses instead would not do: one
// takes 10 ns on some CPUs, 60 on others.
constexpr auto kSpin = std::chrono::microseconds(100);

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

// Waits on the CPU until done() or until the time is over.
template <class Done>
void spin(const Done& done) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; ++i) {
            if (done()) return;
            relax();
        }
    } while (std::chrono::steady_clock::now() < end);
}

}  // namespace

std::shared_ptr<Pool> Pool::shared(int threads) {
    struct Pools {
        const pid_t owner = getpid();
        std::mutex mutex;
        std::map<int, std::weak_ptr<Pool>> pools;
    };
    // A child of fork() begins with a list of its own: a thread that held the old one's mutex is not there to give it back.
    static std::atomic<Pools*> known{nullptr};
    Pools* mine = known.load();
    if (!mine || mine->owner != getpid()) {
        auto made = std::make_unique<Pools>();
        if (known.compare_exchange_strong(mine, made.get())) mine = made.release();
    }
    const std::lock_guard lock(mine->mutex);
    std::shared_ptr<Pool> pool = mine->pools[threads].lock();
    if (!pool) mine->pools[threads] = pool = std::make_shared<Pool>(threads);
    return pool;
}

Pool::Pool(int threads) : owner_(getpid()) {
    if (threads < 1 || threads > kMaxThreads)
        throw std::invalid_argument("threads is " + std::to_string(threads) + ", must be 1 to " +
                                    std::to_string(kMaxThreads));
    shares_ = std::make_unique<Share[]>(static_cast<std::size_t>(threads));
    workers_.reserve(static_cast<std::size_t>(threads - 1));
    for (int worker = 1; worker < threads; ++worker) {
        try {
            workers_.emplace_back([this, worker] { work(worker); });
        } catch (const std::exception& error) {  // a limit on threads, or on memory
            end_workers();
            throw std::runtime_error("cannot start thread " + std::to_string(worker + 1) + " of " +
                                     std::to_string(threads) + ": " + error.what() + "; ask for fewer threads");
        }
#ifdef __linux__
        pthread_setname_np(workers_.back().native_handle(), ("sparselane/" + std::to_string(worker)).c_str());
#endif
    }
}

Pool::~Pool() {
    if (owner_ != getpid()) {
        // After fork() there is no thread to join. Nor to detach: a new one may have got the handle of an old one. So the
        // handles stay for ever, for a thread's destructor ends the process.
        new std::vector<std::thread>(std::move(workers_));
        return;
    }
    end_workers();
}

void Pool::end_workers() {
    stop_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& worker : workers_) worker.join();
}

// Before it is locked: a thread that held it when the process forked does not give it back here.
std::mutex& Pool::own_mutex() {
    if (owner_ != getpid())
        throw std::runtime_error("the model was loaded before fork(): load it again in this process");
    return mutex_;
}

Pool::Lease::Lease(Pool& pool) : pool_(pool), lock_(pool.own_mutex()) {
    std::fegetenv(&callers_mode_);
    std::fesetenv(FE_DFL_ENV);
    pool_.placement_.follow_caller(pool_.workers_);
    pool_.leased_.store(true, std::memory_order_relaxed);
}

Pool::Lease::~Lease() {
    pool_.leased_.store(false, std::memory_order_relaxed);
    std::fesetenv(&callers_mode_);
}

// The caller waits for tasks, never for threads: a worker that the kernel did not run in time (a busy machine) has
// claimed nothing and delays nobody.
void Pool::run(std::size_t tasks, const void* context, Call call) {
    if (tasks == 0) return;
    if (tasks > UINT32_MAX) throw std::length_error("too many tasks in one loop");
    context_ = context;
    call_ = call;
    tasks_ = static_cast<std::uint32_t>(tasks);
    done_.store(0, std::memory_order_relaxed);
    const std::uint64_t loop = std::uint64_t{++loop_} << 32;
    for (std::uint32_t share = 0, first = 0; share < static_cast<std::uint32_t>(threads()); ++share) {
        const std::uint32_t end = end_of(static_cast<int>(share));
        shares_[share].unclaimed.store(loop | (end - first), std::memory_order_release);
        first = end;
    }
    if (tasks > 1) {
        generation_.fetch_add(1, std::memory_order_release);
        generation_.notify_all();
    }
    take_tasks(0);
    spin([this] { return done_.load(std::memory_order_acquire) == tasks_; });
    for (std::uint32_t done; (done = done_.load(std::memory_order_acquire)) != tasks_;)
        done_.wait(done, std::memory_order_acquire);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

// The first task behind a share. Shares are as equal as can be.
std::uint32_t Pool::end_of(int share) const {
    return static_cast<std::uint32_t>(std::uint64_t{tasks_} * static_cast<std::uint64_t>(share + 1) /
                                      static_cast<std::uint64_t>(threads()));
}

// First the worker's own share, then what is left of the others', from its neighbour on.
void Pool::take_tasks(int worker) {
    std::uint32_t done = 0;
    for (int i = 0; i < threads(); ++i) done += take_share((worker + i) % threads(), worker);
    if (done == 0) return;
    const std::uint32_t tasks = tasks_;  // before done_ says so: then the next loop may begin
    if (done_.fetch_add(done, std::memory_order_acq_rel) + done == tasks) done_.notify_one();
}

// Returns how many tasks it did.
std::uint32_t Pool::take_share(int share, int worker) {
    std::atomic<std::uint64_t>& unclaimed = shares_[static_cast<std::size_t>(share)].unclaimed;
    std::uint32_t done = 0;
    std::uint64_t left = unclaimed.load(std::memory_order_acquire);
    while ((left & UINT32_MAX) != 0) {
        if (!unclaimed.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel, std::memory_order_acquire))
            continue;
        try {
            call_(context_, end_of(share) - static_cast<std::uint32_t>(left), worker);
        } catch (...) {
            const std::lock_guard lock(error_mutex_);
            if (!error_) error_ = std::current_exception();
        }
        ++done;
        left = unclaimed.load(std::memory_order_acquire);
    }
    return done;
}

void Pool::work(int worker) {
    std::fesetenv(FE_DFL_ENV);  // a new thread inherits its creator's mode
    std::uint32_t seen = 0;
    for (;;) {
        spin([&] {
            return generation_.load(std::memory_order_acquire) != seen || !leased_.load(std::memory_order_relaxed);
        });
        generation_.wait(seen, std::memory_order_acquire);
        seen = generation_.load(std::memory_order_acquire);
        if (stop_.load()) return;
        take_tasks(worker);
    }
}

}  // namespace sparselane
