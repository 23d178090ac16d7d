// The kernels for 64-bit Arm with the dot product instructions (Armv8.2-A): four floats, or 16 tokens, in a register.
#include <arm_neon.h>

#include <algorithm>
#include <cstring>

#include "kernels_attention.h"

namespace sparselane {
namespace {

struct Vector4 {
    using F = float32x4_t;
    using I = int32x4_t;
    static constexpr int lanes = 4;
    static constexpr int keys = 4, features = 4;  // x 6 query vectors: 24 of 32 registers hold sums

    static F load(const float* p) { return vld1q_f32(p); }
    static void store(float* p, F x) { vst1q_f32(p, x); }
    static F set(float x) { return vdupq_n_f32(x); }
    static I load_int(const std::int32_t* p) { return vld1q_s32(p); }
    static void store_int(std::int32_t* p, I x) { vst1q_s32(p, x); }
    static I set_int(int x) { return vdupq_n_s32(x); }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F div(F a, F b) { return vdivq_f32(a, b); }
    static F sqrt(F a) { return vsqrtq_f32(a); }
    // Not vminq and vmaxq: those give the number that is none wherever it stands, and order the two zeros.
    static F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
    static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); }
    static F round(F a) { return vrndnq_f32(a); }
    // The conversion alone would saturate, and make 0 of what is no number: here it is INT32_MIN, as everywhere.
    static I to_int(F a) { return vbslq_s32(vcaltq_f32(a, set(2147483648.0f)), vcvtnq_s32_f32(a), set_int(INT32_MIN)); }
    static F to_float(I a) { return vcvtq_f32_s32(a); }
    static I add_int(I a, I b) { return vaddq_s32(a, b); }
    static I sub_int(I a, I b) { return vsubq_s32(a, b); }
    static I mul_int(I a, I b) { return vmulq_s32(a, b); }
    static I clamp_int(I a, int low, int high) { return vmaxq_s32(set_int(low), vminq_s32(a, set_int(high))); }
    static F power_of_two(F n) {
        return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), set_int(127)), 23));
    }
    static F times_power_of_two(F x, F n) {
        return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
    }
    static F split(F x, F& rest) {
        const I bits = vreinterpretq_s32_f32(x);
        rest = vreinterpretq_f32_s32(vorrq_s32(vandq_s32(bits, set_int(0x7fffff)), set_int(0x3f800000)));
        return to_float(vsubq_s32(vshrq_n_s32(bits, 23), set_int(127)));
    }
    static F if_zero(F x, F y) { return vbslq_f32(vceqzq_f32(x), y, x); }
    static F if_greater(F a, F b, F x, F y) { return vbslq_f32(vcgtq_f32(a, b), x, y); }
    static F zero_if_less(F a, F b, F x) {
        return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), vcltq_f32(a, b)));
    }

    template <std::size_t N>
    static void store_bytes(std::uint8_t* q, const I (&levels)[N]) {
        static_assert(N % 2 == 0);
        for (std::size_t n = 0; n < N; n += 2)  // both narrowings saturate
            vst1_u8(q + lanes * n, vqmovun_s16(vcombine_s16(vqmovn_s32(levels[n]), vqmovn_s32(levels[n + 1]))));
    }

    static I load_bytes(const std::uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
    static void store_bytes(std::uint8_t* p, I x) { vst1q_u8(p, vreinterpretq_u8_s32(x)); }
    static I set_quad(const std::int8_t* p) {
        std::int32_t four;
        std::memcpy(&four, p, sizeof four);
        return vdupq_n_s32(four);
    }
    static I pack_quad(I a, I b, I c, I d) { return vsliq_n_s32(vsliq_n_s32(vsliq_n_s32(a, b, 8), c, 16), d, 24); }
    // The instruction takes signed bytes: x - 128 instead of x, and 128 x the sum of the weights, in two halves,
    // because 128 is no int8. The compiler keeps what belongs to x or to the weights alone.
    static I dot(I sum, I bytes, I weights) {
        const int8x16_t w = vreinterpretq_s8_s32(weights), half = vdupq_n_s8(64);
        const int8x16_t x = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(bytes), vdupq_n_u8(0x80)));
        return vdotq_s32(vaddq_s32(sum, vdotq_s32(vdotq_s32(set_int(0), w, half), w, half)), x, w);
    }
};

// ---- Products -------------------------------------------------------------------------------------------------------

// The dot product takes two signed operands, so levels enter as x - 128, which is x with its highest bit turned over;
// every sum begins with 128 x the sum of the row's weights. Nothing overflows: 8192 columns x 255 x 64 < 2^28.
constexpr int kTokens = 16;                // of a register of levels: half a tile
constexpr int kParts = kTokens / 4;        // registers of four tokens x four columns, or of four sums
constexpr int kHalves = kLanes / kTokens;  // of a tile

inline int8x16_t load_levels(const std::uint8_t* x) {
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(x), vdupq_n_u8(0x80)));
}

inline int32x4_t first_sum(const PackedMatrix& w, int row) {  // rows beyond the last, in its panel, are zeros
    return vdupq_n_s32(row < w.rows ? 128 * w.row_sums[static_cast<std::size_t>(row)] : 0);
}

inline int8x16_t broadcast_quad(const std::int8_t* weights) {
    std::int32_t four;
    std::memcpy(&four, weights, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

// Half a tile of four columns wherever they are: the four levels of a token become neighbours, tokens stay in order.
inline void load_columns(const std::uint8_t* x, const std::uint16_t* offsets, int8x16_t (&parts)[kParts]) {
    const auto column = [&](int i) { return load_levels(x + std::size_t{kOffsetUnit} * offsets[i]); };
    const int8x16_t a = column(0), b = column(1), c = column(2), d = column(3);
    const auto words = [](int8x16_t bytes) { return vreinterpretq_s16_s8(bytes); };
    const int16x8_t ab_low = words(vzip1q_s8(a, b)), ab_high = words(vzip2q_s8(a, b));
    const int16x8_t cd_low = words(vzip1q_s8(c, d)), cd_high = words(vzip2q_s8(c, d));
    parts[0] = vreinterpretq_s8_s16(vzip1q_s16(ab_low, cd_low));
    parts[1] = vreinterpretq_s8_s16(vzip2q_s16(ab_low, cd_low));
    parts[2] = vreinterpretq_s8_s16(vzip1q_s16(ab_high, cd_high));
    parts[3] = vreinterpretq_s8_s16(vzip2q_s16(ab_high, cd_high));
}

// Half a tile of four neighbouring columns, interleaved before.
inline void load_quads(const std::uint8_t* x, int8x16_t (&parts)[kParts]) {
    for (int i = 0; i < kParts; ++i) parts[i] = load_levels(x + kTokens * i);
}

inline void store_sums(const int32x4_t (&parts)[kParts], std::int32_t* sums) {
    for (int i = 0; i < kParts; ++i) vst1q_s32(sums + 4 * i, parts[i]);
}

// Formats survivors and blocks_1x4: 8 registers of sums, as many as two pipelines of latency 4 keep busy.
template <Format Kind>
void multiply_rows(const PackedMatrix& w, int first, int count, const ProductInput& input, std::int32_t* sums) {
    for (auto strip = static_cast<std::size_t>(first); strip < static_cast<std::size_t>(first + count); ++strip) {
        const int row = w.strip_rows[strip];  // of this block
        int32x4_t s[kHalves][kParts];
        for (auto& half : s)
            for (auto& part : half) part = first_sum(w, first + row);
        for (std::size_t step = w.strip_steps[strip]; step < w.strip_steps[strip + 1]; ++step) {
            const int8x16_t weights = broadcast_quad(w.weights.data() + kQuad * step);
            for (int half = 0; half < kHalves; ++half) {
                int8x16_t x[kParts];
                if constexpr (Kind == Format::survivors)
                    load_columns(input.x + kTokens * half, w.offsets.data() + kQuad * step, x);
                else
                    load_quads(input.x + std::size_t{kOffsetUnit} * w.offsets[step] + kQuad * kTokens * half, x);
                for (int i = 0; i < kParts; ++i) s[half][i] = vdotq_s32(s[half][i], x[i], weights);
            }
        }
        for (int half = 0; half < kHalves; ++half) store_sums(s[half], sums + row * kLanes + kTokens * half);
    }
}

// Formats blocks_4x1 and dense: half of the tokens at a time, so that four rows are 16 registers of sums. A register
// holds the step's weights, and each row takes its quarter of it.
template <Format Kind>
void multiply_panels(const PackedMatrix& w, int first, int count, const ProductInput& input, std::int32_t* sums) {
    for (int row = first; row < first + count; row += kPanel, sums += kPanel * kLanes) {
        const auto strip = static_cast<std::size_t>(row / kPanel);
        const std::size_t begin = w.strip_steps[strip], end = w.strip_steps[strip + 1];
        for (int half = 0; half < kHalves; ++half) {
            int32x4_t s[kPanel][kParts];
            for (int r = 0; r < kPanel; ++r)
                for (auto& part : s[r]) part = first_sum(w, row + r);
            for (std::size_t step = begin; step < end; ++step) {
                int8x16_t x[kParts];
                if constexpr (Kind == Format::blocks_4x1)
                    load_columns(input.x + kTokens * half, w.offsets.data() + kQuad * step, x);
                else
                    load_quads(input.x + (step - begin) * kQuad * kLanes + kQuad * kTokens * half, x);
                const int8x16_t weights = vld1q_s8(w.weights.data() + kPanel * kQuad * step);
                for (int i = 0; i < kParts; ++i) {
                    s[0][i] = vdotq_laneq_s32(s[0][i], x[i], weights, 0);
                    s[1][i] = vdotq_laneq_s32(s[1][i], x[i], weights, 1);
                    s[2][i] = vdotq_laneq_s32(s[2][i], x[i], weights, 2);
                    s[3][i] = vdotq_laneq_s32(s[3][i], x[i], weights, 3);
                }
            }
            for (int r = 0; r < kPanel; ++r) store_sums(s[r], sums + r * kLanes + kTokens * half);
        }
    }
}

void interleave(const std::uint8_t* q, int stride, int features, std::uint8_t* quads) {
    for (int f = 0; f < features; f += kQuad, q += kQuad * stride, quads += kQuad * kLanes)
        for (int half = 0; half < kHalves; ++half) {
            const auto column = [&](int i) {
                return f + i < features ? vld1q_u8(q + i * stride + kTokens * half) : vdupq_n_u8(0);
            };
            const uint8x16x4_t columns{{column(0), column(1), column(2), column(3)}};
            vst4q_u8(quads + kQuad * kTokens * half, columns);
        }
}

}  // namespace

const Kernels& neon_kernels() {
    static constexpr Kernels kernels{
        .name = "neon",
        .tiles = 1,
        .quad_tiles = 1,
        .query_groups = kQueryGroups<Vector4>,
        .costs = {8, 4, 14, 10, kNever},  // not measured: vector operations of a step, loads left out, divided by 4
        .products = {multiply_rows<Format::survivors>, multiply_rows<Format::blocks_1x4>,
                     multiply_panels<Format::blocks_4x1>, multiply_panels<Format::dense>, nullptr},
        .interleave = interleave,
        .dequantize = dequantize<Vector4, false>,
        .dequantize_gelu = dequantize<Vector4, true>,
        .quantize = quantize<Vector4, Vector4>,
        .quantize_quads = quantize_quads<Vector4, Vector4>,
        .layer_norm = layer_norm<Vector4, Vector4>,
        .softmax = softmax<Vector4, Vector4>,
        .attention = attention<Vector4>,
        .quantize_head = quantize_head<Vector4, interleave>,
        .integer_attention = integer_attention<Vector4>,
        .dense = dense<Vector4>,
    };
    return kernels;
}

}  // namespace sparselane
