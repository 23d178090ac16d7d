#include "batch.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace sparselane {
namespace {

[[noreturn]] void refuse(const std::string& what, std::int64_t value, const std::string& limit) {
    throw std::invalid_argument(what + " is " + std::to_string(value) + ", must be " + limit);
}

void check_indices(const char* what, std::span<const std::int32_t> indices, int count) {
    for (std::size_t i = 0; i < indices.size(); ++i)
        if (indices[i] < 0 || indices[i] >= count)
            refuse(std::string(what) + "[" + std::to_string(i) + "]", indices[i], "0 to " + std::to_string(count - 1));
}

}  // namespace

void check_batch(const Model& model, const Batch& batch) {
    const Architecture& a = model.architecture;
    bool loaded = model.embeddings_loaded && model.head_loaded;
    for (const Layer& layer : model.layers) loaded = loaded && layer.loaded;
    if (!loaded)
        throw std::invalid_argument("the model is not loaded: embeddings, every layer and the head come first");
    if (batch.lengths.empty())
        throw std::invalid_argument("the batch is empty: lengths must hold at least one sequence");
    std::int64_t total = 0;
    for (std::size_t i = 0; i < batch.lengths.size(); ++i) {
        if (batch.lengths[i] < 1 || batch.lengths[i] > a.positions)
            refuse("lengths[" + std::to_string(i) + "]", batch.lengths[i],
                   "1 to " + std::to_string(a.positions) + " tokens, the model's positions");
        total += batch.lengths[i];
    }
    constexpr std::int64_t kMostTokens = 1 << 20;  // lanes are counted in int; far beyond any sensible batch
    if (total > kMostTokens) refuse("the sum of lengths", total, "at most " + std::to_string(kMostTokens));
    if (total != static_cast<std::int64_t>(batch.tokens.size()))
        refuse("the sum of lengths", total, std::to_string(batch.tokens.size()) + ", the size of input_ids");
    if (!batch.types.empty() && batch.types.size() != batch.tokens.size())
        refuse("the size of type_ids", static_cast<std::int64_t>(batch.types.size()),
               std::to_string(batch.tokens.size()) + ", the size of input_ids");
    check_indices("input_ids", batch.tokens, a.vocabulary);
    check_indices("type_ids", batch.types, std::max(1, a.types));
}

std::size_t logit_rows(const Model& model, const Batch& batch) {
    return model.architecture.head == Head::tokens ? batch.tokens.size() : batch.lengths.size();
}

}  // namespace sparselane
