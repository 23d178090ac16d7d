// What one call is given, and whether it may be.
#pragma once

#include <cstddef>
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

}  // namespace sparselane
