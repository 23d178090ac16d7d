#include "forward.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <numeric>
#include <span>

#include "embed.h"
#include "inputs.h"
#include "task_head.h"

namespace sparselane {
namespace {

// Tiles that go through the steps of a layer together: each weight is used for all of them, and the wide activations
// (1.5 MB in BERT-Base) are not much more than an L2.
constexpr int kChunkTiles = 4;
static_assert(kChunkTiles % kMostTiles == 0 && kMostTiles % 2 == 0);

// Tokens of a large batch that go through the encoder together: 5 x 1.5 MB of float activations in BERT-Base.
constexpr std::size_t kPartTokens = 512;

// One sparse matrix product: y = w x (+ residual), then the activation if asked.
struct Product {
    const PackedMatrix& w;
    float* y;
    bool residual = false;  // what is added: y itself, or where all threads work together the worker's copy of x
    bool activate = false;
    float* ranges = nullptr;  // [tile][row block][2][32], if asked
};

// The state of one call. Attention needs all tokens of a sequence; every other step needs its own tile alone, so each
// thread takes its tiles from one attention to the next without waiting for the others (for_chunks). A text of too few
// tiles for that is done by all threads together, who then divide heads or rows among them.
class Forward {
public:
    Forward(Model& model, const Batch& batch)
        : model_(model),
          a_(model.architecture),
          kernels_(model.kernels),
          work_(model.workspace),
          batch_(batch),
          lease_(*model.pool),
          inputs_(model, lease_) {
        plan();
        read_words(model, batch);
    }

    void run(float* logits, float* hidden) {
        const std::size_t layers = model_.layers.size();
        // A head on sequences reads their first tokens alone, so the last layer is done for these alone.
        const bool first_alone = a_.head != Head::tokens && hidden == nullptr;
        for_chunks([&](const Chunk& chunk) {
            embed(model_, batch_, chunk.first, chunk.count);
            inputs_.read_normalized(chunk, x_of(chunk), model_.embedding_norm,
                                    wanted(model_.layers[0], {kQuery, kKey, kValue}));
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
        inputs_.settle(tiles_);
        apply_head(model_, lease_, tiles_, logits);
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
        work_.logits.reserve(tile_floats(a_.labels) * size(tiles_));
        work_.pooled.reserve(tile_floats(a_.hidden) *
                             size(ceil_divide(static_cast<int>(batch_.lengths.size()), kLanes)));
        const int chunk = std::min(kChunkTiles, tiles_);
        const int left_over = tiles_ - model_.pool->threads() * share_of_tiles();
        const int firsts = a_.head == Head::tokens ? 0 : ceil_divide(static_cast<int>(batch_.lengths.size()), kLanes);
        inputs_.reserve(tiles_, chunk, std::clamp(std::max(left_over, firsts), 0, kChunkTiles));
        for (auto& worker : work_.workers) {
            worker.scores.reserve(attention_scratch(head_size(), longest));
            worker.wide.reserve(tile_floats(std::max(a_.ffn, integers() ? 3 * a_.hidden : 0)) * size(chunk));
        }
    }

    // Calls body(chunk) until every tile has been in one. Tiles are dealt out evenly in the spans that a product takes
    // at once; the spans left over, fewer than there are threads, are done by all threads together.
    template <class Body>
    void for_chunks(const Body& body) {
        const int threads = model_.pool->threads(), share = share_of_tiles();
        const auto chunks = [&](int worker, int first, int end) {
            for (; first < end; first += kChunkTiles) body(Chunk{worker, first, std::min(kChunkTiles, end - first)});
        };
        if (share > 0)
            lease_.run(size(threads), [&](std::size_t task, int worker) {
                const int first = static_cast<int>(task) * share;
                chunks(worker, first, std::min(tiles_, first + share));
            });
        chunks(Chunk::kAll, threads * share, tiles_);
    }

    // Tiles that each thread takes for itself.
    int share_of_tiles() const {
        return ceil_divide(tiles_, kernels_.tiles) / model_.pool->threads() * kernels_.tiles;
    }

    // Heads whose rows are whole blocks of rows.
    int heads_together() const { return kRowBlock / std::gcd(kRowBlock, head_size()); }

    // ---- Steps ------------------------------------------------------------------------------------------------------

    void project(const Chunk& chunk, const Layer& layer) {
        const auto [query, key, value] = projected(chunk);
        multiply(chunk,
                 {{layer.matrices[kQuery], query}, {layer.matrices[kKey], key}, {layer.matrices[kValue], value}});
        if (!integers()) return;
        run_tasks(lease_, chunk, size(chunk.count) * size(a_.heads), [&](std::size_t task, int) {
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
        const Chunk chunk{.first = 0, .count = tiles_};
        const auto [query, key, value] = projected(chunk);
        const Product products[] = {
            {layer.matrices[kQuery], query}, {layer.matrices[kKey], key}, {layer.matrices[kValue], value}};
        const int together = heads_together(), rows = together * head_size();
        lease_.run(size(a_.heads / together), [&](std::size_t task, int worker) {
            const Inputs::View view = inputs_.view(chunk, worker);
            for (const Product& product : products)
                for (int row = static_cast<int>(task) * rows; row < static_cast<int>(task + 1) * rows; row += kRowBlock)
                    multiply_block(chunk, product, row, view);
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
        inputs_.settle(tiles_);
        for (int i = 0; i < static_cast<int>(work_.sequences.size()); ++i) {
            int& lane = work_.sequences[size(i)].first_lane;
            for (float* tiles : {work_.x.data(), work_.context.data()}) copy_lane(tiles, lane, a_.hidden, tiles, i);
            lane = i;
        }
        tiles_ = ceil_divide(static_cast<int>(work_.sequences.size()), kLanes);
    }

    void finish(const Chunk& chunk, const Layer& layer, Wanted next) {
        float *x = x_of(chunk), *wide = inputs_.hands(chunk).wide.data(), *ranges = inputs_.hands(chunk).ranges.data();
        float* between = chunk.together() ? work_.sums.data() : x;  // all threads copy x until the layer's end
        const float* context = work_.context.data() + tile_floats(a_.hidden) * size(chunk.first);
        inputs_.read_context(chunk, context, wanted(layer, {kAttentionOutput}));
        multiply(chunk, {{layer.matrices[kAttentionOutput], between, true}});
        inputs_.read_normalized(chunk, between, layer.attention_norm, wanted(layer, {kFfnIn}));
        multiply(chunk, {{layer.matrices[kFfnIn], wide, false, true, ranges}});
        inputs_.read_wide(chunk, wide, ranges, wanted(layer, {kFfnOut}));
        multiply(chunk, {{layer.matrices[kFfnOut], x, true}});
        inputs_.read_normalized(chunk, x, layer.output_norm, next);
    }

    float* copy_hidden(float* hidden) {
        inputs_.settle(tiles_);
        for (const Sequence& s : work_.sequences)
            for (int t = 0; t < s.length; ++t, hidden += a_.hidden)
                copy_lane(work_.x.data(), s.first_lane + t, a_.hidden, hidden);
        return hidden;
    }

    // ---- Parts of steps ---------------------------------------------------------------------------------------------

    // Where query, key and value go: to a place of the tiles' own, or where nobody reads them but quantize_head.
    std::array<float*, 3> projected(const Chunk& chunk) {
        const std::size_t narrow = tile_floats(a_.hidden), at = narrow * size(chunk.first);
        if (!integers()) return {work_.query.data() + at, work_.key.data() + at, work_.value.data() + at};
        float* first = inputs_.hands(chunk).wide.data();
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

    float* x_of(const Chunk& chunk) { return work_.x.data() + tile_floats(a_.hidden) * size(chunk.first); }

    // Products of matrices of one shape with what the chunk's inputs are. All tiles meet a block of rows before the next
    // block.
    void multiply(const Chunk& chunk, std::initializer_list<Product> products) {
        const int blocks = ceil_divide(products.begin()->w.rows, kRowBlock);
        run_tasks(lease_, chunk, products.size() * size(blocks), [&](std::size_t task, int worker) {
            const Product& product = products.begin()[task / size(blocks)];
            const int row = static_cast<int>(task % size(blocks)) * kRowBlock;
            multiply_block(chunk, product, row, inputs_.view(chunk, worker));
        });
    }

    // Rows [row, row + kRowBlock) for all tiles of the chunk.
    void multiply_block(const Chunk& chunk, const Product& p, int row, const Inputs::View& from) const {
        alignas(64) std::int32_t sums[kMostTiles * kRowBlock * kLanes];
        const bool quads = wants_quads(p.w.format);
        const std::size_t stride = quads ? quad_bytes(p.w.columns) : tile_floats(p.w.columns);
        const std::uint8_t* x = quads ? from.levels.quads.data() : from.levels.levels.data();
        const int count = std::min(kRowBlock, p.w.rows - row), most = quads ? kernels_.quad_tiles : kernels_.tiles;
        for (int tile = 0; tile < chunk.count; tile += most) {
            const int tiles = std::min(most, chunk.count - tile);
            kernels_.products[static_cast<std::size_t>(p.w.format)](
                p.w, row, count, {x + stride * size(tile), stride, tiles, tile > 0}, sums);
            for (int i = 0; i < tiles; ++i) finish_block(p, row, count, sums + i * kRowBlock * kLanes, tile + i, from);
        }
    }

    // From the sums of a tile to its floats.
    void finish_block(const Product& p, int row, int count, const std::int32_t* sums, int tile,
                      const Inputs::View& from) const {
        const std::size_t at = tile_floats(p.w.rows) * size(tile) + tile_floats(row), token = size(tile) * kLanes;
        const std::size_t block = size(ceil_divide(p.w.rows, kRowBlock) * tile + row / kRowBlock);
        const float* residual = from.residual == nullptr ? p.y : from.residual;
        const bool gelu = p.activate && a_.activation == Activation::gelu;
        float *y = p.y + at, *range = p.ranges == nullptr ? nullptr : p.ranges + 2 * kLanes * block;
        (gelu ? kernels_.dequantize_gelu : kernels_.dequantize)(
            p.w, row, count, sums, from.levels.scales.data() + token, from.levels.zeros.data() + token,
            p.residual ? residual + at : nullptr, y, range);
        if (!p.activate || gelu) return;
        for (float* value = y; value != y + tile_floats(count); ++value) *value = std::max(0.0f, *value);
        if (range != nullptr) std::fill_n(range, kLanes, 0.0f);  // nothing is lower any more
    }

    Model& model_;
    const Architecture& a_;
    const Kernels& kernels_;
    Workspace& work_;
    const Batch& batch_;
    Pool::Lease lease_;
    Inputs inputs_;
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
