// One sparse matrix: from the file's Rice-coded positions to the order in which the kernels read it.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace sparselane {

// The four ways in which the numbers of a matrix can be wrong (docs/artifact.md, section 5).
struct IndexOutOfRange : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct PositionsTruncated : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct PositionsTrailing : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct WeightOutOfRange : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline constexpr int kMaxColumns = 16384;  // see PackedMatrix::offsets
inline constexpr int kWeightLimit = 64;    // 255 * 64 * 2 fits in int16: `maddubs` never saturates
inline constexpr int kSurvivorGroup = 4;   // survivors in one inner step: four int8 weights are one 32-bit broadcast

// A row's survivors in groups of four, the last group filled up with weight 0 on column 0.
struct PackedMatrix {
    int rows = 0;
    int columns = 0;
    std::vector<std::uint32_t> row_groups;  // [rows + 1] first group of each row
    std::vector<std::uint16_t> offsets;     // [groups * 4] column * 32 / 8: where the column's lanes begin, in 8 bytes
    std::vector<std::int8_t> weights;       // [groups * 4]
    std::vector<std::int32_t> row_sums;     // [rows] sum of the row's weights, for the zero point
    std::vector<float> scales;              // [rows]
    std::vector<float> biases;              // [rows]
};

// One matrix as it lies in the artifact (docs/artifact.md, sections 2 and 3).
struct MatrixSource {
    std::string name;  // for error messages
    int rows = 0;
    int columns = 0;
    int rice = 0;
    std::span<const std::uint8_t> positions;
    std::span<const std::uint16_t> row_survivors;
    std::span<const std::int8_t> values;
    std::span<const float> scales;
    std::span<const float> biases;
};

// Decodes, checks and packs. Throws one of the four errors above, or std::invalid_argument if the sizes disagree.
PackedMatrix pack(const MatrixSource& source);

}  // namespace sparselane
