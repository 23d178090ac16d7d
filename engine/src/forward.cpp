#include "forward.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace sparselane {
namespace {

// Tiles that go through the steps of a layer together: each weight is used for all of them, and the wide activations
// (1.5 MB in BERT-Base) are not much more than an L2.
constexpr int kChunkTiles = 4;
static_assert(kChunkTiles % kMostTiles == 0);

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
    float* ranges = nullptr;  // [tile][row block][2][32], if asked
};

// Values on their way into levels, and the rows [32] of each tile in which their lowest and highest are found.
struct Values {
    const float* x;
    int features;
    const float* ranges;
    int bounds;
};

// Who does a step: one thread alone, or all of them together, each step being a loop over the pool.
struct Team {
    static constexpr int kAll = -1;
    int worker = kAll;
    int buffers() const { return std::max(worker, 0); }  // whose working memory
};

// Tiles [first, first + count) on their way through the steps of a layer, and who takes them there.
struct Chunk {
    Team team;
    int first, count;
};

// The state of one call. Attention needs all tokens of a sequence; every other step needs its own tile alone, so each
// thread takes its tiles from one attention to the next without waiting for the others (for_chunks).
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
        const std::size_t layers = model_.layers.size();
        // A head on sequences reads their first tokens alone, so the last layer is done for these alone.
        const bool first_alone = a_.head != Head::tokens && hidden == nullptr;
        for_chunks([&](const Chunk& chunk) {
            embed(chunk);
            normalize(chunk, model_.embedding_norm);
            project(chunk, model_.layers[0]);
        });
        for (std::size_t i = 0; i < layers; ++i) {
            if (hidden != nullptr) hidden = copy_hidden(hidden);
            if (first_alone && i + 1 == layers)
                attend_first();
            else
                attend();
            for_chunks([&](const Chunk& chunk) {
                finish(chunk, model_.layers[i]);
                if (i + 1 < layers) project(chunk, model_.layers[i + 1]);
            });
        }
        if (hidden != nullptr) copy_hidden(hidden);
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
        for (auto* buffer : {&work_.x, &work_.context}) buffer->reserve(narrow);
        if (integers())
            work_.heads.reserve(heads_bytes() * size(tiles_));
        else
            for (auto* buffer : {&work_.query, &work_.key, &work_.value}) buffer->reserve(narrow);
        work_.scales.reserve(size(tiles_) * kLanes);
        work_.zeros.reserve(size(tiles_) * kLanes);
        work_.logits.reserve(tile_floats(a_.labels) * size(tiles_));
        work_.pooled.reserve(tile_floats(a_.hidden) *
                             size(ceil_divide(static_cast<int>(batch_.lengths.size()), kLanes)));
        const std::size_t chunk = size(std::min(kChunkTiles, tiles_));
        for (auto& worker : work_.workers) {
            worker.scores.reserve(attention_scratch(head_size(), longest));
            worker.wide.reserve(tile_floats(std::max(a_.ffn, integers() ? 3 * a_.hidden : 0)) * chunk);
            worker.ranges.reserve(2 * kLanes * size(ceil_divide(a_.ffn, kRowBlock)) * chunk);
            worker.levels.reserve(tile_floats(std::max(a_.hidden, a_.ffn)) * chunk);
            if (model_.any_quads) worker.quads.reserve(quad_bytes(std::max(a_.hidden, a_.ffn)) * chunk);
        }
    }

    // Calls body(chunk) until every tile has been in one. Tiles are dealt out evenly in the spans that a product takes
    // at once; the spans left over, fewer than there are threads, are done by all threads together.
    template <class Body>
    void for_chunks(const Body& body) {
        const int threads = model_.pool->threads(), spans = ceil_divide(tiles_, kernels_.tiles);
        const int share = spans / threads * kernels_.tiles;  // tiles
        const auto chunks = [&](Team team, int first, int end) {
            for (; first < end; first += kChunkTiles) body(Chunk{team, first, std::min(kChunkTiles, end - first)});
        };
        if (share > 0)
            lease_.run(size(threads), [&](std::size_t task, int worker) {
                const int first = static_cast<int>(task) * share;
                chunks(Team{worker}, first, std::min(tiles_, first + share));
            });
        chunks(Team{}, threads * share, tiles_);
    }

    // Calls body(task, worker): on the team's thread, or as a loop of all threads.
    template <class Body>
    void for_tasks(Team team, std::size_t tasks, const Body& body) {
        if (team.worker == Team::kAll) return lease_.run(tasks, body);
        for (std::size_t task = 0; task < tasks; ++task) body(task, team.worker);
    }

    // Calls body(tile, lane, groups), tiles counted from the chunk's first, until all lanes are done; a tile is shared
    // where there are fewer tiles than threads.
    template <class Body>
    void for_lanes(const Chunk& chunk, const Body& body) {
        const bool share = chunk.team.worker == Team::kAll && chunk.count < model_.pool->threads();
        const int groups = share ? 1 : kGroups, parts = kGroups / groups;
        for_tasks(chunk.team, size(chunk.count * parts), [&](std::size_t task, int) {
            const int part = static_cast<int>(task);
            body(part / parts, part % parts * groups * kGroup, groups);
        });
    }

    // ---- Steps ------------------------------------------------------------------------------------------------------

    void embed(const Chunk& chunk) {
        const int first = chunk.first * kLanes, end = first + chunk.count * kLanes;
        std::fill_n(x_of(chunk), tile_floats(a_.hidden) * size(chunk.count), 0.0f);  // the padding lanes
        for (const Sequence& s : work_.sequences)
            for (int t = std::max(0, first - s.first_lane); t < s.length && s.first_lane + t < end; ++t)
                embed_token(s.first_token + t, t, work_.x.data() + lane_offset(s.first_lane + t, a_.hidden));
    }

    void project(const Chunk& chunk, const Layer& layer) {
        quantize(chunk, normalized(chunk));
        const std::size_t narrow = tile_floats(a_.hidden), at = narrow * size(chunk.first);
        float *query = work_.query.data() + at, *key = work_.key.data() + at, *value = work_.value.data() + at;
        if (integers()) {
            query = hands(chunk).wide.data();
            key = query + narrow * size(chunk.count), value = key + narrow * size(chunk.count);
        }
        multiply(chunk,
                 {{layer.matrices[kQuery], query}, {layer.matrices[kKey], key}, {layer.matrices[kValue], value}});
        if (!integers()) return;
        for_tasks(chunk.team, size(chunk.count) * size(a_.heads), [&](std::size_t task, int) {
            const std::size_t tile = task / size(a_.heads), head = task % size(a_.heads);
            const std::size_t from = narrow * tile + tile_floats(head_size()) * head;
            kernels_.quantize_head(query + from, key + from, value + from, head_size(),
                                   HeadTile(heads_of(head) + heads_bytes() * (size(chunk.first) + tile), head_size()));
        });
    }

    void attend() {
        lease_.run(work_.query_blocks.size() * size(a_.heads), [&](std::size_t task, int worker) {
            const auto& [sequence, query] = work_.query_blocks[task / size(a_.heads)];
            const int groups = std::min(kernels_.query_groups, ceil_divide(sequence.length - query, kGroup));
            attend_head(sequence, query, groups, task % size(a_.heads), work_.workers[size(worker)].scores.data());
        });
    }

    // Attention of the first token of every sequence (and its neighbours, as many as go together). Then these tokens
    // move to the first lanes, and the others are left behind: lane i comes from a lane never below 8 i, so nothing is
    // overwritten before it has moved.
    void attend_first() {
        lease_.run(work_.sequences.size() * size(a_.heads), [&](std::size_t task, int worker) {
            attend_head(work_.sequences[task / size(a_.heads)], 0, 1, task % size(a_.heads),
                        work_.workers[size(worker)].scores.data());
        });
        for (int i = 0; i < static_cast<int>(work_.sequences.size()); ++i) {
            int& lane = work_.sequences[size(i)].first_lane;
            for (float* tiles : {work_.x.data(), work_.context.data()}) {
                const float* from = tiles + lane_offset(lane, a_.hidden);
                float* to = tiles + lane_offset(i, a_.hidden);
                for (int f = 0; f < a_.hidden; ++f) to[f * kLanes] = from[f * kLanes];
            }
            lane = i;
        }
        tiles_ = ceil_divide(static_cast<int>(work_.sequences.size()), kLanes);
    }

    void finish(const Chunk& chunk, const Layer& layer) {
        float *x = x_of(chunk), *wide = hands(chunk).wide.data(), *ranges = hands(chunk).ranges.data();
        const float* context = work_.context.data() + tile_floats(a_.hidden) * size(chunk.first);
        quantize(chunk, {context, a_.hidden, context, a_.hidden});
        multiply(chunk, {{layer.matrices[kAttentionOutput], x, x}});
        normalize(chunk, layer.attention_norm);
        quantize(chunk, normalized(chunk));
        multiply(chunk, {{layer.matrices[kFfnIn], wide, nullptr, true, ranges}});
        quantize(chunk, {wide, a_.ffn, ranges, 2 * ceil_divide(a_.ffn, kRowBlock)});
        multiply(chunk, {{layer.matrices[kFfnOut], x, x}});
        normalize(chunk, layer.output_norm);
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
        float* first = work_.context.data();  // free by now, and never smaller than this
        float* pooled = work_.pooled.data();
        for (int i = 0; i < count; ++i) {
            const float* from = work_.x.data() + lane_offset(work_.sequences[size(i)].first_lane, a_.hidden);
            float* to = first + lane_offset(i, a_.hidden);
            for (int f = 0; f < a_.hidden; ++f) to[f * kLanes] = from[f * kLanes];
        }
        apply_dense(model_.head_dense, a_.hidden, first, tiles, groups, pooled);
        const bool tanh = a_.head == Head::sequence_tanh;
        for (int i = 0; i < count; ++i) {  // lanes beyond are never read
            float* lane = pooled + lane_offset(i, a_.hidden);
            for (float* p = lane; p != lane + tile_floats(a_.hidden); p += kLanes)
                *p = tanh ? std::tanh(*p) : std::max(0.0f, *p);
        }
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
        const auto add = [&](int f, float sum) {
            if (a_.types > 0) sum += value(model_.type, type, f);
            x[f * kLanes] = sum + value(model_.position, position, f);
        };
        if (model_.product_word.codes.empty())
            for (int f = 0; f < a_.hidden; ++f) add(f, value(model_.word, word, f));
        else
            for (int f = 0; f < a_.hidden; ++f) add(f, product_value(word, f));
    }

    float product_value(int row, int f) const {
        constexpr std::size_t kPart = ProductTable::kPart;
        const ProductTable& table = model_.product_word;
        const std::size_t part = size(f) / kPart;
        const std::size_t code = table.codes[size(row) * (size(a_.hidden) / kPart) + part];
        const std::size_t at = (part * ProductTable::kCodeWords + code) * kPart + size(f) % kPart;
        return table.scales[part] * static_cast<float>(table.code_words[at]);
    }

    void attend_head(const Sequence& s, int query, int groups, std::size_t head, float* scratch) const {
        const std::size_t feature = head * tile_floats(head_size());
        if (integers())
            return kernels_.integer_attention({.heads = heads_of(head),
                                               .tile_stride = heads_bytes(),
                                               .context = work_.context.data() + feature,
                                               .context_stride = tile_floats(a_.hidden),
                                               .head_size = head_size(),
                                               .first_lane = s.first_lane,
                                               .length = s.length,
                                               .first_query = s.first_lane + query,
                                               .groups = groups},
                                              scratch);
        kernels_.attention({.query = work_.query.data() + feature,
                            .key = work_.key.data() + feature,
                            .value = work_.value.data() + feature,
                            .context = work_.context.data() + feature,
                            .tile_stride = tile_floats(a_.hidden),
                            .head_size = head_size(),
                            .first_lane = s.first_lane,
                            .length = s.length,
                            .first_query = s.first_lane + query,
                            .groups = groups},
                           scratch);
    }

    bool integers() const { return a_.attention == Attention::integers; }
    int head_size() const { return a_.hidden / a_.heads; }
    std::size_t heads_bytes() const { return HeadTile::bytes(head_size()) * size(a_.heads); }  // of a tile
    std::uint8_t* heads_of(std::size_t head) const { return work_.heads.data() + HeadTile::bytes(head_size()) * head; }

    Worker& hands(const Chunk& chunk) { return work_.workers[size(chunk.team.buffers())]; }
    const Worker& hands(const Chunk& chunk) const { return work_.workers[size(chunk.team.buffers())]; }

    // What normalize() left.
    Values normalized(const Chunk& chunk) { return {x_of(chunk), a_.hidden, hands(chunk).ranges.data(), 2}; }

    float* x_of(const Chunk& chunk) { return work_.x.data() + tile_floats(a_.hidden) * size(chunk.first); }

    // Where a tile's levels lie, and how far apart its features are: the tiles that go through a product together lie
    // side by side. Tiles are counted from the chunk's first.
    std::pair<std::size_t, int> place_levels(const Chunk& chunk, int features, int tile) const {
        const int first = tile / kernels_.tiles * kernels_.tiles;
        const int together = std::min(kernels_.tiles, chunk.count - first);
        return {tile_floats(features) * size(first) + size(tile - first) * kLanes, together * kLanes};
    }

    // The chunk's values into the team's levels; scales and zeros into the tokens' own places.
    void quantize(const Chunk& chunk, const Values& v) {
        std::uint8_t* levels = hands(chunk).levels.data();
        for_lanes(chunk, [&](int tile, int lane, int groups) {
            const std::size_t token = size(chunk.first + tile) * kLanes + size(lane);
            const auto [offset, stride] = place_levels(chunk, v.features, tile);
            kernels_.quantize(v.x + tile_floats(v.features) * size(tile) + lane, v.features, groups,
                              v.ranges + tile_floats(v.bounds) * size(tile) + lane, v.bounds,
                              levels + offset + size(lane), stride, work_.scales.data() + token,
                              work_.zeros.data() + token);
        });
    }

    // Products of matrices of one shape with what quantize() left. All tiles meet a block of rows before the next
    // block.
    void multiply(const Chunk& chunk, std::initializer_list<Product> products) {
        const PackedMatrix& shape = products.begin()->w;
        if (std::any_of(products.begin(), products.end(), [](const Product& p) { return wants_quads(p.w.format); }))
            interleave(chunk, shape.columns);
        const int blocks = ceil_divide(shape.rows, kRowBlock), spans = ceil_divide(chunk.count, kernels_.tiles);
        for_tasks(chunk.team, products.size() * size(blocks) * size(spans), [&](std::size_t task, int) {
            const std::size_t block = task / size(spans);
            const Product& product = products.begin()[block / size(blocks)];
            const int tile = static_cast<int>(task % size(spans)) * kernels_.tiles;
            multiply_block(chunk, product, static_cast<int>(block % size(blocks)) * kRowBlock, tile);
        });
    }

    void interleave(const Chunk& chunk, int features) {
        Worker& worker = hands(chunk);
        for_tasks(chunk.team, size(chunk.count), [&](std::size_t tile, int) {
            const auto [offset, stride] = place_levels(chunk, features, static_cast<int>(tile));
            kernels_.interleave(worker.levels.data() + offset, stride, features,
                                worker.quads.data() + quad_bytes(features) * tile);
        });
    }

    // Rows [row, row + kRowBlock) for the span of tiles that begins with `tile` of the chunk.
    void multiply_block(const Chunk& chunk, const Product& p, int row, int tile) const {
        alignas(64) std::int32_t sums[kMostTiles * kRowBlock * kLanes];
        const Worker& worker = hands(chunk);
        const bool quads = wants_quads(p.w.format);
        const std::size_t stride = quads ? quad_bytes(p.w.columns) : tile_floats(p.w.columns);
        const std::uint8_t* x = (quads ? worker.quads.data() : worker.levels.data()) + stride * size(tile);
        const int count = std::min(kRowBlock, p.w.rows - row), tiles = std::min(kernels_.tiles, chunk.count - tile);
        kernels_.products[static_cast<std::size_t>(p.w.format)](p.w, row, count, {x, stride, tiles}, sums);
        for (int i = 0; i < tiles; ++i)
            finish_block(p, row, count, sums + i * kRowBlock * kLanes, size(tile + i),
                         size(chunk.first + tile + i) * kLanes);
    }

    // From the sums of a tile to its floats.
    void finish_block(const Product& p, int row, int count, const std::int32_t* sums, std::size_t tile,
                      std::size_t token) const {
        const std::size_t at = tile_floats(p.w.rows) * tile + tile_floats(row);
        const std::size_t block = size(ceil_divide(p.w.rows, kRowBlock)) * tile + size(row / kRowBlock);
        const bool gelu = p.activate && a_.activation == Activation::gelu;
        float *y = p.y + at, *range = p.ranges == nullptr ? nullptr : p.ranges + 2 * kLanes * block;
        (gelu ? kernels_.dequantize_gelu : kernels_.dequantize)(
            p.w, row, count, sums, work_.scales.data() + token, work_.zeros.data() + token,
            p.residual == nullptr ? nullptr : p.residual + at, y, range);
        if (!p.activate || gelu) return;
        for (float* value = y; value != y + tile_floats(count); ++value) *value = std::max(0.0f, *value);
        if (range != nullptr) std::fill_n(range, kLanes, 0.0f);  // nothing is lower any more
    }

    void normalize(const Chunk& chunk, const Norm& norm) {
        for_lanes(chunk, [&](int tile, int lane, int groups) {
            kernels_.layer_norm(x_of(chunk) + tile_floats(a_.hidden) * size(tile) + lane, a_.hidden, groups,
                                norm.weight.data(), norm.bias.data(), a_.epsilon,
                                hands(chunk).ranges.data() + 2 * kLanes * tile + lane);
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
