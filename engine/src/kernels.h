// The functions that differ from one instruction set to the next, as a table. kernels_reference.cpp defines them.
//
// Every kernel is vertical: a lane is a token, and what happens in one lane depends neither on the other lanes nor on
// how many of them are worked on at once. That is why an answer has the same bits alone, in any batch, on any thread.
// And every kernel does the same operations in the same order, fused or not: the same bits on any instruction set.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "layout.h"
#include "packed.h"

namespace sparselane {

// Tiles that any product takes at once, at most, and groups of queries that any attention does.
inline constexpr int kMostTiles = 2;
inline constexpr int kMostQueryGroups = 6;

// The input of a product: the uint8 levels of `tiles` tiles, x[columns][32 * tiles], so that a column of two tiles is
// one cache line; or, where the format wants quads, x[tile][columns / 4][32][4].
struct ProductInput {
    const std::uint8_t* x;    // aligned to 64 bytes
    std::size_t tile_stride;  // bytes from a tile's quads to the next's
    int tiles;                // 1 to the kernels' own limit
};

// One head, one sequence, some of its queries. The pointers stand at feature 0 of the head in tile 0.
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

// Floats of scratch that attention needs for one block: scaled queries, then scores for every key.
inline std::size_t attention_scratch(int head_size, int length) {
    return static_cast<std::size_t>(head_size + (length + kGroup - 1) / kGroup * kGroup) * kMostQueryGroups * kGroup;
}

using Dequantize = void (*)(const PackedMatrix& w, int first, int count, const std::int32_t* sums, const float* scales,
                            const std::int32_t* zeros, const float* residual, float* y);

struct Kernels {
    const char* name;

    int tiles;         // that a product takes at once, 1 to kMostTiles
    int query_groups;  // that attention takes at once, 1 to kMostQueryGroups

    // Nanoseconds that a step of each format took for one tile on a 3.85 GHz Zen 5; only their ratios matter.
    // `python -m bench kernel` measures them again.
    std::array<float, kFormats> costs;

    // sums[tile][kRowBlock][32] = rows [first, first + count) of w times x, exact; one function for each format.
    // `first` is a multiple of kRowBlock, `count` at most kRowBlock; rows up to the next multiple of kPanel are
    // overwritten too.
    std::array<void (*)(const PackedMatrix& w, int first, int count, const ProductInput& x, std::int32_t* sums),
               kFormats>
        products;

    // quads[ceil(features / 4)][32][4] from q[features][32], its rows `stride` bytes apart; features beyond the last
    // are 0.
    void (*interleave)(const std::uint8_t* q, int stride, int features, std::uint8_t* quads);

    // y[r][32] = activation((row scale * token scale) * (sum - zero * row sum) + bias (+ residual[r][32] unless null)),
    // with none or gelu as activation; residual may be y.
    Dequantize dequantize, dequantize_gelu;

    // q[features][32], its rows `stride` bytes apart, and one scale and zero point per token, from x[features][32];
    // lanes of `groups` groups from x on.
    void (*quantize)(const float* x, int features, int groups, std::uint8_t* q, int stride, float* scales,
                     std::int32_t* zeros);

    // x[features][32] = (x - mean) / sqrt(variance + epsilon) * weight + bias, in place, `groups` groups of lanes.
    void (*layer_norm)(float* x, int features, int groups, const float* weight, const float* bias, float epsilon);

    // scores[keys][groups * 8]: exp(score - highest of its lane) in place; inverse[lane] = 1 / sum over the keys.
    void (*softmax)(float* scores, int keys, int groups, float* inverse);

    // context = softmax(query . key / sqrt(head_size)) . value.
    void (*attention)(const AttentionBlock& block, float* scratch);

    // y[rows][32] = w[rows][columns] x[columns][32] + bias, fp32, `groups` groups of lanes: the task head.
    void (*dense)(const float* w, const float* bias, int rows, int columns, const float* x, int groups, float* y);
};

// ---- Constants of the approximations, the same for every instruction set --------------------------------------------

// erf(x / sqrt(2)) / x for |x| <= kErfEnd as a polynomial in t = 2 x^2 / kErfEnd^2 - 1, fitted by least squares
// reweighted towards the largest error of x^2 / 2 times it. Beyond the end gelu is max(x, 0) to 2.1e-7. Together with
// rounding: |error of gelu| <= 6e-7 * max(1, |x|), tested against double precision.
inline constexpr float kErfEnd = 5.5f;
inline constexpr float kErf[] = {0.25710389f,    -0.128343955f,   0.0954712108f,  -0.07760939f,   0.0642271712f,
                                 -0.0518837757f, 0.0400591604f,   -0.0307466034f, 0.0228503998f,  -0.0125852302f,
                                 0.00495084841f, -0.00503662601f, 0.00518446229f, -0.00182341808f};

// exp(x) for kExpEnd <= x <= 0: Taylor terms for |r| <= ln(2) / 2, whose remainder is below 6e-9; ln 2 in two parts,
// the first of 15 bits, so that its product with a whole number is exact.
inline constexpr float kExpEnd = -87.0f;
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2High = 0.693145752f;
inline constexpr float kLn2Low = 1.42860677e-6f;
inline constexpr float kExp[] = {1.0f, 1.0f, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};

const Kernels& reference_kernels();
#ifdef SPARSELANE_AVX2
const Kernels& avx2_kernels();
const Kernels& avx_vnni_kernels();
const Kernels& avx512_vnni_kernels();
#endif
#ifdef SPARSELANE_NEON
const Kernels& neon_kernels();
#endif

}  // namespace sparselane
