// The definition of every kernel: plain C++, one token at a time, kept for ever. Fast kernels are tested against it, to
// the last bit: std::fma stands where they fuse, and sums run in their order.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace sparselane {
namespace {

// ---- Products -------------------------------------------------------------------------------------------------------

// The weight of row r, column i of a step lies at weights[r][i]; its column of the input at `column(i)`.
template <int Height, class Column>
void add_step(const std::int8_t* weights, const Column& column, int token, std::int32_t* sums) {
    for (int r = 0; r < Height; ++r)
        for (int i = 0; i < kQuad; ++i) sums[r * kLanes + token] += weights[r * kQuad + i] * *column(i);
}

template <Format Kind>
void product(const PackedMatrix& w, int first, int count, const ProductInput& input, std::int32_t* sums) {
    constexpr int kHeight = Kind == Format::blocks_4x1 || Kind == Format::dense ? kPanel : 1;
    const std::uint8_t* x = input.x;  // one tile
    std::fill_n(sums, kRowBlock * kLanes, 0);
    for (int row = 0; row < count; row += kHeight) {
        const auto strip = static_cast<std::size_t>((first + row) / kHeight);
        const std::size_t begin = w.strip_steps[strip], end = w.strip_steps[strip + 1];
        for (std::size_t step = begin; step < end; ++step)
            for (int t = 0; t < kLanes; ++t) {
                const auto gathered = [&](int i) {
                    return x + kOffsetUnit * w.offsets[kQuad * step + static_cast<std::size_t>(i)] + t;
                };
                const auto listed_quad = [&](int i) { return x + kOffsetUnit * w.offsets[step] + kQuad * t + i; };
                const auto next_quad = [&](int i) { return x + (step - begin) * kQuad * kLanes + kQuad * t + i; };
                const std::int8_t* weights = w.weights.data() + kHeight * kQuad * step;
                std::int32_t* to = sums + (kHeight == 1 ? w.strip_rows[strip] : row) * kLanes;
                if constexpr (Kind == Format::blocks_1x4)
                    add_step<kHeight>(weights, listed_quad, t, to);
                else if constexpr (Kind == Format::dense)
                    add_step<kHeight>(weights, next_quad, t, to);
                else
                    add_step<kHeight>(weights, gathered, t, to);
            }
    }
}

void product_masked(const PackedMatrix& w, int first, int count, const ProductInput& input, std::int32_t* sums) {
    const std::size_t block = static_cast<std::size_t>(first / kRowBlock);
    const int steps = (w.columns + kMaskColumns - 1) / kMaskColumns;
    const std::uint16_t* masks = w.offsets.data() + block * static_cast<std::size_t>(steps) * kRowBlock * 4;
    const std::int8_t* weight = w.weights.data() + w.strip_steps[block];
    std::fill_n(sums, kRowBlock * kLanes, 0);
    for (int column = 0; column < w.columns; column += kMaskColumns)
        for (int r = 0; r < kRowBlock; ++r, masks += 4)
            for (int i = 0; i < kMaskColumns; ++i) {
                if ((masks[i / 16] >> i % 16 & 1) == 0) continue;
                const std::uint8_t* x = input.x + (column + i) / kQuad * kQuad * kLanes + i % kQuad;  // one tile
                for (int t = 0; t < kLanes && r < count; ++t) sums[r * kLanes + t] += *weight * x[t * kQuad];
                ++weight;
            }
}

void interleave(const std::uint8_t* q, int stride, int features, std::uint8_t* quads) {
    std::memset(quads, 0, static_cast<std::size_t>((features + kQuad - 1) / kQuad * kQuad * kLanes));
    for (int f = 0; f < features; ++f)
        for (int t = 0; t < kLanes; ++t) quads[(f / kQuad * kLanes + t) * kQuad + f % kQuad] = q[f * stride + t];
}

// ---- Between integers and floats, GELU
// ------------------------------------------------------------------------------------

float gelu(float x) {
    const float square = x * x;
    if (square > kErfEnd * kErfEnd) return std::max(0.0f, x);
    const float t = std::fma(square, 2.0f / (kErfEnd * kErfEnd), -1.0f);
    constexpr int kTerms = sizeof kHalfErf / sizeof kHalfErf[0];
    float sum = kHalfErf[kTerms - 1];
    for (int i = kTerms - 2; i >= 0; --i) sum = std::fma(sum, t, kHalfErf[i]);
    return std::fma(square, sum, x * 0.5f);
}

// The lowest and highest of each token, and 0.
void widen(float* range, int token, float value) {
    if (range == nullptr) return;
    range[token] = std::min(range[token], value);
    range[kLanes + token] = std::max(range[kLanes + token], value);
}

template <bool Gelu>
void dequantize(const PackedMatrix& w, int first, int count, const std::int32_t* sums, const float* scales,
                const std::int32_t* zeros, const float* residual, float* y, float* range) {
    if (range != nullptr) std::fill_n(range, 2 * kLanes, 0.0f);
    for (int i = 0; i < count * kLanes; ++i) {
        const auto row = static_cast<std::size_t>(first + i / kLanes);
        const int t = i % kLanes;
        const std::int32_t exact = sums[i] - zeros[t] * w.row_sums[row];
        float value = w.scales[row] * scales[t] * static_cast<float>(exact) + w.biases[row];
        if (residual != nullptr) value += residual[i];
        y[i] = Gelu ? gelu(value) : value;
        widen(range, t, y[i]);
    }
}

// Round half to even; what is no number, or too large for int32, becomes INT32_MIN, as the x86 instruction has it.
std::int32_t round_even(float x) {
    return std::abs(x) < 2147483648.0f ? static_cast<std::int32_t>(std::nearbyintf(x)) : INT32_MIN;
}

// level_at(f, t) is where the level of a feature of a token goes.
template <class LevelAt>
void quantize_to(const float* x, int features, int groups, const float* range, int bounds, const LevelAt& level_at,
                 float* scales, std::int32_t* zeros) {
    for (int t = 0; t < groups * kGroup; ++t) {
        float low = 0, high = 0;
        for (int b = 0; b < bounds; ++b) {
            low = std::min(low, range[b * kLanes + t]);
            high = std::max(high, range[b * kLanes + t]);
        }
        const float step = (high - low) / 255.0f;
        scales[t] = kSmallestStep > step ? 1.0f : step;
        const float inverse = 1.0f / scales[t];
        zeros[t] = std::clamp(round_even(-low * inverse), 0, 255);
        for (int f = 0; f < features; ++f) {
            const std::int64_t level = std::int64_t{round_even(x[f * kLanes + t] * inverse)} + zeros[t];
            *level_at(f, t) = static_cast<std::uint8_t>(std::clamp<std::int64_t>(level, 0, 255));
        }
    }
}

void quantize(const float* x, int features, int groups, const float* range, int bounds, std::uint8_t* q, int stride,
              float* scales, std::int32_t* zeros) {
    const auto level_at = [&](int f, int t) { return q + f * stride + t; };
    quantize_to(x, features, groups, range, bounds, level_at, scales, zeros);
}

void quantize_quads(const float* x, int features, int groups, const float* range, int bounds, std::uint8_t* quads,
                    float* scales, std::int32_t* zeros) {
    const auto level_at = [&](int f, int t) { return quads + (f / kQuad * kLanes + t) * kQuad + f % kQuad; };
    quantize_to(x, features, groups, range, bounds, level_at, scales, zeros);
    for (int f = features; f % kQuad != 0; ++f)
        for (int t = 0; t < groups * kGroup; ++t) *level_at(f, t) = 0;
}

// ---- LayerNorm
// ---------------------------------------------------------------------------------------------------------

void layer_norm(float* x, int features, int groups, const float* weight, const float* bias, float epsilon,
                float* range) {
    const auto count = static_cast<float>(features);
    for (int t = 0; t < groups * kGroup; ++t) {
        float sum = 0, squares = 0;
        for (int f = 0; f < features; ++f) sum += x[f * kLanes + t];
        const float mean = sum / count;
        for (int f = 0; f < features; ++f) {
            const float centered = x[f * kLanes + t] - mean;
            squares = std::fma(centered, centered, squares);
        }
        const float inverse = 1.0f / std::sqrt(squares / count + epsilon);
        if (range != nullptr) range[t] = range[kLanes + t] = 0;
        for (int f = 0; f < features; ++f) {
            x[f * kLanes + t] = std::fma((x[f * kLanes + t] - mean) * inverse, weight[f], bias[f]);
            widen(range, t, x[f * kLanes + t]);
        }
    }
}

// ---- Attention ------------------------------------------------------------------------------------------------------

// x = n ln 2 + r with |r| <= ln(2) / 2, the Taylor series of exp(r), and n into the exponent. Below kExpEnd it is 0.
float exp_negative(float x) {
    if (x < kExpEnd) return 0;
    if (std::isnan(x)) return x;
    const float n = std::nearbyintf(x * kLog2E);
    const float r = std::fma(-n, kLn2Low, std::fma(-n, kLn2High, x));
    constexpr int kTerms = sizeof kExp / sizeof kExp[0];
    float sum = kExp[kTerms - 1];
    for (int i = kTerms - 2; i >= 0; --i) sum = std::fma(sum, r, kExp[i]);
    return sum * std::ldexp(1.0f, static_cast<int>(n));
}

void softmax(float* scores, int keys, int groups, float* inverse) {
    const int lanes = groups * kGroup;
    for (int t = 0; t < lanes; ++t) {
        float highest = scores[t], sum = 0;
        for (int k = 1; k < keys; ++k) highest = std::max(highest, scores[k * lanes + t]);
        for (int k = 0; k < keys; ++k) sum += scores[k * lanes + t] = exp_negative(scores[k * lanes + t] - highest);
        inverse[t] = 1.0f / sum;
    }
}

void attention(const AttentionBlock& b, float* scratch) {
    const auto at = [&](const float* head, int lane, int d) {
        return head[static_cast<std::size_t>(lane / kLanes) * b.tile_stride +
                    static_cast<std::size_t>(d * kLanes + lane % kLanes)];
    };
    const float scale = 1.0f / std::sqrt(static_cast<float>(b.head_size));
    const int lanes = b.groups * kGroup;
    float inverse[kMostQueryGroups * kGroup];
    for (int k = 0; k < b.length; ++k)
        for (int t = 0; t < lanes; ++t) {
            float sum = 0;
            for (int d = 0; d < b.head_size; ++d)
                sum = std::fma(at(b.query, b.first_query + t, d) * scale, at(b.key, b.first_lane + k, d), sum);
            scratch[k * lanes + t] = sum;
        }
    softmax(scratch, b.length, b.groups, inverse);
    for (int t = 0; t < lanes; ++t) {
        const int lane = b.first_query + t;
        float* context = b.context + static_cast<std::size_t>(lane / kLanes) * b.tile_stride + lane % kLanes;
        for (int d = 0; d < b.head_size; ++d) {
            float sum = 0;
            for (int k = 0; k < b.length; ++k)
                sum = std::fma(scratch[k * lanes + t], at(b.value, b.first_lane + k, d), sum);
            context[d * kLanes] = sum * inverse[t];
        }
    }
}

// log2(x) of a normal number: its exponent, and a polynomial of the rest.
float log2_normal(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const float rest = std::bit_cast<float>((bits & 0x7fffff) | 0x3f800000) - 1;
    constexpr int kTerms = sizeof kLog2 / sizeof kLog2[0];
    float sum = kLog2[kTerms - 1];
    for (int i = kTerms - 2; i >= 0; --i) sum = std::fma(sum, rest, kLog2[i]);
    return static_cast<float>(static_cast<int>(bits >> 23) - 127) + sum;
}

// 255 x 2^x for x <= 0.
float weight_of(float x) {
    x = x > kExp2End ? x : kExp2End;  // and so is what is no number
    const float n = std::nearbyintf(x), rest = x - n;
    constexpr int kTerms = sizeof kExp2 / sizeof kExp2[0];
    float sum = kExp2[kTerms - 1];
    for (int i = kTerms - 2; i >= 0; --i) sum = std::fma(sum, rest, kExp2[i]);
    return std::ldexp(sum, static_cast<int>(n));
}

// How one token's part of a head becomes levels in [-limit, limit].
struct Symmetric {
    int limit;
    float scale, inverse;

    Symmetric(const float* x, int features, int most) : limit(most) {
        float low = 0, high = 0;
        for (int f = 0; f < features; ++f) {
            low = low < x[f * kLanes] ? low : x[f * kLanes];
            high = high > x[f * kLanes] ? high : x[f * kLanes];
        }
        const float largest = high > low * -1 ? high : low * -1, step = largest * (1.0f / static_cast<float>(most));
        scale = step > kSmallestScale ? step : kSmallestScale;
        inverse = 1.0f / scale;
    }
    int level(float x) const { return std::clamp(round_even(x * inverse), -limit, limit); }
};

void quantize_head(const float* query, const float* key, const float* value, int head_size, HeadTile head) {
    const float factor = 1.44269504f / std::sqrt(static_cast<float>(head_size));
    std::memset(head.query, 0, static_cast<std::size_t>(2 * HeadTile::quads(head_size)));  // and the key's
    const auto quad = [](int f, int t) { return (f / kQuad * kLanes + t) * kQuad + f % kQuad; };
    for (int t = 0; t < kLanes; ++t) {
        const Symmetric q(query + t, head_size, kQueryLimit), k(key + t, head_size, kKeyLimit),
            v(value + t, head_size, kKeyLimit);
        head.query_factor[t] = q.scale * factor;
        head.key_scale[t] = k.scale;
        head.key_start[t] = 0;
        head.value_log2[t] = log2_normal(v.scale);
        head.value_inverse[t] = v.inverse;
        for (int f = 0; f < head_size; ++f) {
            const int at = f * kLanes + t, level = k.level(key[at]);
            head.query[quad(f, t)] = static_cast<std::uint8_t>(q.level(query[at]) + kQueryOffset);
            head.key[quad(f, t)] = static_cast<std::int8_t>(level);
            head.key_start[t] -= kQueryOffset * level;
            head.value[at] = static_cast<std::int8_t>(v.level(value[at]));
        }
    }
}

// A weight is a key's share of the attention times the scale of its value, so that levels of values can be summed as
// they are; the largest of a query is 255.
void integer_attention(const IntegerAttentionBlock& b, float* scores) {
    const auto head = [&](int lane) {
        return HeadTile(b.heads + static_cast<std::size_t>(lane / kLanes) * b.tile_stride, b.head_size);
    };
    for (int lane = b.first_query; lane < b.first_query + b.groups * kGroup; ++lane) {
        const HeadTile q = head(lane);
        const int t = lane % kLanes;
        float highest = -3e38f, sum = 0;
        for (int k = 0; k < b.length; ++k) {
            const HeadTile h = head(b.first_lane + k);
            const int s = (b.first_lane + k) % kLanes;
            std::int32_t product = h.key_start[s];
            for (int f = 0; f < (b.head_size + kQuad - 1) / kQuad; ++f)
                for (int i = 0; i < kQuad; ++i)
                    product += q.query[(f * kLanes + t) * kQuad + i] * h.key[(f * kLanes + s) * kQuad + i];
            scores[k] = std::fma(static_cast<float>(product) * q.query_factor[t], h.key_scale[s], h.value_log2[s]);
            highest = highest > scores[k] ? highest : scores[k];
        }
        for (int k = 0; k < b.length; ++k) {
            const float weight = weight_of(scores[k] - highest);
            sum = std::fma(weight, head(b.first_lane + k).value_inverse[(b.first_lane + k) % kLanes], sum);
            scores[k] = static_cast<float>(std::clamp(round_even(weight), 0, kMostWeight));  // beyond: of no number
        }
        float* context = b.context + static_cast<std::size_t>(lane / kLanes) * b.context_stride + t;
        for (int f = 0; f < b.head_size; ++f) {
            std::int32_t product = 0;
            for (int k = 0; k < b.length; ++k)
                product += static_cast<std::int32_t>(scores[k]) *
                           head(b.first_lane + k).value[f * kLanes + (b.first_lane + k) % kLanes];
            context[f * kLanes] = static_cast<float>(product) * (1.0f / sum);
        }
    }
}

// ---- The task head --------------------------------------------------------------------------------------------------

void dense(const float* w, const float* bias, int rows, int columns, const float* x, int groups, float* y) {
    for (int r = 0; r < rows; ++r)
        for (int t = 0; t < groups * kGroup; ++t) {
            float sum = 0;
            for (int c = 0; c < columns; ++c)
                sum = std::fma(
                    w[static_cast<std::size_t>(r) * static_cast<std::size_t>(columns) + static_cast<std::size_t>(c)],
                    x[c * kLanes + t], sum);
            y[r * kLanes + t] = sum + bias[r];
        }
}

}  // namespace

const Kernels& reference_kernels() {
    static constexpr Kernels kernels{
        .name = "reference",
        .tiles = 1,
        .quad_tiles = 1,
        .query_groups = 3,
        .costs = {1, 0.95f, 3.9f, 3.7f, kNever},  // multiplications; the more regular format wins a tie
        .products = {product<Format::survivors>, product<Format::blocks_1x4>, product<Format::blocks_4x1>,
                     product<Format::dense>, product_masked},
        .interleave = interleave,
        .dequantize = dequantize<false>,
        .dequantize_gelu = dequantize<true>,
        .quantize = quantize,
        .quantize_quads = quantize_quads,
        .layer_norm = layer_norm,
        .softmax = softmax,
        .attention = attention,
        .quantize_head = quantize_head,
        .integer_attention = integer_attention,
        .dense = dense,
    };
    return kernels;
}

}  // namespace sparselane
