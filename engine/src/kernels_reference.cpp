// The definition of every kernel: plain C++, one token at a time, kept for ever. Fast kernels are tested against it, to
// the last bit: std::fma stands where they fuse, and sums run in their order.
#include <algorithm>
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
                    return x + 8 * w.offsets[kQuad * step + static_cast<std::size_t>(i)] + t;
                };
                const auto listed_quad = [&](int i) { return x + 8 * w.offsets[step] + kQuad * t + i; };
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

void interleave(const std::uint8_t* q, int stride, int features, std::uint8_t* quads) {
    std::memset(quads, 0, static_cast<std::size_t>((features + kQuad - 1) / kQuad * kQuad * kLanes));
    for (int f = 0; f < features; ++f)
        for (int t = 0; t < kLanes; ++t) quads[(f / kQuad * kLanes + t) * kQuad + f % kQuad] = q[f * stride + t];
}

// ---- Between integers and floats, GELU
// ------------------------------------------------------------------------------------

float gelu(float x) {
    if (std::abs(x) > kErfEnd) return std::max(0.0f, x);
    const float t = std::fma(x * x, 2.0f / (kErfEnd * kErfEnd), -1.0f);
    constexpr int kTerms = sizeof kErf / sizeof kErf[0];
    float sum = kErf[kTerms - 1];
    for (int i = kTerms - 2; i >= 0; --i) sum = std::fma(sum, t, kErf[i]);
    const float half = 0.5f * x;
    return std::fma(half, x * sum, half);
}

template <bool Gelu>
void dequantize(const PackedMatrix& w, int first, int count, const std::int32_t* sums, const float* scales,
                const std::int32_t* zeros, const float* residual, float* y) {
    for (int i = 0; i < count * kLanes; ++i) {
        const auto row = static_cast<std::size_t>(first + i / kLanes);
        const int t = i % kLanes;
        const std::int32_t exact = sums[i] - zeros[t] * w.row_sums[row];
        float value = w.scales[row] * scales[t] * static_cast<float>(exact) + w.biases[row];
        if (residual != nullptr) value += residual[i];
        y[i] = Gelu ? gelu(value) : value;
    }
}

// Round half to even; what is no number, or too large for int32, becomes INT32_MIN, as the x86 instruction has it.
std::int32_t round_even(float x) {
    return std::abs(x) < 2147483648.0f ? static_cast<std::int32_t>(std::nearbyintf(x)) : INT32_MIN;
}

void quantize(const float* x, int features, int groups, std::uint8_t* q, int stride, float* scales,
              std::int32_t* zeros) {
    for (int t = 0; t < groups * kGroup; ++t) {
        float low = 0, high = 0;
        for (int f = 0; f < features; ++f) {
            low = std::min(low, x[f * kLanes + t]);
            high = std::max(high, x[f * kLanes + t]);
        }
        const float step = (high - low) / 255.0f;
        scales[t] = step == 0 ? 1.0f : step;
        zeros[t] = std::clamp(round_even(-low / scales[t]), 0, 255);
        for (int f = 0; f < features; ++f) {
            const std::int64_t level = std::int64_t{round_even(x[f * kLanes + t] / scales[t])} + zeros[t];
            q[f * stride + t] = static_cast<std::uint8_t>(std::clamp<std::int64_t>(level, 0, 255));
        }
    }
}

// ---- LayerNorm
// ---------------------------------------------------------------------------------------------------------

void layer_norm(float* x, int features, int groups, const float* weight, const float* bias, float epsilon) {
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
        for (int f = 0; f < features; ++f)
            x[f * kLanes + t] = std::fma((x[f * kLanes + t] - mean) * inverse, weight[f], bias[f]);
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
        .query_groups = 3,
        .costs = {1, 0.95f, 3.9f, 3.7f},  // multiplications; the more regular format wins a tie
        .products = {product<Format::survivors>, product<Format::blocks_1x4>, product<Format::blocks_4x1>,
                     product<Format::dense>},
        .interleave = interleave,
        .dequantize = dequantize<false>,
        .dequantize_gelu = dequantize<true>,
        .quantize = quantize,
        .layer_norm = layer_norm,
        .softmax = softmax,
        .attention = attention,
        .dense = dense,
    };
    return kernels;
}

}  // namespace sparselane
