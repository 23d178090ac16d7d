#include "embed.h"

#include <algorithm>

namespace sparselane {
namespace {

float value(const Table& table, int row, int feature, int hidden) {
    return table.scales[size(row)] * static_cast<float>(table.rows[size(row) * size(hidden) + size(feature)]);
}

float value(const ProductTable& table, int row, int feature, int hidden) {
    constexpr std::size_t kPart = ProductTable::kPart;
    const std::size_t part = size(feature) / kPart;
    const std::size_t code = table.codes[size(row) * (size(hidden) / kPart) + part];
    const std::size_t at = (part * ProductTable::kCodeWords + code) * kPart + size(feature) % kPart;
    return table.scales[part] * static_cast<float>(table.code_words[at]);
}

// Adds word, type and position in this order, the order of the torch models.
void embed_token(const Model& model, const Batch& batch, int token, int position, float* x) {
    const Architecture& a = model.architecture;
    const int word = batch.tokens[size(token)], type = batch.types.empty() ? 0 : batch.types[size(token)];
    const auto add = [&](int f, float sum) {
        if (a.types > 0) sum += value(model.type, type, f, a.hidden);
        x[f * kLanes] = sum + value(model.position, position, f, a.hidden);
    };
    if (model.product_word.codes.empty()) {
        const std::int8_t* row = model.workspace.words.data() + size(token) * size(a.hidden);
        for (int f = 0; f < a.hidden; ++f) add(f, model.word.scale(word) * static_cast<float>(row[f]));
    } else
        for (int f = 0; f < a.hidden; ++f) add(f, value(model.product_word, word, f, a.hidden));
}

}  // namespace

void read_words(Model& model, const Batch& batch) {
    if (!model.product_word.codes.empty()) return;
    const std::size_t hidden = size(model.architecture.hidden);
    model.workspace.words.reserve(batch.tokens.size() * hidden);
    for (std::size_t i = 0; i < batch.tokens.size(); ++i)
        model.word.read(batch.tokens[i], model.workspace.words.data() + i * hidden);
}

void embed(Model& model, const Batch& batch, int first, int count) {
    const int hidden = model.architecture.hidden, begin = first * kLanes, end = begin + count * kLanes;
    float* x = model.workspace.x.data();
    std::fill_n(x + tile_floats(hidden) * size(first), tile_floats(hidden) * size(count), 0.0f);
    for (const Sequence& s : model.workspace.sequences)
        for (int t = std::max(0, begin - s.first_lane); t < s.length && s.first_lane + t < end; ++t)
            embed_token(model, batch, s.first_token + t, t, x + lane_offset(s.first_lane + t, hidden));
}

}  // namespace sparselane
