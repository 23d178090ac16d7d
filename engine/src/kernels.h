// The functions that differ from one instruction set to the next, as a table. kernels_reference.cpp defines them.
//
// Every kernel is vertical: a lane is a token, and what happens in one lane depends neither on the other lanes nor on
// how many of them are worked on at once. That is why an answer has the same bits alone, in any batch, on any thread.
// And every kernel does the same operations in the same order, fused or not: the same bits on any instruction set.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "layout.h"
#include "packed.h"

namespace sparselane {

// Tiles that any product takes at once, at most, and groups of queries that any attention does.
inline constexpr int kMostTiles = 4;
inline constexpr int kMostQueryGroups = 6;

// The cost of a format that a set of kernels does not have; its product is null. The reference has all of them.
inline constexpr float kNever = std::numeric_limits<float>::infinity();

// The input of a product: the uint8 levels of `tiles` tiles, x[columns][32 * tiles], so that a column of two tiles is
// one cache line; or, where the format wants quads, x[tile][columns / 4][32][4].
struct ProductInput {
    const std::uint8_t* x;    // aligned to 64 bytes
    std::size_t tile_stride;  // bytes from a tile's quads to the next's
    int tiles;                // 1 to the kernels' own limit
    bool warm = false;        // the same rows met other tiles just now, so their weights are in the cache
};

// One head, one sequence, some of its queries, in float32. The pointers stand at feature 0 of the head in tile 0.
struct AttentionBlock {
    const float* query;
    const float* key;
    const float* value;
    float* context;
    std::size_t tile_stride;  // floats from a tile to the next
    int head_size;            // features of the head
    int first_lane;           // of the sequence, a multiple of kGroup
    int length;               // keys; lanes past them are padding and contribute nothing
    int first_query;          // lane of the first query, a multiple of kGroup
    int groups;               // 1 to the kernels' query_groups groups of queries
};

// One head of one tile in 8 bits, as attention in integers reads it. Query and key are interleaved by quads of
// features, [ceil(head_size / 4)][32][4]; value is [head_size][32]; the rest are 32 numbers, one a token. A set of
// kernels, whose quantize_head writes what its integer_attention reads, may order the bytes of a key as it likes.
struct HeadTile {
    std::uint8_t* query;  // level + 128
    std::int8_t* key;     // features beyond the last are 0
    std::int8_t* value;
    float* query_factor;  // scale of the query x log2(e) / sqrt(head_size)
    float* key_scale;
    std::int32_t* key_start;  // -128 x the sum of the key's levels: what the query's offset adds to a product
    float* value_log2;        // log2 of the value's scale
    float* value_inverse;     // 1 / the value's scale

    HeadTile(std::uint8_t* at, int head_size)
        : query(at),
          key(reinterpret_cast<std::int8_t*>(query + quads(head_size))),
          value(key + quads(head_size)),
          query_factor(reinterpret_cast<float*>(value + head_size * kLanes)),
          key_scale(query_factor + kLanes),
          key_start(reinterpret_cast<std::int32_t*>(key_scale + kLanes)),
          value_log2(reinterpret_cast<float*>(key_start + kLanes)),
          value_inverse(value_log2 + kLanes) {}

    // Bytes of one; a multiple of 64.
    static std::size_t bytes(int head_size) {
        const auto all = static_cast<std::size_t>(2 * quads(head_size) + head_size * kLanes + 5 * kLanes * 4);
        return (all + 63) / 64 * 64;
    }
    static int quads(int head_size) { return (head_size + kQuad - 1) / kQuad * kQuad * kLanes; }
};

// One head, one sequence, some of its queries, in 8 bits.
struct IntegerAttentionBlock {
    std::uint8_t* heads;                                     // the head's HeadTile in tile 0
    std::size_t tile_stride;                                 // bytes from a tile's to the next's
    float* context;                                          // feature 0 of the head in tile 0
    std::size_t context_stride;                              // floats from a tile to the next
    int head_size, first_lane, length, first_query, groups;  // as in AttentionBlock
};

// Floats of scratch, aligned to 64 bytes, that attention, either kind, needs for one block: queries, then scores for
// every key, and for the lanes before and behind them in their tiles.
inline std::size_t attention_scratch(int head_size, int length) {
    const int lanes = (kLanes - kGroup + length + kLanes - 1) / kLanes * kLanes;
    return static_cast<std::size_t>(head_size + lanes) * kMostQueryGroups * kGroup;
}

using Dequantize = void (*)(const PackedMatrix& w, int first, int count, const std::int32_t* sums, const float* scales,
                            const std::int32_t* zeros, const float* residual, float* y, float* range);

// "range" is [2][32], the lowest and the highest value of each token, widened to contain 0: what the quantizer needs
// first. Whoever has the values in registers keeps it; nullptr where nobody asks.

struct Kernels {
    const char* name;

    int tiles;         // that a product of levels takes at once, 1 or 2
    int quad_tiles;    // the same of quads, 1 to kMostTiles
    int query_groups;  // that attention takes at once, 1 to kMostQueryGroups

    // Nanoseconds that a step of each format took for one tile on a 3.85 GHz Zen 5 (those of AMX: on a 2.8 GHz Emerald
    // Rapids); only their ratios matter. `python -m bench kernel` measures them again.
    std::array<float, kFormats> costs;

    // sums[tile][kRowBlock][32] = rows [first, first + count) of w times x, exact; one function for each format.
    // `first` is a multiple of kRowBlock, `count` at most kRowBlock; the rows behind them may be overwritten too.
    std::array<void (*)(const PackedMatrix& w, int first, int count, const ProductInput& x, std::int32_t* sums),
               kFormats>
        products;

    // quads[ceil(features / 4)][32][4] from q[features][32], its rows `stride` bytes apart; features beyond the last
    // are 0.
    void (*interleave)(const std::uint8_t* q, int stride, int features, std::uint8_t* quads);

    // y[r][32] = activation((row scale * token scale) * (sum - zero * row sum) + bias (+ residual[r][32] unless null)),
    // with none or gelu as activation; residual may be y. Range as above.
    Dequantize dequantize, dequantize_gelu;

    // q[features][32], its rows `stride` bytes apart, and one scale and zero point per token, from x[features][32];
    // lanes of `groups` groups from x on. The range is that of the `bounds` rows [32] at `range`, which may be x
    // itself.
    void (*quantize)(const float* x, int features, int groups, const float* range, int bounds, std::uint8_t* q,
                     int stride, float* scales, std::int32_t* zeros);

    // The same, but quads[ceil(features / 4)][32][4] from its lane on, as interleave() leaves them.
    void (*quantize_quads)(const float* x, int features, int groups, const float* range, int bounds,
                           std::uint8_t* quads, float* scales, std::int32_t* zeros);

    // x[features][32] = (x - mean) / sqrt(variance + epsilon) * weight + bias, in place, `groups` groups of lanes.
    // Range as above.
    void (*layer_norm)(float* x, int features, int groups, const float* weight, const float* bias, float epsilon,
                       float* range);

    // scores[keys][groups * 8]: exp(score - highest of its lane) in place; inverse[lane] = 1 / sum over the keys.
    void (*softmax)(float* scores, int keys, int groups, float* inverse);

    // context = softmax(query . key / sqrt(head_size)) . value, in float32.
    void (*attention)(const AttentionBlock& block, float* scratch);

    // A head of a tile, [head_size][32] each, into 8 bits; and attention on it (docs/artifact.md, section 4).
    void (*quantize_head)(const float* query, const float* key, const float* value, int head_size, HeadTile head);
    void (*integer_attention)(const IntegerAttentionBlock& block, float* scratch);

    // y[rows][32] = w[rows][columns] x[columns][32] + bias, fp32, `groups` groups of lanes: the task head.
    void (*dense)(const float* w, const float* bias, int rows, int columns, const float* x, int groups, float* y);
};

// ---- Constants of the approximations, the same for every instruction set --------------------------------------------

// erf(x / sqrt(2)) / 2x for |x| <= kErfEnd as a polynomial in t = 2 x^2 / kErfEnd^2 - 1, fitted by least squares
// reweighted towards the largest error of x^2 times it. Beyond the end gelu is max(x, 0), as near. Together with
// rounding: |error of gelu| <= 4e-6 * max(1, |x|), a thousandth of a step of the quantizer behind it; tested against
// double precision.
inline constexpr float kErfEnd = 4.5f;
inline constexpr float kHalfErf[] = {0.15690587f, -0.07718547f, 0.054645587f, -0.0402483f,  0.028800597f,
                                     -0.0184153f, 0.009776539f, -0.00620919f, 0.004882012f, -0.0018426981f};

// A token whose values span less than 255 steps of this is all zeros: the inverse of a step stays far from overflow.
inline constexpr float kSmallestStep = 0x1p-100f;

// exp(x) for kExpEnd <= x <= 0: Taylor terms for |r| <= ln(2) / 2, whose remainder is below 6e-9; ln 2 in two parts,
// the first of 15 bits, so that its product with a whole number is exact.
inline constexpr float kExpEnd = -87.0f;
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2High = 0.693145752f;
inline constexpr float kLn2Low = 1.42860677e-6f;
inline constexpr float kExp[] = {1.0f, 1.0f, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};

// Attention in integers. Levels of keys and values stay in [-64, 64] for the reason that weights do; queries have 8
// bits beside their sign's offset. A scale is never below kSmallestScale: what is so small weighs nothing, and its
// inverse stays far from overflow.
inline constexpr int kKeyLimit = 64, kQueryLimit = 127, kQueryOffset = 128, kMostWeight = 255;
inline constexpr float kSmallestScale = 0x1p-20f;

// 255 x 2^x for |x| <= 1/2, relative error below 3e-6; powers below kExp2End are as good as none.
inline constexpr float kExp2[] = {254.999817f, 176.746063f, 61.2631f, 14.2590542f, 2.44037461f};
inline constexpr float kExp2End = -80.0f;

// log2(1 + x) for 0 <= x < 1, error below 3e-7.
inline constexpr float kLog2[] = {2.77309426e-7f, 1.44265628f,  -0.720453024f,  0.472897708f,
                                  -0.324253321f,  0.192088634f, -0.0780614614f, 0.0151251666f};

const Kernels& reference_kernels();
#ifdef SPARSELANE_AVX2
const Kernels& avx2_kernels();
const Kernels& avx_vnni_kernels();
const Kernels& avx512_vnni_kernels();
const Kernels& amx_int8_kernels();
#endif
#ifdef SPARSELANE_NEON
const Kernels& neon_kernels();
#endif

}  // namespace sparselane
