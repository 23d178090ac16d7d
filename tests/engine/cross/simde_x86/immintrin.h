// In place of the compiler's <immintrin.h>: what a CPU with AVX2 and FMA lacks is carried out by SIMDe.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

// Two that SIMDe has not (by this name).
#define _mm256_dpbusd_avx_epi32(sum, bytes, weights) simde_mm256_dpbusd_epi32(sum, bytes, weights)

static inline __m128i saturate_to_bytes(simde__m512i words) {
    const simde__m512i_private from = simde__m512i_to_private(words);
    unsigned char bytes[16];
    for (int i = 0; i < 16; ++i)
        bytes[i] = from.u32[i] > 255 ? static_cast<unsigned char>(255) : static_cast<unsigned char>(from.u32[i]);
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}
#define _mm512_cvtusepi32_epi8(words) saturate_to_bytes(words)
