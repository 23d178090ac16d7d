// One pass through the encoder and the task head.
#pragma once

#include <cstdint>
#include <span>

#include "model.h"

namespace sparselane {

// A ragged batch: sequences one after another, no padding.
struct Batch {
    std::span<const std::int32_t> tokens;   // [total]
    std::span<const std::int32_t> lengths;  // [sequences], their sum is total
    std::span<const std::int32_t> types;    // [total], or empty: all 0
};

// Throws std::invalid_argument that names the value and its limit.
void check_batch(const Model& model, const Batch& batch);

// How many rows of logits the batch gives: its tokens, or its sequences.
std::size_t logit_rows(const Model& model, const Batch& batch);

// Writes logits [logit_rows][labels]. If `hidden` is not null also [layers + 1][total][hidden]: the embeddings' output,
// then each layer's. The batch must have passed check_batch. Calls on models that share a pool wait for each other.
void forward(Model& model, const Batch& batch, float* logits, float* hidden);

}  // namespace sparselane
