#include "task_head.h"

#include <algorithm>
#include <cmath>

namespace sparselane {
namespace {

void apply_dense(const Model& model, Pool::Lease& lease, const Dense& dense, int rows, const float* x, int tiles,
                 int groups, float* y) {
    const int blocks = ceil_divide(rows, kRowBlock), hidden = model.architecture.hidden;
    lease.run(size(blocks) * size(tiles), [&](std::size_t task, int) {
        const std::size_t tile = task % size(tiles);
        const int row = static_cast<int>(task / size(tiles)) * kRowBlock;
        model.kernels.dense(dense.weight.data() + size(row) * size(hidden), dense.bias.data() + row,
                            std::min(kRowBlock, rows - row), hidden, x + tile_floats(hidden) * tile, groups,
                            y + tile_floats(rows) * tile + tile_floats(row));
    });
}

void label_tokens(Model& model, Pool::Lease& lease, int tiles, float* logits) {
    Workspace& work = model.workspace;
    const int labels = model.architecture.labels;
    apply_dense(model, lease, model.head_output, labels, work.x.data(), tiles, kGroups, work.logits.data());
    for (const Sequence& s : work.sequences)
        for (int t = 0; t < s.length; ++t, logits += labels)
            copy_lane(work.logits.data(), s.first_lane + t, labels, logits);
}

// Every sequence's first token moves to a lane of its own, so the head works on sequences as it does on tokens.
void label_sequences(Model& model, Pool::Lease& lease, float* logits) {
    Workspace& work = model.workspace;
    const Architecture& a = model.architecture;
    const int count = static_cast<int>(work.sequences.size()), tiles = ceil_divide(count, kLanes);
    const int groups = ceil_divide(std::min(count, kLanes), kGroup);
    float *first = work.context.data(), *pooled = work.pooled.data();  // context is never smaller than this
    for (int i = 0; i < count; ++i)
        copy_lane(work.x.data(), work.sequences[size(i)].first_lane, a.hidden, first, i);
    apply_dense(model, lease, model.head_dense, a.hidden, first, tiles, groups, pooled);
    const bool tanh = a.head == Head::sequence_tanh;
    for (int i = 0; i < count; ++i) {  // lanes beyond are never read
        float* lane = pooled + lane_offset(i, a.hidden);
        for (float* p = lane; p != lane + tile_floats(a.hidden); p += kLanes)
            *p = tanh ? std::tanh(*p) : std::max(0.0f, *p);
    }
    apply_dense(model, lease, model.head_output, a.labels, pooled, tiles, groups, work.logits.data());
    for (int i = 0; i < count; ++i, logits += a.labels) copy_lane(work.logits.data(), i, a.labels, logits);
}

}  // namespace

void apply_head(Model& model, Pool::Lease& lease, int tiles, float* logits) {
    if (model.architecture.head == Head::tokens)
        label_tokens(model, lease, tiles, logits);
    else
        label_sequences(model, lease, logits);
}

}  // namespace sparselane
