// The kernels for AVX-512 with VNNI: those of kernels_zmm.h.
#include "kernels_zmm.h"

namespace sparselane {

const Kernels& avx512_vnni_kernels() {
    static constexpr Kernels kernels{
        .name = "avx512_vnni",
        .tiles = 2,
        .quad_tiles = 2,
        .query_groups = kQueryGroups<Vector16>,
        .costs = {0.95f, 0.6f, 1.4f, 1.1f, kNever},
        .products = {multiply_survivors, multiply_blocks_1x4, multiply_blocks_4x1, multiply_dense, nullptr},
        .interleave = interleave,
        .dequantize = dequantize<Vector16, false>,
        .dequantize_gelu = dequantize<Vector16, true>,
        .quantize = quantize<Vector16, Vector8>,
        .quantize_quads = quantize_quads<Vector16, Vector8>,
        .layer_norm = layer_norm<Vector16, Vector8>,
        .softmax = softmax<Vector16, Vector8>,
        .attention = attention<Vector16>,
        .quantize_head = quantize_head<Vector16, interleave>,
        .integer_attention = integer_attention<Vector16>,
        .dense = dense<Vector8>,
    };
    return kernels;
}

}  // namespace sparselane
