#include "placement.h"

#include <cstddef>
#include <utility>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace sparselane {
#ifdef __linux__

void Placement::follow_caller(std::span<std::thread> workers) {
    const int cpu = workers.empty() ? callers_cpu_ : sched_getcpu();
    if (cpu == callers_cpu_) return;
    callers_cpu_ = cpu;
    const int part = cpu >= 0 && cpu < static_cast<int>(part_of_.size()) ? part_of_[static_cast<std::size_t>(cpu)] : -1;
    if (part < 0) return divide(workers);
    if (part == callers_part_) return;
    int& holder = holder_of_[static_cast<std::size_t>(part)];
    if (!keep(workers[static_cast<std::size_t>(holder)], callers_part_)) return forget();
    std::swap(holder, holder_of_[static_cast<std::size_t>(callers_part_)]);
    callers_part_ = part;
}

// Anew: at first, and where the CPUs that this process may use are other ones than before.
void Placement::divide(std::span<std::thread> workers) {
    forget();
    cpu_set_t ours;
    if (sched_getaffinity(0, sizeof ours, &ours) != 0) return;
    const int parts = static_cast<int>(workers.size()) + 1, cpus = CPU_COUNT(&ours);
    if (cpus < parts || callers_cpu_ < 0 || callers_cpu_ >= CPU_SETSIZE || !CPU_ISSET(callers_cpu_, &ours)) return;
    part_of_.assign(CPU_SETSIZE, -1);
    for (int cpu = 0, count = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &ours)) part_of_[static_cast<std::size_t>(cpu)] = count++ * parts / cpus;
    holder_of_.assign(static_cast<std::size_t>(parts), -1);
    callers_part_ = part_of_[static_cast<std::size_t>(callers_cpu_)];
    for (int worker = 0; worker + 1 < parts; ++worker) {
        const int part = worker + (worker >= callers_part_ ? 1 : 0);
        holder_of_[static_cast<std::size_t>(part)] = worker;
        if (!keep(workers[static_cast<std::size_t>(worker)], part)) return forget();
    }
}

bool Placement::keep(std::thread& worker, int part) const {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    for (std::size_t cpu = 0; cpu < part_of_.size(); ++cpu)
        if (part_of_[cpu] == part) CPU_SET(cpu, &cpus);
    return pthread_setaffinity_np(worker.native_handle(), sizeof cpus, &cpus) == 0;
}

void Placement::forget() {
    part_of_.clear();
    holder_of_.clear();
    callers_part_ = -1;
}

#else

void Placement::follow_caller(std::span<std::thread>) {}

#endif
}  // namespace sparselane
