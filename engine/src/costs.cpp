#include "costs.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "layout.h"

namespace sparselane {
namespace {

// Large enough that levels come from L2, as in the feed-forward pair of BERT-Base, and weights are not all in L1.
constexpr int kRows = 256, kColumns = 3072, kTiles = 4;
constexpr int kTurns = 12;  // 0.3 to 0.8 ms each, on one thread

std::uint32_t scramble(std::uint32_t x) { return (x * 2654435761u) >> 13; }

// A tenth of the weights, anywhere.
Survivors sample() {
    Survivors sample{kRows, kColumns, {0}, {}, {}};
    for (int row = 0; row < kRows; ++row) {
        for (int column = 0; column < kColumns; ++column) {
            const std::uint32_t number = scramble(static_cast<std::uint32_t>(row * kColumns + column));
            if (number % 10 != 0) continue;
            sample.column.push_back(static_cast<std::uint16_t>(column));
            sample.weight.push_back(static_cast<std::int8_t>(number % 64 + 1));
        }
        sample.row_starts.push_back(static_cast<std::uint32_t>(sample.weight.size()));
    }
    return sample;
}

double seconds_of(const Kernels& kernels, const PackedMatrix& w, const std::uint8_t* levels) {
    alignas(64) std::int32_t sums[kMostTiles * kRowBlock * kLanes];
    constexpr std::size_t kStride = std::size_t{kColumns} * kLanes;
    const int most = wants_quads(w.format) ? kernels.quad_tiles : kernels.tiles;
    const auto began = std::chrono::steady_clock::now();
    for (int tile = 0; tile < kTiles; tile += most)
        for (int row = 0; row < kRows; row += kRowBlock)
            kernels.products[static_cast<std::size_t>(w.format)](
                w, row, kRowBlock,
                {levels + kStride * static_cast<std::size_t>(tile), kStride, std::min(most, kTiles - tile)}, sums);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

}  // namespace

std::array<float, kFormats> measure_costs(const Kernels& kernels, Pool& pool) {
    constexpr auto kGathered = static_cast<std::size_t>(Format::survivors);
    constexpr auto kMasked = static_cast<std::size_t>(Format::masked);
    std::array<float, kFormats> costs = kernels.costs;
    if (costs[kMasked] == kNever) return costs;
    const Survivors survivors = sample();
    const PackedMatrix gathered = arrange(survivors, Format::survivors), masked = arrange(survivors, Format::masked);
    const auto threads = static_cast<std::size_t>(pool.threads());
    std::vector<double> ratios(threads * kTurns);
    {
        Pool::Lease lease(pool);
        lease.run(threads, [&](std::size_t task, int) {
            Buffer<std::uint8_t> levels;  // which ones they are makes no difference
            levels.reserve(std::size_t{kTiles} * kColumns * kLanes);
            for (std::size_t turn = 0; turn < kTurns; ++turn) {
                const double one = seconds_of(kernels, masked, levels.data());
                ratios[task * kTurns + turn] = one / seconds_of(kernels, gathered, levels.data());
            }
        });
    }
    const auto middle = ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size() / 2);
    std::nth_element(ratios.begin(), middle, ratios.end());
    const auto steps = count_steps(survivors);
    costs[kMasked] = costs[kGathered] * static_cast<float>(*middle * static_cast<double>(steps[kGathered]) /
                                                           static_cast<double>(steps[kMasked]));
    return costs;
}

}  // namespace sparselane
