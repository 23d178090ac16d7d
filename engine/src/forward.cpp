#include "forward.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <numeric>
#include <span>

namespace sparselane {
namespace {

// Tiles that go through the steps of a layer together: each weight is used for all of them, and the wide activations
// (1.5 MB in BERT-Base) are not much more than an L2.
constexpr int kChunkTiles = 4;
static_assert(kChunkTiles % kMostTiles == 0 && kMostTiles % 2 == 0);

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

// What the products that come next read; see wants_quads.
struct Wanted {
    bool levels = false, quads = false;
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
// thread takes its tiles from one attention to the next without waiting for the others (for_chunks). A text of too few
// tiles for that is done by all threads together, who then divide heads, rows or lanes among them.
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
        read_words();
    }

    void run(float* logits, float* hidden) {
        const std::size_t layers = model_.layers.size();
        // A head on sequences reads their first tokens alone, so the last layer is done for these alone.
        const bool first_alone = a_.head != Head::tokens && hidden == nullptr;
        for_chunks([&](const Chunk& chunk) {
            embed(chunk);
            normalize(chunk, model_.embedding_norm, wanted(model_.layers[0], {kQuery, kKey, kValue}));
            if (!by_heads_) project(chunk, model_.layers[0]);
        });
        for (std::size_t i = 0; i < layers; ++i) {
            const bool last = i + 1 == layers, firsts = last && first_alone;
            if (hidden != nullptr) hidden = copy_hidden(hidden);
            if (firsts) keep_first_queries();
            by_heads_ ? project_and_attend(model_.layers[i]) : attend();
            if (firsts) move_first_tokens();
            for_chunks([&](const Chunk& chunk) {
                finish(chunk, model_.layers[i],
                       last ? Wanted{} : wanted(model_.layers[i + 1], {kQuery, kKey, kValue}));
                if (!last && !by_heads_) project(chunk, model_.layers[i + 1]);
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
            for (int query = 0; query < length; query += query_lanes)
                work_.query_blocks.push_back(
                    {sequence, query, std::min(kernels_.query_groups, ceil_divide(length - query, kGroup))});
            token += length;
            lane += ceil_divide(length, kGroup) * kGroup;
            longest = std::max(longest, length);
        }
        tiles_ = ceil_divide(lane, kLanes);
        by_heads_ = share_of_tiles() == 0 && tiles_ <= kChunkTiles && a_.heads % heads_together() == 0 &&
                    a_.heads / heads_together() >= model_.pool->threads();
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
            if (model_.any_levels) worker.levels.reserve(tile_floats(std::max(a_.hidden, a_.ffn)) * chunk);
            if (model_.any_quads) worker.quads.reserve(quad_bytes(std::max(a_.hidden, a_.ffn)) * chunk);
        }
    }

    void read_words() {
        if (!model_.product_word.codes.empty()) return;
        work_.words.reserve(batch_.tokens.size() * size(a_.hidden));
        for (std::size_t i = 0; i < batch_.tokens.size(); ++i)
            model_.word.read(batch_.tokens[i], work_.words.data() + i * size(a_.hidden));
    }

    // Calls body(chunk) until every tile has been in one. Tiles are dealt out evenly in the spans that a product takes
    // at once; the spans left over, fewer than there are threads, are done by all threads together.
    template <class Body>
    void for_chunks(const Body& body) {
        const int threads = model_.pool->threads(), share = share_of_tiles();
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

    // Tiles that each thread takes for itself.
    int share_of_tiles() const {
        return ceil_divide(tiles_, kernels_.tiles) / model_.pool->threads() * kernels_.tiles;
    }

    // Heads whose rows are whole blocks of rows.
    int heads_together() const { return kRowBlock / std::gcd(kRowBlock, head_size()); }

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
        const bool together = chunk.team.worker == Team::kAll;
        int groups = kGroups;
        while (together && groups > 1 && chunk.count * kGroups / groups < model_.pool->threads()) groups /= 2;
        const int parts = kGroups / groups;
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
        const auto [query, key, value] = projected(chunk);
        multiply(chunk,
                 {{layer.matrices[kQuery], query}, {layer.matrices[kKey], key}, {layer.matrices[kValue], value}});
        if (!integers()) return;
        for_tasks(chunk.team, size(chunk.count) * size(a_.heads), [&](std::size_t task, int) {
            quantize_head(chunk, task / size(a_.heads), task % size(a_.heads));
        });
    }

    void attend() {
        lease_.run(work_.query_blocks.size() * size(a_.heads), [&](std::size_t task, int worker) {
            attend_block(work_.query_blocks[task / size(a_.heads)], task % size(a_.heads), worker);
        });
    }

    // All of a head, from its rows of the three matrices to what it attended to, without a meeting: where all threads
    // work on all tiles together.
    void project_and_attend(const Layer& layer) {
        const Chunk chunk{Team{}, 0, tiles_};
        const auto [query, key, value] = projected(chunk);
        const Product products[] = {
            {layer.matrices[kQuery], query}, {layer.matrices[kKey], key}, {layer.matrices[kValue], value}};
        const int together = heads_together(), rows = together * head_size();
        lease_.run(size(a_.heads / together), [&](std::size_t task, int worker) {
            for (const Product& product : products)
                for (int row = static_cast<int>(task) * rows; row < static_cast<int>(task + 1) * rows; row += kRowBlock)
                    multiply_block(chunk, product, row);
            for (std::size_t head = task * size(together); head < (task + 1) * size(together); ++head) {
                for (int tile = 0; integers() && tile < chunk.count; ++tile) quantize_head(chunk, size(tile), head);
                for (const auto& block : work_.query_blocks) attend_block(block, head, worker);
            }
        });
    }

    // From here on the first token of every sequence asks alone (and its neighbours, as many as go together).
    void keep_first_queries() {
        work_.query_blocks.clear();
        for (const Sequence& s : work_.sequences) work_.query_blocks.push_back({s, 0, 1});
    }

    // First tokens move to the first lanes, and the others are left behind: lane i comes from a lane never below 8 i, so
    // nothing is overwritten before it has moved.
    void move_first_tokens() {
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

    void finish(const Chunk& chunk, const Layer& layer, Wanted next) {
        float *x = x_of(chunk), *wide = hands(chunk).wide.data(), *ranges = hands(chunk).ranges.data();
        const float* context = work_.context.data() + tile_floats(a_.hidden) * size(chunk.first);
        for_lanes(chunk, [&](int tile, int lane, int groups) {
            quantize(chunk, {context, a_.hidden, context, a_.hidden}, wanted(layer, {kAttentionOutput}), tile, lane,
                     groups);
        });
        multiply(chunk, {{layer.matrices[kAttentionOutput], x, x}});
        normalize(chunk, layer.attention_norm, wanted(layer, {kFfnIn}));
        multiply(chunk, {{layer.matrices[kFfnIn], wide, nullptr, true, ranges}});
        quantize_wide(chunk, {wide, a_.ffn, ranges, 2 * ceil_divide(a_.ffn, kRowBlock)}, wanted(layer, {kFfnOut}));
        multiply(chunk, {{layer.matrices[kFfnOut], x, x}});
        normalize(chunk, layer.output_norm, next);
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
        if (model_.product_word.codes.empty()) {
            const std::int8_t* row = work_.words.data() + size(token) * size(a_.hidden);
            for (int f = 0; f < a_.hidden; ++f) add(f, model_.word.scale(word) * static_cast<float>(row[f]));
        } else
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

    // Where query, key and value go: to a place of the tiles' own, or where nobody reads them but quantize_head.
    std::array<float*, 3> projected(const Chunk& chunk) {
        const std::size_t narrow = tile_floats(a_.hidden), at = narrow * size(chunk.first);
        if (!integers()) return {work_.query.data() + at, work_.key.data() + at, work_.value.data() + at};
        float* first = hands(chunk).wide.data();
        return {first, first + narrow * size(chunk.count), first + 2 * narrow * size(chunk.count)};
    }

    void quantize_head(const Chunk& chunk, std::size_t tile, std::size_t head) {
        const auto [query, key, value] = projected(chunk);
        const std::size_t from = tile_floats(a_.hidden) * tile + tile_floats(head_size()) * head;
        kernels_.quantize_head(query + from, key + from, value + from, head_size(),
                               HeadTile(heads_of(head) + heads_bytes() * (size(chunk.first) + tile), head_size()));
    }

    void attend_block(const QueryBlock& block, std::size_t head, int worker) const {
        const Sequence& s = block.sequence;
        float* scratch = work_.workers[size(worker)].scores.data();
        const std::size_t feature = head * tile_floats(head_size());
        if (integers())
            return kernels_.integer_attention({.heads = heads_of(head),
                                               .tile_stride = heads_bytes(),
                                               .context = work_.context.data() + feature,
                                               .context_stride = tile_floats(a_.hidden),
                                               .head_size = head_size(),
                                               .first_lane = s.first_lane,
                                               .length = s.length,
                                               .first_query = s.first_lane + block.first,
                                               .groups = block.groups},
                                              scratch);
        kernels_.attention({.query = work_.query.data() + feature,
                            .key = work_.key.data() + feature,
                            .value = work_.value.data() + feature,
                            .context = work_.context.data() + feature,
                            .tile_stride = tile_floats(a_.hidden),
                            .head_size = head_size(),
                            .first_lane = s.first_lane,
                            .length = s.length,
                            .first_query = s.first_lane + block.first,
                            .groups = block.groups},
                           scratch);
    }

    bool integers() const { return a_.attention == Attention::integers; }
    int head_size() const { return a_.hidden / a_.heads; }
    std::size_t heads_bytes() const { return HeadTile::bytes(head_size()) * size(a_.heads); }  // of a tile
    std::uint8_t* heads_of(std::size_t head) const { return work_.heads.data() + HeadTile::bytes(head_size()) * head; }

    Worker& hands(const Chunk& chunk) { return work_.workers[size(chunk.team.buffers())]; }
    const Worker& hands(const Chunk& chunk) const { return work_.workers[size(chunk.team.buffers())]; }

    float* x_of(const Chunk& chunk) { return work_.x.data() + tile_floats(a_.hidden) * size(chunk.first); }

    // Where a tile's levels lie, and how far apart its features are: the tiles that go through a product together lie
    // side by side. Tiles are counted from the chunk's first.
    std::pair<std::size_t, int> place_levels(const Chunk& chunk, int features, int tile) const {
        const int first = tile / kernels_.tiles * kernels_.tiles;
        const int together = std::min(kernels_.tiles, chunk.count - first);
        return {tile_floats(features) * size(first) + size(tile - first) * kLanes, together * kLanes};
    }

    static Wanted wanted(const Layer& layer, std::initializer_list<Matrix> readers) {
        Wanted found;
        for (const Matrix reader : readers)
            (wants_quads(layer.matrices[reader].format) ? found.quads : found.levels) = true;
        return found;
    }

    // Some lanes of a tile of the chunk into the team's levels; scales and zeros into the tokens' own places.
    void quantize(const Chunk& chunk, const Values& v, Wanted wanted, int tile, int lane, int groups) {
        const std::size_t token = size(chunk.first + tile) * kLanes + size(lane);
        quantize(chunk, v, wanted, 0, v.features, tile, lane, groups, work_.scales.data() + token,
                 work_.zeros.data() + token);
    }

    // Features [first, first + count), of which only the last of all may be no whole quad.
    void quantize(const Chunk& chunk, const Values& v, Wanted wanted, int first, int count, int tile, int lane,
                  int groups, float* scales, std::int32_t* zeros) {
        const float* x = v.x + tile_floats(v.features) * size(tile) + tile_floats(first) + lane;
        const float* ranges = v.ranges + tile_floats(v.bounds) * size(tile) + lane;
        Worker& worker = hands(chunk);
        if (wanted.levels) {
            const auto [offset, stride] = place_levels(chunk, v.features, tile);
            kernels_.quantize(x, count, groups, ranges, v.bounds,
                              worker.levels.data() + offset + size(first * stride + lane), stride, scales, zeros);
        }
        if (wanted.quads)
            kernels_.quantize_quads(
                x, count, groups, ranges, v.bounds,
                worker.quads.data() + quad_bytes(v.features) * size(tile) + tile_floats(first) + size(lane * kQuad),
                scales, zeros);
    }

    // Whole tiles whose features all threads have made in blocks of rows: each takes those that it made.
    void quantize_wide(const Chunk& chunk, const Values& v, Wanted wanted) {
        const int parts = chunk.team.worker == Team::kAll ? model_.pool->threads() : 1;
        const int blocks = ceil_divide(v.features, kRowBlock);
        for_tasks(chunk.team, size(chunk.count * parts), [&](std::size_t task, int) {
            const int part = static_cast<int>(task) / chunk.count, tile = static_cast<int>(task) % chunk.count;
            const int first = blocks * part / parts * kRowBlock;
            const int end = std::min(v.features, blocks * (part + 1) / parts * kRowBlock);
            if (first >= end) return;
            float scales[kLanes];
            std::int32_t zeros[kLanes];
            quantize(chunk, v, wanted, first, end - first, tile, 0, kGroups, scales, zeros);
            if (end != v.features) return;  // all parts get the same
            const std::size_t token = size(chunk.first + tile) * kLanes;
            std::copy_n(scales, kLanes, work_.scales.data() + token);
            std::copy_n(zeros, kLanes, work_.zeros.data() + token);
        });
    }

    // Products of matrices of one shape with what quantize() left. All tiles meet a block of rows before the next
    // block.
    void multiply(const Chunk& chunk, std::initializer_list<Product> products) {
        const int blocks = ceil_divide(products.begin()->w.rows, kRowBlock);
        for_tasks(chunk.team, products.size() * size(blocks), [&](std::size_t task, int) {
            const Product& product = products.begin()[task / size(blocks)];
            multiply_block(chunk, product, static_cast<int>(task % size(blocks)) * kRowBlock);
        });
    }

    // Rows [row, row + kRowBlock) for all tiles of the chunk.
    void multiply_block(const Chunk& chunk, const Product& p, int row) const {
        alignas(64) std::int32_t sums[kMostTiles * kRowBlock * kLanes];
        const Worker& worker = hands(chunk);
        const bool quads = wants_quads(p.w.format);
        const std::size_t stride = quads ? quad_bytes(p.w.columns) : tile_floats(p.w.columns);
        const std::uint8_t* x = quads ? worker.quads.data() : worker.levels.data();
        const int count = std::min(kRowBlock, p.w.rows - row), most = quads ? kernels_.quad_tiles : kernels_.tiles;
        for (int tile = 0; tile < chunk.count; tile += most) {
            const int tiles = std::min(most, chunk.count - tile);
            kernels_.products[static_cast<std::size_t>(p.w.format)](p.w, row, count,
                                                                    {x + stride * size(tile), stride, tiles}, sums);
            for (int i = 0; i < tiles; ++i)
                finish_block(p, row, count, sums + i * kRowBlock * kLanes, size(tile + i),
                             size(chunk.first + tile + i) * kLanes);
        }
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

    // In place, and into what comes next.
    void normalize(const Chunk& chunk, const Norm& norm, Wanted next) {
        float *x = x_of(chunk), *ranges = hands(chunk).ranges.data();
        for_lanes(chunk, [&](int tile, int lane, int groups) {
            kernels_.layer_norm(x + tile_floats(a_.hidden) * size(tile) + lane, a_.hidden, groups, norm.weight.data(),
                                norm.bias.data(), a_.epsilon, ranges + 2 * kLanes * tile + lane);
            quantize(chunk, {x, a_.hidden, ranges, 2}, next, tile, lane, groups);
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
    bool by_heads_ = false;  // see project_and_attend
};

}  // namespace

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
