// The kernels for AMX: a matrix unit multiplies dense tiles of 16 rows x 64 columns by 64 columns x 16 tokens, 16,384
// products in 16 cycles. Weights lie in memory as masks and survivors (Format::masked) and become dense on the way, 64 at
// a time, in the first-level cache. Quads of levels are already what the unit calls a tile, and its sums are ours. All
// other kernels are those of AVX-512.
#include "kernels_zmm.h"

namespace sparselane {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64;  // of a row
// Steps whose dense weights lie in the first-level cache, 2 KiB each, beside the levels that they meet. With 12 they and
// a tile of 768 columns would fill all of it: 30 % slower.
constexpr int kPanelSteps = 6;
// Steps by which weights are made dense before they are read, so that a tile is not read from the stores just made.
constexpr int kAhead = 1;

// Says how large the eight tile registers are: 0 to 3 sums, 4 and 5 weights, 6 and 7 levels of `quads` quads of columns.
class Tiles {
public:
    explicit Tiles(int quads) { configure(quads); }
    ~Tiles() { _tile_release(); }  // so that the system need not save them
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    void configure(int quads) {  // as the processor's manual has it
        struct alignas(64) {
            std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
            std::uint16_t row_bytes[16] = {};
            std::uint8_t rows[16] = {};
        } shape;
        static_assert(sizeof shape == 64);
        for (int tile = 0; tile < 8; ++tile) {
            const bool weights = tile == 4 || tile == 5, levels = tile > 5;
            shape.row_bytes[tile] = static_cast<std::uint16_t>(weights ? quads * kQuad : kTileBytes);
            shape.rows[tile] = static_cast<std::uint8_t>(levels ? quads : kTileRows);
        }
        _tile_loadconfig(&shape);
    }
};

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
    Tiles tiles(kTileRows);
    for (int step = 0; step < whole; step += kPanelSteps)
        panel.multiply(std::min(kPanelSteps, whole - step), input, step * kMaskColumns, sums);
    if (rest == 0) return;
    tiles.configure((rest + kQuad - 1) / kQuad);
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
        .quantize_head = quantize_head<Vector16, interleave>,
        .integer_attention = integer_attention<Vector16>,
        .dense = dense<Vector8>,
    };
    return kernels;
}

}  // namespace sparselane
