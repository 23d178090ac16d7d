// The kernels for AVX2 + FMA: 32 tokens are four float registers or one byte register.
#include "kernels_ymm.h"

namespace sparselane {
namespace {

struct MultiplyAddPairs {
    // |255 * 64 * 2| < 32768: the int16 sums of maddubs never saturate (docs/artifact.md, section 4).
    static __m256i add(__m256i sum, __m256i bytes, __m256i weights) {
        const __m256i pairs = _mm256_maddubs_epi16(bytes, weights);
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
};

}  // namespace

const Kernels& avx2_kernels() {
    static constexpr Kernels kernels = kernels_with<MultiplyAddPairs>("avx2", {1.45f, 1.2f, 4.5f, 4.25f, kNever});
    return kernels;
}

}  // namespace sparselane
