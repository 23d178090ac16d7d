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
// zero_if_less(a, b, x) = a < b ? 0 : x; times_power_of_two(x, n) = x 2^n where both are normal; split(x, rest) = the
// whole part of log2(x), and x without it, in [1, 2), of a normal x > 0; store_bytes(q, levels[N]): levels clipped to
// 0..255; and on I as four bytes a lane: load_bytes, store_bytes(q, I), set_quad (the same four in every lane),
// pack_quad (of four I's lowest bytes), dot(sum, unsigned bytes, signed bytes) = sum + their products; and `keys`,
// `features`: how many sums per query vector the registers hold besides three query vectors (or 24 query lanes) of
// operands.
#pragma once

#include "kernels.h"

namespace sparselane {
namespace {

// ---- Between integers and floats, GELU ------------------------------------------------------------------------------

template <class V>
inline typename V::F gelu(typename V::F x) {
    const auto square = V::mul(x, x);
    const auto t = V::fma(square, V::set(2.0f / (kErfEnd * kErfEnd)), V::set(-1.0f));
    constexpr int kTerms = sizeof kHalfErf / sizeof kHalfErf[0];
    auto sum = V::set(kHalfErf[kTerms - 1]);
    for (int i = kTerms - 2; i >= 0; --i) sum = V::fma(sum, t, V::set(kHalfErf[i]));
    const auto inside = V::fma(square, sum, V::mul(x, V::set(0.5f)));
    const auto outside = V::max(V::set(0.0f), x);
    return V::if_greater(square, V::set(kErfEnd * kErfEnd), outside, inside);
}

// Multiplications and additions are kept apart here: torch has no fused ones there. The numbers of the tokens are read
// once, not for every row: the compiler could not know that y does not overwrite them.
template <class V, bool Gelu>
void dequantize(const PackedMatrix& w, int first, int count, const std::int32_t* sums, const float* scales,
                const std::int32_t* zeros, const float* residual, float* y, float* range) {
    constexpr int N = kLanes / V::lanes;
    typename V::F scale[N], low[N], high[N];
    typename V::I zero[N];
    for (int n = 0; n < N; ++n) {
        low[n] = high[n] = V::set(0.0f);
        scale[n] = V::load(scales + n * V::lanes);
        zero[n] = V::load_int(zeros + n * V::lanes);
    }
    for (int row = first; row < first + count; ++row, sums += kLanes, y += kLanes) {
        const auto r = static_cast<std::size_t>(row);
        const auto row_sum = V::set_int(w.row_sums[r]);
        const auto row_scale = V::set(w.scales[r]), bias = V::set(w.biases[r]);
        for (int n = 0; n < N; ++n) {
            const auto exact = V::sub_int(V::load_int(sums + n * V::lanes), V::mul_int(zero[n], row_sum));
            auto value = V::add(V::mul(V::mul(row_scale, scale[n]), V::to_float(exact)), bias);
            if (residual != nullptr) value = V::add(value, V::load(residual + n * V::lanes));
            if (Gelu) value = gelu<V>(value);
            low[n] = V::min(low[n], value);
            high[n] = V::max(high[n], value);
            V::store(y + n * V::lanes, value);
        }
        if (residual != nullptr) residual += kLanes;
    }
    if (range == nullptr) return;
    for (int n = 0; n < N; ++n) {
        V::store(range + n * V::lanes, low[n]);
        V::store(range + kLanes + n * V::lanes, high[n]);
    }
}

// Scales and zero points of N neighbouring vectors of lanes, from their ranges.
template <class V, int N>
void find_scales(const float* range, int bounds, float* scales, std::int32_t* zeros, typename V::F (&inverse)[N],
                 typename V::I (&zero)[N]) {
    typename V::F low[N], high[N];
    for (int n = 0; n < N; ++n) low[n] = high[n] = V::set(0.0f);
    for (int b = 0; b < bounds; ++b)
        for (int n = 0; n < N; ++n) {
            const auto value = V::load(range + b * kLanes + n * V::lanes);
            low[n] = V::min(low[n], value);
            high[n] = V::max(high[n], value);
        }
    for (int n = 0; n < N; ++n) {
        const auto step = V::div(V::sub(high[n], low[n]), V::set(255.0f));
        const auto scale = V::if_greater(V::set(kSmallestStep), step, V::set(1.0f), step);
        inverse[n] = V::div(V::set(1.0f), scale);
        zero[n] = V::clamp_int(V::to_int(V::mul(V::mul(low[n], V::set(-1.0f)), inverse[n])), 0, 255);
        V::store(scales + n * V::lanes, scale);
        V::store_int(zeros + n * V::lanes, zero[n]);
    }
}

template <class V, int N>
void quantize_vectors(const float* x, int features, const float* range, int bounds, std::uint8_t* q, int stride,
                      float* scales, std::int32_t* zeros) {
    typename V::F inverse[N];
    typename V::I zero[N];
    find_scales<V, N>(range, bounds, scales, zeros, inverse, zero);
    for (int f = 0; f < features; ++f) {
        typename V::I levels[N];
        for (int n = 0; n < N; ++n)
            levels[n] = V::add_int(V::to_int(V::mul(V::load(x + f * kLanes + n * V::lanes), inverse[n])), zero[n]);
        V::store_bytes(q + f * stride, levels);
    }
}

template <class V, int N>
void quantize_vectors_to_quads(const float* x, int features, const float* range, int bounds, std::uint8_t* quads,
                               float* scales, std::int32_t* zeros) {
    typename V::F inverse[N];
    typename V::I zero[N];
    find_scales<V, N>(range, bounds, scales, zeros, inverse, zero);
    for (int f = 0; f < features; f += kQuad, x += kQuad * kLanes, quads += kQuad * kLanes)
        for (int n = 0; n < N; ++n) {
            typename V::I levels[kQuad];
            for (int i = 0; i < kQuad; ++i) {
                levels[i] = V::set_int(0);
                if (f + i >= features) continue;
                const auto exact = V::to_int(V::mul(V::load(x + i * kLanes + n * V::lanes), inverse[n]));
                levels[i] = V::clamp_int(V::add_int(exact, zero[n]), 0, 255);
            }
            V::store_bytes(quads + n * V::lanes * kQuad, V::pack_quad(levels[0], levels[1], levels[2], levels[3]));
        }
}

// V works on whole tiles and on as many lanes as it has, Small on single groups of 8 lanes; the instructions, and so the
// bits, are of one kind.
template <class V, class Small>
void quantize(const float* x, int features, int groups, const float* range, int bounds, std::uint8_t* q, int stride,
              float* scales, std::int32_t* zeros) {
    if (groups == kGroups)
        return quantize_vectors<V, kLanes / V::lanes>(x, features, range, bounds, q, stride, scales, zeros);
    if constexpr (V::lanes > kGroup)
        if (groups * kGroup == V::lanes)
            return quantize_vectors<V, 1>(x, features, range, bounds, q, stride, scales, zeros);
    for (int lane = 0; lane < groups * kGroup; lane += kGroup)
        quantize_vectors<Small, kGroup / Small::lanes>(x + lane, features, range + lane, bounds, q + lane, stride,
                                                       scales + lane, zeros + lane);
}

template <class V, class Small>
void quantize_quads(const float* x, int features, int groups, const float* range, int bounds, std::uint8_t* quads,
                    float* scales, std::int32_t* zeros) {
    if (groups == kGroups)
        return quantize_vectors_to_quads<V, kLanes / V::lanes>(x, features, range, bounds, quads, scales, zeros);
    if constexpr (V::lanes > kGroup)
        if (groups * kGroup == V::lanes)
            return quantize_vectors_to_quads<V, 1>(x, features, range, bounds, quads, scales, zeros);
    for (int lane = 0; lane < groups * kGroup; lane += kGroup)
        quantize_vectors_to_quads<Small, kGroup / Small::lanes>(x + lane, features, range + lane, bounds,
                                                                quads + lane * kQuad, scales + lane, zeros + lane);
}

// ---- LayerNorm ------------------------------------------------------------------------------------------------------

template <class V, int N>
void layer_norm_vectors(float* x, int features, const float* weight, const float* bias, float epsilon, float* range) {
    const auto count = V::set(static_cast<float>(features));
    typename V::F mean[N], inverse[N], low[N], high[N];
    for (int n = 0; n < N; ++n) mean[n] = inverse[n] = low[n] = high[n] = V::set(0.0f);
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
            const auto value = V::fma(normal, w, b);
            low[n] = V::min(low[n], value);
            high[n] = V::max(high[n], value);
            V::store(at(f, n), value);
        }
    }
    if (range == nullptr) return;
    for (int n = 0; n < N; ++n) {
        V::store(range + n * V::lanes, low[n]);
        V::store(range + kLanes + n * V::lanes, high[n]);
    }
}

template <class V, class Small>
void layer_norm(float* x, int features, int groups, const float* weight, const float* bias, float epsilon,
                float* range) {
    if (groups == kGroups) return layer_norm_vectors<V, kLanes / V::lanes>(x, features, weight, bias, epsilon, range);
    if constexpr (V::lanes > kGroup)
        if (groups * kGroup == V::lanes) return layer_norm_vectors<V, 1>(x, features, weight, bias, epsilon, range);
    for (int lane = 0; lane < groups * kGroup; lane += kGroup)
        layer_norm_vectors<Small, kGroup / Small::lanes>(x + lane, features, weight, bias, epsilon,
                                                         range == nullptr ? nullptr : range + lane);
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
