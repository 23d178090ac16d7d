// The kernels for AMX: a matrix unit multiplies dense tiles of 16 rows x 64 columns by 64 columns x 16 tokens, 16,384
// products in 16 cycles. Weights lie in memory as masks and survivors (Format::masked) and become dense on the way, 64 at
// a time, in the first-level cache. Quads of levels are already what the unit calls a tile, and its sums are ours. The
// products of integer attention go there too; all other kernels are those of AVX-512.
#include <algorithm>
#include <array>
#include <cstring>

#include "kernels_zmm.h"

namespace sparselane {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64;  // of a row
// Steps whose dense weights lie in the first-level cache, 2 KiB each, beside the levels that they meet. With 12 they and
// a tile of 768 columns would fill all of it: 30 % slower.
constexpr int kPanelSteps = 6;
// Steps by which weights are made dense before they are read, so that a tile is not read from the stores just made.
constexpr int kAhead = 1;

struct TileShape {
    int rows, bytes;  // of a row
};

// The eight tile registers, of these sizes.
class Tiles {
public:
    using Shapes = std::array<TileShape, 8>;
    explicit Tiles(const Shapes& shapes) { configure(shapes); }
    ~Tiles() { _tile_release(); }  // so that the system need not save them
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    void configure(const Shapes& shapes) {  // as the processor's manual has it
        struct alignas(64) {
            std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
            std::uint16_t row_bytes[16] = {};
            std::uint8_t rows[16] = {};
        } memory;
        static_assert(sizeof memory == 64);
        for (std::size_t tile = 0; tile < shapes.size(); ++tile) {
            memory.row_bytes[tile] = static_cast<std::uint16_t>(shapes[tile].bytes);
            memory.rows[tile] = static_cast<std::uint8_t>(shapes[tile].rows);
        }
        asm volatile("" : "+m"(memory));  // GCC's _tile_loadconfig says that it reads 8 bytes: the rest may not be there
        _tile_loadconfig(&memory);
    }
};

constexpr TileShape kSums{kTileRows, kTileBytes};

// The compiler does not know what the tile instructions read and write.
inline void settle_memory() { asm volatile("" ::: "memory"); }

// 32 rows of 64 weights from their masks and survivors. Returns the next survivor.
inline const std::int8_t* make_dense(const std::uint16_t* masks, const std::int8_t* survivors, std::int8_t* panel) {
    for (int row = 0; row < kRowBlock; ++row, masks += 4, panel += kTileBytes) {
        std::uint64_t mask;
        std::memcpy(&mask, masks, sizeof mask);
        const __m512i next = _mm512_loadu_si512(survivors);
        _mm512_store_si512(panel, _mm512_maskz_expand_epi8(static_cast<__mmask64>(mask), next));
        survivors += __builtin_popcountll(mask);
    }
    constexpr int kPrefetch = 512;  // bytes; a step of 10 % survivors has 205 and 256 of masks
    for (int line = 0; line < 4; ++line) {
        _mm_prefetch(reinterpret_cast<const char*>(survivors) + kPrefetch + 64 * line, _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(masks) + kPrefetch + 64 * line, _MM_HINT_T0);
    }
    settle_memory();
    return survivors;
}

// Registers of a product: 0 to 3 sums, 4 and 5 weights, 6 and 7 levels, of that many quads of columns.
Tiles::Shapes product_shapes(int quads) {
    const TileShape weights{kTileRows, quads * kQuad}, levels{quads, kTileBytes};
    return {kSums, kSums, kSums, kSums, weights, weights, levels, levels};
}

// Sums of 32 rows x 32 tokens: tile registers 2 x half of the rows + half of the tokens.
inline void clear_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

constexpr int kSumsStride = kLanes * 4;
constexpr int kLowerRows = kTileRows * kLanes;

inline void load_sums(const std::int32_t* sums) {
    _tile_loadd(0, sums, kSumsStride);
    _tile_loadd(1, sums + kTileRows, kSumsStride);
    _tile_loadd(2, sums + kLowerRows, kSumsStride);
    _tile_loadd(3, sums + kLowerRows + kTileRows, kSumsStride);
}

inline void store_sums(std::int32_t* sums) {
    _tile_stored(0, sums, kSumsStride);
    _tile_stored(1, sums + kTileRows, kSumsStride);
    _tile_stored(2, sums + kLowerRows, kSumsStride);
    _tile_stored(3, sums + kLowerRows + kTileRows, kSumsStride);
    settle_memory();
}

inline void add_step(const std::int8_t* panel, const std::uint8_t* quads) {
    constexpr int kStride = kLanes * kQuad;
    _tile_loadd(4, panel, kTileBytes);
    _tile_loadd(6, quads, kStride);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, quads + kTileRows * kQuad, kStride);
    _tile_dpbsud(1, 4, 7);
    _tile_loadd(5, panel + kTileRows * kTileBytes, kTileBytes);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
}

// The steps of a panel for all tiles. The weights become dense while the first tile is multiplied.
class Panel {
public:
    Panel(const PackedMatrix& w, int first) {
        const auto block = static_cast<std::size_t>(first / kRowBlock);
        const auto steps = static_cast<std::size_t>((w.columns + kMaskColumns - 1) / kMaskColumns);
        masks_ = w.offsets.data() + block * steps * kMasks;
        survivors_ = w.weights.data() + w.strip_steps[block];
    }

    void multiply(int steps, const ProductInput& input, int column, std::int32_t* sums) {
        for (int step = 0; step < std::min(kAhead, steps); ++step) make_dense(step);
        for (int tile = 0; tile < input.tiles; ++tile, sums += kRowBlock * kLanes) {
            const std::uint8_t* quads = input.x + static_cast<std::size_t>(tile) * input.tile_stride + column * kLanes;
            column == 0 ? clear_sums() : load_sums(sums);
            for (int step = 0; step < steps; ++step, quads += kMaskColumns * kLanes) {
                if (tile == 0 && step + kAhead < steps) make_dense(step + kAhead);
                add_step(dense_ + step * kStepBytes, quads);
            }
            store_sums(sums);
        }
    }

private:
    static constexpr int kMasks = kRowBlock * kMaskColumns / 16;  // numbers of 16 bits in a step
    static constexpr int kStepBytes = kRowBlock * kTileBytes;

    void make_dense(int step) {
        survivors_ = sparselane::make_dense(masks_, survivors_, dense_ + step * kStepBytes);
        masks_ += kMasks;
    }

    const std::uint16_t* masks_;
    const std::int8_t* survivors_;
    alignas(64) std::int8_t dense_[kPanelSteps * kStepBytes];
};

void multiply_masked(const PackedMatrix& w, int first, int, const ProductInput& input, std::int32_t* sums) {
    const int whole = w.columns / kMaskColumns, rest = w.columns % kMaskColumns;
    Panel panel(w, first);
    Tiles tiles(product_shapes(kTileRows));
    for (int step = 0; step < whole; step += kPanelSteps)
        panel.multiply(std::min(kPanelSteps, whole - step), input, step * kMaskColumns, sums);
    if (rest == 0) return;
    tiles.configure(product_shapes((rest + kQuad - 1) / kQuad));
    panel.multiply(1, input, whole * kMaskColumns, sums);
}

// Two tiles at a time, as the kernels of AVX-512 take them.
using Multiply = void (*)(const PackedMatrix&, int, int, const ProductInput&, std::int32_t*);
template <Multiply Product>
void in_pairs(const PackedMatrix& w, int first, int count, const ProductInput& input, std::int32_t* sums) {
    for (int tile = 0; tile < input.tiles; tile += 2)
        Product(w, first, count,
                {input.x + static_cast<std::size_t>(tile) * input.tile_stride, input.tile_stride,
                 std::min(2, input.tiles - tile)},
                sums + tile * kRowBlock * kLanes);
}

// ---- Attention in integers ------------------------------------------------------------------------------------------

// Heads whose keys are whole tiles.
bool fits_tiles(int head_size) { return head_size % kTileRows == 0 && head_size <= kTileBytes; }

// Turns keys from quads, [features / 4][32][4], to what the unit multiplies from the left, [32][features].
void turn_keys(std::int8_t* keys, int features) {
    const int quads = features / kQuad;
    alignas(64) std::int8_t turned[kLanes * kTileBytes];
    for (int half = 0; half < 2; ++half) {
        __m512i row[16], pair[16], token[16];
        for (int j = 0; j < 16; ++j)
            row[j] = j < quads ? _mm512_loadu_si512(keys + (j * kLanes + half * 16) * kQuad) : _mm512_setzero_si512();
        for (int i = 0; i < 8; ++i) {
            pair[2 * i] = _mm512_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
            pair[2 * i + 1] = _mm512_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
        }
        for (int i = 0; i < 4; ++i)
            for (int high = 0; high < 2; ++high) {
                row[4 * i + 2 * high] = _mm512_unpacklo_epi64(pair[4 * i + high], pair[4 * i + 2 + high]);
                row[4 * i + 2 * high + 1] = _mm512_unpackhi_epi64(pair[4 * i + high], pair[4 * i + 2 + high]);
            }
        // row[4 i + t] holds quads 4 i to 4 i + 3 of tokens t, 4 + t, 8 + t and 12 + t, a quarter each.
        for (int t = 0; t < 4; ++t) {
            const __m512i low = _mm512_shuffle_i32x4(row[t], row[4 + t], 0x88);
            const __m512i high = _mm512_shuffle_i32x4(row[t], row[4 + t], 0xdd);
            const __m512i low2 = _mm512_shuffle_i32x4(row[8 + t], row[12 + t], 0x88);
            const __m512i high2 = _mm512_shuffle_i32x4(row[8 + t], row[12 + t], 0xdd);
            token[t] = _mm512_shuffle_i32x4(low, low2, 0x88);
            token[4 + t] = _mm512_shuffle_i32x4(high, high2, 0x88);
            token[8 + t] = _mm512_shuffle_i32x4(low, low2, 0xdd);
            token[12 + t] = _mm512_shuffle_i32x4(high, high2, 0xdd);
        }
        // Where there are fewer features than bytes in a register, the next token takes the place of the rest.
        for (int t = 0; t < 16; ++t) _mm512_storeu_si512(turned + (half * 16 + t) * features, token[t]);
    }
    std::memcpy(keys, turned, static_cast<std::size_t>(kLanes * features));
}

void quantize_head_for_tiles(const float* query, const float* key, const float* value, int head_size, HeadTile head) {
    quantize_head<Vector16, interleave>(query, key, value, head_size, head);
    if (fits_tiles(head_size)) turn_keys(head.key, head_size);
}

// The products of integer attention on the matrix unit. Rows of scores are lanes from the start of the sequence's first
// tile on, so that keys are taken by whole tiles; what does not belong to the sequence has no weight.
template <class V, int N>
struct TileIntegers : Integers<V, N> {
    using Integers<V, N>::block, Integers<V, N>::kWidth;
    static constexpr int kStride = kWidth * 4;  // bytes of a row of queries, of scores, of weights

    int before() const { return block.first_lane % kLanes; }
    int end() const { return before() + block.length; }
    HeadTile tile(int row) const { return this->head(block.first_lane - before() + row); }

    // Products of the queries, in registers 0 to 2, with the keys of 16 rows.
    void multiply_keys(int row, float* scores) const {
        _tile_loadd(3, tile(row).key + row % kLanes * block.head_size, block.head_size);
        float* sums = scores + row * kWidth;
        _tile_zero(4);
        _tile_dpbsud(4, 3, 0);
        _tile_stored(4, sums, kStride);
        if constexpr (N > 1) {
            _tile_zero(5);
            _tile_dpbsud(5, 3, 1);
            _tile_stored(5, sums + 16, kStride);
        }
        if constexpr (N > 2) {
            _tile_zero(6);
            _tile_dpbsud(6, 3, 2);
            _tile_stored(6, sums + 32, kStride);
        }
        settle_memory();
    }

    void finish_scores(int row, const float* factors, float* scores, typename V::F (&highest)[N]) const {
        const HeadTile keys = tile(row);
        for (int key = std::max(row, before()); key < std::min(row + kTileRows, end()); ++key) {
            typename V::I sums[N];
            const auto* products = reinterpret_cast<const std::uint8_t*>(scores + key * kWidth);
            for (int n = 0; n < N; ++n)
                sums[n] = V::add_int(V::load_bytes(products + 64 * n), V::set_int(keys.key_start[key % kLanes]));
            this->finish_score(sums, keys, key % kLanes, factors, scores + key * kWidth, true, highest);
        }
    }

    void score_all(const std::uint8_t* queries, const float* factors, float* scores,
                   typename V::F (&highest)[N]) const {
        settle_memory();
        _tile_loadd(0, queries, kStride);
        if constexpr (N > 1) _tile_loadd(1, queries + 64, kStride);
        if constexpr (N > 2) _tile_loadd(2, queries + 128, kStride);
        const int first = before() / kTileRows * kTileRows;
        multiply_keys(first, scores);  // always a step ahead of the vector unit
        for (int row = first; row < end(); row += kTileRows) {
            if (row + kTileRows < end()) multiply_keys(row + kTileRows, scores);
            finish_scores(row, factors, scores, highest);
        }
    }

    // sums[16][kWidth] of 16 neighbouring features, in registers 0 to 2: values in 6 meet weights in 7.
    void multiply_values(int feature, const std::uint8_t* weights, std::int32_t* sums) const {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        for (int row = 0; row < end(); row += kLanes, weights += kLanes * kWidth) {
            _tile_loadd(6, tile(row).value + feature * kLanes, kLanes);
            _tile_loadd(7, weights, kStride);
            _tile_dpbsud(0, 6, 7);
            if constexpr (N > 1) {
                _tile_loadd(7, weights + 64, kStride);
                _tile_dpbsud(1, 6, 7);
            }
            if constexpr (N > 2) {
                _tile_loadd(7, weights + 128, kStride);
                _tile_dpbsud(2, 6, 7);
            }
        }
        _tile_stored(0, sums, kStride);
        if constexpr (N > 1) _tile_stored(1, sums + 16, kStride);
        if constexpr (N > 2) _tile_stored(2, sums + 32, kStride);
        settle_memory();
    }

    void run(float* scratch) const {
        auto* queries = reinterpret_cast<std::uint8_t*>(scratch);
        float* scores = scratch + block.head_size / kQuad * kWidth;
        alignas(64) float factors[kWidth], inverse[kWidth];
        this->take_queries(queries, factors);
        typename V::F highest[N];
        for (auto& h : highest) h = V::set(-3e38f);
        const TileShape query{block.head_size / kQuad, kTileBytes}, key{kTileRows, block.head_size};
        Tiles tiles({query, query, query, key, kSums, kSums, kSums, kSums});
        score_all(queries, factors, scores, highest);
        auto* weights = reinterpret_cast<std::uint8_t*>(scores);
        this->weigh_all(scores + before() * kWidth, weights + before() * kWidth, highest, inverse);
        const int written = (end() + kQuad - 1) / kQuad * kQuad, wanted = (end() + kLanes - 1) / kLanes * kLanes;
        std::memset(weights, 0, static_cast<std::size_t>(before() * kWidth));
        std::memset(weights + written * kWidth, 0, static_cast<std::size_t>((wanted - written) * kWidth));
        settle_memory();
        const TileShape value{kTileRows, kLanes}, weight{kLanes / kQuad, kTileBytes};
        tiles.configure({kSums, kSums, kSums, kSums, kSums, kSums, value, weight});
        for (int feature = 0; feature < block.head_size; feature += kTileRows) {
            alignas(64) std::int32_t sums[kTileRows * kWidth];
            multiply_values(feature, weights, sums);
            for (int f = 0; f < kTileRows; ++f) {
                typename V::I row[N];
                const auto* bytes = reinterpret_cast<const std::uint8_t*>(sums + f * kWidth);
                for (int n = 0; n < N; ++n) row[n] = V::load_bytes(bytes + 64 * n);
                this->finish_feature(row, feature + f, inverse);
            }
        }
    }
};

void integer_attention_on_tiles(const IntegerAttentionBlock& block, float* scratch) {
    if (fits_tiles(block.head_size)) return integer_attention<Vector16, TileIntegers>(block, scratch);
    integer_attention<Vector16>(block, scratch);
}

}  // namespace

const Kernels& amx_int8_kernels() {
    static constexpr Kernels kernels{
        .name = "amx_int8",
        .tiles = 2,
        .quad_tiles = 4,
        .query_groups = kQueryGroups<Vector16>,
        .costs = {1.42f, 0.8f, 2.5f, 1.35f, 44.0f},
        .products = {multiply_survivors, in_pairs<multiply_blocks_1x4>, multiply_blocks_4x1, in_pairs<multiply_dense>,
                     multiply_masked},
        .interleave = interleave,
        .dequantize = dequantize<Vector16, false>,
        .dequantize_gelu = dequantize<Vector16, true>,
        .quantize = quantize<Vector16, Vector8>,
        .quantize_quads = quantize_quads<Vector16, Vector8>,
        .layer_norm = layer_norm<Vector16, Vector8>,
        .softmax = softmax<Vector16, Vector8>,
        .attention = attention<Vector16>,
        .quantize_head = quantize_head_for_tiles,
        .integer_attention = integer_attention_on_tiles,
        .dense = dense<Vector8>,
    };
    return kernels;
}

}  // namespace sparselane
