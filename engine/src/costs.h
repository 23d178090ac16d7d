// What the formats cost on this CPU at this moment.
#pragma once

#include <array>

#include "kernels.h"
#include "pool.h"

namespace sparselane {

// Kernels::costs, but with the step of `masked` measured beside the step of `survivors`, in some milliseconds, all threads
// of the pool at once. How much a matrix unit gains is no constant of the CPU: where another thread runs on the other half
// of the core, ours or a stranger's, its tile loads take three times as long, and `survivors` is faster. Kernels without
// `masked` keep their costs.
std::array<float, kFormats> measure_costs(const Kernels& kernels, Pool& pool);

}  // namespace sparselane
