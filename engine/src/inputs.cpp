#include "inputs.h"

namespace sparselane {
namespace {

// Reads every cache line, so that they are in this core's cache.
void fetch(const volatile std::uint8_t* bytes, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 64) static_cast<void>(bytes[i]);
}

}  // namespace

Wanted wanted(const Layer& layer, std::initializer_list<Matrix> readers) {
    Wanted found;
    for (const Matrix reader : readers)
        (wants_quads(layer.matrices[reader].format) ? found.quads : found.levels) = true;
    return found;
}

void Inputs::reserve(int tiles, int chunk_tiles, int together_tiles) {
    const Architecture& a = model_.architecture;
    const std::size_t chunk = size(chunk_tiles), together = size(together_tiles);
    const int features = std::max(a.hidden, a.ffn);
    work_.sums.reserve(tile_floats(a.hidden) * together);
    work_.awaiting.assign(size(tiles), {});
    settle(tiles);
    for (Worker& worker : work_.workers) {
        worker.x.reserve((tile_floats(a.hidden) + 2 * kLanes) * together);
        worker.ranges.reserve(2 * kLanes * size(ceil_divide(a.ffn, kRowBlock)) * chunk);
        worker.scales.reserve(kLanes * chunk);
        worker.zeros.reserve(kLanes * chunk);
        if (model_.any_levels) worker.levels.reserve(tile_floats(features) * chunk);
        if (model_.any_quads) worker.quads.reserve(quad_bytes(features) * chunk);
    }
}

void Inputs::read_context(const Chunk& chunk, const float* context, Wanted wanted) {
    if (chunk.together()) return expect(context, false, wanted);
    quantize(chunk, {context, hidden(), context, hidden()}, wanted, hands(chunk));
}

void Inputs::read_normalized(const Chunk& chunk, float* x, const Norm& norm, Wanted wanted) {
    if (chunk.together()) {
        work_.awaiting[size(chunk.first)] = {x, &norm, chunk.count, ++work_.version};
        return expect(nullptr, false, wanted);
    }
    Worker& own = hands(chunk);
    normalize(chunk, norm, x, own.ranges.data());
    quantize(chunk, {x, hidden(), own.ranges.data(), 2}, wanted, own);
}

// All threads have made the features in blocks of rows: each takes those that it made.
void Inputs::read_wide(const Chunk& chunk, const float* wide, const float* ranges, Wanted wanted) {
    const int features = model_.architecture.ffn, blocks = ceil_divide(features, kRowBlock);
    const int parts = chunk.together() ? model_.pool->threads() : 1;
    Worker& to = hands(chunk);
    run_tasks(lease_, chunk, size(chunk.count * parts), [&](std::size_t task, int) {
        const int part = static_cast<int>(task) / chunk.count, tile = static_cast<int>(task) % chunk.count;
        const int first = blocks * part / parts * kRowBlock;
        const int end = std::min(features, blocks * (part + 1) / parts * kRowBlock);
        if (first >= end) return;
        float scales[kLanes];
        std::int32_t zeros[kLanes];
        quantize(chunk, {wide, features, ranges, 2 * blocks}, wanted, first, end - first, tile, to, scales, zeros);
        if (end != features) return;  // all parts get the same
        std::copy_n(scales, kLanes, to.scales.data() + size(tile) * kLanes);
        std::copy_n(zeros, kLanes, to.zeros.data() + size(tile) * kLanes);
    });
    if (chunk.together()) expect(nullptr, true, wanted);
}

Inputs::View Inputs::view(const Chunk& chunk, int worker) {
    Worker& own = work_.workers[size(worker)];
    if (!chunk.together()) return {own, nullptr};
    catch_up(chunk, own);
    return {shared_ ? work_.workers[0] : own, own.x.data()};
}

void Inputs::settle(int tiles) {
    for (int tile = 0; tile < tiles; ++tile) {
        const Awaiting& at = work_.awaiting[size(tile)];
        if (at.norm != nullptr)
            normalize({.first = tile, .count = at.tiles}, *at.norm, at.x, work_.workers[0].ranges.data());
    }
    for (int tile = 0; tile < tiles; ++tile)
        work_.awaiting[size(tile)] = {work_.x.data() + tile_floats(hidden()) * size(tile), nullptr, 0, ++work_.version};
}

void Inputs::expect(const float* context, bool shared, Wanted wanted) {
    context_ = context;
    shared_ = shared;
    wanted_ = wanted;
    version_ = ++work_.version;
}

// What others have written comes to this core line by line, in order: products would ask for it here and there.
void Inputs::catch_up(const Chunk& chunk, Worker& own) const {
    const Awaiting& at = work_.awaiting[size(chunk.first)];
    const std::size_t floats = tile_floats(hidden()) * size(chunk.count);
    float *x = own.x.data(), *ranges = x + floats;
    if (own.x_version != at.version) {
        own.x_version = at.version;
        std::copy_n(at.x, floats, x);
        if (at.norm != nullptr) normalize(chunk, *at.norm, x, ranges);
    }
    if (own.levels_version == version_) return;
    own.levels_version = version_;
    if (shared_) {
        const std::size_t bytes = tile_floats(model_.architecture.ffn) * size(chunk.count);
        if (wanted_.levels) fetch(work_.workers[0].levels.data(), bytes);
        if (wanted_.quads) fetch(work_.workers[0].quads.data(), bytes);
    } else if (context_ != nullptr)
        quantize(chunk, {context_, hidden(), context_, hidden()}, wanted_, own);
    else if (at.norm != nullptr)
        quantize(chunk, {x, hidden(), ranges, 2}, wanted_, own);
    else
        quantize(chunk, {x, hidden(), x, hidden()}, wanted_, own);
}

// Where a tile's levels lie, and how far apart its features are: the tiles that go through a product together lie side by
// side. Tiles are counted from the chunk's first.
std::pair<std::size_t, int> Inputs::place_levels(const Chunk& chunk, int features, int tile) const {
    const int first = tile / model_.kernels.tiles * model_.kernels.tiles;
    const int together = std::min(model_.kernels.tiles, chunk.count - first);
    return {tile_floats(features) * size(first) + size(tile - first) * kLanes, together * kLanes};
}

void Inputs::quantize(const Chunk& chunk, const Values& v, Wanted wanted, Worker& to) const {
    for (int tile = 0; tile < chunk.count; ++tile)
        quantize(chunk, v, wanted, 0, v.features, tile, to, to.scales.data() + tile * kLanes,
                 to.zeros.data() + tile * kLanes);
}

// Features [first, first + count) of a tile, of which only the last of all may be no whole quad.
void Inputs::quantize(const Chunk& chunk, const Values& v, Wanted wanted, int first, int count, int tile, Worker& to,
                      float* scales, std::int32_t* zeros) const {
    const float* x = v.x + tile_floats(v.features) * size(tile) + tile_floats(first);
    const float* ranges = v.ranges + tile_floats(v.bounds) * size(tile);
    if (wanted.levels) {
        const auto [offset, stride] = place_levels(chunk, v.features, tile);
        model_.kernels.quantize(x, count, kGroups, ranges, v.bounds, to.levels.data() + offset + size(first * stride),
                                stride, scales, zeros);
    }
    if (wanted.quads)
        model_.kernels.quantize_quads(
            x, count, kGroups, ranges, v.bounds,
            to.quads.data() + quad_bytes(v.features) * size(tile) + tile_floats(first), scales, zeros);
}

void Inputs::normalize(const Chunk& chunk, const Norm& norm, float* x, float* ranges) const {
    for (int tile = 0; tile < chunk.count; ++tile)
        model_.kernels.layer_norm(x + tile_floats(hidden()) * size(tile), hidden(), kGroups, norm.weight.data(),
                                  norm.bias.data(), model_.architecture.epsilon, ranges + 2 * kLanes * tile);
}

}  // namespace sparselane
