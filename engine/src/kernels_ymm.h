// What the kernels for 256-bit registers share: eight floats as a vector class, and the products, over the instruction
// that multiplies bytes. Included by kernels_<isa>.cpp files alone (see kernels_vector.h for the unnamed namespace).
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels_attention.h"

namespace sparselane {
namespace {

struct Vector8 {
    using F = __m256;
    using I = __m256i;
    static constexpr int lanes = 8;
    static constexpr int keys = 4, features = 4;  // x 3 query vectors: 12 of 16 registers hold sums

    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
    static F set(float x) { return _mm256_set1_ps(x); }
    static I load_int(const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static void store_int(std::int32_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
    static I set_int(int x) { return _mm256_set1_epi32(x); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F sqrt(F a) { return _mm256_sqrt_ps(a); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
    static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static I to_int(F a) { return _mm256_cvtps_epi32(a); }
    static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
    static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
    static I sub_int(I a, I b) { return _mm256_sub_epi32(a, b); }
    static I mul_int(I a, I b) { return _mm256_mullo_epi32(a, b); }
    static I clamp_int(I a, int low, int high) {
        return _mm256_max_epi32(set_int(low), _mm256_min_epi32(a, set_int(high)));
    }
    static F power_of_two(F n) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), set_int(127)), 23));
    }
    static F times_power_of_two(F x, F n) {
        const I shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shift));
    }
    static F split(F x, F& rest) {
        const I bits = _mm256_castps_si256(x);
        const I fraction = _mm256_and_si256(bits, set_int(0x7fffff));
        rest = _mm256_castsi256_ps(_mm256_or_si256(fraction, set_int(0x3f800000)));
        return to_float(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), set_int(127)));
    }
    static F if_zero(F x, F y) { return _mm256_blendv_ps(x, y, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_EQ_OQ)); }
    static F if_greater(F a, F b, F x, F y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
    static F zero_if_less(F a, F b, F x) { return _mm256_and_ps(x, _mm256_cmp_ps(a, b, _CMP_NLT_UQ)); }

    // to_int gives INT32_MIN for what is no number; the saturating packs then make it 0, and clip everything else.
    static void store_bytes(std::uint8_t* q, const I (&levels)[4]) {
        const __m256i first = _mm256_packs_epi32(levels[0], levels[1]),
                      second = _mm256_packs_epi32(levels[2], levels[3]);
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // undoes the packs' work in 128-bit halves
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), bytes);
    }
    static void store_bytes(std::uint8_t* q, const I (&levels)[1]) {
        const __m128i words =
            _mm_packs_epi32(_mm256_castsi256_si128(levels[0]), _mm256_extracti128_si256(levels[0], 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(q), _mm_packus_epi16(words, words));
    }

    static I load_bytes(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static void store_bytes(std::uint8_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
    static I set_quad(const std::int8_t* p) {
        std::int32_t four;
        std::memcpy(&four, p, sizeof four);
        return _mm256_set1_epi32(four);
    }
    static I pack_quad(I a, I b, I c, I d) {
        return _mm256_or_si256(_mm256_or_si256(a, _mm256_slli_epi32(b, 8)),
                               _mm256_or_si256(_mm256_slli_epi32(c, 16), _mm256_slli_epi32(d, 24)));
    }
};

// The same with the instruction set's way to multiply bytes (see Dot below).
template <class Dot>
struct Vector8With : Vector8 {
    static I dot(I sum, I bytes, I weights) { return Dot::add(sum, bytes, weights); }
};

inline __m256i load_lanes(const std::uint8_t* x) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(x)); }

inline __m256i broadcast_quad(const std::int8_t* weights) {
    std::int32_t four;
    std::memcpy(&four, weights, sizeof four);
    return _mm256_set1_epi32(four);
}

// The four offsets of a step, in one load: with a load for each of them there are more loads than the CPU does beside
// those of the columns, and AVX-512 is 10 % slower.
class Columns {
public:
    explicit Columns(const std::uint16_t* offsets) { std::memcpy(&four_, offsets, sizeof four_); }
    std::size_t offset(int i) const { return static_cast<std::uint16_t>(four_ >> (16 * i)); }

private:
    std::uint64_t four_;
};

// The 32 tokens of four columns, interleaved so that the four values of a token are neighbours. The unpacks work within
// 128-bit halves: part 0 holds tokens 0-3 and 16-19, part 1 4-7 and 20-23, part 2 8-11 and 24-27, part 3 12-15 and
// 28-31.
struct Gathered {
    __m256i ab_low, ab_high, cd_low, cd_high;

    Gathered(const std::uint8_t* x, const std::uint16_t* offsets) {
        const Columns columns(offsets);
        const auto column = [&](int i) { return load_lanes(x + kOffsetUnit * columns.offset(i)); };
        const __m256i a = column(0), b = column(1), c = column(2), d = column(3);
        ab_low = _mm256_unpacklo_epi8(a, b), ab_high = _mm256_unpackhi_epi8(a, b);
        cd_low = _mm256_unpacklo_epi8(c, d), cd_high = _mm256_unpackhi_epi8(c, d);
    }
    __m256i part(int i) const {
        const __m256i ab = i < 2 ? ab_low : ab_high, cd = i < 2 ? cd_low : cd_high;
        return i % 2 == 0 ? _mm256_unpacklo_epi16(ab, cd) : _mm256_unpackhi_epi16(ab, cd);
    }
};

inline void store_quarter(std::int32_t* sums, int token, __m256i pair) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + token), pair);
}

// Parts 2h and 2h + 1 of a row's sums to tokens 8h.. and 16 + 8h.. of `sums`.
inline void store_parts(std::int32_t* sums, int half, __m256i first, __m256i second) {
    store_quarter(sums, 8 * half, _mm256_permute2x128_si256(first, second, 0x20));
    store_quarter(sums, 16 + 8 * half, _mm256_permute2x128_si256(first, second, 0x31));
}

// Asks for the weights that come two kilobytes later, for the second-level cache: the first is full of columns. With one
// tile, weights are most of the traffic, and the hardware's prefetcher stops at every 4 KiB: 32 tokens of BERT-Base became
// 15 % faster. (A row's worth at once was no better.)
inline void prefetch_behind(const PackedMatrix& w, std::size_t step) {
    constexpr std::size_t kAhead = 2048;
    _mm_prefetch(reinterpret_cast<const char*>(w.offsets.data() + kQuad * step) + kAhead, _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(w.weights.data() + kQuad * step) + kAhead / 2, _MM_HINT_T1);
}

// Where the sums of a strip of one row go.
inline std::int32_t* row_sums(const PackedMatrix& w, int strip, std::int32_t* sums) {
    return sums + w.strip_rows[static_cast<std::size_t>(strip)] * kLanes;
}

// In all products: Dot::add(sum, bytes, weights) adds to each int32 the four products of its bytes, exactly.

template <class Dot, bool Warm>
void multiply_survivors_of(const PackedMatrix& w, int first, int count, const ProductInput& input,
                           std::int32_t* sums) {
    for (int row = first; row < first + count; ++row) {
        std::int32_t* to = row_sums(w, row, sums);
        __m256i s[4] = {};
        const auto add = [&](std::size_t step) {
            const Gathered x(input.x, w.offsets.data() + kQuad * step);
            const __m256i weights = broadcast_quad(w.weights.data() + kQuad * step);
            for (int i = 0; i < 4; ++i) s[i] = Dot::add(s[i], x.part(i), weights);
        };
        std::size_t step = w.strip_steps[static_cast<std::size_t>(row)];
        const std::size_t end = w.strip_steps[static_cast<std::size_t>(row) + 1];
        for (; step + 2 <= end; step += 2) {
            if constexpr (!Warm) prefetch_behind(w, step);
            add(step), add(step + 1);
        }
        if (step < end) add(step);
        store_parts(to, 0, s[0], s[1]);
        store_parts(to, 1, s[2], s[3]);
    }
}

template <class Dot>
void multiply_survivors(const PackedMatrix& w, int first, int count, const ProductInput& x, std::int32_t* sums) {
    (x.warm ? multiply_survivors_of<Dot, true> : multiply_survivors_of<Dot, false>)(w, first, count, x, sums);
}

template <class Dot>
void multiply_blocks_1x4(const PackedMatrix& w, int first, int count, const ProductInput& input, std::int32_t* sums) {
    for (int row = first; row < first + count; ++row) {
        std::int32_t* to = row_sums(w, row, sums);
        __m256i s[2][4] = {};  // two sets, so that a sum need not wait for the one before
        const auto add = [&](std::size_t step, __m256i(&set)[4]) {
            const std::uint8_t* x = input.x + std::size_t{kOffsetUnit} * w.offsets[step];
            const __m256i weights = broadcast_quad(w.weights.data() + kQuad * step);
            for (int i = 0; i < 4; ++i) set[i] = Dot::add(set[i], load_lanes(x + 32 * i), weights);
        };
        std::size_t step = w.strip_steps[static_cast<std::size_t>(row)];
        const std::size_t end = w.strip_steps[static_cast<std::size_t>(row) + 1];
        for (; step + 2 <= end; step += 2) add(step, s[0]), add(step + 1, s[1]);
        if (step < end) add(step, s[0]);
        for (int i = 0; i < 4; ++i) store_quarter(to, 8 * i, _mm256_add_epi32(s[0][i], s[1][i]));
    }
}

// Half of the tokens at a time: 4 rows x 2 parts are 8 registers of sums.
template <class Dot>
void multiply_blocks_4x1(const PackedMatrix& w, int first, int count, const ProductInput& input, std::int32_t* sums) {
    for (int row = first; row < first + count; row += kPanel, sums += kPanel * kLanes) {
        const auto strip = static_cast<std::size_t>(row / kPanel);
        for (int half = 0; half < 2; ++half) {
            __m256i s[kPanel][2] = {};
            for (std::size_t step = w.strip_steps[strip]; step < w.strip_steps[strip + 1]; ++step) {
                const Gathered x(input.x, w.offsets.data() + kQuad * step);
                const __m256i parts[2] = {x.part(2 * half), x.part(2 * half + 1)};
                for (int r = 0; r < kPanel; ++r) {
                    const __m256i weights = broadcast_quad(w.weights.data() + kPanel * kQuad * step + kQuad * r);
                    for (int i = 0; i < 2; ++i) s[r][i] = Dot::add(s[r][i], parts[i], weights);
                }
            }
            for (int r = 0; r < kPanel; ++r) store_parts(sums + r * kLanes, half, s[r][0], s[r][1]);
        }
    }
}

template <class Dot>
void multiply_dense(const PackedMatrix& w, int first, int count, const ProductInput& input, std::int32_t* sums) {
    for (int row = first; row < first + count; row += kPanel, sums += kPanel * kLanes) {
        const auto strip = static_cast<std::size_t>(row / kPanel);
        const std::size_t begin = w.strip_steps[strip], end = w.strip_steps[strip + 1];
        for (int half = 0; half < 2; ++half) {
            __m256i s[kPanel][2] = {};
            const std::uint8_t* x = input.x + 64 * half;
            const std::int8_t* weights = w.weights.data() + kPanel * kQuad * begin;
            for (std::size_t step = begin; step < end; ++step, x += kQuad * kLanes, weights += kPanel * kQuad) {
                const __m256i parts[2] = {load_lanes(x), load_lanes(x + 32)};
                for (int r = 0; r < kPanel; ++r)
                    for (int i = 0; i < 2; ++i)
                        s[r][i] = Dot::add(s[r][i], parts[i], broadcast_quad(weights + kQuad * r));
            }
            for (int r = 0; r < kPanel; ++r)
                for (int i = 0; i < 2; ++i) store_quarter(sums + r * kLanes, 16 * half + 8 * i, s[r][i]);
        }
    }
}

inline void interleave(const std::uint8_t* q, int stride, int features, std::uint8_t* quads) {
    const auto step = static_cast<std::uint16_t>(stride / kOffsetUnit);
    const std::uint16_t offsets[] = {0, step, static_cast<std::uint16_t>(2 * step),
                                     static_cast<std::uint16_t>(3 * step)};
    constexpr int kStep = kLanes / kOffsetUnit;
    static constexpr std::uint16_t kRestOffsets[] = {0, kStep, 2 * kStep, 3 * kStep};
    const auto store = [&](const Gathered& x, std::uint8_t* to) {
        const auto put = [&](int at, __m256i bytes) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), bytes);
        };
        for (int half = 0; half < 2; ++half) {
            const __m256i even = x.part(2 * half), odd = x.part(2 * half + 1);
            put(32 * half, _mm256_permute2x128_si256(even, odd, 0x20));
            put(64 + 32 * half, _mm256_permute2x128_si256(even, odd, 0x31));
        }
    };
    int f = 0;
    for (; f + kQuad <= features; f += kQuad) store(Gathered(q + f * stride, offsets), quads + f * kLanes);
    if (f == features) return;
    alignas(32) std::uint8_t rest[kQuad * kLanes] = {};
    for (int i = f; i < features; ++i) std::memcpy(rest + (i - f) * kLanes, q + i * stride, kLanes);
    store(Gathered(rest, kRestOffsets), quads + f * kLanes);
}

// The table of an instruction set with 256-bit registers.
template <class Dot>
constexpr Kernels kernels_with(const char* name, const std::array<float, kFormats>& costs) {
    return {
        .name = name,
        .tiles = 1,
        .quad_tiles = 1,
        .query_groups = kQueryGroups<Vector8>,
        .costs = costs,
        .products = {multiply_survivors<Dot>, multiply_blocks_1x4<Dot>, multiply_blocks_4x1<Dot>, multiply_dense<Dot>,
                     nullptr},
        .interleave = interleave,
        .dequantize = dequantize<Vector8, false>,
        .dequantize_gelu = dequantize<Vector8, true>,
        .quantize = quantize<Vector8, Vector8>,
        .quantize_quads = quantize_quads<Vector8, Vector8>,
        .layer_norm = layer_norm<Vector8, Vector8>,
        .softmax = softmax<Vector8, Vector8>,
        .attention = attention<Vector8>,
        .quantize_head = quantize_head<Vector8, interleave>,
        .integer_attention = integer_attention<Vector8With<Dot>>,
        .dense = dense<Vector8>,
    };
}

}  // namespace
}  // namespace sparselane
