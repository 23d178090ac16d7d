#include "forward.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace sparselane {
namespace {

// Tiles that go through the feed-forward pair together: their wide activations (1.5 MB in BERT-Base) stay in L2.
constexpr int kFfnTiles = 4;
static_assert(kFfnTiles % kMostTiles == 0);

// Tokens of a large batch that go through the encoder together: 5 x 1.5 MB of float activations in BERT-Base.
constexpr std::size_t kPartTokens = 512;

std::size_t size(int value) { return static_cast<std::size_t>(value); }

int ceil_divide(int value, int by) { return (value + by - 1) / by; }

// One sparse matrix product: y = w x (+ residual), then the activation if asked.
struct Product {
    const PackedMatrix& w;
    float* y;
    const float* residual = nullptr;
    bool activate = false;
};

// The state of one call. Every step is a loop over the pool and begins when the one before has ended.
class Forward {
public:
    Forward(Model& model, const Batch& batch)
        : model_(model),
          a_(model.architecture),
          kernels_(model.kernels),
          work_(model.workspace),
          batch_(batch),
          lease_(*model.pool) {
        plan();
    }

    void run(float* logits, float* hidden) {
        embed();
        if (hidden != nullptr) hidden = copy_hidden(hidden);
        for (const Layer& layer : model_.layers) {
            attend(layer);
            feed_forward(layer);
            if (hidden != nullptr) hidden = copy_hidden(hidden);
        }
        if (a_.head == Head::tokens)
            label_tokens(logits);
        else
            label_sequences(logits);
    }

private:
    // Gives every sequence its lanes, and makes room.
    void plan() {
        const int query_lanes = kernels_.query_groups * kGroup;
        int lane = 0, token = 0, longest = 0;
        work_.sequences.clear();
        work_.query_blocks.clear();
        for (const int length : batch_.lengths) {
            const Sequence sequence{token, lane, length};
            work_.sequences.push_back(sequence);
            for (int query = 0; query < length; query += query_lanes) work_.query_blocks.push_back({sequence, query});
            token += length;
            lane += ceil_divide(length, kGroup) * kGroup;
            longest = std::max(longest, length);
        }
        tiles_ = ceil_divide(lane, kLanes);
        const std::size_t narrow = tile_floats(a_.hidden) * size(tiles_);
        const std::size_t wide = tile_floats(a_.ffn) * size(std::min(tiles_, kFfnTiles));
        for (auto* buffer : {&work_.x, &work_.query, &work_.key, &work_.value, &work_.context}) buffer->reserve(narrow);
        work_.wide.reserve(wide);
        work_.quantized.reserve(std::max(narrow, wide));
        if (model_.any_quads)
            work_.quads.reserve(
                std::max(quad_bytes(a_.hidden) * size(tiles_), quad_bytes(a_.ffn) * size(std::min(tiles_, kFfnTiles))));
        work_.scales.reserve(size(tiles_) * kLanes);
        work_.zeros.reserve(size(tiles_) * kLanes);
        work_.logits.reserve(tile_floats(a_.labels) * size(tiles_));
        for (auto& scratch : work_.scratch) scratch.reserve(attention_scratch(a_.hidden / a_.heads, longest));
    }

    // ---- Steps ------------------------------------------------------------------------------------------------------

    void embed() {
        std::fill_n(work_.x.data(), tile_floats(a_.hidden) * size(tiles_), 0.0f);  // the padding lanes
        lease_.run(work_.sequences.size(), [&](std::size_t i, int) {
            const Sequence& s = work_.sequences[i];
            for (int t = 0; t < s.length; ++t)
                embed_token(s.first_token + t, t, work_.x.data() + lane_offset(s.first_lane + t, a_.hidden));
        });
        normalize(model_.embedding_norm);
    }

    void attend(const Layer& layer) {
        quantize(work_.x.data(), a_.hidden, 0, tiles_);
        multiply({{layer.matrices[kQuery], work_.query.data()},
                  {layer.matrices[kKey], work_.key.data()},
                  {layer.matrices[kValue], work_.value.data()}},
                 0, tiles_);
        lease_.run(work_.query_blocks.size() * size(a_.heads), [&](std::size_t task, int worker) {
            const auto& [sequence, query] = work_.query_blocks[task / size(a_.heads)];
            attend_head(sequence, query, static_cast<int>(task % size(a_.heads)), work_.scratch[size(worker)].data());
        });
        quantize(work_.context.data(), a_.hidden, 0, tiles_);
        multiply({{layer.matrices[kAttentionOutput], work_.x.data(), work_.x.data()}}, 0, tiles_);
        normalize(layer.attention_norm);
    }

    void feed_forward(const Layer& layer) {
        for (int first = 0; first < tiles_; first += kFfnTiles) {
            const int tiles = std::min(kFfnTiles, tiles_ - first);
            float* x = work_.x.data() + tile_floats(a_.hidden) * size(first);
            quantize(x, a_.hidden, first, tiles);
            multiply({{layer.matrices[kFfnIn], work_.wide.data(), nullptr, true}}, first, tiles);
            quantize(work_.wide.data(), a_.ffn, first, tiles);
            multiply({{layer.matrices[kFfnOut], x, x}}, first, tiles);
        }
        normalize(layer.output_norm);
    }

    void label_tokens(float* logits) {
        apply_dense(model_.head_output, a_.labels, work_.x.data(), tiles_, kGroups, work_.logits.data());
        for (const Sequence& s : work_.sequences)
            for (int t = 0; t < s.length; ++t, logits += a_.labels)
                copy_lane(work_.logits.data(), s.first_lane + t, a_.labels, logits);
    }

    // Every sequence's first token moves to a lane of its own, so the head works on sequences as it does on tokens.
    void label_sequences(float* logits) {
        const int count = static_cast<int>(work_.sequences.size()), tiles = ceil_divide(count, kLanes);
        const int groups = ceil_divide(std::min(count, kLanes), kGroup);
        float *first = work_.query.data(), *pooled = work_.key.data();  // free by now, and never smaller than this
        for (int i = 0; i < count; ++i) {
            const float* from = work_.x.data() + lane_offset(work_.sequences[size(i)].first_lane, a_.hidden);
            float* to = first + lane_offset(i, a_.hidden);
            for (int f = 0; f < a_.hidden; ++f) to[f * kLanes] = from[f * kLanes];
        }
        apply_dense(model_.head_dense, a_.hidden, first, tiles, groups, pooled);
        const bool tanh = a_.head == Head::sequence_tanh;
        for (float* row = pooled; row != pooled + tile_floats(a_.hidden) * size(tiles); row += kLanes)
            for (float* p = row; p != row + groups * kGroup; ++p) *p = tanh ? std::tanh(*p) : std::max(0.0f, *p);
        apply_dense(model_.head_output, a_.labels, pooled, tiles, groups, work_.logits.data());
        for (int i = 0; i < count; ++i, logits += a_.labels) copy_lane(work_.logits.data(), i, a_.labels, logits);
    }

    float* copy_hidden(float* hidden) {
        for (const Sequence& s : work_.sequences)
            for (int t = 0; t < s.length; ++t, hidden += a_.hidden)
                copy_lane(work_.x.data(), s.first_lane + t, a_.hidden, hidden);
        return hidden;
    }

    // ---- Parts of steps ---------------------------------------------------------------------------------------------

    static std::size_t tile_floats(int features) { return size(features) * kLanes; }
    static std::size_t quad_bytes(int features) { return size(ceil_divide(features, kQuad)) * kQuad * kLanes; }

    static void copy_lane(const float* tiles, int lane, int features, float* to) {
        const float* from = tiles + lane_offset(lane, features);
        for (int f = 0; f < features; ++f) to[f] = from[f * kLanes];
    }

    // Adds word, type and position in this order, the order of the torch models.
    void embed_token(int token, int position, float* x) const {
        const auto value = [&](const Table& table, int row, int f) {
            return table.scales[size(row)] * static_cast<float>(table.rows[size(row) * size(a_.hidden) + size(f)]);
        };
        const int word = batch_.tokens[size(token)];
        const int type = batch_.types.empty() ? 0 : batch_.types[size(token)];
        for (int f = 0; f < a_.hidden; ++f) {
            float sum = value(model_.word, word, f);
            if (a_.types > 0) sum += value(model_.type, type, f);
            x[f * kLanes] = sum + value(model_.position, position, f);
        }
    }

    void attend_head(const Sequence& s, int query, int head, float* scratch) const {
        const int head_size = a_.hidden / a_.heads;
        const std::size_t feature = size(head) * tile_floats(head_size);
        const AttentionBlock block{.query = work_.query.data() + feature,
                                   .key = work_.key.data() + feature,
                                   .value = work_.value.data() + feature,
                                   .context = work_.context.data() + feature,
                                   .tile_stride = tile_floats(a_.hidden),
                                   .head_size = head_size,
                                   .first_lane = s.first_lane,
                                   .length = s.length,
                                   .first_query = s.first_lane + query,
                                   .groups = std::min(kernels_.query_groups, ceil_divide(s.length - query, kGroup))};
        kernels_.attention(block, scratch);
    }

    // Calls body(tile, lane, groups) until all lanes of `tiles` tiles are done; one tile is shared among the threads.
    template <class Body>
    void for_lanes(int tiles, const Body& body) {
        const int groups = tiles < model_.pool->threads() ? 1 : kGroups;
        const int parts = kGroups / groups;
        lease_.run(size(tiles * parts), [&](std::size_t task, int) {
            const int part = static_cast<int>(task);
            body(part / parts, part % parts * groups * kGroup, groups);
        });
    }

    // Where a tile's levels lie in work_.quantized, and how far apart its features are: the tiles that go through a
    // product together lie side by side.
    std::pair<std::size_t, int> place_levels(int features, int tile, int tiles) const {
        const int first = tile / kernels_.tiles * kernels_.tiles, together = std::min(kernels_.tiles, tiles - first);
        return {tile_floats(features) * size(first) + size(tile - first) * kLanes, together * kLanes};
    }

    // x of `tiles` tiles into work_.quantized, from its beginning; scales and zeros of tile `first + i` at its own
    // place.
    void quantize(const float* x, int features, int first, int tiles) {
        for_lanes(tiles, [&](int tile, int lane, int groups) {
            const std::size_t at = tile_floats(features) * size(tile) + size(lane);
            const std::size_t token = size(first + tile) * kLanes + size(lane);
            const auto [offset, stride] = place_levels(features, tile, tiles);
            kernels_.quantize(x + at, features, groups, work_.quantized.data() + offset + size(lane), stride,
                              work_.scales.data() + token, work_.zeros.data() + token);
        });
    }

    // Products of matrices of one shape with what quantize() left. All tiles meet a block of rows before the next
    // block.
    void multiply(std::initializer_list<Product> products, int first, int tiles) {
        const PackedMatrix& shape = products.begin()->w;
        if (std::any_of(products.begin(), products.end(), [](const Product& p) { return wants_quads(p.w.format); }))
            interleave(shape.columns, tiles);
        const int blocks = ceil_divide(shape.rows, kRowBlock), spans = ceil_divide(tiles, kernels_.tiles);
        lease_.run(products.size() * size(blocks) * size(spans), [&](std::size_t task, int) {
            const std::size_t block = task / size(spans);
            const Product& product = products.begin()[block / size(blocks)];
            const int tile = static_cast<int>(task % size(spans)) * kernels_.tiles;
            multiply_block(product, static_cast<int>(block % size(blocks)) * kRowBlock, first, tile,
                           std::min(kernels_.tiles, tiles - tile));
        });
    }

    void interleave(int features, int tiles) {
        lease_.run(size(tiles), [&](std::size_t tile, int) {
            const auto [offset, stride] = place_levels(features, static_cast<int>(tile), tiles);
            kernels_.interleave(work_.quantized.data() + offset, stride, features,
                                work_.quads.data() + quad_bytes(features) * tile);
        });
    }

    void multiply_block(const Product& p, int row, int first, int tile, int tiles) const {
        alignas(64) std::int32_t sums[kMostTiles * kRowBlock * kLanes];
        const bool quads = wants_quads(p.w.format);
        const std::size_t stride = quads ? quad_bytes(p.w.columns) : tile_floats(p.w.columns);
        const std::uint8_t* x = (quads ? work_.quads.data() : work_.quantized.data()) + stride * size(tile);
        const int count = std::min(kRowBlock, p.w.rows - row);
        kernels_.products[static_cast<std::size_t>(p.w.format)](p.w, row, count, {x, stride, tiles}, sums);
        for (int i = 0; i < tiles; ++i)
            finish_block(p, row, count, sums + i * kRowBlock * kLanes, size(tile + i), size(first + tile + i) * kLanes);
    }

    // From the sums of a tile to its floats.
    void finish_block(const Product& p, int row, int count, const std::int32_t* sums, std::size_t tile,
                      std::size_t token) const {
        const std::size_t at = tile_floats(p.w.rows) * tile + tile_floats(row);
        const bool gelu = p.activate && a_.activation == Activation::gelu;
        (gelu ? kernels_.dequantize_gelu : kernels_.dequantize)(
            p.w, row, count, sums, work_.scales.data() + token, work_.zeros.data() + token,
            p.residual == nullptr ? nullptr : p.residual + at, p.y + at);
        if (!p.activate || gelu) return;
        for (float* y = p.y + at; y != p.y + at + tile_floats(count); ++y) *y = std::max(0.0f, *y);
    }

    void normalize(const Norm& norm) {
        for_lanes(tiles_, [&](int tile, int lane, int groups) {
            kernels_.layer_norm(work_.x.data() + tile_floats(a_.hidden) * size(tile) + lane, a_.hidden, groups,
                                norm.weight.data(), norm.bias.data(), a_.epsilon);
        });
    }

    void apply_dense(const Dense& dense, int rows, const float* x, int tiles, int groups, float* y) {
        const int blocks = ceil_divide(rows, kRowBlock);
        lease_.run(size(blocks) * size(tiles), [&](std::size_t task, int) {
            const std::size_t tile = task % size(tiles);
            const int row = static_cast<int>(task / size(tiles)) * kRowBlock;
            kernels_.dense(dense.weight.data() + size(row) * size(a_.hidden), dense.bias.data() + row,
                           std::min(kRowBlock, rows - row), a_.hidden, x + tile_floats(a_.hidden) * tile, groups,
                           y + tile_floats(rows) * tile + tile_floats(row));
        });
    }

    Model& model_;
    const Architecture& a_;
    const Kernels& kernels_;
    Workspace& work_;
    const Batch& batch_;
    Pool::Lease lease_;
    int tiles_ = 0;
};

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

void forward(Model& model, const Batch& batch, float* logits, float* hidden) {
    if (hidden != nullptr) return Forward(model, batch).run(logits, hidden);
    // A large batch goes through the whole encoder in parts: its activations stay in the caches, and the weights, which
    // come once for every part, are little beside them. No lane depends on another, so neither do the bits.
    for (std::size_t first = 0, token = 0; first < batch.lengths.size();) {
        std::size_t count = 0, tokens = 0;
        do {
            tokens += size(batch.lengths[first + count]);
            ++count;
        } while (first + count < batch.lengths.size() && tokens + size(batch.lengths[first + count]) <= kPartTokens);
        const Batch part{batch.tokens.subspan(token, tokens), batch.lengths.subspan(first, count),
                         batch.types.empty() ? batch.types : batch.types.subspan(token, tokens)};
        Forward(model, part).run(logits, nullptr);
        logits += logit_rows(model, part) * size(model.architecture.labels);
        first += count;
        token += tokens;
    }
}

}  // namespace sparselane
