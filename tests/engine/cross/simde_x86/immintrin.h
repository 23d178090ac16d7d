// In place of the compiler's <immintrin.h>: what a CPU with AVX2 and FMA lacks is carried out by SIMDe.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

// Those that SIMDe has not (by this name).
#define _mm256_dpbusd_avx_epi32(sum, bytes, weights) simde_mm256_dpbusd_epi32(sum, bytes, weights)

static inline __m128i saturate_to_bytes(simde__m512i words) {
    const simde__m512i_private from = simde__m512i_to_private(words);
    unsigned char bytes[16];
    for (int i = 0; i < 16; ++i)
        bytes[i] = from.u32[i] > 255 ? static_cast<unsigned char>(255) : static_cast<unsigned char>(from.u32[i]);
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}
#define _mm512_cvtusepi32_epi8(words) saturate_to_bytes(words)

static inline simde__m512i expand_bytes(unsigned long long mask, simde__m512i from) {
    simde__m512i_private all = simde__m512i_to_private(from), expanded = simde__m512i_to_private(simde_mm512_setzero_si512());
    for (int i = 0, next = 0; i < 64; ++i)
        if ((mask >> i & 1) != 0) expanded.u8[i] = all.u8[next++];
    return simde__m512i_from_private(expanded);
}
#define _mm512_maskz_expand_epi8(mask, from) expand_bytes(mask, from)

// The matrix unit of AMX: eight tiles of up to 16 rows of 64 bytes. What the stand-in wants more than the processor does
// is that nothing be read from a tile beyond its shape.
struct StandInTiles {
    unsigned rows[8], row_bytes[8];
    alignas(64) unsigned char bytes[8][16][64];
};
inline StandInTiles stand_in_tiles;

static inline void load_tile_shapes(const void* shapes) {
    const auto* from = static_cast<const unsigned char*>(shapes);
    for (unsigned t = 0; t < 8; ++t) {
        stand_in_tiles.rows[t] = from[48 + t];
        stand_in_tiles.row_bytes[t] = from[16 + 2 * t] + 256u * from[17 + 2 * t];
    }
    __builtin_memset(stand_in_tiles.bytes, 0, sizeof stand_in_tiles.bytes);
}
static inline void clear_tile(unsigned t) { __builtin_memset(stand_in_tiles.bytes[t], 0, sizeof stand_in_tiles.bytes[t]); }
static inline void load_tile(unsigned t, const void* from, long stride) {
    clear_tile(t);
    for (unsigned row = 0; row < stand_in_tiles.rows[t]; ++row)
        __builtin_memcpy(stand_in_tiles.bytes[t][row], static_cast<const char*>(from) + row * stride,
                         stand_in_tiles.row_bytes[t]);
}
static inline void store_tile(unsigned t, void* to, long stride) {
    for (unsigned row = 0; row < stand_in_tiles.rows[t]; ++row)
        __builtin_memcpy(static_cast<char*>(to) + row * stride, stand_in_tiles.bytes[t][row],
                         stand_in_tiles.row_bytes[t]);
}
// Signed bytes times unsigned ones; a column of b has four of them.
static inline void multiply_tiles(unsigned sums, unsigned a, unsigned b) {
    StandInTiles& tiles = stand_in_tiles;
    if (tiles.row_bytes[a] != 4 * tiles.rows[b] || tiles.rows[sums] != tiles.rows[a] ||
        tiles.row_bytes[sums] != tiles.row_bytes[b])
        __builtin_trap();  // as the processor does
    for (unsigned m = 0; m < tiles.rows[sums]; ++m)
        for (unsigned n = 0; n < tiles.row_bytes[sums] / 4; ++n) {
            int sum;
            __builtin_memcpy(&sum, &tiles.bytes[sums][m][4 * n], 4);
            for (unsigned k = 0; k < tiles.row_bytes[a]; ++k)
                sum += static_cast<signed char>(tiles.bytes[a][m][k]) * tiles.bytes[b][k / 4][4 * n + k % 4];
            __builtin_memcpy(&tiles.bytes[sums][m][4 * n], &sum, 4);
        }
}
#define _tile_loadconfig(shapes) load_tile_shapes(shapes)
#define _tile_release() static_cast<void>(0)
#define _tile_zero(tile) clear_tile(tile)
#define _tile_loadd(tile, from, stride) load_tile(tile, from, stride)
#define _tile_stored(tile, to, stride) store_tile(tile, to, stride)
#define _tile_dpbsud(sums, a, b) multiply_tiles(sums, a, b)
