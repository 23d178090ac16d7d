// What the kernels for AVX-512 with VNNI (and F, BW, DQ, VL) share: a tile is two float registers, and a product takes two
// tiles at once, because a byte register holds 64 tokens. Included by kernels_<isa>.cpp files alone (see kernels_vector.h
// for the unnamed namespace).
#pragma once

#include "kernels_ymm.h"

namespace sparselane {
namespace {

struct Vector16 {
    using F = __m512;
    using I = __m512i;
    static constexpr int lanes = 16;
    static constexpr int keys = 8, features = 8;  // x 3 query vectors: 24 of 32 registers hold sums

    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
    static F set(float x) { return _mm512_set1_ps(x); }
    static I load_int(const std::int32_t* p) { return _mm512_loadu_si512(p); }
    static void store_int(std::int32_t* p, I x) { _mm512_storeu_si512(p, x); }
    static I set_int(int x) { return _mm512_set1_epi32(x); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F sqrt(F a) { return _mm512_sqrt_ps(a); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
    static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static I to_int(F a) { return _mm512_cvtps_epi32(a); }
    static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
    static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
    static I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
    static I mul_int(I a, I b) { return _mm512_mullo_epi32(a, b); }
    static I clamp_int(I a, int low, int high) {
        return _mm512_max_epi32(set_int(low), _mm512_min_epi32(a, set_int(high)));
    }
    static F power_of_two(F n) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), set_int(127)), 23));
    }
    static F times_power_of_two(F x, F n) { return _mm512_scalef_ps(x, n); }
    static F split(F x, F& rest) {
        const I bits = _mm512_castps_si512(x);
        const I fraction = _mm512_and_si512(bits, set_int(0x7fffff));
        rest = _mm512_castsi512_ps(_mm512_or_si512(fraction, set_int(0x3f800000)));
        return to_float(_mm512_sub_epi32(_mm512_srli_epi32(bits, 23), set_int(127)));
    }
    static F if_zero(F x, F y) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_EQ_OQ), x, y);
    }
    static F if_greater(F a, F b, F x, F y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x); }
    static F zero_if_less(F a, F b, F x) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), x); }

    template <std::size_t N>
    static void store_bytes(std::uint8_t* q, const I (&levels)[N]) {
        for (std::size_t n = 0; n < N; ++n) {  // no number is INT32_MIN here, which becomes 0
            const __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(levels[n], _mm512_setzero_si512()));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16 * n), bytes);
        }
    }

    static I load_bytes(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
    static void store_bytes(std::uint8_t* p, I x) { _mm512_storeu_si512(p, x); }
    static I set_quad(const std::int8_t* p) {
        std::int32_t four;
        std::memcpy(&four, p, sizeof four);
        return _mm512_set1_epi32(four);
    }
    static I pack_quad(I a, I b, I c, I d) {
        return _mm512_or_si512(_mm512_or_si512(a, _mm512_slli_epi32(b, 8)),
                               _mm512_or_si512(_mm512_slli_epi32(c, 16), _mm512_slli_epi32(d, 24)));
    }
    // Not the intrinsic, around which GCC 12 copies registers: products are 7 % slower. Where the tests emulate AVX-512
    // there is no such instruction, but an intrinsic.
    static I dot(I sum, I bytes, I weights) {
#ifdef __AVX512VNNI__
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(weights));
        return sum;
#else
        return _mm512_dpbusd_epi32(sum, bytes, weights);
#endif
    }
};

inline __m512i load_tokens(const std::uint8_t* x) { return _mm512_loadu_si512(x); }

inline __m512i join(const std::uint8_t* low, const std::uint8_t* high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load_lanes(low)), load_lanes(high), 1);
}

// Sums of a row for T tiles: 2 T registers. Interleaved inputs come in the same order.
template <int T>
struct Sums {
    __m512i part[2 * T] = {};

    void add(const __m512i (&x)[2 * T], __m512i weights) {
        for (int i = 0; i < 2 * T; ++i) part[i] = Vector16::dot(part[i], x[i], weights);
    }
    void add(const Sums& other) {
        for (int i = 0; i < 2 * T; ++i) part[i] = _mm512_add_epi32(part[i], other.part[i]);
    }
};

inline void store_half(std::int32_t* sums, int tile, int half, __m512i tokens) {
    _mm512_storeu_si512(sums + tile * kRowBlock * kLanes + 16 * half, tokens);
}

// Columns that are already interleaved: part 2 tile + half holds tokens 16 half...
struct FromQuads {
    template <int T>
    static void load(const ProductInput& input, std::size_t offset, __m512i (&x)[2 * T]) {
        for (int tile = 0; tile < T; ++tile)
            for (int half = 0; half < 2; ++half)
                x[2 * tile + half] = load_tokens(input.x + static_cast<std::size_t>(tile) * input.tile_stride + offset +
                                                 64 * static_cast<std::size_t>(half));
    }
    template <int T>
    static void store(const Sums<T>& s, std::int32_t* sums) {
        for (int tile = 0; tile < T; ++tile)
            for (int half = 0; half < 2; ++half) store_half(sums, tile, half, s.part[2 * tile + half]);
    }
};

// Four columns wherever they are. One tile: columns a and c share a register, b and d another; after the byte unpack a
// word permutation across the register joins ab with cd. Two tiles: a register is a column of both; the unpacks work
// within 128 bits, so part i holds tokens 4 i.. and 16 + 4 i.. of the first tile, then of the second.
struct FromColumns {
    static void load(const ProductInput& input, const std::uint16_t* offsets, __m512i (&x)[2]) {
        const Columns columns(offsets);
        const auto at = [&](int i) { return input.x + kOffsetUnit * columns.offset(i); };
        const __m512i ac = join(at(0), at(2)), bd = join(at(1), at(3));
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                               6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        x[0] = _mm512_permutexvar_epi16(order, _mm512_unpacklo_epi8(ac, bd));
        x[1] = _mm512_permutexvar_epi16(order, _mm512_unpackhi_epi8(ac, bd));
    }
    static void load(const ProductInput& input, const std::uint16_t* offsets, __m512i (&x)[4]) {
        const Columns columns(offsets);
        const auto both = [&](int i) { return load_tokens(input.x + 2 * kOffsetUnit * columns.offset(i)); };
        const __m512i a = both(0), b = both(1), c = both(2), d = both(3);
        const __m512i ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
        const __m512i cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
        x[0] = _mm512_unpacklo_epi16(ab_low, cd_low), x[1] = _mm512_unpackhi_epi16(ab_low, cd_low);
        x[2] = _mm512_unpacklo_epi16(ab_high, cd_high), x[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
    }
    // Each 128-bit lane of a part holds 4 tokens. The unpacks leave tokens 0-7 and 16-23 in the low part.
    static void store(const Sums<1>& s, std::int32_t* sums) {
        store_half(sums, 0, 0, _mm512_shuffle_i64x2(s.part[0], s.part[1], 0x44));
        store_half(sums, 0, 1, _mm512_shuffle_i64x2(s.part[0], s.part[1], 0xee));
    }
    static void store(const Sums<2>& s, std::int32_t* sums) {
        for (int tile = 0; tile < 2; ++tile) {
            const __m512i first = tile == 0 ? _mm512_shuffle_i64x2(s.part[0], s.part[1], 0x44)
                                            : _mm512_shuffle_i64x2(s.part[0], s.part[1], 0xee);
            const __m512i second = tile == 0 ? _mm512_shuffle_i64x2(s.part[2], s.part[3], 0x44)
                                             : _mm512_shuffle_i64x2(s.part[2], s.part[3], 0xee);
            store_half(sums, tile, 0, _mm512_shuffle_i64x2(first, second, 0x88));
            store_half(sums, tile, 1, _mm512_shuffle_i64x2(first, second, 0xdd));
        }
    }
};

template <int T, bool Warm>
void multiply_survivors_of(const PackedMatrix& w, int first, int count, const ProductInput& input, std::int32_t* sums) {
    for (int row = first; row < first + count; ++row) {
        Sums<T> even, odd;  // two sets, so that a sum need not wait for the one before
        const auto add = [&](std::size_t step, Sums<T>& to) {
            __m512i x[2 * T];
            FromColumns::load(input, w.offsets.data() + kQuad * step, x);
            to.add(x, Vector16::set_quad(w.weights.data() + kQuad * step));
        };
        std::size_t step = w.strip_steps[static_cast<std::size_t>(row)];
        const std::size_t end = w.strip_steps[static_cast<std::size_t>(row) + 1];
        const auto two = [&] { add(step, even), add(step + 1, odd), step += 2; };
        while (step + 4 <= end) {
            if constexpr (!Warm) prefetch_behind(w, step);
            two(), two();
        }
        if (step + 2 <= end) {
            if constexpr (!Warm) prefetch_behind(w, step);
            two();
        }
        if (step < end) add(step, even);
        even.add(odd);
        FromColumns::store(even, row_sums(w, row, sums));
    }
}

template <int T>
void multiply_blocks_1x4_of(const PackedMatrix& w, int first, int count, const ProductInput& input,
                            std::int32_t* sums) {
    constexpr int kSets = 4 / T;
    for (int row = first; row < first + count; ++row) {
        Sums<T> s[kSets];
        const auto add = [&](std::size_t step, Sums<T>& to) {
            __m512i x[2 * T];
            FromQuads::load<T>(input, std::size_t{kOffsetUnit} * w.offsets[step], x);
            to.add(x, Vector16::set_quad(w.weights.data() + kQuad * step));
        };
        std::size_t step = w.strip_steps[static_cast<std::size_t>(row)];
        const std::size_t end = w.strip_steps[static_cast<std::size_t>(row) + 1];
        for (; step + kSets <= end; step += kSets)
            for (std::size_t i = 0; i < kSets; ++i) add(step + i, s[i]);
        for (; step < end; ++step) add(step, s[0]);
        for (int i = 1; i < kSets; ++i) s[0].add(s[i]);
        FromQuads::store(s[0], row_sums(w, row, sums));
    }
}

// Four rows share the columns: formats blocks_4x1 and dense.
template <int T, class From, bool Dense>
void multiply_panels(const PackedMatrix& w, int first, int count, const ProductInput& input, std::int32_t* sums) {
    for (int row = first; row < first + count; row += kPanel, sums += kPanel * kLanes) {
        Sums<T> s[kPanel];
        const auto strip = static_cast<std::size_t>(row / kPanel);
        const std::size_t begin = w.strip_steps[strip], end = w.strip_steps[strip + 1];
        for (std::size_t step = begin; step < end; ++step) {
            __m512i x[2 * T];
            if constexpr (Dense)
                From::template load<T>(input, (step - begin) * kQuad * kLanes, x);
            else
                From::load(input, w.offsets.data() + kQuad * step, x);
            for (int r = 0; r < kPanel; ++r)
                s[r].add(x, Vector16::set_quad(w.weights.data() + kPanel * kQuad * step + kQuad * r));
        }
        for (int r = 0; r < kPanel; ++r) From::store(s[r], sums + r * kLanes);
    }
}

void multiply_survivors(const PackedMatrix& w, int first, int count, const ProductInput& x, std::int32_t* sums) {
    if (x.warm)
        (x.tiles == 2 ? multiply_survivors_of<2, true> : multiply_survivors_of<1, true>)(w, first, count, x, sums);
    else
        (x.tiles == 2 ? multiply_survivors_of<2, false> : multiply_survivors_of<1, false>)(w, first, count, x, sums);
}

void multiply_blocks_1x4(const PackedMatrix& w, int first, int count, const ProductInput& x, std::int32_t* sums) {
    (x.tiles == 2 ? multiply_blocks_1x4_of<2> : multiply_blocks_1x4_of<1>)(w, first, count, x, sums);
}

void multiply_blocks_4x1(const PackedMatrix& w, int first, int count, const ProductInput& x, std::int32_t* sums) {
    (x.tiles == 2 ? multiply_panels<2, FromColumns, false> : multiply_panels<1, FromColumns, false>)(w, first, count, x,
                                                                                                     sums);
}

void multiply_dense(const PackedMatrix& w, int first, int count, const ProductInput& x, std::int32_t* sums) {
    (x.tiles == 2 ? multiply_panels<2, FromQuads, true> : multiply_panels<1, FromQuads, true>)(w, first, count, x,
                                                                                               sums);
}

}  // namespace
}  // namespace sparselane
