// The definition of every kernel: plain C++, one token at a time, kept for ever. Fast kernels are tested against it:
// spmm, dequantize and quantize to the last bit, the others to the tolerances stated in tests/engine/.
#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace sparselane {
namespace {

void spmm(const PackedMatrix& w, int first, int count, const std::uint8_t* x, std::int32_t* sums) {
    for (int row = first; row < first + count; ++row, sums += kLanes) {
        const auto r = static_cast<std::size_t>(row);
        std::fill(sums, sums + kLanes, 0);
        for (std::size_t i = std::size_t{kSurvivorGroup} * w.row_groups[r];
             i < std::size_t{kSurvivorGroup} * w.row_groups[r + 1]; ++i)
            for (int t = 0; t < kLanes; ++t) sums[t] += w.weights[i] * x[8 * w.offsets[i] + t];
    }
}

void dequantize(const PackedMatrix& w, int first, int count, const std::int32_t* sums, const float* scales,
                const std::int32_t* zeros, const float* residual, float* y) {
    for (int i = 0; i < count * kLanes; ++i) {
        const auto row = static_cast<std::size_t>(first + i / kLanes);
        const int t = i % kLanes;
        const std::int32_t exact = sums[i] - zeros[t] * w.row_sums[row];
        const float value = w.scales[row] * scales[t] * static_cast<float>(exact) + w.biases[row];
        y[i] = residual == nullptr ? value : value + residual[i];
    }
}

// Round half to even; what is no number, or too large for int32, becomes INT32_MIN, as the vector instruction has it.
std::int32_t round_even(float x) {
    return std::abs(x) < 2147483648.0f ? static_cast<std::int32_t>(std::nearbyintf(x)) : INT32_MIN;
}

void quantize(const float* x, int features, int groups, std::uint8_t* q, float* scales, std::int32_t* zeros) {
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
            q[f * kLanes + t] = static_cast<std::uint8_t>(std::clamp<std::int64_t>(level, 0, 255));
        }
    }
}

void gelu(float* x, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
}

void layer_norm(float* x, int features, int groups, const float* weight, const float* bias, float epsilon) {
    for (int t = 0; t < groups * kGroup; ++t) {
        float sum = 0, squares = 0;
        for (int f = 0; f < features; ++f) sum += x[f * kLanes + t];
        const float mean = sum / static_cast<float>(features);
        for (int f = 0; f < features; ++f) squares += (x[f * kLanes + t] - mean) * (x[f * kLanes + t] - mean);
        const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(features) + epsilon);
        for (int f = 0; f < features; ++f)
            x[f * kLanes + t] = (x[f * kLanes + t] - mean) * inverse * weight[f] + bias[f];
    }
}

void softmax(float* scores, int keys, int groups, float* inverse) {
    const int lanes = groups * kGroup;
    for (int t = 0; t < lanes; ++t) {
        float highest = scores[t], sum = 0;
        for (int k = 1; k < keys; ++k) highest = std::max(highest, scores[k * lanes + t]);
        for (int k = 0; k < keys; ++k) sum += scores[k * lanes + t] = std::exp(scores[k * lanes + t] - highest);
        inverse[t] = 1.0f / sum;
    }
}

void attention(const AttentionBlock& b, float* scratch) {
    const auto at = [&](const float* head, int lane, int d) {
        return head[(lane / kLanes) * b.tile_stride + d * kLanes + lane % kLanes];
    };
    const float scale = 1.0f / std::sqrt(static_cast<float>(b.head_size));
    const int lanes = b.groups * kGroup;
    float inverse[kQueryLanes];
    for (int k = 0; k < b.length; ++k)
        for (int t = 0; t < lanes; ++t) {
            float sum = 0;
            for (int d = 0; d < b.head_size; ++d)
                sum += at(b.query, b.first_query + t, d) * scale * at(b.key, b.first_lane + k, d);
            scratch[k * lanes + t] = sum;
        }
    softmax(scratch, b.length, b.groups, inverse);
    for (int t = 0; t < lanes; ++t) {
        const int lane = b.first_query + t;
        float* context = b.context + (lane / kLanes) * b.tile_stride + lane % kLanes;
        for (int d = 0; d < b.head_size; ++d) {
            float sum = 0;
            for (int k = 0; k < b.length; ++k) sum += scratch[k * lanes + t] * at(b.value, b.first_lane + k, d);
            context[d * kLanes] = sum * inverse[t];
        }
    }
}

void dense(const float* w, const float* bias, int rows, int columns, const float* x, int groups, float* y) {
    for (int r = 0; r < rows; ++r)
        for (int t = 0; t < groups * kGroup; ++t) {
            float sum = 0;
            for (int c = 0; c < columns; ++c)
                sum += w[static_cast<std::size_t>(r) * static_cast<std::size_t>(columns) + c] * x[c * kLanes + t];
            y[r * kLanes + t] = sum + bias[r];
        }
}

}  // namespace

const Kernels& reference_kernels() {
    static constexpr Kernels kernels{"reference", spmm,    dequantize, quantize, gelu,
                                     layer_norm,  softmax, attention,  dense};
    return kernels;
}

}  // namespace sparselane
