// Where the threads of a pool run: the CPUs are divided among them, so that no two need the same one.
#pragma once

#include <span>
#include <thread>
#include <vector>

namespace sparselane {

// A kernel may wake a thread on the CPU of the thread that wakes it, though another is idle, and leave it there for
// milliseconds; a guest's kernel did so in most calls (docs/engine.md). So the CPUs that the caller may use are divided
// into as many parts as there are threads, neighbours together. Workers keep to theirs; the caller is never bound, and the
// worker in whose part it turns up moves to the one that it left. With as many CPUs as threads a part is one CPU; with
// more, the kernel chooses within it.
class Placement {
public:
    // What the caller does before it gives work to `workers`. A look at which CPU that is, if it is the one of last
    // time. Nothing is done where there are fewer CPUs than threads, or where the system does not allow it.
    void follow_caller(std::span<std::thread> workers);

private:
    void divide(std::span<std::thread> workers);
    bool keep(std::thread& worker, int part) const;
    void forget();

    int callers_cpu_ = -1;
    std::vector<int> part_of_;    // [CPUs]; -1: not ours
    std::vector<int> holder_of_;  // [parts] the worker in it
    int callers_part_ = -1;       // its holder is -1
};

}  // namespace sparselane
