// Attention in floats and in 8 bits, written once for the vector classes of kernels_vector.h, which says what those
// offer and why everything is in an unnamed namespace. Included by the kernels_<isa>.cpp files alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels_vector.h"

namespace sparselane {
namespace {

// ---- In floats ------------------------------------------------------------------------------------------------------

// exp(x) for x <= 0; see kernels_reference.cpp.
template <class V>
inline typename V::F exp_negative(typename V::F x) {
    const auto within = V::max(V::set(kExpEnd), x);  // no number stays no number
    const auto n = V::round(V::mul(within, V::set(kLog2E)));
    auto r = V::fnma(n, V::set(kLn2High), within);
    r = V::fnma(n, V::set(kLn2Low), r);
    constexpr int kTerms = sizeof kExp / sizeof kExp[0];
    auto sum = V::set(kExp[kTerms - 1]);
    for (int i = kTerms - 2; i >= 0; --i) sum = V::fma(sum, r, V::set(kExp[i]));
    return V::zero_if_less(x, V::set(kExpEnd), V::mul(sum, V::power_of_two(n)));
}

// scores[key][stride]: N vectors of each.
template <class V, int N>
void softmax_vectors(float* scores, int stride, int keys, float* inverse) {
    typename V::F highest[N], sum[N];
    const auto at = [&](int k, int n) { return scores + k * stride + n * V::lanes; };
    for (int n = 0; n < N; ++n) {
        highest[n] = V::load(at(0, n));
        sum[n] = V::set(0.0f);
    }
    for (int k = 1; k < keys; ++k)
        for (int n = 0; n < N; ++n) highest[n] = V::max(highest[n], V::load(at(k, n)));
    for (int k = 0; k < keys; ++k)
        for (int n = 0; n < N; ++n) {
            const auto value = exp_negative<V>(V::sub(V::load(at(k, n)), highest[n]));
            V::store(at(k, n), value);
            sum[n] = V::add(sum[n], value);
        }
    for (int n = 0; n < N; ++n) V::store(inverse + n * V::lanes, V::div(V::set(1.0f), sum[n]));
}

template <class V, class Small>
void softmax(float* scores, int keys, int groups, float* inverse) {
    int lane = 0;
    for (; lane + V::lanes <= groups * kGroup; lane += V::lanes)
        softmax_vectors<V, 1>(scores + lane, groups * kGroup, keys, inverse + lane);
    for (; lane < groups * kGroup; lane += Small::lanes)
        softmax_vectors<Small, 1>(scores + lane, groups * kGroup, keys, inverse + lane);
}

// scores[key][N vectors] for V::keys neighbouring keys, which lie in one tile; `queries` is [head_size][N vectors].
template <class V, int N>
inline void score_keys(const float* queries, const float* keys, int head_size, float* scores) {
    typename V::F sums[V::keys][N];
    for (auto& row : sums)
        for (auto& sum : row) sum = V::set(0.0f);
    for (int d = 0; d < head_size; ++d) {
        typename V::F query[N];
        for (int n = 0; n < N; ++n) query[n] = V::load(queries + (d * N + n) * V::lanes);
        for (int k = 0; k < V::keys; ++k) {
            const auto key = V::set(keys[d * kLanes + k]);
            for (int n = 0; n < N; ++n) sums[k][n] = V::fma(query[n], key, sums[k][n]);
        }
    }
    for (int k = 0; k < V::keys; ++k)
        for (int n = 0; n < N; ++n) V::store(scores + (k * N + n) * V::lanes, sums[k][n]);
}

// context[d][lane] for D neighbouring features: the keys of the sequence one after another, tile by tile.
template <class V, int N, int D>
inline void mix_values(const AttentionBlock& b, int first_feature, const float* weights, const float* inverse) {
    typename V::F sums[D][N];
    for (auto& row : sums)
        for (auto& sum : row) sum = V::set(0.0f);
    for (int k = 0; k < b.length;) {
        const int lane = b.first_lane + k;
        const float* value = b.value + (lane / kLanes) * b.tile_stride + first_feature * kLanes + lane % kLanes;
        const int stop = std::min(b.length, k + kLanes - lane % kLanes);
        for (; k < stop; ++k, ++value) {
            typename V::F weight[N];
            for (int n = 0; n < N; ++n) weight[n] = V::load(weights + (k * N + n) * V::lanes);
            for (int d = 0; d < D; ++d) {
                const auto v = V::set(value[d * kLanes]);
                for (int n = 0; n < N; ++n) sums[d][n] = V::fma(weight[n], v, sums[d][n]);
            }
        }
    }
    for (int d = 0; d < D; ++d) {
        float mixed[N * V::lanes];
        for (int n = 0; n < N; ++n) V::store(mixed + n * V::lanes, V::mul(sums[d][n], V::load(inverse + n * V::lanes)));
        for (int g = 0; g < b.groups; ++g) {  // the last vector may be wider than the block
            const int lane = b.first_query + g * kGroup;
            std::memcpy(b.context + (lane / kLanes) * b.tile_stride + (first_feature + d) * kLanes + lane % kLanes,
                        mixed + g * kGroup, kGroup * sizeof(float));
        }
    }
}

template <class V, int N>
void attention_vectors(const AttentionBlock& b, float* scratch) {
    constexpr int kWidth = N * V::lanes;
    float* queries = scratch;
    float* scores = scratch + b.head_size * kWidth;
    float inverse[kWidth];
    const float scale = 1.0f / std::sqrt(static_cast<float>(b.head_size));
    for (int g = 0; g < kWidth / kGroup; ++g) {
        const int lane = b.first_query + g * kGroup;
        const float* query = b.query + (lane / kLanes) * b.tile_stride + lane % kLanes;
        for (int d = 0; d < b.head_size; ++d)
            for (int i = 0; i < kGroup; ++i)
                queries[d * kWidth + g * kGroup + i] = g < b.groups ? query[d * kLanes + i] * scale : 0.0f;
    }
    for (int k = 0; k < b.length; k += V::keys) {  // the last ones may be padding; nothing reads those scores
        const int lane = b.first_lane + k;
        score_keys<V, N>(queries, b.key + (lane / kLanes) * b.tile_stride + lane % kLanes, b.head_size,
                         scores + k * kWidth);
    }
    softmax_vectors<V, N>(scores, kWidth, b.length, inverse);
    int d = 0;
    for (; d + V::features <= b.head_size; d += V::features) mix_values<V, N, V::features>(b, d, scores, inverse);
    for (; d < b.head_size; ++d) mix_values<V, N, 1>(b, d, scores, inverse);
}

// ---- In 8 bits ------------------------------------------------------------------------------------------------------

// Levels of 32 tokens, [features][32], as level + 128; scales, their inverses, and -128 x the sum of levels.
template <class V>
void symmetric_levels(const float* x, int features, int limit, std::uint8_t* levels, float* scales, float* inverses,
                      std::int32_t* starts) {
    constexpr int N = kLanes / V::lanes;
    typename V::F low[N], high[N], inverse[N];
    typename V::I sum[N];
    for (int n = 0; n < N; ++n) low[n] = high[n] = V::set(0.0f), sum[n] = V::set_int(0);
    for (int f = 0; f < features; ++f)
        for (int n = 0; n < N; ++n) {
            const auto value = V::load(x + f * kLanes + n * V::lanes);
            low[n] = V::min(low[n], value);
            high[n] = V::max(high[n], value);
        }
    for (int n = 0; n < N; ++n) {
        const auto largest = V::max(high[n], V::mul(low[n], V::set(-1.0f)));
        const auto step = V::mul(largest, V::set(1.0f / static_cast<float>(limit)));
        const auto scale = V::max(step, V::set(kSmallestScale));
        inverse[n] = V::div(V::set(1.0f), scale);
        V::store(scales + n * V::lanes, scale);
        V::store(inverses + n * V::lanes, inverse[n]);
    }
    for (int f = 0; f < features; ++f) {
        typename V::I all[N];
        for (int n = 0; n < N; ++n) {
            const auto exact = V::to_int(V::mul(V::load(x + f * kLanes + n * V::lanes), inverse[n]));
            const auto level = V::clamp_int(exact, -limit, limit);
            sum[n] = V::add_int(sum[n], level);
            all[n] = V::add_int(level, V::set_int(128));
        }
        V::store_bytes(levels + f * kLanes, all);
    }
    for (int n = 0; n < N; ++n) V::store_int(starts + n * V::lanes, V::mul_int(sum[n], V::set_int(-kQueryOffset)));
}

// From level + 128 to the level as an int8, which is to turn the highest bit over.
inline void turn_signed(std::uint8_t* levels, int count) {
    for (int i = 0; i < count; ++i) levels[i] ^= 0x80;
}

template <class V>
inline typename V::F log2_normal(typename V::F x) {
    typename V::F rest;
    const auto exponent = V::split(x, rest);
    rest = V::sub(rest, V::set(1.0f));
    constexpr int kTerms = sizeof kLog2 / sizeof kLog2[0];
    auto sum = V::set(kLog2[kTerms - 1]);
    for (int i = kTerms - 2; i >= 0; --i) sum = V::fma(sum, rest, V::set(kLog2[i]));
    return V::add(exponent, sum);
}

// Query and key pass through the room of the value on their way to quads.
template <class V, auto Interleave>
void quantize_head(const float* query, const float* key, const float* value, int head_size, HeadTile head) {
    const float factor = 1.44269504f / std::sqrt(static_cast<float>(head_size));
    float unused[kLanes];
    std::int32_t unused_starts[kLanes];
    auto* levels = reinterpret_cast<std::uint8_t*>(head.value);  // the value itself comes last
    symmetric_levels<V>(query, head_size, kQueryLimit, levels, head.query_factor, unused, unused_starts);
    for (int t = 0; t < kLanes; ++t) head.query_factor[t] *= factor;
    Interleave(levels, kLanes, head_size, head.query);
    symmetric_levels<V>(key, head_size, kKeyLimit, levels, head.key_scale, unused, head.key_start);
    turn_signed(levels, head_size * kLanes);
    Interleave(levels, kLanes, head_size, reinterpret_cast<std::uint8_t*>(head.key));
    symmetric_levels<V>(value, head_size, kKeyLimit, levels, head.value_log2, head.value_inverse, unused_starts);
    turn_signed(levels, head_size * kLanes);
    for (int t = 0; t < kLanes; t += V::lanes)
        V::store(head.value_log2 + t, log2_normal<V>(V::load(head.value_log2 + t)));
}

// What the parts of integer attention share: N vectors of queries, and where a key's numbers are.
template <class V, int N>
struct Integers {
    static constexpr int kWidth = N * V::lanes;
    const IntegerAttentionBlock& block;

    HeadTile head(int lane) const {
        return HeadTile(block.heads + static_cast<std::size_t>(lane / kLanes) * block.tile_stride, block.head_size);
    }

    // scores[key][kWidth] in powers of two for V::keys neighbouring keys, of which `count` are the sequence's; raises
    // `highest`.
    void score(const std::uint8_t* queries, const float* factors, int key, int count, float* scores,
               typename V::F (&highest)[N]) const {
        const int lane = block.first_lane + key, at = lane % kLanes;
        const HeadTile keys = head(lane);
        typename V::I sums[V::keys][N];
        for (int k = 0; k < V::keys; ++k)
            for (auto& sum : sums[k]) sum = V::set_int(keys.key_start[at + k]);
        const std::int8_t* quad = keys.key + at * kQuad;
        for (int j = 0; j < quads(); ++j, quad += kLanes * kQuad) {
            typename V::I query[N];
            for (int n = 0; n < N; ++n) query[n] = V::load_bytes(queries + (j * N + n) * V::lanes * kQuad);
            for (int k = 0; k < V::keys; ++k) {
                const auto levels = V::set_quad(quad + k * kQuad);
                for (int n = 0; n < N; ++n) sums[k][n] = V::dot(sums[k][n], query[n], levels);
            }
        }
        for (int k = 0; k < V::keys; ++k)
            finish_score(sums[k], keys, at + k, factors, scores + k * kWidth, k < count, highest);
    }

    // Scores from the products of queries with the key at lane `at` of its tile; raises `highest` if the key `counts`.
    void finish_score(const typename V::I (&sums)[N], const HeadTile& keys, int at, const float* factors, float* scores,
                      bool counts, typename V::F (&highest)[N]) const {
        const auto scale = V::set(keys.key_scale[at]), value = V::set(keys.value_log2[at]);
        for (int n = 0; n < N; ++n) {
            const auto factor = V::load(factors + n * V::lanes);
            const auto score = V::fma(V::mul(V::to_float(sums[n]), factor), scale, value);
            V::store(scores + n * V::lanes, score);
            if (counts) highest[n] = V::max(highest[n], score);
        }
    }

    static typename V::F weight(typename V::F x) {
        x = V::max(x, V::set(kExp2End));
        const auto n = V::round(x), rest = V::sub(x, n);
        constexpr int kTerms = sizeof kExp2 / sizeof kExp2[0];
        auto sum = V::set(kExp2[kTerms - 1]);
        for (int i = kTerms - 2; i >= 0; --i) sum = V::fma(sum, rest, V::set(kExp2[i]));
        return V::times_power_of_two(sum, n);
    }

    // The weights of four neighbouring keys as bytes, `count` of which are the sequence's.
    template <int Count>
    void weigh(const float* scores, const float* inverses, const typename V::F (&highest)[N], typename V::F (&sum)[N],
               std::uint8_t* weights) const {
        for (int n = 0; n < N; ++n) {
            typename V::I levels[kQuad];
            for (int k = 0; k < kQuad; ++k) levels[k] = V::set_int(0);
            for (int k = 0; k < Count; ++k) {
                const auto exact = weight(V::sub(V::load(scores + (k * N + n) * V::lanes), highest[n]));
                sum[n] = V::fma(exact, V::set(inverses[k]), sum[n]);
                levels[k] = V::to_int(exact);
            }
            V::store_bytes(weights + n * V::lanes * kQuad, V::pack_quad(levels[0], levels[1], levels[2], levels[3]));
        }
    }

    // weights[ceil(keys / 4)][kWidth][4], which may take the place of the scores; inverse[kWidth] = 1 / their sum.
    void weigh_all(const float* scores, std::uint8_t* weights, const typename V::F (&highest)[N],
                   float* inverse) const {
        typename V::F sum[N];
        for (auto& s : sum) s = V::set(0.0f);
        for (int k = 0; k < block.length; k += kQuad, weights += kWidth * kQuad) {
            const int lane = block.first_lane + k;
            const float *from = scores + k * kWidth, *inverses = head(lane).value_inverse + lane % kLanes;
            const int count = std::min(kQuad, block.length - k);
            if (count == 4) weigh<4>(from, inverses, highest, sum, weights);
            if (count == 3) weigh<3>(from, inverses, highest, sum, weights);
            if (count == 2) weigh<2>(from, inverses, highest, sum, weights);
            if (count == 1) weigh<1>(from, inverses, highest, sum, weights);
        }
        for (int n = 0; n < N; ++n) V::store(inverse + n * V::lanes, V::div(V::set(1.0f), sum[n]));
    }

    // context[feature][lane] for D neighbouring features.
    template <int D>
    void mix(int feature, const std::uint8_t* weights, const float* inverse) const {
        typename V::I sums[D][N];
        for (auto& row : sums)
            for (auto& sum : row) sum = V::set_int(0);
        for (int k = 0; k < block.length;) {
            const int lane = block.first_lane + k;
            const std::int8_t* value = head(lane).value + feature * kLanes + lane % kLanes;
            const int stop = std::min(block.length, k + kLanes - lane % kLanes);
            for (; k < stop; k += kQuad, value += kQuad, weights += kWidth * kQuad) {
                typename V::I weight[N];
                for (int n = 0; n < N; ++n) weight[n] = V::load_bytes(weights + n * V::lanes * kQuad);
                for (int d = 0; d < D; ++d) {
                    const auto levels = V::set_quad(value + d * kLanes);
                    for (int n = 0; n < N; ++n) sums[d][n] = V::dot(sums[d][n], weight[n], levels);
                }
            }
        }
        for (int d = 0; d < D; ++d) finish_feature(sums[d], feature + d, inverse);
    }

    // context[feature][lane] from the products of values with weights.
    void finish_feature(const typename V::I (&sums)[N], int feature, const float* inverse) const {
        float mixed[kWidth];
        for (int n = 0; n < N; ++n)
            V::store(mixed + n * V::lanes, V::mul(V::to_float(sums[n]), V::load(inverse + n * V::lanes)));
        for (int g = 0; g < block.groups; ++g) {  // the last vector may be wider than the block
            const int lane = block.first_query + g * kGroup;
            std::memcpy(block.context + static_cast<std::size_t>(lane / kLanes) * block.context_stride +
                            feature * kLanes + lane % kLanes,
                        mixed + g * kGroup, kGroup * sizeof(float));
        }
    }

    int quads() const { return (block.head_size + kQuad - 1) / kQuad; }

    // The block's queries side by side, [quads][kWidth][4], and the factors of their scores.
    void take_queries(std::uint8_t* queries, float* factors) const {
        const int count = quads();
        for (int g = 0; g < kWidth / kGroup; ++g) {  // beyond the block: its first queries again, which nobody reads
            const int lane = block.first_query + (g < block.groups ? g : 0) * kGroup;
            const HeadTile from = head(lane);
            std::memcpy(factors + g * kGroup, from.query_factor + lane % kLanes, kGroup * sizeof(float));
            for (int j = 0; j < count; ++j)
                std::memcpy(queries + (j * kWidth + g * kGroup) * kQuad,
                            from.query + (j * kLanes + lane % kLanes) * kQuad, kGroup * kQuad);
        }
    }

    void run(float* scratch) const {
        auto* queries = reinterpret_cast<std::uint8_t*>(scratch);
        float* scores = scratch + quads() * kWidth;
        float factors[kWidth], inverse[kWidth];
        take_queries(queries, factors);
        typename V::F highest[N];
        for (auto& h : highest) h = V::set(-3e38f);
        for (int k = 0; k < block.length; k += V::keys)
            score(queries, factors, k, std::min(V::keys, block.length - k), scores + k * kWidth, highest);
        auto* weights = reinterpret_cast<std::uint8_t*>(scores);
        weigh_all(scores, weights, highest, inverse);
        int d = 0;
        for (; d + V::features <= block.head_size; d += V::features) mix<V::features>(d, weights, inverse);
        for (; d < block.head_size; ++d) mix<1>(d, weights, inverse);
    }
};

// ---- Any number of queries ------------------------------------------------------------------------------------------

// Up to three units of queries at once; a unit is a vector, or a group of 8 lanes where vectors are narrower.
template <class V>
inline constexpr int kQueryUnit = V::lanes < kGroup ? kGroup / V::lanes : 1;
template <class V>
inline constexpr int kQueryGroups = 3 * kQueryUnit<V> * V::lanes / kGroup;

template <class V>
int query_units(int groups) {
    constexpr int kUnitGroups = kQueryUnit<V> * V::lanes / kGroup;
    return (groups + kUnitGroups - 1) / kUnitGroups;
}

template <class V>
void attention(const AttentionBlock& block, float* scratch) {
    constexpr int kUnit = kQueryUnit<V>;
    const int units = query_units<V>(block.groups);
    if (units == 3) return attention_vectors<V, 3 * kUnit>(block, scratch);
    if (units == 2) return attention_vectors<V, 2 * kUnit>(block, scratch);
    attention_vectors<V, kUnit>(block, scratch);
}

template <class V, template <class, int> class Way = Integers>
void integer_attention(const IntegerAttentionBlock& block, float* scratch) {
    constexpr int kUnit = kQueryUnit<V>;
    const int units = query_units<V>(block.groups);
    if (units == 3) return Way<V, 3 * kUnit>{block}.run(scratch);
    if (units == 2) return Way<V, 2 * kUnit>{block}.run(scratch);
    Way<V, kUnit>{block}.run(scratch);
}

}  // namespace
}  // namespace sparselane
