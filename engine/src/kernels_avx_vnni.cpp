// The kernels for AVX-VNNI: AVX2's, with one instruction for four products and their sum.
#include "kernels_ymm.h"

namespace sparselane {
namespace {

struct DotProduct {
    static __m256i add(__m256i sum, __m256i bytes, __m256i weights) {
        return _mm256_dpbusd_avx_epi32(sum, bytes, weights);
    }
};

}  // namespace

const Kernels& avx_vnni_kernels() {
    static constexpr Kernels kernels = kernels_with<DotProduct>("avx_vnni", {1.05f, 0.9f, 2.9f, 2.75f, kNever});
    return kernels;
}

}  // namespace sparselane
