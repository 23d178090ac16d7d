// The float kernels, written once for vectors of any width. Included by the kernels_<isa>.cpp files alone, each of
// which defines its vector class first; everything is in an unnamed namespace, because the same template compiled with
// other flags is another function, and the linker must never take one for the other.
//
// Every operation of a lane is an IEEE operation in the order of kernels_reference.cpp, fused where std::fma stands
// there. That is why all instruction sets give the same bits.
//
// A vector class V offers: F (floats) and I (int32) of `lanes` lanes; load, store, set, load_int, store_int, set_int;
// add, sub, mul, div, sqrt, min, max (the second operand if one is no number); fma(a, b, c) = a b + c; fnma(a, b, c) =
// c - a b; round (halves to even), to_int (the same), to_float, add_int, sub_int, mul_int, clamp_int; power_of_two(n) =
// 2^n for a whole n in -126..127; if_zero(x, y) = x == 0 ? y : x; if_greater(a, b, x, y) = a > b ? x : y;
// zero_if_less(a, b, x) = a < b ? 0 : x; store_bytes(q, levels[N]): levels clipped to 0..255; and `keys`, `features`:
// how many sums per query vector the registers hold besides three query vectors (or 24 query lanes) of operands.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace sparselane {
namespace {

// ---- Between integers and floats, GELU
// ------------------------------------------------------------------------------------

template <class V>
inline typename V::F gelu(typename V::F x) {
    const auto t = V::fma(V::mul(x, x), V::set(2.0f / (kErfEnd * kErfEnd)), V::set(-1.0f));
    constexpr int kTerms = sizeof kErf / sizeof kErf[0];
    auto sum = V::set(kErf[kTerms - 1]);
    for (int i = kTerms - 2; i >= 0; --i) sum = V::fma(sum, t, V::set(kErf[i]));
    const auto half = V::mul(x, V::set(0.5f));
    const auto inside = V::fma(half, V::mul(x, sum), half);
    const auto outside = V::max(V::set(0.0f), x);
    return V::if_greater(V::max(x, V::mul(x, V::set(-1.0f))), V::set(kErfEnd), outside, inside);
}

// Multiplications and additions are kept apart here and in the quantizer: torch has no fused ones there.
template <class V, bool Gelu>
void dequantize(const PackedMatrix& w, int first, int count, const std::int32_t* sums, const float* scales,
                const std::int32_t* zeros, const float* residual, float* y) {
    for (int row = first; row < first + count; ++row, sums += kLanes, y += kLanes) {
        const auto r = static_cast<std::size_t>(row);
        const auto row_sum = V::set_int(w.row_sums[r]);
        const auto row_scale = V::set(w.scales[r]), bias = V::set(w.biases[r]);
        for (int lane = 0; lane < kLanes; lane += V::lanes) {
            const auto exact = V::sub_int(V::load_int(sums + lane), V::mul_int(V::load_int(zeros + lane), row_sum));
            const auto scale = V::mul(row_scale, V::load(scales + lane));
            auto value = V::add(V::mul(scale, V::to_float(exact)), bias);
            if (residual != nullptr) value = V::add(value, V::load(residual + lane));
            V::store(y + lane, Gelu ? gelu<V>(value) : value);
        }
        if (residual != nullptr) residual += kLanes;
    }
}

// N neighbouring vectors of lanes.
template <class V, int N>
void quantize_vectors(const float* x, int features, std::uint8_t* q, int stride, float* scales, std::int32_t* zeros) {
    typename V::F low[N], high[N], scale[N];
    typename V::I zero[N];
    for (int n = 0; n < N; ++n) low[n] = high[n] = V::set(0.0f);
    for (int f = 0; f < features; ++f)
        for (int n = 0; n < N; ++n) {
            const auto value = V::load(x + f * kLanes + n * V::lanes);
            low[n] = V::min(low[n], value);
            high[n] = V::max(high[n], value);
        }
    for (int n = 0; n < N; ++n) {
        scale[n] = V::if_zero(V::div(V::sub(high[n], low[n]), V::set(255.0f)), V::set(1.0f));
        zero[n] = V::clamp_int(V::to_int(V::div(V::mul(low[n], V::set(-1.0f)), scale[n])), 0, 255);
        V::store(scales + n * V::lanes, scale[n]);
        V::store_int(zeros + n * V::lanes, zero[n]);
    }
    for (int f = 0; f < features; ++f) {
        typename V::I levels[N];
        for (int n = 0; n < N; ++n)
            levels[n] = V::add_int(V::to_int(V::div(V::load(x + f * kLanes + n * V::lanes), scale[n])), zero[n]);
        V::store_bytes(q + f * stride, levels);
    }
}

// V works on whole tiles, Small on single groups of 8 lanes; the instructions, and so the bits, are of one kind.
template <class V, class Small>
void quantize(const float* x, int features, int groups, std::uint8_t* q, int stride, float* scales,
              std::int32_t* zeros) {
    if (groups == kGroups) return quantize_vectors<V, kLanes / V::lanes>(x, features, q, stride, scales, zeros);
    for (int lane = 0; lane < groups * kGroup; lane += kGroup)
        quantize_vectors<Small, kGroup / Small::lanes>(x + lane, features, q + lane, stride, scales + lane,
                                                       zeros + lane);
}

// ---- LayerNorm
// -------------------------------------------------------------------------------------------------------

template <class V, int N>
void layer_norm_vectors(float* x, int features, const float* weight, const float* bias, float epsilon) {
    const auto count = V::set(static_cast<float>(features));
    typename V::F mean[N], inverse[N];
    for (int n = 0; n < N; ++n) mean[n] = inverse[n] = V::set(0.0f);
    const auto at = [&](int f, int n) { return x + f * kLanes + n * V::lanes; };
    for (int f = 0; f < features; ++f)
        for (int n = 0; n < N; ++n) mean[n] = V::add(mean[n], V::load(at(f, n)));
    for (int n = 0; n < N; ++n) mean[n] = V::div(mean[n], count);
    for (int f = 0; f < features; ++f)
        for (int n = 0; n < N; ++n) {
            const auto centered = V::sub(V::load(at(f, n)), mean[n]);
            inverse[n] = V::fma(centered, centered, inverse[n]);
        }
    for (int n = 0; n < N; ++n) {
        const auto variance = V::add(V::div(inverse[n], count), V::set(epsilon));
        inverse[n] = V::div(V::set(1.0f), V::sqrt(variance));
    }
    for (int f = 0; f < features; ++f) {
        const auto w = V::set(weight[f]), b = V::set(bias[f]);
        for (int n = 0; n < N; ++n) {
            const auto normal = V::mul(V::sub(V::load(at(f, n)), mean[n]), inverse[n]);
            V::store(at(f, n), V::fma(normal, w, b));
        }
    }
}

template <class V, class Small>
void layer_norm(float* x, int features, int groups, const float* weight, const float* bias, float epsilon) {
    if (groups == kGroups) return layer_norm_vectors<V, kLanes / V::lanes>(x, features, weight, bias, epsilon);
    for (int lane = 0; lane < groups * kGroup; lane += kGroup)
        layer_norm_vectors<Small, kGroup / Small::lanes>(x + lane, features, weight, bias, epsilon);
}

// ---- Attention ------------------------------------------------------------------------------------------------------

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

// Up to three units of queries at once; a unit is a vector, or a group of 8 lanes where vectors are narrower.
template <class V>
inline constexpr int kQueryUnit = V::lanes < kGroup ? kGroup / V::lanes : 1;
template <class V>
inline constexpr int kQueryGroups = 3 * kQueryUnit<V> * V::lanes / kGroup;

template <class V>
void attention(const AttentionBlock& block, float* scratch) {
    constexpr int kUnit = kQueryUnit<V>, kUnitGroups = kUnit * V::lanes / kGroup;
    const int units = (block.groups + kUnitGroups - 1) / kUnitGroups;
    if (units == 3) return attention_vectors<V, 3 * kUnit>(block, scratch);
    if (units == 2) return attention_vectors<V, 2 * kUnit>(block, scratch);
    attention_vectors<V, kUnit>(block, scratch);
}

// ---- The task head --------------------------------------------------------------------------------------------------

template <class V, int R>
inline void dense_rows(const float* w, const float* bias, std::size_t columns, const float* x, float* y) {
    typename V::F sums[R];
    for (auto& sum : sums) sum = V::set(0.0f);
    for (std::size_t c = 0; c < columns; ++c) {
        const auto value = V::load(x + c * kLanes);
        for (int r = 0; r < R; ++r)
            sums[r] = V::fma(V::set(w[static_cast<std::size_t>(r) * columns + c]), value, sums[r]);
    }
    for (int r = 0; r < R; ++r) V::store(y + r * kLanes, V::add(sums[r], V::set(bias[r])));
}

template <class V>
void dense(const float* w, const float* bias, int rows, int columns, const float* x, int groups, float* y) {
    const auto width = static_cast<std::size_t>(columns);
    for (int lane = 0; lane < groups * kGroup; lane += V::lanes) {
        int r = 0;
        for (; r + 8 <= rows; r += 8)
            dense_rows<V, 8>(w + static_cast<std::size_t>(r) * width, bias + r, width, x + lane, y + r * kLanes + lane);
        for (; r < rows; ++r)
            dense_rows<V, 1>(w + static_cast<std::size_t>(r) * width, bias + r, width, x + lane, y + r * kLanes + lane);
    }
}

}  // namespace
}  // namespace sparselane
