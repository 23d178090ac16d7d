// The functions that differ from one instruction set to the next, as a table. kernels_reference.cpp defines them.
//
// Every kernel is vertical: a lane is a token, and what happens in one lane depends neither on the other lanes nor on
// how many of them are worked on at once. That is why an answer has the same bits alone, in any batch, on any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"
#include "packed.h"

namespace sparselane {

// 24 queries x 4 keys fill 12 of the 16 AVX2 registers with sums; the others hold the operands.
inline constexpr int kQueryGroups = 3;
inline constexpr int kQueryLanes = kQueryGroups * kGroup;

// One head, one sequence, up to 24 of its queries. The pointers stand at feature 0 of the head in tile 0.
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
    int groups;               // 1 to kQueryGroups groups of queries
};

// Floats of scratch that attention needs for one block: scaled queries, then scores for every key.
inline std::size_t attention_scratch(int head_size, int length) {
    return static_cast<std::size_t>(head_size + (length + kGroup - 1) / kGroup * kGroup) * kQueryLanes;
}

struct Kernels {
    const char* name;

    // sums[r][32] = rows [first, first + count) of w times x[columns][32], exact. x is aligned to 32 bytes.
    void (*spmm)(const PackedMatrix& w, int first, int count, const std::uint8_t* x, std::int32_t* sums);

    // y[r][32] = (row scale * token scale) * (sum - zero * row sum) + bias (+ residual[r][32] unless null;
    // residual may be y).
    void (*dequantize)(const PackedMatrix& w, int first, int count, const std::int32_t* sums, const float* scales,
                       const std::int32_t* zeros, const float* residual, float* y);

    // q[features][32], one scale and zero point per token, from x[features][32]; lanes of `groups` groups from x on.
    void (*quantize)(const float* x, int features, int groups, std::uint8_t* q, float* scales, std::int32_t* zeros);

    // x = gelu(x), with erf, in place.
    void (*gelu)(float* x, std::size_t count);

    // x[features][32] = (x - mean) / sqrt(variance + epsilon) * weight + bias, in place, `groups` groups of lanes.
    void (*layer_norm)(float* x, int features, int groups, const float* weight, const float* bias, float epsilon);

    // scores[keys][groups * 8]: exp(score - highest of its lane) in place; inverse[lane] = 1 / sum over the keys.
    void (*softmax)(float* scores, int keys, int groups, float* inverse);

    // context = softmax(query . key / sqrt(head_size)) . value.
    void (*attention)(const AttentionBlock& block, float* scratch);

    // y[rows][32] = w[rows][columns] x[columns][32] + bias, fp32, `groups` groups of lanes: the task head.
    void (*dense)(const float* w, const float* bias, int rows, int columns, const float* x, int groups, float* y);
};

const Kernels& reference_kernels();
#ifdef SPARSELANE_AVX2
const Kernels& avx2_kernels();
#endif

}  // namespace sparselane
