// What products read: activations in 8 bits, and who makes them.
//
// A thread that takes tiles through a layer alone makes what it needs in place. Where all threads work on the same tiles,
// each makes a copy for itself when it comes to its first task: that is less work than a meeting, and no cache line goes
// back and forth between two threads that write its halves. Only the wide activations of the feed-forward pair, most of
// all, are made by all for all.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "model.h"
#include "pool.h"

namespace sparselane {

// Tiles [first, first + count) on their way through the steps of a layer, and the thread that takes them there; or all
// threads do, each step being a loop over the pool.
struct Chunk {
    static constexpr int kAll = -1;
    int worker = kAll;
    int first, count;
    bool together() const { return worker == kAll; }
};

// Calls body(task, worker): on the chunk's thread, or as a loop of all threads.
template <class Body>
void run_tasks(Pool::Lease& lease, const Chunk& chunk, std::size_t tasks, const Body& body) {
    if (chunk.together()) return lease.run(tasks, body);
    for (std::size_t task = 0; task < tasks; ++task) body(task, chunk.worker);
}

// The forms in which the products that come next read their input; see wants_quads.
struct Wanted {
    bool levels = false, quads = false;
};
Wanted wanted(const Layer& layer, std::initializer_list<Matrix> readers);

// Bytes of a tile of `features` features interleaved by quads.
inline std::size_t quad_bytes(int features) { return size(ceil_divide(features, kQuad)) * kQuad * kLanes; }

class Inputs {
public:
    Inputs(Model& model, Pool::Lease& lease) : model_(model), work_(model.workspace), lease_(lease) {}

    // Makes room for a call of that many tiles, and for chunks of some: of one thread's, and of all threads'.
    void reserve(int tiles, int chunk_tiles, int together_tiles);

    // The working memory of a chunk: its thread's, or the first one's where all work on it.
    Worker& hands(const Chunk& chunk) { return work_.workers[size(std::max(chunk.worker, 0))]; }

    // What the products of the chunk read from now on. Each gives the chunk's own part of an array of tiles:
    // what was attended to;
    void read_context(const Chunk& chunk, const float* context, Wanted wanted);
    // x, once it is normalized, and that is their residual too;
    void read_normalized(const Chunk& chunk, float* x, const Norm& norm, Wanted wanted);
    // the wide activations, of which the matrix before left the ranges [tile][row block][2][32].
    void read_wide(const Chunk& chunk, const float* wide, const float* ranges, Wanted wanted);

    // What a worker finds when it comes to a task of the chunk: levels, quads, scales and zeros, and the residual.
    struct View {
        const Worker& levels;
        const float* residual;  // nullptr: what is to be overwritten
    };
    View view(const Chunk& chunk, int worker);

    // Normalizes in place what all threads have left to each other.
    void settle(int tiles);

private:
    // Values on their way into levels, and the rows [32] of each tile in which their lowest and highest are found.
    struct Values {
        const float* x;
        int features;
        const float* ranges;
        int bounds;
    };

    void expect(const float* context, bool shared, Wanted wanted);
    void catch_up(const Chunk& chunk, Worker& own) const;
    std::pair<std::size_t, int> place_levels(const Chunk& chunk, int features, int tile) const;
    void quantize(const Chunk& chunk, const Values& v, Wanted wanted, Worker& to) const;
    void quantize(const Chunk& chunk, const Values& v, Wanted wanted, int first, int count, int tile, Worker& to,
                  float* scales, std::int32_t* zeros) const;
    void normalize(const Chunk& chunk, const Norm& norm, float* x, float* ranges) const;
    int hidden() const { return model_.architecture.hidden; }

    Model& model_;
    Workspace& work_;
    Pool::Lease& lease_;

    // What all threads together read: the context, or else x; or levels that are there.
    const float* context_ = nullptr;
    bool shared_ = false;
    Wanted wanted_;
    std::uint64_t version_ = 0;
};

}  // namespace sparselane
