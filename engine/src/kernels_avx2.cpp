// The kernels for AVX2 + FMA: the only file compiled for more than the baseline CPU. 32 tokens are four float registers
// or one byte register; `G` groups of 8 lanes are always worked on with the same instructions, whatever G is.
#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace sparselane {
namespace {

// ---- The sparse product ---------------------------------------------------------------------------------------------

// For tokens 0..31 of the four columns of one group: interleave their bytes so that the four values of a token meet the
// four weights, multiply, add. The unpacks work within 128-bit halves, so sums[0] holds tokens 0-3 and 16-19, sums[1]
// 4-7 and 20-23, sums[2] 8-11 and 24-27, sums[3] 12-15 and 28-31.
inline void add_group(const std::uint8_t* x, const std::uint16_t* offsets, const std::int8_t* weights,
                      __m256i sums[4]) {
    const auto lanes = [&](int i) {
        return _mm256_load_si256(reinterpret_cast<const __m256i*>(x + std::size_t{8} * offsets[i]));
    };
    const __m256i a = lanes(0), b = lanes(1), c = lanes(2), d = lanes(3);
    std::int32_t four;
    __builtin_memcpy(&four, weights, sizeof four);
    const __m256i weight = _mm256_set1_epi32(four);
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i ab_low = _mm256_unpacklo_epi8(a, b), ab_high = _mm256_unpackhi_epi8(a, b);
    const __m256i cd_low = _mm256_unpacklo_epi8(c, d), cd_high = _mm256_unpackhi_epi8(c, d);
    // |255 * 64 * 2| < 32768: the int16 sums of maddubs never saturate (docs/artifact.md, section 4).
    const auto add = [&](__m256i sum, __m256i abcd) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(abcd, weight), ones));
    };
    sums[0] = add(sums[0], _mm256_unpacklo_epi16(ab_low, cd_low));
    sums[1] = add(sums[1], _mm256_unpackhi_epi16(ab_low, cd_low));
    sums[2] = add(sums[2], _mm256_unpacklo_epi16(ab_high, cd_high));
    sums[3] = add(sums[3], _mm256_unpackhi_epi16(ab_high, cd_high));
}

void spmm(const PackedMatrix& w, int first, int count, const std::uint8_t* x, std::int32_t* sums) {
    const std::uint16_t* offsets = w.offsets.data();
    const std::int8_t* weights = w.weights.data();
    for (int row = first; row < first + count; ++row, sums += kLanes) {
        __m256i s[4] = {};
        const std::size_t end = w.row_groups[static_cast<std::size_t>(row) + 1];
        for (std::size_t group = w.row_groups[static_cast<std::size_t>(row)]; group < end; ++group)
            add_group(x, offsets + 4 * group, weights + 4 * group, s);
        auto* out = reinterpret_cast<__m256i*>(sums);
        _mm256_storeu_si256(out + 0, _mm256_permute2x128_si256(s[0], s[1], 0x20));
        _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(s[2], s[3], 0x20));
        _mm256_storeu_si256(out + 2, _mm256_permute2x128_si256(s[0], s[1], 0x31));
        _mm256_storeu_si256(out + 3, _mm256_permute2x128_si256(s[2], s[3], 0x31));
    }
}

// Multiplications and additions are kept apart here and in the quantizer: the reference, and torch, have no fused ones.
void dequantize(const PackedMatrix& w, int first, int count, const std::int32_t* sums, const float* scales,
                const std::int32_t* zeros, const float* residual, float* y) {
    for (int row = first; row < first + count; ++row, sums += kLanes, y += kLanes) {
        const auto r = static_cast<std::size_t>(row);
        const __m256i row_sum = _mm256_set1_epi32(w.row_sums[r]);
        const __m256 row_scale = _mm256_set1_ps(w.scales[r]), bias = _mm256_set1_ps(w.biases[r]);
        for (int lane = 0; lane < kLanes; lane += kGroup) {
            const __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + lane));
            const __m256i zero = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(zeros + lane));
            const __m256i exact = _mm256_sub_epi32(sum, _mm256_mullo_epi32(zero, row_sum));
            const __m256 scale = _mm256_mul_ps(row_scale, _mm256_loadu_ps(scales + lane));
            __m256 value = _mm256_add_ps(_mm256_mul_ps(scale, _mm256_cvtepi32_ps(exact)), bias);
            if (residual != nullptr) value = _mm256_add_ps(value, _mm256_loadu_ps(residual + lane));
            _mm256_storeu_ps(y + lane, value);
        }
        if (residual != nullptr) residual += kLanes;
    }
}

// ---- The quantizer --------------------------------------------------------------------------------------------------

template <int G>
void quantize_groups(const float* x, int features, std::uint8_t* q, float* scales, std::int32_t* zeros) {
    __m256 low[G], high[G], scale[G];
    __m256i zero[G];
    for (int g = 0; g < G; ++g) low[g] = high[g] = _mm256_setzero_ps();
    for (int f = 0; f < features; ++f)
        for (int g = 0; g < G; ++g) {
            const __m256 value = _mm256_loadu_ps(x + f * kLanes + g * kGroup);
            low[g] = _mm256_min_ps(low[g], value);
            high[g] = _mm256_max_ps(high[g], value);
        }
    for (int g = 0; g < G; ++g) {
        const __m256 step = _mm256_div_ps(_mm256_sub_ps(high[g], low[g]), _mm256_set1_ps(255.0f));
        const __m256 is_zero = _mm256_cmp_ps(step, _mm256_setzero_ps(), _CMP_EQ_OQ);
        scale[g] = _mm256_blendv_ps(step, _mm256_set1_ps(1.0f), is_zero);
        const __m256 negated = _mm256_xor_ps(low[g], _mm256_set1_ps(-0.0f));
        const __m256i point = _mm256_cvtps_epi32(_mm256_div_ps(negated, scale[g]));
        zero[g] = _mm256_max_epi32(_mm256_setzero_si256(), _mm256_min_epi32(point, _mm256_set1_epi32(255)));
        _mm256_storeu_ps(scales + g * kGroup, scale[g]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(zeros + g * kGroup), zero[g]);
    }
    // cvtps gives INT32_MIN for what is no number; the saturating packs then make it 0, and clip everything else.
    const auto level = [&](int f, int g) {
        const __m256 steps = _mm256_div_ps(_mm256_loadu_ps(x + f * kLanes + g * kGroup), scale[g]);
        return _mm256_add_epi32(_mm256_cvtps_epi32(steps), zero[g]);
    };
    for (int f = 0; f < features; ++f) {
        if constexpr (G == kGroups) {
            const __m256i first = _mm256_packs_epi32(level(f, 0), level(f, 1)),
                          second = _mm256_packs_epi32(level(f, 2), level(f, 3));
            const __m256i order =
                _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // undoes the packs' work in 128-bit halves
            const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + f * kLanes), bytes);
        } else {
            static_assert(G == 1);
            const __m256i levels = level(f, 0);
            const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(levels), _mm256_extracti128_si256(levels, 1));
            _mm_storel_epi64(reinterpret_cast<__m128i*>(q + f * kLanes), _mm_packus_epi16(words, words));
        }
    }
}

void quantize(const float* x, int features, int groups, std::uint8_t* q, float* scales, std::int32_t* zeros) {
    if (groups == kGroups) return quantize_groups<kGroups>(x, features, q, scales, zeros);
    for (int lane = 0; lane < groups * kGroup; lane += kGroup)
        quantize_groups<1>(x + lane, features, q + lane, scales + lane, zeros + lane);
}

// ---- GELU and LayerNorm ---------------------------------------------------------------------------------------------

// erf(x / sqrt(2)) / x for |x| <= 5.5 as a polynomial in t = 2 x^2 / 5.5^2 - 1, fitted by least squares reweighted
// towards the largest error of x^2 / 2 times it. Beyond 5.5 gelu is max(x, 0) to 2.1e-7. Together with rounding:
// |error of gelu| <= 6e-7 * max(1, |x|), tested against double precision.
constexpr float kErfEnd = 5.5f;
constexpr float kErf[] = {0.25710389f,    -0.128343955f,   0.0954712108f,  -0.07760939f,   0.0642271712f,
                          -0.0518837757f, 0.0400591604f,   -0.0307466034f, 0.0228503998f,  -0.0125852302f,
                          0.00495084841f, -0.00503662601f, 0.00518446229f, -0.00182341808f};

inline __m256 gelu(__m256 x) {
    const __m256 t =
        _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(2.0f / (kErfEnd * kErfEnd)), _mm256_set1_ps(-1.0f));
    constexpr int kTerms = sizeof kErf / sizeof kErf[0];
    __m256 sum = _mm256_set1_ps(kErf[kTerms - 1]);
    for (int i = kTerms - 2; i >= 0; --i) sum = _mm256_fmadd_ps(sum, t, _mm256_set1_ps(kErf[i]));
    const __m256 half = _mm256_mul_ps(x, _mm256_set1_ps(0.5f));
    const __m256 inside = _mm256_fmadd_ps(half, _mm256_mul_ps(x, sum), half);
    const __m256 outside = _mm256_max_ps(_mm256_setzero_ps(), x);
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    return _mm256_blendv_ps(inside, outside, _mm256_cmp_ps(size, _mm256_set1_ps(kErfEnd), _CMP_GT_OQ));
}

// `count` is a multiple of 32 wherever the engine calls this; the tail goes through the same instructions.
void gelu(float* x, std::size_t count) {
    std::size_t i = 0;
    for (; i + kGroup <= count; i += kGroup) _mm256_storeu_ps(x + i, gelu(_mm256_loadu_ps(x + i)));
    if (i == count) return;
    float tail[kGroup] = {};
    __builtin_memcpy(tail, x + i, (count - i) * sizeof(float));
    _mm256_storeu_ps(tail, gelu(_mm256_loadu_ps(tail)));
    __builtin_memcpy(x + i, tail, (count - i) * sizeof(float));
}

template <int G>
void layer_norm_groups(float* x, int features, const float* weight, const float* bias, float epsilon) {
    const __m256 count = _mm256_set1_ps(static_cast<float>(features));
    __m256 mean[G], inverse[G];
    for (int g = 0; g < G; ++g) mean[g] = inverse[g] = _mm256_setzero_ps();
    const auto at = [&](int f, int g) { return x + f * kLanes + g * kGroup; };
    for (int f = 0; f < features; ++f)
        for (int g = 0; g < G; ++g) mean[g] = _mm256_add_ps(mean[g], _mm256_loadu_ps(at(f, g)));
    for (int g = 0; g < G; ++g) mean[g] = _mm256_div_ps(mean[g], count);
    for (int f = 0; f < features; ++f)
        for (int g = 0; g < G; ++g) {
            const __m256 centered = _mm256_sub_ps(_mm256_loadu_ps(at(f, g)), mean[g]);
            inverse[g] = _mm256_fmadd_ps(centered, centered, inverse[g]);
        }
    for (int g = 0; g < G; ++g) {
        const __m256 variance = _mm256_add_ps(_mm256_div_ps(inverse[g], count), _mm256_set1_ps(epsilon));
        inverse[g] = _mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_sqrt_ps(variance));
    }
    for (int f = 0; f < features; ++f) {
        const __m256 w = _mm256_set1_ps(weight[f]), b = _mm256_set1_ps(bias[f]);
        for (int g = 0; g < G; ++g) {
            const __m256 normal = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(at(f, g)), mean[g]), inverse[g]);
            _mm256_storeu_ps(at(f, g), _mm256_fmadd_ps(normal, w, b));
        }
    }
}

void layer_norm(float* x, int features, int groups, const float* weight, const float* bias, float epsilon) {
    if (groups == kGroups) return layer_norm_groups<kGroups>(x, features, weight, bias, epsilon);
    for (int lane = 0; lane < groups * kGroup; lane += kGroup)
        layer_norm_groups<1>(x + lane, features, weight, bias, epsilon);
}

// ---- Attention ------------------------------------------------------------------------------------------------------

// exp(x) for x <= 0: x = n ln 2 + r with |r| <= ln(2) / 2, the Taylor series of exp(r) to degree 7 (its remainder is
// below 6e-9), and n into the exponent. Below -87 the result is 0; NaN stays NaN.
inline __m256 exp_negative(__m256 x) {
    const __m256 lowest = _mm256_set1_ps(-87.0f);
    const __m256 alive = _mm256_cmp_ps(x, lowest, _CMP_NLT_UQ);
    x = _mm256_max_ps(lowest, x);  // of a NaN in the second operand, max returns it
    const __m256 n =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145752f), x);  // ln 2 in two parts; the first has 15 bits,
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860677e-6f), r);       // so that its product with n is exact
    constexpr float kTaylor[] = {1.0f, 1.0f, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};
    __m256 sum = _mm256_set1_ps(kTaylor[7]);
    for (int i = 6; i >= 0; --i) sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(kTaylor[i]));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(sum, _mm256_castsi256_ps(power)), alive);
}

template <int G>
void softmax_groups(float* scores, int keys, float* inverse) {
    __m256 highest[G], sum[G];
    const auto at = [&](int k, int g) { return scores + (k * G + g) * kGroup; };
    for (int g = 0; g < G; ++g) {
        highest[g] = _mm256_loadu_ps(at(0, g));
        sum[g] = _mm256_setzero_ps();
    }
    for (int k = 1; k < keys; ++k)
        for (int g = 0; g < G; ++g) highest[g] = _mm256_max_ps(highest[g], _mm256_loadu_ps(at(k, g)));
    for (int k = 0; k < keys; ++k)
        for (int g = 0; g < G; ++g) {
            const __m256 value = exp_negative(_mm256_sub_ps(_mm256_loadu_ps(at(k, g)), highest[g]));
            _mm256_storeu_ps(at(k, g), value);
            sum[g] = _mm256_add_ps(sum[g], value);
        }
    for (int g = 0; g < G; ++g) _mm256_storeu_ps(inverse + g * kGroup, _mm256_div_ps(_mm256_set1_ps(1.0f), sum[g]));
}

// scores[key][lane] for four neighbouring keys, which lie in one tile; `queries` is [head_size][G * 8].
template <int G>
inline void score_four_keys(const float* queries, const float* keys, int head_size, float* scores) {
    __m256 sums[4][G];
    for (auto& row : sums)
        for (auto& sum : row) sum = _mm256_setzero_ps();
    for (int d = 0; d < head_size; ++d) {
        __m256 query[G];
        for (int g = 0; g < G; ++g) query[g] = _mm256_loadu_ps(queries + (d * G + g) * kGroup);
        for (int k = 0; k < 4; ++k) {
            const __m256 key = _mm256_broadcast_ss(keys + d * kLanes + k);
            for (int g = 0; g < G; ++g) sums[k][g] = _mm256_fmadd_ps(query[g], key, sums[k][g]);
        }
    }
    for (int k = 0; k < 4; ++k)
        for (int g = 0; g < G; ++g) _mm256_storeu_ps(scores + (k * G + g) * kGroup, sums[k][g]);
}

// context[d][lane] for D neighbouring features: the keys of the sequence one after another, tile by tile.
template <int G, int D>
inline void mix_values(const AttentionBlock& b, int first_feature, const float* weights, const float* inverse) {
    __m256 sums[D][G];
    for (auto& row : sums)
        for (auto& sum : row) sum = _mm256_setzero_ps();
    for (int k = 0; k < b.length;) {
        const int lane = b.first_lane + k;
        const float* value = b.value + (lane / kLanes) * b.tile_stride + first_feature * kLanes + lane % kLanes;
        const int stop = std::min(b.length, k + kLanes - lane % kLanes);
        for (; k < stop; ++k, ++value) {
            __m256 weight[G];
            for (int g = 0; g < G; ++g) weight[g] = _mm256_loadu_ps(weights + (k * G + g) * kGroup);
            for (int d = 0; d < D; ++d) {
                const __m256 v = _mm256_broadcast_ss(value + d * kLanes);
                for (int g = 0; g < G; ++g) sums[d][g] = _mm256_fmadd_ps(weight[g], v, sums[d][g]);
            }
        }
    }
    for (int g = 0; g < G; ++g) {
        const int lane = b.first_query + g * kGroup;
        float* context = b.context + (lane / kLanes) * b.tile_stride + first_feature * kLanes + lane % kLanes;
        for (int d = 0; d < D; ++d)
            _mm256_storeu_ps(context + d * kLanes, _mm256_mul_ps(sums[d][g], _mm256_loadu_ps(inverse + g * kGroup)));
    }
}

template <int G>
void attention_groups(const AttentionBlock& b, float* scratch) {
    float* queries = scratch;
    float* scores = scratch + b.head_size * G * kGroup;
    float inverse[G * kGroup];
    const __m256 scale = _mm256_set1_ps(1.0f / std::sqrt(static_cast<float>(b.head_size)));
    for (int g = 0; g < G; ++g) {
        const int lane = b.first_query + g * kGroup;
        const float* query = b.query + (lane / kLanes) * b.tile_stride + lane % kLanes;
        for (int d = 0; d < b.head_size; ++d)
            _mm256_storeu_ps(queries + (d * G + g) * kGroup, _mm256_mul_ps(_mm256_loadu_ps(query + d * kLanes), scale));
    }
    for (int k = 0; k < b.length; k += 4) {  // the last four may reach into the padding; nothing reads those scores
        const int lane = b.first_lane + k;
        score_four_keys<G>(queries, b.key + (lane / kLanes) * b.tile_stride + lane % kLanes, b.head_size,
                           scores + k * G * kGroup);
    }
    softmax_groups<G>(scores, b.length, inverse);
    int d = 0;
    for (; d + 4 <= b.head_size; d += 4) mix_values<G, 4>(b, d, scores, inverse);
    for (; d < b.head_size; ++d) mix_values<G, 1>(b, d, scores, inverse);
}

void softmax(float* scores, int keys, int groups, float* inverse) {
    if (groups == 3) return softmax_groups<3>(scores, keys, inverse);
    if (groups == 2) return softmax_groups<2>(scores, keys, inverse);
    softmax_groups<1>(scores, keys, inverse);
}

void attention(const AttentionBlock& block, float* scratch) {
    if (block.groups == 3) return attention_groups<3>(block, scratch);
    if (block.groups == 2) return attention_groups<2>(block, scratch);
    attention_groups<1>(block, scratch);
}

// ---- The task head --------------------------------------------------------------------------------------------------

template <int R>
inline void dense_rows(const float* w, const float* bias, std::size_t columns, const float* x, float* y) {
    __m256 sums[R];
    for (auto& sum : sums) sum = _mm256_setzero_ps();
    for (std::size_t c = 0; c < columns; ++c) {
        const __m256 value = _mm256_loadu_ps(x + c * kLanes);
        for (int r = 0; r < R; ++r)
            sums[r] =
                _mm256_fmadd_ps(_mm256_broadcast_ss(w + static_cast<std::size_t>(r) * columns + c), value, sums[r]);
    }
    for (int r = 0; r < R; ++r) _mm256_storeu_ps(y + r * kLanes, _mm256_add_ps(sums[r], _mm256_set1_ps(bias[r])));
}

void dense(const float* w, const float* bias, int rows, int columns, const float* x, int groups, float* y) {
    const auto width = static_cast<std::size_t>(columns);
    for (int lane = 0; lane < groups * kGroup; lane += kGroup) {
        int r = 0;
        for (; r + 8 <= rows; r += 8)
            dense_rows<8>(w + static_cast<std::size_t>(r) * width, bias + r, width, x + lane, y + r * kLanes + lane);
        for (; r < rows; ++r)
            dense_rows<1>(w + static_cast<std::size_t>(r) * width, bias + r, width, x + lane, y + r * kLanes + lane);
    }
}

}  // namespace

const Kernels& avx2_kernels() {
    static constexpr Kernels kernels{"avx2", spmm, dequantize, quantize, gelu, layer_norm, softmax, attention, dense};
    return kernels;
}

}  // namespace sparselane
